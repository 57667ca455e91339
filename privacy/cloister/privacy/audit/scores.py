"""What an adversary measured of each canary, and what it guesses from that.

A guess is made from the scores alone, by their order: the coins are not looked at. So the number of guesses and the rule are fixed before
anything is measured, whatever the unit of the scores is, and no threshold is tuned on the answer: a bound at the threshold that turned out
best is wrong some three times as often as it says (a test counts it).

==============================  =========================================================
case                            outcome
==============================  =========================================================
a score that is not finite      `DataError`: nothing can be said
all canaries in, or all out     the guesses are half right; bounds are 0
equal scores                    guessed in the canaries' order, which says nothing of the coins
==============================  =========================================================
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloister.core.errors import DataError

__all__ = ["Counts", "Scores", "accused", "guessed"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Scores:
    """The scores of all canaries, and their coins.

    Attributes:
        values: (m,) float64; the larger, the likelier was the canary in. No unit.
        included: (m,) bool, the coins: whether the canary was in.
    """

    values: npt.NDArray[np.float64]
    included: npt.NDArray[np.bool_]

    def __post_init__(self) -> None:
        if self.values.ndim != 1 or self.values.shape != self.included.shape:
            raise DataError(
                f"{self.values.shape} scores do not go with {self.included.shape} coins",
                remedy="give one score and one coin a canary",
                code="audit-scores",
            )
        if not np.isfinite(self.values).all():
            raise DataError(
                "a canary's score is not finite",
                remedy="find out what the model became; nothing can be said of the budget",
                code="audit-scores",
            )

    def __len__(self) -> int:
        return len(self.values)


@dataclass(frozen=True, kw_only=True)
class Counts:
    """What came of accusing the canaries with the highest scores.

    Attributes:
        hits: accused that were in.
        false_alarms: accused that were not.
        inside: canaries that were in.
        outside: canaries that were not.
    """

    hits: int
    false_alarms: int
    inside: int
    outside: int


def guessed(scores: Scores, guesses: int) -> int:
    """Return how many of ``guesses`` guesses are right: "in" for the highest scores, "out" for the lowest, nothing for those between."""
    order = np.argsort(scores.values, kind="stable")
    low, high = guesses // 2, guesses - guesses // 2
    right = int(scores.included[order[len(order) - high :]].sum())
    return right + int((~scores.included[order[:low]]).sum())


def accused(scores: Scores, number: int) -> Counts:
    """Return what comes of accusing the ``number`` highest scores."""
    order = np.argsort(scores.values, kind="stable")
    hits = int(scores.included[order[len(order) - number :]].sum())
    inside = int(scores.included.sum())
    return Counts(hits=hits, false_alarms=number - hits, inside=inside, outside=len(scores) - inside)
