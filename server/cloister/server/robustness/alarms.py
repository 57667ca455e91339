"""When a figure of robustness cannot be trusted: signs that a model hides its gradients instead of being robust.

Athalye, Carlini and Wagner (2018), section 3.1, and Carlini et al. (2019), section 5, list what to look for. An alarm says that gradient
attacks met a wall; it does not say that the model is weak. Thresholds are in shares of the evaluated records.

====================  ===================================================================================  ===============
alarm                 raised when                                                                          threshold
====================  ===================================================================================  ===============
black-box             Square, random search or a transferred attack breaks more than the white-box attacks  0.05
one-step              FGSM breaks more than PGD                                                             0.02
huge-epsilon          accuracy is above chance at the largest ε                                             0.05
zero-gradient         the loss has no gradient, or is not finite, at rightly classified records             0.10
weak-pgd              PGD of 20 steps leaves much more accuracy than APGD with a margin-like loss           0.15
====================  ===================================================================================  ===============

Of "black-box": adversarially trained MNIST models are known to lose a few hundredths more to Square than to gradients (Croce and Hein
2020, table 2: 90.9% under APGD-DLR, 88.4% under Square), and are not called masked for that; the evaluation notes it.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Alarm", "Observed", "alarms"]

_BLACK_BOX, _ONE_STEP, _HUGE, _ZERO, _WEAK = 0.05, 0.02, 0.05, 0.10, 0.15


@dataclass(frozen=True, kw_only=True)
class Observed:
    """What the attacks left, as shares of the evaluated records; ``None`` where an attack was not run.

    Attributes:
        white: accuracy under all gradient attacks together.
        black: accuracy under all gradient attacks and then the black-box ones.
        transfer: accuracy under examples made on another model.
        fgsm: under one step.
        pgd20: under 20 steps of PGD on cross-entropy, one random start.
        strong: under APGD on a margin-like loss, or under PGD on the margin where APGD does not fit.
        huge: the least accuracy at the largest ε of the sweep, where that ε lets any input become any other.
        chance: 1 / classes.
        flat: share of rightly classified records without a gradient, or whose loss is not finite.
    """

    white: float | None = None
    black: float | None = None
    transfer: float | None = None
    fgsm: float | None = None
    pgd20: float | None = None
    strong: float | None = None
    huge: float | None = None
    chance: float = 0.0
    flat: float | None = None


@dataclass(frozen=True, kw_only=True)
class Alarm:
    """One sign: whether it was seen (``None``: not looked for), by how much, and how much raises it."""

    name: str
    raised: bool | None
    evidence: float | None
    threshold: float
    says: str

    def as_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return asdict(self)


def alarms(seen: Observed) -> list[Alarm]:
    """Return all alarms, raised or not, in the order of the table."""
    black = [
        gap for gap in (_gap(seen.white, seen.black), _gap(seen.white, seen.transfer)) if gap is not None
    ]
    return [
        _alarm(
            "black-box",
            max(black, default=None),
            _BLACK_BOX,
            "an attack without gradients breaks more than those with them",
        ),
        _alarm("one-step", _gap(seen.pgd20, seen.fgsm), _ONE_STEP, "one step breaks more than twenty"),
        _alarm(
            "huge-epsilon",
            _gap(seen.huge, seen.chance),
            _HUGE,
            "accuracy is above chance where any input may become any other",
        ),
        _alarm("zero-gradient", seen.flat, _ZERO, "the loss has no gradient to follow, or is not finite"),
        _alarm(
            "weak-pgd",
            _gap(seen.pgd20, seen.strong),
            _WEAK,
            "PGD on cross-entropy finds much less than APGD on the margin",
        ),
    ]


def _gap(more: float | None, less: float | None) -> float | None:
    return None if more is None or less is None else more - less


def _alarm(name: str, evidence: float | None, threshold: float, says: str) -> Alarm:
    raised = None if evidence is None else evidence > threshold
    return Alarm(name=name, raised=raised, evidence=evidence, threshold=threshold, says=says)
