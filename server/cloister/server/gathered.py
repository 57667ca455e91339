"""What a round came to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy.typing as npt

from cloister.strategies.mean import Direction
from cloister.strategies.robust.rows import Matrix
from cloister.strategies.signals import RowSignals

__all__ = ["Gathered", "Seen", "Sums"]

#: What a secure sum holds, by name.
Sums = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What the rows of a round looked like.

    Attributes:
        signals: of each row, in the order in which they were added.
        toward: what cosines are to: the rows' ``median``, or the ``last`` round's direction.
        shares: (n,) the weight of each row in the direction, where a rule weighs them.
        names: whose rows they are, where they are not sites'.
    """

    signals: RowSignals
    toward: Literal["median", "last"]
    shares: Matrix | None = None
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a round came to.

    Attributes:
        directions: by array, (size,) float64.
        facts: public numbers of the round, for its event.
        seen: the signals of its rows, where the server sees rows that may be told of.
    """

    directions: dict[str, Direction]
    facts: dict[str, float]
    seen: Seen | None = None
