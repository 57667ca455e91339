"""The five estimators of an audit, each with what it assumes and what it needs.

===============  =================================================  ==============================================================
name             assumes of the mechanism                           assumes of the canaries
===============  =================================================  ==============================================================
``one-run``      nothing                                            fair, independent coins
``one-run f-dp``  its trade-off is that of Gaussian-DP              fair, independent coins
``rates``        nothing                                            and their scores are independent, given the coins
``gaussian-dp``  its trade-off is that of Gaussian-DP               and their scores are independent, given the coins
``location``     scores are normal, their spread the same in        and their scores are independent, given the coins
                 and out; a shift of μ deviations is that of μ-GDP
===============  =================================================  ==============================================================

Where an estimator turns μ into ε it uses μ-GDP's ε at the claim's δ. With every record in every step (q = 1) the mechanism is Gaussian-DP exactly. With
sampled records it is so in the limit of many steps; the ε of the tail is then more than μ's, so the bound stays on its side.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

from cloister.privacy.audit.gaussian import (
    epsilon_of_mu,
    mu_from_correct,
    mu_from_location,
)
from cloister.privacy.audit.guessing import epsilon_from_guesses, mu_from_guesses
from cloister.privacy.audit.rates import epsilon_from_rates
from cloister.privacy.audit.scores import Scores, accused, guessed

__all__ = ["ESTIMATORS", "Estimator", "Kind"]

#: scores, how many guesses or accusations, δ, confidence → ε from below.
_Bound = Callable[[Scores, int, float, float], float]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to bound ε from below.

    Attributes:
        name: stable.
        title: for a reader.
        assumes: what must hold for the bound to hold, in words.
        independent: whether the canaries' scores must be independent, given the coins.
        shares: of the canaries, how many may be guessed (or accused); which of these is settled before anything is measured.
        bound: computes it.
    """

    name: str
    title: str
    assumes: str
    independent: bool
    shares: tuple[float, ...]
    bound: _Bound = field(repr=False)

    def taking(self, share: float) -> Estimator:
        """Return the estimator with one of its shares."""
        return Estimator(kind=self, share=share)


@dataclass(frozen=True, kw_only=True)
class Estimator:
    """A kind with its one free number settled: ``share`` of the canaries is guessed, or accused."""

    kind: Kind
    share: float

    def number(self, canaries: int) -> int:
        """Return how many canaries are guessed, or accused."""
        return max(1, round(self.share * canaries))

    def bound(self, scores: Scores, *, delta: float, confidence: float) -> float:
        """Return the bound on ε at ``delta`` from below; a true ε is below it with probability at most 1 - ``confidence``."""
        return self.kind.bound(scores, self.number(len(scores)), delta, confidence)


def _one_run(scores: Scores, number: int, delta: float, confidence: float) -> float:
    return epsilon_from_guesses(
        guessed(scores, number), number, len(scores), delta=delta, confidence=confidence
    )


def _f_dp(scores: Scores, number: int, delta: float, confidence: float) -> float:
    return epsilon_of_mu(
        mu_from_guesses(guessed(scores, number), number, len(scores), confidence=confidence), delta
    )


def _rates(scores: Scores, number: int, delta: float, confidence: float) -> float:
    return epsilon_from_rates(accused(scores, number), delta=delta, confidence=confidence)


def _gaussian(scores: Scores, number: int, delta: float, confidence: float) -> float:
    return epsilon_of_mu(mu_from_correct(guessed(scores, number), number, confidence), delta)


def _location(scores: Scores, number: int, delta: float, confidence: float) -> float:  # noqa: ARG001 - the seam's signature
    return epsilon_of_mu(mu_from_location(scores, confidence), delta)


_FEWER = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
_kind = partial(Kind, independent=True, shares=(1.0,))

#: By name, the fewest assumptions first.
ESTIMATORS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        _kind(
            name="one-run",
            title="Guesses in one run (Steinke, Nasr & Jagielski 2023)",
            assumes="fair, independent coins, and nothing of the mechanism",
            independent=False,
            shares=_FEWER,
            bound=_one_run,
        ),
        _kind(
            name="one-run f-dp",
            title="Guesses in one run under f-DP (Mahloujifar, Melis & Chaudhuri 2024)",
            assumes="fair, independent coins, and a trade-off of the shape that Gaussian noise has",
            independent=False,
            shares=_FEWER,
            bound=_f_dp,
        ),
        _kind(
            name="rates",
            title="True and false alarms (Clopper & Pearson 1934)",
            assumes="fair coins, and scores that are independent of each other",
            shares=_FEWER[1:],
            bound=_rates,
        ),
        _kind(
            name="gaussian-dp",
            title="Right guesses under Gaussian-DP (after Xiang et al. 2025)",
            assumes="fair coins, scores that are independent of each other, and a trade-off of the shape that Gaussian noise has",
            bound=_gaussian,
        ),
        _kind(
            name="location",
            title="Distance of the means under Gaussian noise",
            assumes="fair coins, and scores that are independent, normal, and of the same spread in and out",
            bound=_location,
        ),
    )
}
