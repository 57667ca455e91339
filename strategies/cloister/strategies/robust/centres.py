"""Rules that look for a centre: the geometric median and centered clipping.

====================  ==============================================================  ===========  ====================
rule                  answer                                                          bound        cost
====================  ==============================================================  ===========  ====================
`geometric_median`    the point with the least sum of distances to the rows           n ≥ 2f + 1   dim · n² + n² · T
`centered_clipping`   a start, moved by the mean of the rows' differences from it,    n ≥ 2f + 1   dim · n² + n³ · L
                      each clipped to a radius
====================  ==============================================================  ===========  ====================

Geometric median: Weiszfeld's iteration with the step of Vardi and Zhang (2000), *The multivariate L1-median*, Eq. 2.6, where it stands on a
row (Pillutla, Kakade, Harchaoui 2022 smooth it instead); from the row with the least sum of distances, until it moves by less than
1e-9 of the rows' spread or 1000 times. Centered clipping: Karimireddy, He, Jaggi (2021), *Learning from History for Byzantine Robust
Optimization*, Eq. 5; the start is the last round's direction and the guarantee needs momentum at the sites and f well below n / 10.
Without a radius it is, in each iteration, the median distance to the centre: no lying minority can make that longer than the longest
honest one. Both are equivariant to permutations, translations (centered clipping: of rows and start) and rotations. Identical rows
give that row (centered clipping: where it is within L radii).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloister.strategies.mean import Direction
from cloister.strategies.robust.bounds import require
from cloister.strategies.robust.rows import Matrix, RowsLike
from cloister.strategies.robust.span import Span

__all__ = [
    "ITERATIONS",
    "centered_clipping",
    "centered_clipping_weights",
    "geometric_median",
    "geometric_median_weights",
]

#: Iterations of centered clipping in one round: L.
ITERATIONS = 3

_STEPS = 1000
_TOLERANCE = 1e-9
#: A squared distance below this share of the spread is none: what a distance from inner products can resolve.
_SAME = 1e-14


def geometric_median(rows: RowsLike, f: int = 0) -> Direction:
    """Return the geometric median, (dim,) float64.

    Args:
        rows: (n, dim), finite.
        f: how many rows may lie; the answer does not depend on it.

    Raises:
        InfeasibleByzantineBound: n < 2f + 1.
    """
    require("geometric-median", n=len(rows), f=f)
    span = Span.of(rows)
    return span.direction(geometric_median_weights(span))


def centered_clipping(
    rows: RowsLike,
    radius: float | None = None,
    f: int = 0,
    *,
    start: npt.NDArray[np.float64] | None = None,
    iterations: int = ITERATIONS,
) -> Direction:
    """Return ``start`` after ``iterations`` moves by the mean clipped difference, (dim,) float64.

    Args:
        rows: (n, dim), finite.
        radius: τ, to which each difference is clipped; ``None``: the median distance, anew in each iteration.
        f: how many rows may lie; the answer does not depend on it.
        start: (dim,) where it begins; ``None``: at zero.
        iterations: L.

    Raises:
        InfeasibleByzantineBound: n < 2f + 1.
        ValueError: ``radius`` or ``iterations`` is not positive.
    """
    require("centered-clipping", n=len(rows), f=f)
    span = Span.of(rows, more=() if start is None else (start,))
    first = np.zeros(len(span.rows)) if start is None else np.eye(len(span.rows))[-1]
    return span.of_rows(centered_clipping_weights(span, radius, first, iterations))


def geometric_median_weights(span: Span) -> Matrix:
    """Return the (m,) weights of the geometric median of the combinations."""
    distances = np.sqrt(span.squared_distances())
    first = int(np.argmin(distances.sum(axis=1)))
    spread = float(np.median(distances[first]))
    held = span.centred()
    own = np.diag(held)
    weights: Matrix = np.eye(len(span))[first]
    for _ in range(_STEPS):
        across = held @ weights
        squares = np.maximum(own - 2 * across + weights @ across, 0.0)
        there = squares <= _SAME * max(spread * spread, float(np.min(squares)))
        if there.all():
            break
        pulls = np.zeros(len(span))
        pulls[~there] = 1 / np.sqrt(squares[~there])
        following = pulls / pulls.sum()
        if there.any():
            pull = pulls - pulls.sum() * weights  # weights of Σ (x_i - z) / |x_i - z|
            strength = np.sqrt(max(float(pull @ held @ pull), 0.0))
            if strength <= there.sum():
                break  # standing on a row that outweighs all others: the median
            following += (there.sum() / strength) * (weights - following)
        step = following - weights
        moved = np.sqrt(max(float(step @ held @ step), 0.0))
        weights = following
        if moved <= _TOLERANCE * spread:
            break
    return weights


def centered_clipping_weights(
    span: Span, radius: float | None, start: Matrix, iterations: int = ITERATIONS
) -> Matrix:
    """Return the weights of centered clipping over the rows, (n,).

    Args:
        span: the combinations.
        radius: τ, or ``None`` for the median distance.
        start: (n,) weights of the start over the rows.
        iterations: L.

    Raises:
        ValueError: ``radius`` or ``iterations`` is not positive.
    """
    if (radius is not None and not 0 < radius < np.inf) or iterations < 1:
        raise ValueError(f"radius = {radius} and iterations = {iterations} must be positive")
    centre = start
    for _ in range(iterations):
        away = span.weights - centre
        lengths = np.sqrt(span.squares_of(away))
        most = float(np.sort(lengths)[len(lengths) // 2]) if radius is None else radius
        factors = np.ones_like(lengths)
        long = lengths > most
        factors[long] = most / lengths[long]
        centre = centre + (factors[:, None] * away).mean(axis=0)
    return centre
