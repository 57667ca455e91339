"""What every privacy event has: a name, checked fields, a sensitivity, and the accountant's own event."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from enum import StrEnum
from numbers import Integral, Real
from typing import Any, ClassVar

from cloister.core.errors import SpecError

__all__ = ["MOST", "NOISE_RANGE", "RATE_RANGE", "Counted", "Event", "Relation", "dp", "times"]

#: The noise multipliers that an event may state. Outside of them the accountants' arithmetic no longer holds.
NOISE_RANGE = (1e-6, 1e9)
#: The sampling rates that an event may state.
RATE_RANGE = (1e-12, 1.0)
#: The most applications that one event may state.
MOST = 10**12


class Relation(StrEnum):
    """Which two datasets are compared."""

    ZERO_OUT = "zero-out"  #: a unit's contribution is replaced by zero; the platform's relation
    REPLACE_ONE = "replace-one"  #: a unit is replaced by any other
    ADD_OR_REMOVE = "add-or-remove"  #: a unit is added or removed; the number of units is not public

    @property
    def dp(self) -> Any:
        """The ``dp_accounting.NeighboringRelation`` that it is."""
        from dp_accounting import NeighboringRelation  # type: ignore[import-untyped]  # dp-accounting ships no types

        names = {
            "zero-out": "REPLACE_SPECIAL",
            "replace-one": "REPLACE_ONE",
            "add-or-remove": "ADD_OR_REMOVE_ONE",
        }
        return NeighboringRelation[names[self.value]]


@dataclass(frozen=True, kw_only=True)
class Event(ABC):
    """Something that a mechanism did, and all that its accounting needs."""

    #: The name in JSON. It never changes.
    kind: ClassVar[str]
    #: What the noise is measured against, under zero-out.
    sensitivity: ClassVar[str]

    @abstractmethod
    def dp_event(self, *, sensitivity: float = 1.0) -> Any:
        """Return the ``dp_accounting.DpEvent`` that this event is.

        Args:
            sensitivity: how many times the stated sensitivity one unit can move the result: 2 where a unit may be
                replaced by any other and the accountant does not double by itself (`RdpAccountant` does not).
        """

    @abstractmethod
    def units(self, *, hidden_cohort: bool = False) -> Iterator[tuple[Event, int]]:
        """Yield the event as single applications with their counts; an event that costs nothing yields none.

        Args:
            hidden_cohort: whether nobody who sees a result learns which sites took part. Only then does a
                `CohortGaussian` gain from its sampling.
        """

    def as_json(self) -> dict[str, Any]:
        """Return the event as plain JSON values (see `to_json`)."""
        return {
            "type": self.kind,
            **{field.name: _encoded(getattr(self, field.name)) for field in fields(self)},
        }

    def _check_number(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        good = isinstance(value, Real) and not isinstance(value, bool)
        if not (good and low <= value <= high):  # NaN fails both comparisons
            raise SpecError(
                f"{self.kind}: {name} must be a number from {low:g} to {high:g}, not {value!r}",
                remedy=f"Give a {name} in that range.",
                code="privacy-event",
            )
        object.__setattr__(self, name, float(value))

    def _check_count(self, name: str, least: int = 0, most: int = MOST) -> None:
        value = getattr(self, name)
        if isinstance(value, bool) or not isinstance(value, Integral) or not least <= int(value) <= most:
            raise SpecError(
                f"{self.kind}: {name} must be a whole number from {least} to {most}, not {value!r}",
                remedy=f"Give a whole {name} in that range.",
                code="privacy-event",
            )
        object.__setattr__(self, name, int(value))

    def _check_event(self, value: object, allowed: tuple[type[Event], ...] = ()) -> None:
        if not isinstance(value, allowed or Event):
            names = ", ".join(sorted(kind.kind for kind in allowed)) or "an event"
            raise SpecError(
                f"{self.kind}: the inner event must be {names}, not {getattr(value, 'kind', type(value).__name__)}",
                remedy="Describe the mechanism by the events that it consists of.",
                code="privacy-event",
            )


class Counted(Event):
    """An event that states how often it was applied, in the field that ``count_field`` names."""

    count_field: ClassVar[str]

    def units(self, *, hidden_cohort: bool = False) -> Iterator[tuple[Event, int]]:  # noqa: ARG002 - it has no cohort
        """Yield one application and how many there were."""
        if count := getattr(self, self.count_field):
            yield replace(self, **{self.count_field: 1}), count


def _encoded(value: Any) -> Any:
    if isinstance(value, Event):
        return value.as_json()
    return [_encoded(item) for item in value] if isinstance(value, tuple) else value


def times(event: Any, count: int) -> Any:
    """Return ``event`` composed ``count`` times with itself, plainly where that is once or never."""
    if count == 0:
        return dp().NoOpDpEvent()
    return event if count == 1 else dp().SelfComposedDpEvent(event, count)


def dp() -> Any:
    """Return ``dp_accounting.dp_event``, imported when first used: the command's help does not wait for SciPy."""
    from dp_accounting import dp_event

    return dp_event
