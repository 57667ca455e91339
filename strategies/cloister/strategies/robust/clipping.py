"""Steps that shorten rows: adaptive robust clipping and a fixed bound on the norm.

==============  =====================================================================  ===========  =========
step            each row is shortened to                                               bound        cost
==============  =====================================================================  ===========  =========
`arc`           the (k + 1)-th largest norm, k = ⌊2f(n - f) / n⌋                       n ≥ 2f + 1   dim · n²
`norm_bound`    a given norm                                                           n ≥ 2f + 1   dim · n²
==============  =====================================================================  ===========  =========

ARC: Allouah, Guerraoui, Gupta, Jellouli, Rizk, Stephan (2025), *Adaptive Gradient Clipping for Robust Federated Learning*, Algorithm 2: a
rule with κ becomes one with κ + 2f / (n - 2f), and its answer is no longer than the honest updates however they differ. It keeps all
rows at f = 0. A bound on the norm (Sun, Kairouz, Suresh, McMahan 2019) limits what one site can do in a round and tolerates no share
of lying sites by itself. Neither is equivariant to translations: both know where zero is.
"""

from __future__ import annotations

import numpy as np

from cloister.strategies.mean import Direction
from cloister.strategies.robust.bounds import require
from cloister.strategies.robust.rows import Matrix, RowsLike
from cloister.strategies.robust.span import Span

__all__ = ["arc", "arc_factors", "bound_factors", "norm_bound"]


def arc(rows: RowsLike, f: int) -> Matrix:
    """Return the rows clipped to the (k + 1)-th largest norm, (n, dim) float64.

    Args:
        rows: (n, dim), finite.
        f: how many rows may lie.

    Raises:
        InfeasibleByzantineBound: n < 2f + 1.
    """
    require("arc", n=len(rows), f=f)
    span = Span.of(rows)
    return span.scaled(arc_factors(span.squared_norms(), f)).whole()


def norm_bound(rows: RowsLike, bound: float, f: int = 0) -> Direction:
    """Return the mean of the rows clipped to norm ``bound``, (dim,) float64.

    Args:
        rows: (n, dim), finite.
        bound: the largest norm, positive.
        f: how many rows may lie; the answer does not depend on it.

    Raises:
        InfeasibleByzantineBound: n < 2f + 1.
        ValueError: ``bound`` is not positive.
    """
    require("norm-bound", n=len(rows), f=f)
    span = Span.of(rows)
    factors = bound_factors(span.squared_norms(), bound)
    return span.direction(factors / len(span))


def arc_factors(squares: Matrix, f: int) -> Matrix:
    """Return the (n,) factors of adaptive clipping from the rows' squared norms."""
    n = len(squares)
    most = np.sort(squares)[::-1][2 * f * (n - f) // n]
    return _factors(squares, float(most))


def bound_factors(squares: Matrix, bound: float) -> Matrix:
    """Return the (n,) factors of a fixed bound from the rows' squared norms."""
    if not 0 < bound < np.inf:
        raise ValueError(f"bound = {bound} must be a positive number")
    return _factors(squares, bound * bound)


def _factors(squares: Matrix, most: float) -> Matrix:
    factors = np.ones_like(squares)
    long = squares > most
    factors[long] = np.sqrt(most / squares[long])
    return factors
