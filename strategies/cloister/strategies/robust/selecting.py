"""Rules that choose rows by their distances: Krum, MultiKrum and Bulyan.

A row's score is the sum of its squared distances to its n - f - 1 nearest other rows. Blanchard, El Mhamdi, Guerraoui, Stainer (2017),
*Machine Learning with Adversaries*, §4, sum over one neighbour less; with this one Allouah et al. (2023) prove Krum's κ.

===============  ================================================================  ===========  ======================
rule             answer                                                            bound        cost
===============  ================================================================  ===========  ======================
`krum`           the row of the lowest score, exactly                              n ≥ 2f + 3   dim · n²
`multi_krum`     the mean of the n - f rows of the lowest scores                   n ≥ 2f + 3   dim · n²
`bulyan`         n - 2f rows by repeated Krum; of them, in each coordinate, the    n ≥ 4f + 3   dim · n² + n³
                 mean of the n - 4f values nearest the median
===============  ================================================================  ===========  ======================

Bulyan: El Mhamdi, Guerraoui, Rouault (2018), §4. All are equivariant to permutations (of rows that are not equally scored), translations
and rotations of the rows (Bulyan: not to rotations); at f = 0 MultiKrum and Bulyan are the mean. Ties: see `span`.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloister.strategies.mean import Direction
from cloister.strategies.robust.bounds import require
from cloister.strategies.robust.coordinates import by_coordinate, mean_around_median
from cloister.strategies.robust.rows import Matrix, RowsLike
from cloister.strategies.robust.span import Span, settled

__all__ = [
    "bulyan",
    "bulyan_of",
    "krum",
    "krum_choice",
    "multi_krum",
    "multi_krum_choice",
]

Places = npt.NDArray[np.int64]


def krum(rows: RowsLike, f: int) -> Direction:
    """Return the row of the lowest score, (dim,) float64.

    Args:
        rows: (n, dim), finite.
        f: how many rows may lie.

    Raises:
        InfeasibleByzantineBound: n < 2f + 3.
    """
    require("krum", n=len(rows), f=f)
    span = Span.of(rows)
    return span.direction(mean_of(krum_choice(span, f), len(span)))


def multi_krum(rows: RowsLike, f: int) -> Direction:
    """Return the mean of the n - f rows of the lowest scores, (dim,) float64.

    Args:
        rows: (n, dim), finite.
        f: how many rows may lie.

    Raises:
        InfeasibleByzantineBound: n < 2f + 3.
    """
    require("multi-krum", n=len(rows), f=f)
    span = Span.of(rows)
    return span.direction(mean_of(multi_krum_choice(span, f), len(span)))


def bulyan(rows: RowsLike, f: int) -> Direction:
    """Return Bulyan over Krum, (dim,) float64.

    Args:
        rows: (n, dim), finite.
        f: how many rows may lie.

    Raises:
        InfeasibleByzantineBound: n < 4f + 3.
    """
    require("bulyan", n=len(rows), f=f)
    return bulyan_of(Span.of(rows), f)


def bulyan_of(span: Span, f: int) -> Direction:
    """Return Bulyan of the combinations of ``span``."""
    chosen = _repeated_krum(span.squared_distances(), f, len(span) - 2 * f)
    one_hot = np.eye(len(span))[np.sort(chosen)]
    return by_coordinate(span.mixed(one_hot), mean_around_median(len(chosen) - 2 * f))


def krum_choice(span: Span, f: int) -> Places:
    """Return the place of the lowest score, (1,)."""
    return _lowest(_scores(span.squared_distances(), f), 1)


def multi_krum_choice(span: Span, f: int) -> Places:
    """Return the places of the m - f lowest scores, (m - f,), lowest first."""
    return _lowest(_scores(span.squared_distances(), f), len(span) - f)


def mean_of(chosen: Places, amount: int) -> Matrix:
    """Return the (amount,) weights of the mean of the rows at ``chosen``."""
    weights = np.zeros(amount)
    weights[chosen] = 1 / len(chosen)
    return weights


def _scores(distances: Matrix, f: int) -> Matrix:
    """Return each row's sum over its m - f - 1 nearest others; equal multisets of distances give equal sums."""
    nearest = np.sort(distances, axis=1)[:, 1 : len(distances) - f]  # the first is its own, 0
    return settled(nearest.sum(axis=1))


def _lowest(scores: Matrix, amount: int) -> Places:
    return np.argsort(scores, kind="stable")[:amount]


def _repeated_krum(distances: Matrix, f: int, amount: int) -> Places:
    left = list(range(len(distances)))
    chosen: list[int] = []
    while len(chosen) < amount:
        best = int(_lowest(_scores(distances[np.ix_(left, left)], f), 1)[0])
        chosen.append(left.pop(best))
    return np.array(chosen, dtype=np.int64)
