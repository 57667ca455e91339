"""The updates of one round as rows that are read in blocks: they are never copied whole.

Memory beyond the updates themselves is a few float64 blocks of `BLOCK_BYTES` together, for any dimension.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["BLOCK_BYTES", "Matrix", "RowsLike", "UpdateRows"]

#: (rows, columns) float64.
Matrix = npt.NDArray[np.float64]
#: (n, dim) float32 or float64, or n vectors of one length.
RowsLike = npt.NDArray[Any] | Sequence[npt.NDArray[Any]]

#: Size of a float64 block of all rows: it stays in a core's cache.
BLOCK_BYTES = 1 << 20


class UpdateRows:
    """n updates of one dimension, all finite.

    Args:
        vectors: (n, dim) float32 or float64, or n vectors of shape (dim,); they are read, never written.

    Attributes:
        vectors: the rows.
        squares: (n,) squared Euclidean norms, float64.

    Raises:
        ValueError: no row, no element, shapes that differ, another type, or a value that is not finite.
    """

    def __init__(self, vectors: RowsLike) -> None:
        self.vectors: list[npt.NDArray[Any]] = list(vectors)
        if not self.vectors or self.vectors[0].ndim != 1 or not len(self.vectors[0]):
            raise ValueError("expected at least one update, each a vector with at least one element")
        self.size = len(self.vectors[0])
        for vector in self.vectors:
            if vector.shape != (self.size,) or vector.dtype not in (np.float32, np.float64):
                raise ValueError(
                    f"expected float vectors of shape ({self.size},), got {vector.dtype} {vector.shape}"
                )
        self._only: Matrix | None = None
        self.squares: Matrix = np.zeros(len(self.vectors))
        for start, stop in self.pieces():
            block = self.block(start, stop)
            if not np.isfinite(block).all():
                raise ValueError("an update holds a value that is not finite")
            self.squares += np.einsum("ij,ij->i", block, block)
            if stop - start == self.size:
                self._only = block
        if not np.isfinite(self.squares).all():
            raise ValueError("an update's norm is out of range")

    def __len__(self) -> int:
        return len(self.vectors)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """Yield (start, stop) of every block of columns."""
        width = max(256, BLOCK_BYTES // (8 * len(self.vectors)))
        for start in range(0, self.size, width):
            yield start, min(self.size, start + width)

    def block(self, start: int, stop: int) -> Matrix:
        """Return these columns of all rows, (n, stop - start) float64; not to be written to."""
        if self._only is not None:
            return self._only[:, start:stop]
        block = np.empty((len(self.vectors), stop - start))
        for place, vector in enumerate(self.vectors):
            block[place] = vector[start:stop]
        return block

    def columns(self, chosen: npt.NDArray[np.int64]) -> Matrix:
        """Return chosen columns of all rows, (n, k) float64."""
        return np.stack([vector[chosen].astype(np.float64) for vector in self.vectors])
