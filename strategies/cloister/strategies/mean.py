"""The weighted mean of updates, summed as they arrive: memory grows with the model, not with the number of clients.

Wrong arguments raise `ValueError`: replies are checked where they arrive (`cloister.server`), so whatever reaches this module
wrong is the caller's fault and not a peer's. The one check that is repeated here is finiteness, because a single NaN would
silently own the model.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloister.core.update import Vector

__all__ = ["BLOCK", "Direction", "StreamingMean", "weighted_mean"]

#: A flat float64 array of shape (size,): what a rule answers with and an optimiser steps along.
Direction = npt.NDArray[np.float64]

#: Elements worked on at once: 512 KiB of float64, which stays in a core's second-level cache.
BLOCK = 1 << 16

#: Weights outside this range are refused, so that a product of weight and float32 keeps all its digits.
_LEAST_WEIGHT, _MOST_WEIGHT = 1e-100, 1e100


class StreamingMean:
    """The weighted mean ``Σ wᵢ xᵢ / Σ wᵢ`` of updates that are given one at a time.

    Formal guarantees
        - Memory is one float64 accumulator of ``size`` elements, one result and one block, for any number of updates.
        - Products and sums are float64, taken in the order of the calls: the same calls give the same bits.
        - A refused update leaves the mean as it was.

    ======================================  ===============================================
    edge case                               answer
    ======================================  ===============================================
    one update                              that update (to the last bit if its weight is 1)
    equal weights                           the plain mean
    no update yet                           `ValueError` from `result`
    NaN or infinity in an update            `ValueError`, nothing added
    weight 0, negative, NaN, infinite       `ValueError`, nothing added
    weight outside [1e-100, 1e100]          `ValueError`, nothing added
    size 0                                  `ValueError`
    ======================================  ===============================================

    Args:
        size: number of elements of every update.

    Raises:
        ValueError: ``size`` is below 1.
    """

    def __init__(self, size: int) -> None:
        if size < 1:
            raise ValueError(f"size = {size}: an update has at least one element")
        self._sum: Direction = np.zeros(size, dtype=np.float64)
        self._block: Direction = np.empty(min(size, BLOCK), dtype=np.float64)
        self._finite = np.empty(min(size, BLOCK), dtype=np.bool_)
        self._weight = 0.0
        self._count = 0

    @property
    def count(self) -> int:
        """How many updates were added."""
        return self._count

    def add(self, vector: Vector, weight: float = 1.0) -> None:
        """Add ``weight`` times ``vector`` of shape (size,) float32.

        Raises:
            ValueError: wrong shape or dtype, a value that is not finite, or a weight outside [1e-100, 1e100].
        """
        size = len(self._sum)
        if vector.shape != (size,) or vector.dtype != np.float32:
            raise ValueError(
                f"expected a float32 vector of shape ({size},), got {vector.dtype} {vector.shape}"
            )
        if not _LEAST_WEIGHT <= weight <= _MOST_WEIGHT:
            raise ValueError(
                f"weight = {weight} is not a positive number between {_LEAST_WEIGHT} and {_MOST_WEIGHT}"
            )
        if not self._is_finite(vector):
            raise ValueError("the vector holds a value that is not finite")
        for start in range(0, size, BLOCK):
            piece = vector[start : start + BLOCK]
            scaled = self._block[: len(piece)]
            np.copyto(scaled, piece)
            if weight != 1.0:
                np.multiply(scaled, weight, out=scaled)
            total = self._sum[start : start + BLOCK]
            np.add(total, scaled, out=total)
        self._weight += weight
        self._count += 1

    def result(self) -> Direction:
        """Return the weighted mean so far, a new array of shape (size,) float64.

        Raises:
            ValueError: no update was added.
        """
        if not self._count:
            raise ValueError("the mean of no update is undefined")
        mean: Direction = self._sum / self._weight
        return mean

    def _is_finite(self, vector: Vector) -> bool:
        for start in range(0, len(vector), BLOCK):
            piece = vector[start : start + BLOCK]
            flags = self._finite[: len(piece)]
            np.isfinite(piece, out=flags)
            if not flags.all():
                return False
        return True


def weighted_mean(updates: npt.NDArray[np.float32], weights: npt.NDArray[np.float64]) -> Direction:
    """Return the weighted mean of all rows at once.

    The plain formula, for small inputs and as the oracle of faster ways: it holds the whole matrix in float64.

    Args:
        updates: (n_clients, dim) float32.
        weights: (n_clients,), positive.

    Returns:
        (dim,) float64.

    Raises:
        ValueError: no row, a row without weight, a value that is not finite, or a weight that is not positive.
    """
    if updates.ndim != 2 or len(updates) == 0 or weights.shape != (len(updates),):
        raise ValueError(
            f"expected (n, dim) updates with (n,) weights and n > 0, got {updates.shape} and {weights.shape}"
        )
    if not (np.isfinite(updates).all() and np.isfinite(weights).all() and (weights > 0).all()):
        raise ValueError("updates must be finite and weights finite and positive")
    mean: Direction = (updates.astype(np.float64) * weights[:, None]).sum(axis=0) / weights.sum()
    return mean
