"""Random signs and a Walsh-Hadamard transform: a rotation that spreads an update evenly over its coordinates.

Formal guarantees: the rotation keeps L2 norms (it is orthonormal) and `rotate_back` inverts it, up to float64 rounding. For signs that are
independent of v, each coordinate of the rotated v is sub-Gaussian with variance proxy ‖v‖²/dim (Kairouz, Liu & Steinke 2021,
arXiv 2102.06387, Lemma 28): no coordinate is much larger than the others, so few bits hold them all.

The signs are public: they protect nothing and need only be the same at all sites.
"""

from __future__ import annotations

import hashlib
import math
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import SpecError

__all__ = ["Reals", "hadamard", "padded", "rotate", "rotate_back", "rotation_signs"]

#: A flat float64 array.
Reals = npt.NDArray[np.float64]


def padded(size: int) -> int:
    """Return the least power of two that is at least ``size``."""
    if size < 1:
        raise SpecError(
            f"size = {size}: an update has at least one element", remedy="give a model with parameters"
        )
    return 1 << (size - 1).bit_length()


def rotation_signs(seed: int, round_number: int, dim: int) -> npt.NDArray[np.int8]:
    """Return (dim,) signs, 1 or -1, from a public seed and the round: the same on every machine and version.

    They are the bits of SHAKE-256 over both numbers.
    """
    stream = hashlib.shake_256(f"cloister/rotation/{seed}/{round_number}".encode()).digest(-(-dim // 8))
    bits = np.unpackbits(np.frombuffer(stream, dtype=np.uint8), count=dim)
    return (1 - 2 * bits.astype(np.int8)).astype(np.int8)


def hadamard(vector: Reals) -> Reals:
    """Return the orthonormal Walsh-Hadamard transform of a vector of 2^k elements; it is its own inverse.

    Raises:
        SpecError: the length is no power of two.
    """
    dim = len(vector)
    if padded(max(dim, 1)) != dim:
        raise SpecError(
            f"a Walsh-Hadamard transform takes a power of two, not {dim} elements", remedy="pad the vector"
        )
    result = vector / math.sqrt(dim)
    width = 1
    while width < dim:
        pairs = result.reshape(-1, 2, width)
        total = pairs[:, 0] + pairs[:, 1]
        np.subtract(pairs[:, 0], pairs[:, 1], out=pairs[:, 1])
        pairs[:, 0] = total
        width *= 2
    return result


def rotate(vector: npt.NDArray[Any], signs: npt.NDArray[np.int8]) -> Reals:
    """Return H·D·v for ``vector``, padded with zeros to ``len(signs)`` elements."""
    spread = np.zeros(len(signs), dtype=np.float64)
    np.multiply(vector, signs[: len(vector)], out=spread[: len(vector)])
    return hadamard(spread)


def rotate_back(rotated: Reals, signs: npt.NDArray[np.int8], size: int) -> Reals:
    """Return the first ``size`` elements of D·H·r, the inverse of `rotate`."""
    back: Reals = (hadamard(rotated) * signs)[:size]
    return back
