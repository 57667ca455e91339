"""Bounds for canaries under independent Gaussian noise, and what μ-Gaussian-differential privacy is in ε.

A mechanism is μ-GDP if telling a canary's presence is no easier than telling N(0, 1) from N(μ, 1) (Dong, Roth & Su 2019, Def. 2.6).

Both bounds assume that, given the coins, the canaries' scores are **independent**: orthogonal canaries in a sum under Gaussian noise, or one canary a run.
That is an assumption and not a theorem: a mechanism may leak all canaries together with probability 1/20 and nothing else, be as private
for each of them, and break either bound (a test builds it). `cloister.privacy.audit.guessing` assumes nothing of the kind, and finds less.

- `mu_from_correct`. Each guess of an independent μ-GDP canary is right with probability at most Φ(μ/2), so of m guesses at most Binomial(m, Φ(μ/2)) are:
  the bound is Clopper and Pearson's (1934), exact. It is the one-run bound of Xiang et al. for Gaussian-DP (2025, arXiv 2509.08704, Thms. 2
  and 3) at one guess a canary, with the exact tail in place of their Chernoff bound.
- `mu_from_location`. If scores are N(a, s²) for canaries that are out and N(a + μs, s²) for those that are in, the two means' difference over the pooled
  standard deviation has a noncentral t distribution, which gives an exact bound (Hedges & Olkin 1985, section 5.A). It uses all of a score, where a guess
  uses one bit.

==================================  ======================================
case                                result
==================================  ======================================
fewer than two in, or out           0
no spread, and equal means          0
no spread, and another mean         `MOST`
the canaries' mean is lower         0
==================================  ======================================
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from scipy import special

from cloister.privacy.audit.scores import Scores

__all__ = ["MOST", "epsilon_of_mu", "mu_from_correct", "mu_from_location", "mu_of_epsilon"]

#: The largest μ that is told: ε is above 1000 there.
MOST = 50.0


@lru_cache(maxsize=65536)
def epsilon_of_mu(mu: float, delta: float) -> float:
    """Return ε at ``delta`` of μ-GDP (Balle & Wang 2018, Thm. 8; by dp-accounting)."""
    from dp_accounting import get_epsilon_gaussian  # type: ignore[import-untyped]  # dp-accounting ships no types

    return float(get_epsilon_gaussian(1 / min(mu, MOST), delta)) if mu > 0 else 0.0


@lru_cache(maxsize=1024)
def mu_of_epsilon(epsilon: float, delta: float) -> float:
    """Return the largest μ whose ε at ``delta`` is at most ``epsilon``."""
    from dp_accounting import get_sigma_gaussian

    sigma = float(get_sigma_gaussian(epsilon, delta))
    return min(1 / sigma, MOST) if sigma > 0 else MOST


def mu_from_correct(correct: int, canaries: int, confidence: float) -> float:
    """Return the bound on μ from below that ``correct`` right guesses of ``canaries`` give.

    Args:
        correct: guesses that were right.
        canaries: m, all of them guessed.
        confidence: the chance that a true μ is not below the bound.
    """
    if not correct:
        return 0.0
    least = float(special.betaincinv(correct, canaries - correct + 1, 1 - confidence))
    return min(2 * float(special.ndtri(least)), MOST) if least > 0.5 else 0.0


def mu_from_location(scores: Scores, confidence: float) -> float:
    """Return the bound on μ from below that the distance of the two groups' means gives."""
    inside, outside = scores.values[scores.included], scores.values[~scores.included]
    if len(inside) < 2 or len(outside) < 2:
        return 0.0
    free = len(inside) + len(outside) - 2
    distance = float(inside.mean() - outside.mean())
    squares = float(((inside - inside.mean()) ** 2).sum() + ((outside - outside.mean()) ** 2).sum())
    if distance <= 0:
        return 0.0
    if squares <= 0:
        return MOST
    size = math.sqrt(len(inside) * len(outside) / (len(inside) + len(outside)))
    t = distance / math.sqrt(squares / free) * size
    shift = float(special.nctdtrinc(free, confidence, t))
    return min(max(shift / size, 0.0), MOST) if np.isfinite(shift) else 0.0
