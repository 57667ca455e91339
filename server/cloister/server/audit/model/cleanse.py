"""Neural Cleanse: for every class the smallest patch that turns records of the others into it; a planted trigger is one that is far smaller.

Wang, Yao, Shan, Li, Viswanath, Zheng & Zhao (2019), "Neural Cleanse: identifying and mitigating backdoor attacks in neural networks". For each class t a
mask m in [0, 1] and a pattern p minimise  CE(f((1 - m)·x + m·p), t) + λ·|m|₁ ; λ rises while at least `_ENOUGH` of the records are turned and
falls while they are not (their section IV). All classes are searched side by side.

The index of a class is how far the logarithm of its size lies below the median of all, in units of their spread. The paper takes the sizes themselves and
1.4826·MAD as their spread. Among ten classes both mislead: sizes are skew, so that a few large ones hide a trigger (with MNIST, index 1.8 where it is 4.2 here), and the MAD
of a few that happen to be alike accuses a clean model. Hence the logarithm, and a spread of at least `SPREAD_FLOOR`: an index above 2 says that the class takes less than
61% of what the middle one takes, and lies outside of the spread of all.

And hence a gap: classes of a clean model are of many sizes down to the smallest (a clean MNIST model in five has an index above 2 by the spread alone), where planted ones lie apart
from all others. The index is at most the widest gap of logarithms above the class, among the smallest third, in units of `GAP`: above 2 where the next class takes at least
28% more.

And hence a reference: some classes are small by nature (a 2 of MNIST needs few pixels in every clean model). A model of the same shape that was trained on the test records tells which:
it cannot hold a trigger that those do not hold. The index is at most that of the logarithms of (size / size in the reference).

=========================  ===================================================================
case                       outcome
=========================  ===================================================================
fewer than `LEAST` classes  no index: a median and a spread of so few say nothing
a class is never reached    its size is that of the whole mask
every size alike            index 0
=========================  ===================================================================
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["GAP", "LEAST", "SPREAD_FLOOR", "Patches", "anomaly", "middle_and_spread", "reverse"]

#: Fewest classes for which an index means something.
LEAST = 5
_ENOUGH = 0.99
#: The least spread of the logarithms.
SPREAD_FLOOR = 0.25
#: The unit of the gap of logarithms between a class and the next.
GAP = 0.125
#: A size below this counts as this.
_SMALL = 0.01
_UP, _DOWN, _PATIENCE = 1.5, 1.5, 5


@dataclass(frozen=True, kw_only=True, eq=False)
class Patches:
    """The smallest patch found for each class.

    Attributes:
        sizes: (classes,) L1 norm of each mask; that of a full mask where none was found.
        reached: (classes,) share of the other classes' records that it turns.
        masks: (classes, …) in [0, 1], of the inputs' trailing shape (one channel for images).
        patterns: (classes, …) what is put in place.
    """

    sizes: npt.NDArray[np.float64]
    reached: npt.NDArray[np.float64]
    masks: Tensor
    patterns: Tensor


def reverse(
    model: nn.Module,
    inputs: Tensor,
    targets: Tensor,
    *,
    classes: int,
    low: Tensor,
    high: Tensor,
    seed: int,
    steps: int = 500,
    batch: int = 64,
    rate: float = 0.1,
    tell: Callable[[int, int], None] = lambda *_: None,
) -> Patches:
    """Search a patch for every class.

    Args:
        model: in evaluation mode, its parameters frozen: (n, …) inputs to (n, classes) scores.
        inputs: (n, …) clean records.
        targets: (n,) their classes.
        classes: how many there are.
        low: what an input is at least; broadcasts to one record.
        high: what it is at most.
        seed: of the batches and the first patches.
        steps: of Adam.
        batch: records a class and step.
        rate: of Adam.
        tell: is told of steps done and all of them.
    """
    generator = torch.Generator().manual_seed(seed)
    shape = tuple(inputs.shape[1:])
    mask_shape = (1, *shape[1:]) if len(shape) == 3 else shape
    bounds = (low.expand(shape).float(), high.expand(shape).float())
    raw_mask = (torch.randn((classes, *mask_shape), generator=generator) * 0.1).requires_grad_()
    raw_pattern = (torch.randn((classes, *shape), generator=generator) * 0.1).requires_grad_()
    optimiser = torch.optim.Adam([raw_mask, raw_pattern], lr=rate, betas=(0.5, 0.9))
    weight = torch.full((classes,), 1e-3)
    area = int(np.prod(mask_shape))
    good, bad = torch.zeros(classes), torch.zeros(classes)
    best = torch.full((classes,), float(area))
    best_masks = torch.ones((classes, *mask_shape))
    best_patterns = torch.zeros((classes, *shape))
    others = [torch.nonzero(targets != wanted).squeeze(1) for wanted in range(classes)]
    goals = torch.arange(classes).repeat_interleave(batch)
    for step in range(steps):
        rows = torch.cat([own[torch.randint(len(own), (batch,), generator=generator)] for own in others])
        mask, pattern = _patch(raw_mask, raw_pattern, *bounds)
        x = inputs[rows].reshape(classes, batch, *shape)
        patched = (1 - mask.unsqueeze(1)) * x + mask.unsqueeze(1) * pattern.unsqueeze(1)
        scores = model(patched.reshape(-1, *shape))
        losses = functional.cross_entropy(scores, goals, reduction="none").reshape(classes, batch).mean(1)
        size = mask.flatten(1).sum(1)
        hit = (scores.argmax(1) == goals).reshape(classes, batch).float().mean(1)
        with torch.no_grad():
            better = (hit >= _ENOUGH) & (size < best)
            best = torch.where(better, size, best)
            best_masks[better] = mask.detach()[better]
            best_patterns[better] = pattern.detach()[better]
            good = torch.where(hit >= _ENOUGH, good + 1, torch.zeros_like(good))
            bad = torch.where(hit < _ENOUGH, bad + 1, torch.zeros_like(bad))
            up, down = good >= _PATIENCE, bad >= _PATIENCE
            loss_weight = weight.clone()
            weight = torch.where(up, weight * _UP, torch.where(down, weight / _DOWN**1.5, weight))
            good[up], bad[down] = 0, 0
        optimiser.zero_grad()
        (losses + loss_weight * size).sum().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        if step % 50 == 49:
            tell(step + 1, steps)
    reached = _reached(model, inputs, others, best_masks, best_patterns)
    sizes = np.where(reached >= 0.9, best.double().numpy(), float(area))
    return Patches(sizes=sizes, reached=reached, masks=best_masks, patterns=best_patterns)


def anomaly(
    sizes: npt.NDArray[np.float64], reference: npt.NDArray[np.float64] | None = None
) -> npt.NDArray[np.float64]:
    """Return each class's index: how far the logarithm of its size ((classes,), at least 0) lies below the median, and apart from the others.

    Args:
        sizes: (classes,) at least 0.
        reference: (classes,) those of a model that holds no trigger; ``None``: not known.
    """
    logs = _logs(sizes)
    found = _below(logs)
    if reference is not None:
        found = np.minimum(found, _below(logs - _logs(reference)))
    order = np.argsort(logs, kind="stable")
    small = max(1, len(sizes) // 3)
    gaps = np.diff(logs[order])[:small] / GAP
    for rank, place in enumerate(order):
        apart = float(gaps[rank:].max()) if rank < len(gaps) else 0.0
        found[place] = min(found[place], apart)
    return found


def middle_and_spread(sizes: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Return the median of the logarithms of ``sizes`` and their spread."""
    return _middle_and_spread(_logs(sizes))


def _middle_and_spread(logs: npt.NDArray[np.float64]) -> tuple[float, float]:
    middle = float(np.median(logs))
    return middle, max(1.4826 * float(np.median(np.abs(logs - middle))), SPREAD_FLOOR)


def _below(logs: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    middle, spread = _middle_and_spread(logs)
    found: npt.NDArray[np.float64] = (middle - logs) / spread
    return found


def _logs(sizes: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    logs: npt.NDArray[np.float64] = np.log(np.maximum(sizes, _SMALL))
    return logs


def _patch(raw_mask: Tensor, raw_pattern: Tensor, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    return torch.sigmoid(raw_mask), low + (high - low) * torch.sigmoid(raw_pattern)


def _reached(
    model: nn.Module, inputs: Tensor, others: list[Tensor], masks: Tensor, patterns: Tensor
) -> npt.NDArray[np.float64]:
    found = np.zeros(len(others))
    with torch.inference_mode():
        for wanted, rows in enumerate(others):
            x = inputs[rows[:500]]
            scores = model((1 - masks[wanted]) * x + masks[wanted] * patterns[wanted])
            found[wanted] = float((scores.argmax(1) == wanted).double().mean())
    return found
