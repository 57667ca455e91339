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
from functools import lru_cache, partial

from cloister.privacy.audit.gaussian import (
    epsilon_of_mu,
    mu_from_correct,
    mu_from_location,
    mu_of_epsilon,
)
from cloister.privacy.audit.guessing import (
    epsilon_from_guesses,
    mu_from_guesses,
    refutes_epsilon,
    refutes_mu,
)
from cloister.privacy.audit.rates import epsilon_from_rates
from cloister.privacy.audit.scores import Scores, accused, guessed

__all__ = ["ESTIMATORS", "Estimator", "Kind"]

#: scores, how many guesses or accusations, δ, confidence → ε (or μ) from below.
_Measure = Callable[[Scores, int, float, float], float]


@dataclass(frozen=True, kw_only=True)
class _Tested:
    """What a count of right guesses is held against."""

    epsilon: float
    delta: float
    confidence: float


#: right guesses, guesses, canaries → whether what is tested is refuted.
_Refutes = Callable[[int, int, int, _Tested], bool]


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way to bound ε from below.

    Attributes:
        name: stable.
        title: for a reader.
        assumes: what must hold for the bound to hold, in words.
        independent: whether the canaries' scores must be independent, given the coins.
        normal: whether they must be normal too.
        shares: of the canaries, how many may be guessed (or accused); which of these is settled before anything is measured.
        measure: computes the bound, on ε or on μ.
        in_mu: whether it is one on μ.
        refutes: where the bound comes from a count of right guesses alone: tells quickly whether a count refutes an ε.
    """

    name: str
    title: str
    assumes: str
    independent: bool
    normal: bool
    shares: tuple[float, ...]
    measure: _Measure = field(repr=False)
    in_mu: bool = False
    refutes: _Refutes | None = field(repr=False, default=None)

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
        found = self.kind.measure(scores, self.number(len(scores)), delta, confidence)
        return epsilon_of_mu(found, delta) if self.kind.in_mu else found

    def refutes(self, scores: Scores, epsilon: float, *, delta: float, confidence: float) -> bool:
        """Return whether the bound is above ``epsilon``; quicker than the bound itself."""
        kind, number, canaries = self.kind, self.number(len(scores)), len(scores)
        if kind.refutes is not None:
            return guessed(scores, number) >= _least(
                kind.refutes,
                number,
                canaries,
                _Tested(epsilon=epsilon, delta=delta, confidence=confidence),
            )
        limit = mu_of_epsilon(epsilon, delta) if kind.in_mu else epsilon
        return kind.measure(scores, number, delta, confidence) > limit


@lru_cache(maxsize=4096)
def _least(refutes: _Refutes, guesses: int, canaries: int, tested: _Tested) -> int:
    """Return the fewest right guesses that refute what is tested; more than all where not even all do."""
    low, high = 0, guesses + 1
    while high - low > 1:
        middle = (low + high) // 2
        if refutes(middle, guesses, canaries, tested):
            high = middle
        else:
            low = middle
    return high


def _one_run(scores: Scores, number: int, delta: float, confidence: float) -> float:
    return epsilon_from_guesses(
        guessed(scores, number), number, len(scores), delta=delta, confidence=confidence
    )


def _one_run_refutes(correct: int, guesses: int, canaries: int, tested: _Tested) -> bool:
    return refutes_epsilon(
        correct, guesses, canaries, tested.epsilon, delta=tested.delta, confidence=tested.confidence
    )


def _f_dp(scores: Scores, number: int, delta: float, confidence: float) -> float:  # noqa: ARG001 - the seam's signature
    return mu_from_guesses(guessed(scores, number), number, len(scores), confidence=confidence)


def _f_dp_refutes(correct: int, guesses: int, canaries: int, tested: _Tested) -> bool:
    return refutes_mu(
        correct,
        guesses,
        canaries,
        mu_of_epsilon(tested.epsilon, tested.delta),
        confidence=tested.confidence,
    )


def _rates(scores: Scores, number: int, delta: float, confidence: float) -> float:
    return epsilon_from_rates(accused(scores, number), delta=delta, confidence=confidence)


def _gaussian(scores: Scores, number: int, delta: float, confidence: float) -> float:  # noqa: ARG001 - as above
    return mu_from_correct(guessed(scores, number), number, confidence)


def _location(scores: Scores, number: int, delta: float, confidence: float) -> float:  # noqa: ARG001 - as above
    return mu_from_location(scores, confidence)


_FEWER = (1.0, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32)
_kind = partial(Kind, independent=True, normal=False, shares=(1.0,))

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
            measure=_one_run,
            refutes=_one_run_refutes,
        ),
        _kind(
            name="one-run f-dp",
            title="Guesses in one run under f-DP (Mahloujifar, Melis & Chaudhuri 2024)",
            assumes="fair, independent coins, and a trade-off of the shape that Gaussian noise has",
            independent=False,
            shares=_FEWER,
            measure=_f_dp,
            in_mu=True,
            refutes=_f_dp_refutes,
        ),
        _kind(
            name="rates",
            title="True and false alarms (Clopper & Pearson 1934)",
            assumes="fair coins, and scores that are independent of each other",
            shares=_FEWER[1:],
            measure=_rates,
        ),
        _kind(
            name="gaussian-dp",
            title="Right guesses under Gaussian-DP (after Xiang et al. 2025)",
            assumes="fair coins, scores that are independent of each other, and a trade-off of the shape that Gaussian noise has",
            measure=_gaussian,
            in_mu=True,
        ),
        _kind(
            name="location",
            title="Distance of the means under Gaussian noise",
            assumes="fair coins, and scores that are independent, normal, and of the same spread in and out",
            normal=True,
            measure=_location,
            in_mu=True,
        ),
    )
}
