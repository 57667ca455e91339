"""Rules: how the updates of a round become one direction.

A rule is a factory of accumulators, so that one which needs only a running sum keeps one vector, and one which compares clients
may keep its rows. The server adds updates in client order, never in order of arrival.
"""

from __future__ import annotations

from typing import ClassVar, Protocol, runtime_checkable

from cloister.core.spec import Aggregation
from cloister.core.update import Vector
from cloister.strategies.mean import Direction, StreamingMean
from cloister.strategies.robust.pipeline import Pipeline
from cloister.strategies.robust.rule import RobustRule

__all__ = ["Accumulator", "Mean", "Rule", "rule_from"]


@runtime_checkable
class Accumulator(Protocol):
    """Takes the updates of one round, one at a time."""

    def add(self, vector: Vector, weight: float) -> None:
        """Take one client's update, (size,) float32, with its weight.

        Raises:
            ValueError: wrong shape, dtype or weight, or a value that is not finite; the accumulator is as it was.
        """
        ...

    def result(self) -> Direction:
        """Return the round's direction, (size,) float64.

        Raises:
            ValueError: no update was taken.
        """
        ...


@runtime_checkable
class Rule(Protocol):
    """How updates become one direction.

    Attributes:
        name: as ``aggregation.rule`` names it.
    """

    @property
    def name(self) -> str:
        """The rule's name in the federation file."""
        ...

    def start(self, size: int) -> Accumulator:
        """Return an empty accumulator for updates of ``size`` elements."""
        ...


class Mean:
    """The weighted mean. It tolerates no lying client: one of them moves it anywhere."""

    name: ClassVar[str] = "mean"

    def start(self, size: int) -> StreamingMean:
        """Return an empty `StreamingMean` for updates of ``size`` elements."""
        return StreamingMean(size)


def rule_from(table: Aggregation) -> Rule:
    """Return the rule that ``[aggregation]`` names.

    Raises:
        SpecError: a pipeline that the federation file's own check should have refused.
    """
    if table.rule == Mean.name:
        return Mean()
    return RobustRule(pipeline=Pipeline.parse(table.rule), byzantine=table.byzantine)
