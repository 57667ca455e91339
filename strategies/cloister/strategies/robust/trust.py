"""FLTrust: updates weigh by their agreement with one that the server made of clean records of its own.

Cao, Fang, Liu, Gong (2021), *FLTrust: Byzantine-robust Federated Learning via Trust Bootstrapping*, §IV: with the server's update g₀, a row x
counts with max(0, cos(x, g₀)) and is scaled to the norm of g₀. There is no bound on f, not even a majority: one honest site is enough to move
the model, in g₀'s half-space. All rests on g₀: it needs clean root records like those of the sites, and where sites differ much, honest
ones that disagree with the root count nothing. Cost dim · n². Equivariant to permutations and rotations, not to translations. Where no
row agrees with g₀ the answer is zero.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloister.strategies.mean import Direction
from cloister.strategies.robust.bounds import require
from cloister.strategies.robust.rows import Matrix, RowsLike
from cloister.strategies.robust.span import Span

__all__ = ["fltrust", "fltrust_weights"]


def fltrust(rows: RowsLike, trusted: npt.NDArray[np.float32 | np.float64], f: int = 0) -> Direction:
    """Return the rows' mean by trust, (dim,) float64.

    Args:
        rows: (n, dim), finite.
        trusted: (dim,) g₀, the server's own update; not zero.
        f: how many rows may lie; the answer does not depend on it.

    Raises:
        InfeasibleByzantineBound: n < f + 1.
        ValueError: ``trusted`` is zero, not finite or of another shape.
    """
    require("fltrust", n=len(rows), f=f)
    span = Span.of(rows, more=(trusted,))
    return span.direction(fltrust_weights(span, np.eye(len(span.rows))[-1]))


def fltrust_weights(span: Span, trusted: Matrix) -> Matrix:
    """Return the (m,) weights of FLTrust over the combinations.

    Args:
        span: the combinations.
        trusted: (n,) weights of the trusted update over the rows.

    Raises:
        ValueError: the trusted update is zero.
    """
    own = float(np.sqrt(span.squares_of(trusted[None, :])[0]))
    if not own:
        raise ValueError("the trusted update is zero: nothing can agree with it")
    lengths = np.sqrt(span.squared_norms())
    agreement = span.products(span.weights, trusted[None, :])[:, 0]
    known = lengths > 0
    trust = np.zeros(len(span))
    trust[known] = np.maximum(agreement[known] / (lengths[known] * own), 0.0)
    weights = np.zeros(len(span))
    if trust.any():
        weights[known] = trust[known] / trust.sum() * own / lengths[known]
    return weights
