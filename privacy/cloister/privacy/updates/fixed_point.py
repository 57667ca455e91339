"""Real numbers as integers of one scale, rounded at random so that sums keep their mean.

Formal guarantees: `FixedPoint.encode` rounds x·s up with a probability of its fraction and else down, so its mean is x·s to 2^-32 of a unit (a coin
has 32 bits) where |x·s| is below 2^20, and else to half a unit in the last place of a float64; each number is off by at most one unit, 1/s. Integers, and so `decode` of their sum, are exact as long as no sum leaves the modulus, which is for who
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
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import DataError, SpecError
from cloister.privacy.updates.modular import Residues
from cloister.privacy.updates.rotation import Reals
from cloister.privacy.updates.rounding import Integers

__all__ = ["FixedPoint"]

_FAR = float(2**62)
#: Numbers that are rounded at a time.
_BLOCK = 1 << 16
_COIN = 2.0**-32


@dataclass(frozen=True, kw_only=True)
class FixedPoint:
    """How reals become integers.

    Attributes:
        scale: s, integer units for one unit.
    """

    scale: float

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
            generator: what the rounding is drawn from; its bits come 64 at a time.
        """
        integers = np.empty(values.size, dtype=np.int64)
        self._encode(values, generator, integers)
        return integers.reshape(values.shape)

    def residues(self, values: npt.NDArray[Any], generator: np.random.Generator) -> Residues:
        """Return the same modulo 2^32, uint32, without the integers between."""
        residues = np.empty(values.size, dtype=np.uint32)
        self._encode(values, generator, residues)
        return residues.reshape(values.shape)

    def _encode(
        self, values: npt.NDArray[Any], generator: np.random.Generator, into: Integers | Residues
    ) -> None:
        flat, block = values.reshape(-1), np.empty(_BLOCK)
        for begin in range(0, flat.size, _BLOCK):  # what is done to a block is done in the cache
            part = flat[begin : begin + _BLOCK]
            scaled = block[: part.size]
            np.multiply(part, self.scale, out=scaled, dtype=np.float64)
            if not (float(scaled.max()) < _FAR and float(scaled.min()) > -_FAR):
                raise DataError(
                    "a number of the update is not finite, or too large to be summed",
                    remedy="lower training.optimizer.lr, or set training.gradient_clip",
                    code="update-not-finite",
                )
            drawn = generator.bit_generator.random_raw((part.size + 1) // 2)  # 64 bits each
            scaled += drawn.view(np.uint32)[: part.size] * _COIN
            into[begin : begin + _BLOCK] = np.floor(scaled, out=scaled).astype(np.int64)

    def decode(self, total: Integers) -> Reals:
        """Return the reals that (a sum of) integers stand for."""
        reals: Reals = total / self.scale
        return reals
