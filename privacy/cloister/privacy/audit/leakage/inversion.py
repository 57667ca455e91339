"""Gradient inversion: records whose gradient points where the one that was seen does.

Geiping, Bauermeister, Dröge & Moeller (2020), "Inverting gradients - how easy is it to break privacy in federated learning?", eq. 4: minimise  1 - cos(g(x), g) + α·TV(x)  by
Adam on signed gradients, several restarts, the best objective kept. Labels are given to the attacker, as the strongest case (for a small batch they are read
from the last layer's gradient anyway).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

__all__ = ["Inverted", "invert"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Inverted:
    """What was found.

    Attributes:
        records: (n, …).
        distance: 1 - cosine of its gradient and the one that was seen.
    """

    records: Tensor
    distance: float


def invert(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    seen: Sequence[Tensor],
    targets: Tensor,
    *,
    shape: tuple[int, ...],
    low: float | Tensor,
    high: float | Tensor,
    seed: int,
    steps: int = 600,
    restarts: int = 2,
    rate: float = 0.05,
    smooth: float = 1e-3,
) -> Inverted:
    """Search records whose mean gradient is ``seen``.

    Args:
        model: with trainable parameters, in the state in which the site got it.
        loss: (outputs, targets) to (n,) losses.
        seen: the gradient by each trainable parameter, or a positive multiple of it.
        targets: (n,) the records' labels.
        shape: of one record.
        low: what an input is at least.
        high: what it is at most.
        seed: of the starts.
        steps: of Adam.
        restarts: the best of so many is kept.
        rate: of Adam; falls to a tenth at 3/8, 5/8 and 7/8 of the steps, as in the paper.
        smooth: α, for images.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    length = torch.sqrt(torch.stack([part.square().sum() for part in seen]).sum()).clamp_min(1e-12)
    generator = torch.Generator().manual_seed(seed)
    span = torch.as_tensor(high) - torch.as_tensor(low)
    best: Inverted | None = None
    for _ in range(restarts):
        start = torch.as_tensor(low) + span * torch.rand((len(targets), *shape), generator=generator)
        x = start.clone().requires_grad_()
        optimiser = torch.optim.Adam([x], lr=rate)
        marks = [int(steps * part) for part in (3 / 8, 5 / 8, 7 / 8)]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimiser, marks, 0.1)
        for _ in range(steps):
            optimiser.zero_grad()
            distance = _distance(model, loss, x, targets, parameters, seen, length)
            objective = distance + (smooth * _variation(x) if len(shape) == 3 else 0.0)
            (slope,) = torch.autograd.grad(objective, [x])
            x.grad = slope.sign()
            optimiser.step()
            schedule.step()
            with torch.no_grad():
                x.copy_(torch.minimum(torch.maximum(x, torch.as_tensor(low)), torch.as_tensor(high)))
        end = float(_distance(model, loss, x, targets, parameters, seen, length).detach())
        if best is None or end < best.distance:
            best = Inverted(records=x.detach().clone(), distance=end)
    if best is None:
        raise ValueError("at least one restart is needed")
    return best


def _distance(  # noqa: PLR0917 - eq. 4 has so many
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    targets: Tensor,
    parameters: Sequence[nn.Parameter],
    seen: Sequence[Tensor],
    length: Tensor,
) -> Tensor:
    gradients = torch.autograd.grad(loss(model(x), targets).mean(), parameters, create_graph=True)
    product = torch.stack([(one * other).sum() for one, other in zip(gradients, seen, strict=True)]).sum()
    own = torch.sqrt(torch.stack([one.square().sum() for one in gradients]).sum() + 1e-20)
    return 1 - product / (own * length)


def _variation(x: Tensor) -> Tensor:
    """Return the mean total variation of (n, channels, height, width) images."""
    down, across = (x[..., 1:, :] - x[..., :-1, :]).abs().mean(), (x[..., 1:] - x[..., :-1]).abs().mean()
    return down + across
