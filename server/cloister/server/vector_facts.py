"""What a vector of 32-bit numbers looks like from outside: counts that suffice to test whether it is uniform.

Formal guarantee: `facts_of` is a function of the numbers that it looks at: all of them, or with ``most`` so many in `BLOCKS` stretches spread
evenly over the vector, the first of which begins it and the last of which ends it. Memory beyond the counts is one stretch.

==================  ==========================================
case                outcome
==================  ==========================================
empty               all counts 0
one number          no pair of neighbours
another type        ``ValueError``
==================  ==========================================
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloister.privacy.updates.modular import Residues

__all__ = ["BLOCKS", "BYTES", "EVEN_BITS", "HEAD", "NEAR_BITS", "VectorFacts", "facts_of"]

#: Bytes of a number.
BYTES = 4
#: Numbers of the beginning that are kept as they are, to compare vectors with each other.
HEAD = 256
#: How many stretches of a long vector are looked at.
BLOCKS = 16
#: A number is near 0 if, read as signed, it lies in [-2^24, 2^24): a uniform one does with a chance of 2^-7.
NEAR_BITS = 24
#: How many low bits are looked at together: whole numbers and zeros end in zeros, whatever stands above them.
EVEN_BITS = 16

_STRETCH = 1 << 20
_MIDDLE = 2.0**31


@dataclass(frozen=True, kw_only=True)
class VectorFacts:
    """What `facts_of` counts.

    Attributes:
        numbers: how many were looked at.
        counts: (4, 256) int64, of each value of each byte, the lowest byte first.
        near: how many numbers are near 0.
        even: how many are multiples of 2^`EVEN_BITS`.
        lag: Σ u_i u_(i+1) over neighbours, u = number / 2^32 - 1/2; of mean 0 and variance 1/144 each if uniform.
        pairs: how many neighbours.
        head: (up to `HEAD`,) uint32, the first numbers.
    """

    numbers: int
    counts: npt.NDArray[np.int64]
    near: int
    even: int
    lag: float
    pairs: int
    head: Residues


def facts_of(vector: Residues, *, most: int | None = None) -> VectorFacts:
    """Return the facts of a (size,) uint32 vector.

    Args:
        vector: the numbers.
        most: how many are looked at, where there are more; a multiple of `BLOCKS`.
    """
    if vector.dtype != np.uint32 or vector.ndim != 1:
        raise ValueError(f"expected a uint32 vector, got {vector.dtype} {vector.shape}")
    counts = np.zeros((BYTES, 256), dtype=np.int64)
    numbers = near = even = pairs = 0
    lag = 0.0
    for part in _stretches(vector, most):
        for place, row in enumerate(
            np.ascontiguousarray(part, dtype="<u4").view(np.uint8).reshape(-1, BYTES).T
        ):
            counts[place] += np.bincount(row, minlength=256)
        near += int(np.count_nonzero(part + np.uint32(1 << NEAR_BITS) < np.uint32(2 << NEAR_BITS)))
        even += int(np.count_nonzero(part & np.uint32((1 << EVEN_BITS) - 1) == 0))
        centred = (part.astype(np.float64) - _MIDDLE) / (2 * _MIDDLE)
        lag += float(np.einsum("i,i->", centred[:-1], centred[1:]))
        numbers += part.size
        pairs += max(part.size - 1, 0)
    return VectorFacts(
        numbers=numbers, counts=counts, near=near, even=even, lag=lag, pairs=pairs, head=vector[:HEAD].copy()
    )


def _stretches(vector: Residues, most: int | None) -> Iterator[Residues]:
    if most is None or vector.size <= most:
        for begin in range(0, vector.size, _STRETCH):
            yield vector[begin : begin + _STRETCH]
        return
    length = most // BLOCKS
    for block in range(BLOCKS):
        begin = (vector.size - length) * block // (BLOCKS - 1)
        yield vector[begin : begin + length]
