"""What a round came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt

from cloister.strategies.mean import Direction

__all__ = ["Gathered", "Sums"]

#: What a secure sum holds, by name.
Sums = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a round came to.

    Attributes:
        directions: by array, (size,) float64.
        facts: public numbers of the round, for its event.
    """

    directions: dict[str, Direction]
    facts: dict[str, float]
