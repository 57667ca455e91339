"""Rules that look at each coordinate by itself.

======================  ==============================================  ===========  ==========================================
rule                    answer, in each coordinate                      bound        cost
======================  ==============================================  ===========  ==========================================
`coordinate_median`     the middle value, or the mean of the two        n ≥ 2f + 1   dim · n log n
`trimmed_mean`          the mean without the f lowest and f highest     n ≥ 2f + 1   dim · n log n
`mean_around_median`    the mean of the k values nearest the median     (Bulyan's)   dim · n log n
======================  ==============================================  ===========  ==========================================

Yin, Chen, Ramchandran, Bartlett (2018), *Byzantine-Robust Distributed Learning*, Definitions 1 and 2; El Mhamdi, Guerraoui, Rouault
(2018), *The Hidden Vulnerability of Distributed Learning in Byzantium*, §4, for the last. Each answer lies, in every coordinate, within
the range of the honest values as long as f or fewer rows lie. All are equivariant to permutations and translations of the rows.
Identical rows give that row. Of two values equally near the median the lower counts as nearer.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from cloister.strategies.mean import Direction
from cloister.strategies.robust.bounds import require
from cloister.strategies.robust.rows import Matrix, RowsLike
from cloister.strategies.robust.span import Span

__all__ = ["by_coordinate", "coordinate_median", "mean_around_median", "middle", "trimmed", "trimmed_mean"]


def coordinate_median(rows: RowsLike, f: int = 0) -> Direction:
    """Return the median of each coordinate, (dim,) float64.

    Args:
        rows: (n, dim), finite.
        f: how many rows may lie; the answer does not depend on it.

    Raises:
        InfeasibleByzantineBound: n < 2f + 1.
    """
    require("median", n=len(rows), f=f)
    return by_coordinate(Span.of(rows), middle)


def trimmed_mean(rows: RowsLike, f: int) -> Direction:
    """Return the mean of each coordinate without its f lowest and f highest values, (dim,) float64; the mean at f = 0.

    Args:
        rows: (n, dim), finite.
        f: how many rows may lie.

    Raises:
        InfeasibleByzantineBound: n < 2f + 1.
    """
    require("trimmed-mean", n=len(rows), f=f)
    return by_coordinate(Span.of(rows), trimmed(f))


def by_coordinate(span: Span, rule: Callable[[Matrix], Direction]) -> Direction:
    """Apply a rule to every column of ``span``, block by block.

    Args:
        span: the combinations.
        rule: takes (columns, m), each row sorted ascending, and returns (columns,).
    """
    found: Direction = np.empty(span.rows.size)
    for start, stop in span.rows.pieces():
        columns = np.array(span.block(start, stop).T, order="C")
        columns.sort(axis=1)
        found[start:stop] = rule(columns)
    return found


def middle(columns: Matrix) -> Direction:
    """Return the median of each sorted row of (columns, m)."""
    amount = columns.shape[1]
    low, high = columns[:, (amount - 1) // 2], columns[:, amount // 2]
    found: Direction = low + (high - low) / 2  # a sum of the two could leave the range
    return found


def trimmed(f: int) -> Callable[[Matrix], Direction]:
    """Return what takes the mean of each sorted row of (columns, m) without f values at either end."""

    def rule(columns: Matrix) -> Direction:
        found: Direction = columns[:, f : columns.shape[1] - f].mean(axis=1)
        return found

    return rule


def mean_around_median(k: int) -> Callable[[Matrix], Direction]:
    """Return what takes the mean of the k values of each sorted row of (columns, m) that lie nearest its median."""

    def rule(columns: Matrix) -> Direction:
        far = np.abs(columns - middle(columns)[:, None])
        nearest = np.argsort(far, axis=1, kind="stable")[:, :k]
        found: Direction = np.take_along_axis(columns, nearest, axis=1).mean(axis=1)
        return found

    return rule
