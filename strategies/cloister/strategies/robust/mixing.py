"""Steps that mix rows: nearest-neighbour mixing and bucketing.

Each returns (m, n) weights of a mixture, or the mixed rows themselves.

==============  =====================================================  ===========  ============================================
step            each row becomes                                       bound        cost
==============  =====================================================  ===========  ============================================
`nnm`           the mean of its n - f nearest rows, itself among them  n ≥ 2f + 1   dim · n²: the distances, and the mixing
`bucketing`     one of ⌈n / s⌉ means of s rows drawn together          f of the     dim · n
                                                                       buckets lie
==============  =====================================================  ===========  ============================================

NNM: Allouah, Farhadkhani, Guerraoui, Gupta, Pinot, Stephan (2023), *Fixing by Mixing*, Algorithm 2: a rule with κ becomes one with
8f/(n - f) · (κ + 1), the best order there is where sites' data differ. Bucketing: Karimireddy, He, Jaggi (2022), *Byzantine-Robust
Learning on Heterogeneous Datasets via Bucketing*, Algorithm 1: buckets differ less than sites, and one lying site spoils its bucket,
so what follows must bear f lying among ⌈n / s⌉. Both are equivariant to translations; NNM to permutations, bucketing with its order.
"""

from __future__ import annotations

import numpy as np

from cloister.strategies.robust.bounds import require
from cloister.strategies.robust.rows import Matrix, RowsLike
from cloister.strategies.robust.span import Span

__all__ = ["bucketing", "bucketing_weights", "nnm", "nnm_weights"]


def nnm(rows: RowsLike, f: int) -> Matrix:
    """Return each row's mean over its n - f nearest rows, (n, dim) float64; every row the mean of all at f = 0.

    Args:
        rows: (n, dim), finite.
        f: how many rows may lie.

    Raises:
        InfeasibleByzantineBound: n < 2f + 1.
    """
    require("nnm", n=len(rows), f=f)
    span = Span.of(rows)
    return span.mixed(nnm_weights(span, f)).whole()


def bucketing(rows: RowsLike, size: int, generator: np.random.Generator) -> Matrix:
    """Return the means of buckets of ``size`` rows dealt at random, (⌈n / size⌉, dim) float64; the last may hold fewer.

    Args:
        rows: (n, dim), finite.
        size: s, rows a bucket.
        generator: where the order is drawn from.

    Raises:
        ValueError: ``size`` is below 1.
    """
    span = Span.of(rows)
    return span.mixed(bucketing_weights(len(span), size, generator)).whole()


def nnm_weights(span: Span, f: int) -> Matrix:
    """Return the (m, m) weights of nearest-neighbour mixing."""
    distances = span.squared_distances()
    np.fill_diagonal(distances, -1.0)  # a row is its own nearest neighbour, also among equals
    kept = len(span) - f
    nearest = np.argsort(distances, axis=1, kind="stable")[:, :kept]
    weights = np.zeros_like(distances)
    np.put_along_axis(weights, nearest, 1 / kept, axis=1)
    return weights


def bucketing_weights(amount: int, size: int, generator: np.random.Generator) -> Matrix:
    """Return the (⌈amount / size⌉, amount) weights of buckets."""
    if size < 1:
        raise ValueError(f"size = {size}: a bucket holds at least one update")
    order = generator.permutation(amount)
    buckets = [order[start : start + size] for start in range(0, amount, size)]
    weights = np.zeros((len(buckets), amount))
    for place, bucket in enumerate(buckets):
        weights[place, bucket] = 1 / len(bucket)
    return weights
