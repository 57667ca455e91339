"""Events merged into what their accounting depends on, so that ten thousand equal rounds cost as much as one.

The order of events never matters to a bound on their composition. Equal single applications are counted; all unsampled
Gaussian queries become one, whose precision ``Σ 1/z²`` is exact (McMahan et al. 2018, arXiv 1812.06210, section 3).
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

from cloister.core.errors import SpecError
from cloister.privacy.events import Event, Gaussian, NonPrivate

__all__ = ["Merged", "Tally", "listed"]


@dataclass(frozen=True)
class Merged:
    """A composition: hashable, and equal for compositions that cost the same.

    Attributes:
        precision: Σ 1/z² over all unsampled Gaussian queries; 0 where there is none.
        counts: every other single application with its count, in a fixed order.
        unbounded: whether something was released without any bound.
    """

    precision: float
    counts: tuple[tuple[Event, int], ...]
    unbounded: bool

    @property
    def empty(self) -> bool:
        """Whether nothing was spent at all."""
        return not (self.precision or self.counts or self.unbounded)


class Tally:
    """A running count of events, to which rounds are added one after the other."""

    def __init__(self, *, hidden_cohort: bool = False) -> None:
        self._hidden = hidden_cohort
        self._counts: Counter[Event] = Counter()

    def add(self, events: Event | Iterable[Event]) -> None:
        """Add events.

        Raises:
            SpecError: something that is not a privacy event.
        """
        for event in listed(events):
            for unit, count in event.units(hidden_cohort=self._hidden):
                self._counts[unit] += count

    def merged(self) -> Merged:
        """Return the composition of everything added so far."""
        gaussians = [(unit, count) for unit, count in self._counts.items() if isinstance(unit, Gaussian)]
        others = [pair for pair in self._counts.items() if not isinstance(pair[0], (Gaussian, NonPrivate))]
        return Merged(
            precision=math.fsum(count / unit.noise_multiplier**2 for unit, count in gaussians),
            counts=tuple(sorted(others, key=lambda pair: repr(pair[0]))),
            unbounded=any(isinstance(unit, NonPrivate) for unit in self._counts),
        )


def listed(events: Event | Iterable[Event]) -> list[Event]:
    """Return ``events`` as a list, after a check that each is a privacy event.

    Raises:
        SpecError: something that is not a privacy event.
    """
    found = [events] if isinstance(events, Event) else list(events)
    for event in found:
        if not isinstance(event, Event):
            raise SpecError(
                f"a privacy event is expected, not {type(event).__name__}",
                remedy="Describe each mechanism by an event of cloister.privacy.events.",
                code="privacy-event",
            )
    return found
