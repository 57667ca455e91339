"""The kinds of numbers that a secure sum can hold, each with its own way to become integers.

========  ====================================================  ==============================================================
part      what it is for                                        its sum
========  ====================================================  ==============================================================
Reals     long vectors of reals up to a public reach            exact up to one random rounding a site: 1 unit of `FixedPoint`
Exact     a few numbers: losses, metrics, counts, weights       exact to 2^-20, up to 2^31 in magnitude each
Residues  integers modulo 2^b that were encoded before          exact modulo 2^b
========  ====================================================  ==============================================================

Formal guarantee, for every part: ``decode`` of the sum of what `Part.write` wrote for at most ``most`` values is the sum of the values, within what the
table says, whatever the values, and no integer is beyond `Part.largest`, so that no sum of ``most`` of them leaves 2^(bits - 1).

======================================  ==============================
case                                    outcome
======================================  ==============================
a real beyond the reach                 cut to it (`Reals.cuts` tells)
an `Exact` number beyond 2^31           cut to it
NaN or infinity                         ``DataError``
another length than the part's          ``ValueError``, from `SumCode`
======================================  ==============================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from cloister.core.errors import DataError, SpecError
from cloister.privacy.updates import FixedPoint, centred, wrapped
from cloister.privacy.updates.rounding import Integers

__all__ = ["Exact", "Part", "Reals", "Residues", "room"]

Values = npt.NDArray[Any]
Into = npt.NDArray[np.int64] | npt.NDArray[np.uint32]

_FRACTION_BITS = 20
_EXACT_BITS = 52
_OFFSET = 1 << (_EXACT_BITS - 1)


class Part(Protocol):
    """One stretch of the vector."""

    @property
    def name(self) -> str:
        """What it is called."""
        ...

    @property
    def size(self) -> int:
        """How many numbers it holds."""
        ...

    def length(self, most: int, bits: int) -> int:
        """Return how many integers it takes."""
        ...

    def largest(self, most: int, bits: int) -> int:
        """Return the largest magnitude of one integer."""
        ...

    def write(self, values: Values, most: int, bits: int, generator: np.random.Generator, into: Into) -> None:
        """Write ``values``, ``size`` of them, as integers over ``into``, (length,) contiguous: int64, or uint32 for what they are modulo 2^32."""
        ...

    def decode(self, total: Integers, count: int, most: int, bits: int) -> Values:
        """Return what ``total``, the sum over ``count`` sites, stands for."""
        ...


def room(most: int, bits: int) -> int:
    """Return the largest magnitude of which ``most`` sum to less than 2^(bits - 1).

    Raises:
        SpecError: there is none.
    """
    found = ((1 << (bits - 1)) - 1) // most
    if found < 1 << 8:
        raise SpecError(
            f"sums over {most} sites in {bits} bits leave each site {found} units",
            remedy="ask fewer sites a round, or use protection = 'masked', which has 32 bits",
            code="protection-range",
        )
    return found


def _largest(values: Values) -> float:
    """Return the largest magnitude; NaN where there is one."""
    return max(float(values.max()), -float(values.min())) if values.size else 0.0


@dataclass(frozen=True, kw_only=True)
class Reals:
    """A vector of ``size`` reals, each at most ``reach`` in magnitude."""

    name: str
    size: int
    reach: float

    def length(self, most: int, bits: int) -> int:  # noqa: ARG002 - the seam's signature
        """Return ``size``."""
        return self.size

    def largest(self, most: int, bits: int) -> int:
        """Return all the room there is."""
        return room(most, bits)

    def write(self, values: Values, most: int, bits: int, generator: np.random.Generator, into: Into) -> None:
        """Write the reals in units of `unit`, rounded at random."""
        if self.reach < _largest(values) < math.inf:
            # In float64: the float32 nearest to the reach may be beyond it.
            values = np.clip(values.astype(np.float64), -self.reach, self.reach)
        self._code(most, bits).write(values, generator, into)

    def decode(self, total: Integers, count: int, most: int, bits: int) -> Values:  # noqa: ARG002
        """Return the sum of the reals, (size,) float64."""
        return self._code(most, bits).decode(total)

    def cuts(self, values: Values) -> bool:
        """Whether a number of ``values`` is beyond the reach."""
        return _largest(values) > self.reach

    def unit(self, most: int, bits: int) -> float:
        """Return the rounding's unit: each site's number is off by less."""
        return 1 / self._code(most, bits).scale

    def _code(self, most: int, bits: int) -> FixedPoint:
        room(most, bits)
        return FixedPoint.within(self.reach, most=most, bits=bits)


@dataclass(frozen=True, kw_only=True)
class Exact:
    """``size`` numbers in steps of 2^-20, each cut into limbs whose sums cannot wrap."""

    name: str
    size: int = 1

    def length(self, most: int, bits: int) -> int:
        """Return ``size`` times the number of limbs."""
        return self.size * self._limbs(most, bits)

    def largest(self, most: int, bits: int) -> int:
        """Return the largest limb."""
        return (1 << self._width(most, bits)) - 1

    def write(self, values: Values, most: int, bits: int, generator: np.random.Generator, into: Into) -> None:  # noqa: ARG002
        """Write the limbs of all numbers, the lowest first."""
        scaled = np.rint(values.astype(np.float64) * (1 << _FRACTION_BITS))
        if not np.isfinite(scaled).all():
            raise DataError(
                f"'{self.name}' is not finite", remedy="lower training.optimizer.lr", code="update-not-finite"
            )
        whole = np.clip(scaled, 1 - _OFFSET, _OFFSET - 1).astype(np.int64) + _OFFSET
        width = self._width(most, bits)
        for place in range(self._limbs(most, bits)):
            into[place * self.size : (place + 1) * self.size] = (whole >> (width * place)) & (
                (1 << width) - 1
            )

    def decode(self, total: Integers, count: int, most: int, bits: int) -> Values:
        """Return the sums, (size,) float64."""
        width = self._width(most, bits)
        limbs = total.reshape(self._limbs(most, bits), self.size)
        sums = [
            sum(int(limb) << (width * place) for place, limb in enumerate(column)) - count * _OFFSET
            for column in limbs.T
        ]
        return np.array([one / (1 << _FRACTION_BITS) for one in sums], dtype=np.float64)

    def _width(self, most: int, bits: int) -> int:
        return (room(most, bits) + 1).bit_length() - 1

    def _limbs(self, most: int, bits: int) -> int:
        return -(-_EXACT_BITS // self._width(most, bits))


@dataclass(frozen=True, kw_only=True)
class Residues:
    """``size`` integers modulo 2^``modulus_bits``, encoded and noised before; their sum is kept modulo the same."""

    name: str
    size: int
    modulus_bits: int

    def length(self, most: int, bits: int) -> int:  # noqa: ARG002 - the seam's signature
        """Return ``size``."""
        return self.size

    def largest(self, most: int, bits: int) -> int:
        """Return half the modulus, or all the room there is where sums wrap on purpose.

        Raises:
            SpecError: sums that do not wrap modulo a multiple of the modulus have no room for them.
        """
        if bits == 32:  # a multiple of any modulus here: what wraps is right all the same
            return min(1 << (self.modulus_bits - 1), room(most, bits))
        if 1 << (self.modulus_bits - 1) > room(most, bits):
            raise SpecError(
                f"sums of {most} integers of {self.modulus_bits} bits do not fit into {bits} bits",
                remedy="use protection = 'masked', or ask fewer sites a round",
                code="protection-range",
            )
        return 1 << (self.modulus_bits - 1)

    def write(self, values: Values, most: int, bits: int, generator: np.random.Generator, into: Into) -> None:  # noqa: ARG002
        """Write the integers, centred."""
        into[:] = centred(values, self.modulus_bits)

    def decode(self, total: Integers, count: int, most: int, bits: int) -> Values:  # noqa: ARG002
        """Return the sum modulo 2^``modulus_bits``, (size,) uint32."""
        return wrapped(total, self.modulus_bits)
