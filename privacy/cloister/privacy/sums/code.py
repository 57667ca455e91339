"""All parts of a secure sum in one vector of integers.

Formal guarantees: server and site build equal codes from equal parts, cohort size and bits; ``most * largest < 2^(bits - 1)``, asserted when
the code is built, so a sum of at most ``most`` vectors does not wrap (and where `Residues` wrap, they do so on purpose).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from cloister.privacy.sums.parts import Part
from cloister.privacy.sums.parts import Residues as ResiduesPart
from cloister.privacy.updates.modular import Residues
from cloister.privacy.updates.rounding import Integers

__all__ = ["SumCode"]

_MASKED_BITS = 32

V = TypeVar("V", npt.NDArray[np.int64], npt.NDArray[np.uint32])


@dataclass(frozen=True, kw_only=True)
class SumCode:
    """How a site's numbers become one vector of integers, and the sum of vectors numbers again.

    Attributes:
        parts: what it holds, in order.
        most: the most sites in a sum.
        bits: sums stay in [-2^(bits-1), 2^(bits-1)).
    """

    parts: tuple[Part, ...]
    most: int
    bits: int

    def __post_init__(self) -> None:
        if self.most * self.largest >= 1 << (self.bits - 1):
            raise ValueError(f"{self.most} integers up to {self.largest} wrap in {self.bits} bits")

    @cached_property
    def size(self) -> int:
        """Length of the vector."""
        return sum(part.length(self.most, self.bits) for part in self.parts)

    @cached_property
    def largest(self) -> int:
        """The largest magnitude of one integer."""
        return max(part.largest(self.most, self.bits) for part in self.parts)

    def encode(self, values: Mapping[str, npt.NDArray[Any]], generator: np.random.Generator) -> Integers:
        """Return (size,) int64.

        Args:
            values: one array a part, by name.
            generator: what rounding is drawn from.

        Raises:
            ValueError: other names or lengths than the parts'.
            DataError: a number is not finite.
        """
        vector = np.empty(self.size, dtype=np.int64)
        for part, place in self._places(vector, values):
            part.write(values[part.name], self.most, self.bits, generator, place)
        return vector

    def residues(self, values: Mapping[str, npt.NDArray[Any]], generator: np.random.Generator) -> Residues:
        """Return the same modulo 2^32, (size,) uint32, as masks are added to it.

        What is private only modulo a smaller power of two gets a random multiple of it: the sum modulo 2^32 then tells no more than the sum
        modulo that power, which is what was noised.

        Args:
            values: as in `encode`.
            generator: what rounding and the multiples are drawn from; whoever can predict it sees the sum of the integers themselves.
        """
        vector = np.empty(self.size, dtype=np.uint32)
        for part, place in self._places(vector, values):
            part.write(values[part.name], self.most, self.bits, generator, place)
            if isinstance(part, ResiduesPart) and part.modulus_bits < _MASKED_BITS:
                many = generator.integers(
                    0, 1 << (_MASKED_BITS - part.modulus_bits), place.size, dtype=np.uint32
                )
                np.add(place, many << np.uint32(part.modulus_bits), out=place)
        return vector

    def _places(self, vector: V, values: Mapping[str, npt.NDArray[Any]]) -> Iterator[tuple[Part, V]]:
        """Yield each part with its stretch of ``vector``."""
        sizes = {part.name: part.size for part in self.parts}
        given = {name: array.size for name, array in values.items()}
        if given != sizes:
            raise ValueError(f"expected numbers {sizes}, got {given}")  # names of parts, no data
        start = 0
        for part in self.parts:
            length = part.length(self.most, self.bits)
            yield part, vector[start : start + length]
            start += length

    def decode(self, total: Integers, *, count: int) -> dict[str, npt.NDArray[Any]]:
        """Return the sums by name.

        Args:
            total: (size,) int64, the sum of ``count`` vectors.
            count: how many sites are in it, from 1 to ``most``.

        Raises:
            ValueError: another length, or a count out of bounds.
        """
        if total.shape != (self.size,) or not 1 <= count <= self.most:
            raise ValueError(f"expected a sum ({self.size},) of 1 to {self.most} vectors, got {total.shape}")
        found = {}
        start = 0
        for part in self.parts:
            length = part.length(self.most, self.bits)
            found[part.name] = part.decode(total[start : start + length], count, self.most, self.bits)
            start += length
        return found
