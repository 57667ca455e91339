"""What an audit could find, computed from the claim alone, before anything is measured.

These figures hold for the worst canaries there are. Of weaker ones (records that somebody made up, say) nobody knows beforehand how much they show: an audit with
them can refute, and has no power otherwise.

Three figures for each estimator, all by simulation of the claimed mechanism (`Claim.scores`, with a generator of its own that no run shares):

- its **share**: how many canaries are guessed or accused. The share with the largest median bound under the claim is taken, so nothing is tuned on the data.
- its **reach**: the median bound when the mechanism is just what it claims to be. No claim below the reach could stand; a claim is never refuted where
  it holds (but for the error that the confidence admits).
- what it could have **refuted**: the smallest ε that the mechanism would have to cost really for the audit to refute the claim in `SURE` of the
  runs. Found by taking away noise until it does; infinite where not even 1/`_LEAST` of the noise is enough.

An estimator **has power** against a claim if that ε is at most `POWER` times the claimed one. Otherwise silence says nothing, and the verdict says so.

The one that decides is settled here too: of those whose assumptions hold, the one that would refute the smallest ε (then the one with the largest reach).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from cloister.privacy.audit.claims import Claim
from cloister.privacy.audit.estimators import ESTIMATORS, Estimator, Kind

__all__ = ["POWER", "SURE", "Canaries", "Prepared", "decisive", "prepare"]

#: An audit has power if it would refute a mechanism that costs so many times what it claims …
POWER = 1.5
#: … in so many of its runs.
SURE = 0.9

_MEDIAN, _RUNS, _HALVINGS, _LEAST = 15, 200, 9, 64.0


@dataclass(frozen=True, kw_only=True)
class Canaries:
    """What is known of an audit's canaries before anything is measured.

    Attributes:
        independent: whether their scores are independent, given the coins: orthogonal ones under independent noise.
        normal: whether their scores are linear in the noise, and so normal.
        worst: whether each is the worst record (or site) that the mechanism admits.
    """

    independent: bool = True
    normal: bool = True
    worst: bool = True


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An estimator with its power against one claim.

    Attributes:
        estimator: with its share settled.
        reach: the median bound if the claim holds exactly.
        refutable: the smallest true ε at which the claim is refuted in `SURE` of the runs; ``inf``: none.
        power: whether that is at most `POWER` times the claim.
        holds: whether what it assumes of the canaries holds in this audit.
    """

    estimator: Estimator
    reach: float
    refutable: float
    power: bool
    holds: bool


@lru_cache(maxsize=64)
def prepare(
    claim: Claim, canaries: int, *, confidence: float, kinds: Canaries, seed: int = 0
) -> tuple[Prepared, ...]:
    """Return every estimator with its power against ``claim``; it takes some seconds.

    Args:
        claim: what is audited.
        canaries: m.
        confidence: of the bounds.
        kinds: what is known of the canaries.
        seed: of the simulation; the same seed gives the same figures.
    """
    return tuple(
        _prepared(kind, claim, canaries, confidence=confidence, kinds=kinds, seed=seed)
        for kind in ESTIMATORS.values()
    )


def decisive(prepared: Sequence[Prepared]) -> Prepared:
    """Return the estimator whose bound decides."""
    return min((one for one in prepared if one.holds), key=lambda one: (one.refutable, -one.reach))


def _prepared(
    kind: Kind, claim: Claim, canaries: int, *, confidence: float, kinds: Canaries, seed: int
) -> Prepared:
    medians = {
        share: _median(kind.taking(share), claim, canaries, confidence=confidence, seed=seed)
        for share in kind.shares
    }
    share = max(medians, key=lambda one: medians[one])
    estimator = kind.taking(share)
    refutable = _refutable(estimator, claim, canaries, confidence=confidence, seed=seed)
    return Prepared(
        estimator=estimator,
        reach=medians[share],
        refutable=refutable,
        power=kinds.worst and refutable <= POWER * claim.epsilon,
        holds=(kinds.independent or not kind.independent) and (kinds.normal or not kind.normal),
    )


def _median(estimator: Estimator, claim: Claim, canaries: int, *, confidence: float, seed: int) -> float:
    bounds = [
        estimator.bound(
            claim.scores(canaries, _generator(seed, run)), delta=claim.delta, confidence=confidence
        )
        for run in range(_MEDIAN)
    ]
    return float(np.median(bounds))


def _refutable(estimator: Estimator, claim: Claim, canaries: int, *, confidence: float, seed: int) -> float:
    """Halve the interval of noise in which the share of refuting runs passes `SURE`; the draws are the same at every noise."""

    def sure(noise: float) -> bool:
        return _refuting(
            lambda run: estimator.refutes(
                claim.scores(canaries, _generator(seed, run), noise=noise),
                claim.epsilon,
                delta=claim.delta,
                confidence=confidence,
            )
        )

    low, high = 1 / _LEAST, 1.0
    if not sure(low):
        return math.inf
    for _ in range(_HALVINGS):
        middle = math.sqrt(low * high)
        low, high = (middle, high) if sure(middle) else (low, middle)
    return claim.epsilon_at(low)


def _refuting(refutes: Callable[[int], bool]) -> bool:
    """Return whether enough runs refute, looking at no more of them than it takes."""
    missed, allowed = 0, round((1 - SURE) * _RUNS)
    for run in range(_RUNS):
        missed += not refutes(run)
        if missed > allowed:
            return False
    return True


def _generator(seed: int, run: int) -> np.random.Generator:
    return np.random.default_rng([0x61756469, seed, run])
