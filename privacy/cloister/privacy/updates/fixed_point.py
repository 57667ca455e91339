"""Real numbers as integers of one scale, rounded at random so that sums keep their mean.

Formal guarantees: `FixedPoint.encode` rounds x·s up with a probability of its fraction and else down, so its mean is x·s to 2^-31 of a unit (a coin
has 31 bits) where |x·s| is below 2^20 (an integer stays itself there), and else to half a unit in the last place of a float64; each number is off by at most one unit, 1/s. Integers, and so `decode` of their sum, are exact as long as no sum leaves the modulus, which is for who
chooses s to see to (`FixedPoint.within`).

==================  ==========================================
case                outcome
==================  ==========================================
NaN or infinity     ``DataError`` (update-not-finite)
beyond 2^62 units   ``DataError`` (update-not-finite)
empty               empty
==================  ==========================================
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import DataError, SpecError
from cloister.privacy.keystream import MOST_AT_ONCE, KeyStream
from cloister.privacy.updates.modular import Residues
from cloister.privacy.updates.rotation import Reals
from cloister.privacy.updates.rounding import Integers

__all__ = ["FixedPoint"]

_FAR = float(2**62)
#: Numbers that are rounded at a time.
_BLOCK = MOST_AT_ONCE // 4  # a coin has 4 bytes
#: A unit while coins are added: they are odd integers between -2^31 and 2^31, never half a unit, so that a small integer stays itself.
_UNIT = 2.0**32
_ODD = np.uint64(0x0000_0001_0000_0001)
#: A float64 of this size holds whole units only: adding it rounds to the nearest, and leaves that, modulo 2^32, in the lower half of the 64 bits ...
_SHIFT = 1.5 * 2.0**52 * _UNIT
#: ... of numbers below so many units.
_SHIFTED = 2.0**51
_LOWER = 0 if sys.byteorder == "little" else 1


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """How reals become integers.

    Attributes:
        scale: s, integer units for one unit.
    """

    scale: float

    def __post_init__(self) -> None:
        if not math.isfinite(self.scale * _UNIT):
            raise ValueError(f"scale = {self.scale} is out of range")

    @classmethod
    def within(cls, reach: float, *, most: int, bits: int) -> FixedPoint:
        """Return the finest scale at which numbers up to ``reach`` in magnitude, ``most`` of them summed, stay below 2^(bits - 1).

        Raises:
            SpecError: not even whole numbers of ``reach`` fit.
        """
        largest = ((1 << (bits - 1)) - 1) // most - 1  # one unit is the rounding's
        if not (math.isfinite(reach) and reach > 0) or largest < 1:
            raise SpecError(
                f"the sum of {most} numbers up to {reach:g} does not fit into {bits} bits",
                remedy="ask fewer sites a round",
                code="protection-range",
            )
        return cls(scale=largest / reach)

    def encode(self, values: npt.NDArray[Any], generator: np.random.Generator) -> Integers:
        """Return ``values`` as integers of the same shape, int64.

        Args:
            values: any shape, a floating type.
            generator: what the key of the rounding's coins is drawn from.
        """
        integers = np.empty(values.shape, dtype=np.int64)
        self.write(values, generator, integers)
        return integers

    def residues(self, values: npt.NDArray[Any], generator: np.random.Generator) -> Residues:
        """Return the same modulo 2^32, uint32, without the integers between."""
        residues = np.empty(values.shape, dtype=np.uint32)
        self.write(values, generator, residues)
        return residues

    def write(
        self, values: npt.NDArray[Any], generator: np.random.Generator, into: Integers | Residues
    ) -> None:
        """Write the integers, or what they are modulo 2^32, over ``into``: contiguous, as many as ``values``."""
        flat = into.reshape(-1)
        for begin, tossed, near in self._tossed(values, generator):
            place = flat[begin : begin + _BLOCK]
            if place.dtype == np.uint32 and near:
                np.add(tossed, _SHIFT, out=tossed)
                place[:] = tossed.view(np.uint32)[_LOWER::2]
            else:
                place[:] = np.rint(tossed / _UNIT).astype(np.int64)

    def _tossed(
        self, values: npt.NDArray[Any], generator: np.random.Generator
    ) -> Iterator[tuple[int, Reals, bool]]:
        """Yield blocks of x·s with their coins, in `_UNIT`: where the block begins, the block, and whether all of it is below `_SHIFTED`."""
        flat, block, scale = values.reshape(-1), np.empty(_BLOCK), self.scale * _UNIT
        stream, bits = KeyStream(generator.bytes(32)), np.empty(_BLOCK // 2, dtype=np.uint64)
        for begin in range(0, flat.size, _BLOCK):  # what is done to a block is done in the cache
            part = flat[begin : begin + _BLOCK]
            largest = max(float(part.max()), -float(part.min())) * self.scale
            if not largest < _FAR:
                raise DataError(
                    "a number of the update is not finite, or too large to be summed",
                    remedy="lower training.optimizer.lr, or set training.gradient_clip",
                    code="update-not-finite",
                )
            tossed = block[: part.size]
            np.copyto(tossed, part)
            tossed *= scale
            coins = bits[: (part.size + 1) // 2]  # two of 32 bits in each
            stream.read_into(coins.view(np.uint8).data)
            coins |= _ODD
            np.add(tossed, coins.view(np.int32)[: part.size], out=tossed)
            yield begin, tossed, largest < _SHIFTED

    def decode(self, total: Integers) -> Reals:
        """Return the reals that (a sum of) integers stand for."""
        reals: Reals = total / self.scale
        return reals
