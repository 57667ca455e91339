"""Events made of events: several records a person, repetition, selection, composition."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

from cloister.core.errors import SpecError
from cloister.privacy.events.base import Event, dp, times
from cloister.privacy.events.mechanisms import Gaussian, Laplace, PoissonGaussian

__all__ = ["Composed", "Distribution", "Repeated", "Selected", "SeveralRecords"]

_MOST_RECORDS = 256  # of one person: the cost of the bound grows with it

#: How the number of tuning runs was drawn (Papernot & Steinke 2022), with the shape parameter of dp-accounting.
Distribution = Literal["poisson", "geometric", "logarithmic"]
_SHAPES: dict[str, float] = {"poisson": math.inf, "geometric": 1.0, "logarithmic": 0.0}


@dataclass(frozen=True, kw_only=True)
class SeveralRecords(Event):
    """An event as it touches a person who has up to ``records`` records, each clipped and sampled by itself.

    Under Poisson sampling the person moves a step's sum by i·C with probability Binomial(k, q)(i): a mixture of Gaussians
    dominates it (Ganesh 2024, arXiv 2401.10294; Choquette-Choo et al. 2023, arXiv 2310.15526, Cor. 4.7). Without sampling the
    sensitivity is k·C.

    Attributes:
        records: k, the most that one person has.
        event: `PoissonGaussian`, `Gaussian` or `Laplace`, stated for a single record.
    """

    kind = "several-records"
    sensitivity = "up to k times the sensitivity of the inner event"

    records: int
    event: Event

    def __post_init__(self) -> None:
        """Check the number of records and that the inner event is one that can be multiplied."""
        self._check_count("records", least=1, most=_MOST_RECORDS)
        self._check_event(self.event, (PoissonGaussian, Gaussian, Laplace))

    def dp_event(self, *, sensitivity: float = 1.0) -> Any:
        """Return ``MixtureOfGaussiansDpEvent(σ, [0…k], Binomial(k, q))``; the inner event with k times the sensitivity if unsampled."""
        if not isinstance(self.event, PoissonGaussian) or self.event.sampling_rate == 1.0:
            return self.event.dp_event(sensitivity=self.records * sensitivity)
        from scipy.stats import binom

        moves = range(self.records + 1)
        mixture = dp().MixtureOfGaussiansDpEvent(
            self.event.noise_multiplier / sensitivity,
            [float(move) for move in moves],
            [float(binom.pmf(move, self.records, self.event.sampling_rate)) for move in moves],
        )
        return times(mixture, self.event.steps)

    def units(self, *, hidden_cohort: bool = False) -> Iterator[tuple[Event, int]]:
        """Yield one application and its count, without the wrapping where one record or no sampling makes it needless."""
        for unit, count in self.event.units(hidden_cohort=hidden_cohort):
            if self.records == 1:
                yield unit, count
            elif isinstance(unit, (Gaussian, Laplace)):
                yield replace(unit, noise_multiplier=unit.noise_multiplier / self.records), count
            else:
                yield replace(self, event=unit), count


@dataclass(frozen=True, kw_only=True)
class Repeated(Event):
    """An event, several times, with every result released: tuning by a grid whose runs are all shown, for example.

    Attributes:
        event: what was done each time.
        times: how often.
    """

    kind = "repeated"
    sensitivity = "that of the inner event"

    event: Event
    times: int

    def __post_init__(self) -> None:
        """Check every field."""
        self._check_event(self.event)
        self._check_count("times")

    def dp_event(self, *, sensitivity: float = 1.0) -> Any:
        """Return the inner event's, ``times`` times."""
        return times(self.event.dp_event(sensitivity=sensitivity), self.times)

    def units(self, *, hidden_cohort: bool = False) -> Iterator[tuple[Event, int]]:
        """Yield the inner event's units with their counts multiplied."""
        if self.times:
            for unit, count in self.event.units(hidden_cohort=hidden_cohort):
                yield unit, count * self.times


@dataclass(frozen=True, kw_only=True)
class Selected(Event):
    """An event, a random number of times, with only the best result released (private tuning).

    Papernot & Steinke (2022, arXiv 2110.03620, Thms. 2 and 6). The number of runs must have been drawn from the distribution, and
    must not be told; a fixed number of runs is `Repeated`.

    Attributes:
        event: one run.
        mean_runs: the expected number of runs, at least 1.
        distribution: of the number of runs.
    """

    kind = "selected"
    sensitivity = "that of the inner event"

    event: Event
    mean_runs: float
    distribution: Distribution = "geometric"

    def __post_init__(self) -> None:
        """Check every field."""
        self._check_event(self.event)
        self._check_number("mean_runs", 1.0, 1e9)
        if self.distribution not in get_args(Distribution):
            raise SpecError(
                f"selected: distribution must be one of {', '.join(get_args(Distribution))}, not {self.distribution!r}",
                remedy="Draw the number of runs from one of them.",
                code="privacy-event",
            )

    def dp_event(self, *, sensitivity: float = 1.0) -> Any:
        """Return ``RepeatAndSelectDpEvent(event, mean, shape)``."""
        inner = self.event.dp_event(sensitivity=sensitivity)
        return dp().RepeatAndSelectDpEvent(inner, self.mean_runs, _SHAPES[self.distribution])

    def units(self, *, hidden_cohort: bool = False) -> Iterator[tuple[Event, int]]:
        """Yield the selection itself, once, around the units of its inner event."""
        inner = tuple(
            Repeated(event=unit, times=count) for unit, count in self.event.units(hidden_cohort=hidden_cohort)
        )
        if inner:
            yield replace(self, event=Composed(events=inner)), 1


@dataclass(frozen=True, kw_only=True)
class Composed(Event):
    """Several events on the same dataset, one after the other; each may depend on the results before it.

    Attributes:
        events: in any order: the bound does not depend on it.
    """

    kind = "composed"
    sensitivity = "that of each inner event"

    events: tuple[Event, ...]

    def __post_init__(self) -> None:
        """Check that each is an event, and make the sequence a tuple."""
        if isinstance(self.events, str) or not isinstance(self.events, Sequence):
            raise SpecError(
                f"composed: events must be a sequence of events, not {type(self.events).__name__}",
                remedy="Give a list or a tuple of events.",
                code="privacy-event",
            )
        object.__setattr__(self, "events", tuple(self.events))
        for event in self.events:
            self._check_event(event)

    def dp_event(self, *, sensitivity: float = 1.0) -> Any:
        """Return ``ComposedDpEvent`` of the inner events."""
        return dp().ComposedDpEvent([event.dp_event(sensitivity=sensitivity) for event in self.events])

    def units(self, *, hidden_cohort: bool = False) -> Iterator[tuple[Event, int]]:
        """Yield the units of every inner event."""
        for event in self.events:
            yield from event.units(hidden_cohort=hidden_cohort)
