"""AutoAttack's parts (Croce and Hein 2020) through ``pyautoattack``, on inputs of any bounds.

The package wants images of values from 0 to 1: a model whose inputs lie between other numbers is asked through a map of its inputs, and
ε is scaled with it. Bounds whose distance is not the same for all inputs, named columns, and inputs without bounds do not fit
it: there `cloister.server.robustness.blind` and PGD on two losses are what there is, and the result says so.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from cloister.core.adversarial.attacks import attacking
from cloister.core.adversarial.threat import Threat
from cloister.core.errors import UsageError

__all__ = ["PARTS", "Part", "obstacle_to_ensemble", "part_survivors"]

Part = Literal["apgd-ce", "apgd-t", "fab-t", "square"]

#: In AutoAttack's own order.
PARTS: tuple[Part, ...] = get_args(Part)

_BATCH = 250


class _Unit(nn.Module):
    """A model as one of inputs from 0 to 1."""

    def __init__(self, model: nn.Module, low: Tensor, span: float) -> None:
        super().__init__()
        self.model, self.low, self.span = model, low, span

    def forward(self, inputs: Tensor) -> Tensor:
        scores: Tensor = self.model(self.low + self.span * inputs)
        return scores


def obstacle_to_ensemble(threat: Threat, records: Tensor, classes: int) -> str | None:
    """Return why AutoAttack's parts cannot be run against this threat, or ``None`` where they can."""
    if importlib.util.find_spec("pyautoattack") is None:
        return "pyautoattack is not installed: pip install 'cloister[robustness]'"
    if threat.free is not None:
        return "it changes every input, and the threat is to some columns only"
    if threat.low is None or threat.high is None:
        return "it needs bounds of the inputs, and the task has none"
    if records.dim() != 4:
        return "it needs images (channels, height, width)"
    span = torch.as_tensor(threat.high) - torch.as_tensor(threat.low)
    if bool((span != span.reshape(-1)[0]).any()):
        return "it needs bounds with one distance for all inputs"
    return None if classes >= 2 else "it needs two classes"


def part_survivors(
    part: Part,
    model: nn.Module,
    records: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    classes: int,
    seed: int,
    queries: int = 5000,
) -> Tensor:
    """Return (n,) bool: which of ``records``, all of them classified rightly, withstand one part of AutoAttack.

    Args:
        part: APGD on cross-entropy (100 steps), targeted APGD on DLR (9 targets of 100 steps), targeted FAB (the same), or Square.
        model: from inputs to scores.
        records: (n, …), n may be 0.
        targets: (n,).
        threat: with bounds of one distance, to all inputs: see `obstacle_to_ensemble`.
        classes: how many.
        seed: of the attack; torch's generator is left as it was.
        queries: Square's.

    Raises:
        UsageError: the part does not go with so few classes.
    """
    if part == "apgd-t" and classes < 4:
        raise UsageError(
            f"{part} needs the four highest scores, and there are {classes} classes",
            remedy="leave it out of --attacks",
        )
    low, high = torch.as_tensor(threat.low), torch.as_tensor(threat.high)
    span = float((high - low).reshape(-1)[0])
    unit = _Unit(model, low.to(records), span)
    points = ((records - low.to(records)) / span).clamp(0, 1)
    attack = _attack(
        part,
        unit,
        norm=threat.norm,
        epsilon=threat.epsilon / span,
        classes=classes,
        seed=seed,
        queries=queries,
        device=records.device,
    )
    survived = torch.zeros(len(records), dtype=torch.bool)
    with torch.random.fork_rng(devices=[]), attacking(unit), _quiet():
        for rows in torch.split(torch.arange(len(records)), _BATCH):
            torch.manual_seed(seed)
            found = attack.perturb(points[rows], targets[rows])
            with torch.no_grad():
                survived[rows] = unit(found).argmax(1) == targets[rows]
    return survived


def _attack(
    part: Part,
    model: nn.Module,
    *,
    norm: str,
    epsilon: float,
    classes: int,
    seed: int,
    queries: int,
    device: torch.device,
) -> Any:
    # By name: it ships no types, and is not there without the extra.
    apgd, fab_pt, square = (
        import_module(f"pyautoattack.{module}") for module in ("autopgd_base", "fab_pt", "square")
    )
    name, goals = {"linf": "Linf", "l2": "L2"}[norm], min(9, classes - 1)
    common: dict[str, Any] = {"norm": name, "eps": epsilon, "seed": seed, "device": device, "verbose": False}
    # The settings of AutoAttack's standard version: autoattack.py, _set_version.
    if part == "apgd-ce":
        return apgd.APGDAttack(model, n_iter=100, n_restarts=1, loss="ce", eot_iter=1, rho=0.75, **common)
    if part == "apgd-t":
        return apgd.APGDAttack_targeted(
            model, n_iter=100, n_restarts=1, eot_iter=1, rho=0.75, n_target_classes=goals, **common
        )
    if part == "fab-t":
        fab = fab_pt.FABAttack_PT(model, n_restarts=1, n_iter=100, **common)
        fab.targeted, fab.n_target_classes = True, goals
        return fab
    return square.SquareAttack(
        model, p_init=0.8, n_queries=queries, n_restarts=1, resc_schedule=False, **common
    )


@contextmanager
def _quiet() -> Iterator[None]:
    """Zero gradients are an alarm of ours: the package's own warning says no more."""
    import warnings

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*zero gradient", category=Warning)
        yield
