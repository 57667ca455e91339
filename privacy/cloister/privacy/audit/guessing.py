"""Bounds from guesses in one run, whatever ties the canaries together.

m canaries are in or out by fair, independent coins; the mechanism runs once; from its output, r guesses are made, c of them right. Nothing is assumed of the
mechanism but what is refuted.

- `epsilon_from_guesses`: Steinke, Nasr & Jagielski (2023), "Privacy auditing with one (1) training run" (arXiv 2305.08846, Thm. 5.2). Under (ε, δ)-DP
  c exceeds Binomial(r, e^ε/(1+e^ε)) by no more than what a failure of probability δ a canary can give.
- `mu_from_guesses`: Mahloujifar, Melis & Chaudhuri (2024), "Auditing f-differential privacy in one run" (arXiv 2410.22235, Alg. 3 with a cap on guesses). Under
  f-DP the chances of exactly i right guesses obey a recursion; here f is that of μ-Gaussian-DP. It says more than ε at one δ, and assumes that the trade-off has
  that shape.

==========================  ==========================
case                        result
==========================  ==========================
no guess, or half right     0
more right than guessed     `ValueError`
==========================  ==========================
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import special, stats

from cloister.privacy.audit.gaussian import MOST

__all__ = ["epsilon_from_guesses", "mu_from_guesses", "refutes_epsilon", "refutes_mu"]

_MOST_EPSILON = 100.0
_GRID = 33
_ZOOMS = 4


@lru_cache(maxsize=65536)
def epsilon_from_guesses(
    correct: int, guesses: int, canaries: int, *, delta: float, confidence: float
) -> float:
    """Return the largest ε that the guesses refute at ``delta``; 0 where they refute none.

    Args:
        correct: c, guesses that were right.
        guesses: r, at most ``canaries``.
        canaries: m.
        delta: δ of the claim.
        confidence: 1 - the chance to refute a claim that holds.
    """

    def refuted(epsilon: float) -> bool:
        return refutes_epsilon(correct, guesses, canaries, epsilon, delta=delta, confidence=confidence)

    low, high = 0.0, _MOST_EPSILON
    if not refuted(low):
        return 0.0
    while high - low > 1e-6:
        middle = (low + high) / 2
        low, high = (middle, high) if refuted(middle) else (low, middle)
    return low


def refutes_epsilon(
    correct: int, guesses: int, canaries: int, epsilon: float, *, delta: float, confidence: float
) -> bool:
    """Return whether the guesses refute (``epsilon``, ``delta``)-DP."""
    _check(correct, guesses, canaries)
    return _p_value(correct, guesses, canaries, epsilon, delta) < 1 - confidence


def _p_value(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Return the largest chance of so many right guesses under (ε, δ)-DP: Thm. 5.2 and its proof's bound on α."""
    right = float(special.expit(epsilon))
    beta = float(stats.binom.sf(correct - 1, guesses, right))
    if not delta or not correct:
        return beta
    fewer = np.arange(1, correct + 1)
    gained = stats.binom.sf(correct - fewer - 1, guesses, right) - beta
    return min(1.0, beta + 2 * canaries * delta * float((gained / fewer).max()))


@lru_cache(maxsize=65536)
def mu_from_guesses(correct: int, guesses: int, canaries: int, *, confidence: float) -> float:
    """Return the largest μ whose μ-GDP the guesses refute; 0 where they refute none."""
    _check(correct, guesses, canaries)
    low, high = 0.0, MOST
    for _ in range(_ZOOMS):
        grid = np.linspace(low, high, _GRID)
        refuted = _refuted(correct, guesses, canaries, grid, confidence)
        if refuted.all():
            return high
        first = int(np.argmin(refuted))
        if first == 0:
            return low
        low, high = float(grid[first - 1]), float(grid[first])
    return low


def refutes_mu(correct: int, guesses: int, canaries: int, mu: float, *, confidence: float) -> bool:
    """Return whether the guesses refute μ-GDP."""
    _check(correct, guesses, canaries)
    return bool(_refuted(correct, guesses, canaries, np.array([mu]), confidence)[0])


def _refuted(
    correct: int, guesses: int, canaries: int, mu: npt.NDArray[np.float64], confidence: float
) -> npt.NDArray[np.bool_]:
    """Follow the recursion for each μ at once: if P(at least ``correct`` right) were as large as 1 - confidence, would the chances pass 1?"""
    least = 1 - confidence
    right = np.full(mu.shape, least * correct / canaries)
    wrong = np.full(mu.shape, least * (guesses - correct) / canaries)
    for number in range(correct - 1, -1, -1):
        # The inverse blow-up of μ-GDP: the least chance to be wrong beside a chance of ``right`` to be right.
        more = np.maximum(wrong, special.ndtr(special.ndtri(right) - mu))
        if (more == wrong).all():
            break
        right = np.minimum(right + number / (guesses - number) * (more - wrong), 1.0)
        wrong = more
    return np.asarray(right + wrong > guesses / canaries)


def _check(correct: int, guesses: int, canaries: int) -> None:
    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} right of {guesses} guesses about {canaries} canaries")
