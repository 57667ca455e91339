"""What a round came to."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.strategies.mean import Direction

__all__ = ["Gathered"]


@dataclass(frozen=True, kw_only=True)
class Gathered:
    """What a round came to.

    Attributes:
        directions: by array, (size,) float64.
        facts: public numbers of the round, for its event.
    """

    directions: dict[str, Direction]
    facts: dict[str, float]
