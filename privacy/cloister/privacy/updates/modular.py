"""Integers modulo 2²⁰ (or another power of two) and their sum, in clear or under masks that cancel modulo 2³².

Formal guarantee: ``centred(ModularSum.result())`` is the integer sum of what was wrapped, whenever that sum lies in [-2¹⁹, 2¹⁹).
The sum is kept modulo 2³², of which 2²⁰ is a divisor: masks that cancel modulo 2³² may be added to the values and change nothing.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloister.privacy.updates.rounding import Integers

__all__ = ["BITS", "MODULUS", "ModularSum", "Residues", "centred", "wrapped"]

#: Bits of one value.
BITS = 20
#: Values are integers modulo this.
MODULUS = 1 << BITS

#: A flat uint32 array.
Residues = npt.NDArray[np.uint32]


def wrapped(integers: Integers, bits: int = BITS) -> Residues:
    """Return integers modulo 2^bits (at most 32), each from 0 to 2^bits - 1."""
    residues: Residues = integers.astype(np.uint32)  # modulo 2³²
    residues &= np.uint32((1 << bits) - 1)
    return residues


def centred(residues: Residues, bits: int = BITS) -> Integers:
    """Return the integers in [-2^(bits-1), 2^(bits-1)) that ``residues`` stand for, whatever their bits above these."""
    half = 1 << (bits - 1)
    integers: Integers = ((residues.astype(np.int64) + half) & ((1 << bits) - 1)) - half
    return integers


class ModularSum:
    """A running sum of (size,) uint32 vectors modulo 2³²; the order of the additions does not matter.

    Args:
        size: number of elements of every vector.
        bits: the result's, at most 32.
    """

    def __init__(self, size: int, bits: int = BITS) -> None:
        self._sum: Residues = np.zeros(size, dtype=np.uint32)
        self._mask = np.uint32((1 << bits) - 1)
        self.count = 0

    def add(self, residues: Residues, count: int = 1) -> None:
        """Add one vector, or the sum of ``count``.

        Raises:
            ValueError: another shape or type.
        """
        if residues.shape != self._sum.shape or residues.dtype != np.uint32:
            raise ValueError(f"expected uint32 {self._sum.shape}, got {residues.dtype} {residues.shape}")
        np.add(self._sum, residues, out=self._sum)  # wraps modulo 2³²
        self.count += count

    def result(self) -> Residues:
        """Return the sum modulo 2^bits, a new array."""
        total: Residues = self._sum & self._mask
        return total
