"""Real numbers as integers of one scale, rounded at random so that sums keep their mean.

Formal guarantees: `FixedPoint.encode` rounds x·s up with a probability of its fraction and else down, so its mean is x·s; each number is
off by less than one unit, 1/s. Integers, and so `decode` of their sum, are exact as long as no sum leaves the modulus, which is for who
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
from cloister.privacy.updates.rotation import Reals
from cloister.privacy.updates.rounding import Integers

__all__ = ["FixedPoint"]

_FAR = float(2**62)
#: Numbers that are rounded at a time.
_BLOCK = 1 << 14


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
            generator: what the rounding is drawn from.
        """
        flat, integers = values.reshape(-1), np.empty(values.size, dtype=np.int64)
        for begin in range(0, flat.size, _BLOCK):  # all that is done to a block is done in the cache
            scaled = flat[begin : begin + _BLOCK].astype(np.float64)
            scaled *= self.scale
            if not (float(scaled.max()) < _FAR and float(scaled.min()) > -_FAR):
                raise DataError(
                    "a number of the update is not finite, or too large to be summed",
                    remedy="lower training.optimizer.lr, or set training.gradient_clip",
                    code="update-not-finite",
                )
            scaled += generator.random(scaled.size)
            integers[begin : begin + _BLOCK] = np.floor(scaled, out=scaled)
        return integers.reshape(values.shape)

    def decode(self, total: Integers) -> Reals:
        """Return the reals that (a sum of) integers stand for."""
        reals: Reals = total / self.scale
        return reals
