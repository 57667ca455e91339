"""DnC: drop the rows that stand out along the direction in which the rows differ most.

Shejwalkar, Houmansadr (2021), *Manipulating the Byzantine*, Algorithm 2: on columns drawn at random, centre the rows, take the top right
singular vector and drop the f rows with the largest squared projection; the answer is the mean of the others. One draw of at most
10 000 columns (niters = 1, c = 1). Bound n ≥ 2f + 1; the guarantee is for rows of one distribution, and heuristic where sites differ. Cost
dim · n + 10⁴ · n². Equivariant to permutations and translations; the mean at f = 0. Ties go to the row that stands first.
"""

from __future__ import annotations

import numpy as np

from cloister.strategies.mean import Direction
from cloister.strategies.robust.bounds import require
from cloister.strategies.robust.rows import Matrix, RowsLike
from cloister.strategies.robust.span import Span, settled

__all__ = ["COLUMNS", "dnc", "dnc_weights"]

#: Columns that are looked at: b.
COLUMNS = 10_000


def dnc(rows: RowsLike, f: int, generator: np.random.Generator, *, columns: int = COLUMNS) -> Direction:
    """Return the mean of the rows that do not stand out, (dim,) float64.

    Args:
        rows: (n, dim), finite.
        f: how many rows may lie: so many are dropped.
        generator: where the columns are drawn from.
        columns: most columns that are looked at.

    Raises:
        InfeasibleByzantineBound: n < 2f + 1.
    """
    require("dnc", n=len(rows), f=f)
    span = Span.of(rows)
    return span.direction(dnc_weights(span, f, generator, columns=columns))


def dnc_weights(span: Span, f: int, generator: np.random.Generator, *, columns: int = COLUMNS) -> Matrix:
    """Return the (m,) weights of DnC over the combinations."""
    drawn = np.sort(generator.choice(span.rows.size, size=min(columns, span.rows.size), replace=False))
    seen = span.weights @ span.rows.columns(drawn)
    seen -= seen.mean(axis=0)
    values, vectors = np.linalg.eigh(seen @ seen.T)
    # The projections on the top right singular vector are the top left one times its singular value.
    scores = settled(np.square(vectors[:, -1]) * max(float(values[-1]), 0.0))
    kept = np.argsort(scores, kind="stable")[: len(span) - f]
    weights = np.zeros(len(span))
    weights[kept] = 1 / len(kept)
    return weights
