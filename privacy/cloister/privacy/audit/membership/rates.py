"""How well a score tells members from others: the share of members found at few false alarms, and what that figure is worth.

Carlini, Chien, Nasr, Song, Terzis & Tramèr (2022), "Membership inference attacks from first principles", section III: an attack counts for the members that
it finds at a low rate of false alarms; its average says little. Intervals are Clopper and Pearson's (1934), over records; the threshold is
taken from the same others that it is then counted on, which favours the attack by at most one record.

=======================================  ================================================================
case                                     outcome
=======================================  ================================================================
fewer others than one over the rate      no false alarm is allowed: the threshold lies above all of them
ties                                     count against the attack: only a score above the threshold is called a member
no members, or no others                 `ValueError`
a score that is not finite               `ValueError`
=======================================  ================================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats

__all__ = ["Rate", "area", "curve", "most_allowed", "rate_at", "share_interval"]

Scores = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Rate:
    """The share of members that a score finds.

    Attributes:
        at: the rate of false alarms that was allowed.
        alarms: how many others lie above the threshold.
        found: how many members do.
        members: how many there are.
        others: how many there are.
        low: the 95% interval's lower end.
        high: its upper end.
    """

    at: float
    alarms: int
    found: int
    members: int
    others: int
    low: float
    high: float

    @property
    def share(self) -> float:
        """The share of members that is found."""
        return self.found / self.members


def rate_at(scores: Scores, member: npt.NDArray[np.bool_], at: float) -> Rate:
    """Return the share of members above a threshold that at most a share ``at`` of the others passes.

    Args:
        scores: (n,) a record's score; higher speaks for a member.
        member: (n,) whether it is one.
        at: between 0 and 1.
    """
    inside, outside = _parts(scores, member)
    allowed = int(np.floor(at * len(outside) + 1e-9))
    ordered = np.sort(outside)[::-1]
    threshold = ordered[allowed] if allowed < len(ordered) else -np.inf
    found, alarms = int((inside > threshold).sum()), int((outside > threshold).sum())
    low, high = share_interval(found, len(inside))
    return Rate(
        at=at, alarms=alarms, found=found, members=len(inside), others=len(outside), low=low, high=high
    )


def share_interval(count: int, total: int, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of a share (Clopper and Pearson 1934)."""
    tail = (1 - level) / 2
    low = float(stats.beta.ppf(tail, count, total - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(1 - tail, count + 1, total - count)) if count < total else 1.0
    return low, high


def area(scores: Scores, member: npt.NDArray[np.bool_]) -> float:
    """Return the AUC: the chance that a member's score lies above another's; ties count half (Mann and Whitney 1947)."""
    inside, outside = _parts(scores, member)
    ranks = stats.rankdata(np.concatenate([inside, outside]))
    top = ranks[: len(inside)].sum() - len(inside) * (len(inside) + 1) / 2
    return float(top / (len(inside) * len(outside)))


def curve(scores: Scores, member: npt.NDArray[np.bool_], points: int = 120) -> tuple[Scores, Scores]:
    """Return rates of false alarms and of members found, at logarithmic steps from one over the others to 1."""
    inside, outside = _parts(scores, member)
    alarms = np.unique(np.concatenate([[1 / len(outside)], np.logspace(-np.log10(len(outside)), 0, points)]))
    ordered = np.sort(outside)[::-1]
    allowed = np.minimum(np.floor(alarms * len(outside) + 1e-9).astype(int), len(outside))
    thresholds = np.concatenate([ordered, [-np.inf]])[allowed]
    rising = np.sort(inside)
    found = 1 - np.searchsorted(rising, thresholds, side="right") / len(inside)
    return alarms, found


def most_allowed(at: float, epsilon: float, delta: float) -> float:
    """Return the largest share of members that any attack finds at ``at`` false alarms under (ε, δ)-differential privacy.

    Kairouz, Oh & Viswanath (2015), theorem 2.1: e^ε · at + δ and 1 - e^(-ε) (1 - δ - at), whichever is less.
    """
    return float(
        min(1.0, np.exp(min(epsilon, 700)) * at + delta, 1 - np.exp(-epsilon) * max(1 - delta - at, 0.0))
    )


def _parts(scores: Scores, member: npt.NDArray[np.bool_]) -> tuple[Scores, Scores]:
    if scores.shape != member.shape or scores.ndim != 1:
        raise ValueError(f"scores of shape {scores.shape} do not go with members of shape {member.shape}")
    if not np.isfinite(scores).all():
        raise ValueError("a score is not finite")
    inside, outside = scores[member], scores[~member]
    if not len(inside) or not len(outside):
        raise ValueError("there are no members, or no others, to tell apart")
    return inside, outside
