"""A run as its events tell it: what progress shows while it lasts and what the report says at its end.

These are the words; `cloister.server.folding` makes a `History` of events.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = [
    "PHASES",
    "Answer",
    "End",
    "History",
    "Measured",
    "Refused",
    "Round",
    "Run",
    "Series",
    "SiteTally",
    "best_of",
]

_CODE = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")
#: The phases of a round, in their order.
PHASES = ("train", "aggregate", "evaluate", "checkpoint")


@dataclass(frozen=True, kw_only=True)
class Run:
    """What the first ``run`` event says."""

    name: str
    rounds: int
    sites: int
    site_names: tuple[str, ...]
    digest: str | None = None
    layout: str | None = None
    parameters: int | None = None
    seed: int | None = None
    reproducible: bool = True
    engine: str | None = None
    workers: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    task: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    partition: Mapping[str, Any] | None = None
    notes: tuple[str, ...] = ()
    protection: str | None = None
    rule: str | None = None
    optimizer: Any = None


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One evaluation.

    Attributes:
        round: the round after which the model was measured; 0 is the model before training.
        loss: mean loss a record; ``None`` where it was not finite.
        metrics: by name; one that was not finite is left out.
        confusion: (classes, classes) counts, true class by row; kept for the last and the best evaluation of a series.
        records: how many records it was measured on.
    """

    round: int
    loss: float | None
    metrics: Mapping[str, float]
    confusion: tuple[tuple[int, ...], ...] | None
    records: int | None


@dataclass(frozen=True, kw_only=True)
class Series:
    """The evaluations at one place, by round; never empty."""

    points: tuple[Measured, ...]

    @property
    def last(self) -> Measured:
        """The newest evaluation."""
        return self.points[-1]

    @property
    def best(self) -> Measured:
        """The evaluation that `best_of` chooses."""
        return best_of(self.points)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What came of asking one site in one phase of a round."""

    site: str
    phase: str
    status: str
    reason: str | None = None
    seconds: float | None = None
    loss: float | None = None
    bytes_down: int | None = None
    bytes_up: int | None = None


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A reply that the server refused, or a site that refused the job."""

    round: int
    site: str
    phase: str
    reason: str

    @property
    def code(self) -> str:
        """The stable part of the reason: ``not-finite`` of ``not-finite: the update holds NaN``."""
        head, separator, _ = self.reason.partition(": ")
        return head if separator and _CODE.fullmatch(head) else self.reason


@dataclass(frozen=True, kw_only=True)
class Round:
    """One round that ended. Bytes are totals over the cohort; ``seconds`` are by phase."""

    round: int
    cohort: int
    answered: int
    missing: tuple[str, ...]
    refused: tuple[Refused, ...]
    loss: float | None
    update_norm: float | None
    bytes_down: int
    bytes_up: int
    seconds: Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class SiteTally:
    """A site over the whole run: rounds in which it was asked to train and what came of it, its seconds and bytes.

    Bytes are the site's own where its events state them; otherwise an even share of the round's: of those down among the
    sites asked, of those up among the sites whose reply arrived.
    """

    asked: int = 0
    answered: int = 0
    refused: int = 0
    missing: int = 0
    seconds: float = 0.0
    loss: float | None = None
    bytes_down: float = 0.0
    bytes_up: float = 0.0


@dataclass(frozen=True, kw_only=True)
class End:
    """How the run ended."""

    status: str
    code: str | None = None
    message: str | None = None
    model: str | None = None


@dataclass(frozen=True, kw_only=True)
class History:
    """All that a run's events add up to.

    Attributes:
        run: what the run is; ``None`` before its ``run`` event.
        resumed_from: the rounds that the run was continued from.
        rounds: the rounds that ended, in order.
        series: evaluations by place (``central``, ``sites``, ``site:<name>``, ``baseline:…``).
        sites: what became of each site that was ever asked, by name.
        refused: every refusal, in the order of the rounds.
        bytes_measured: whether every site's bytes are its own and not an even share.
        privacy: the newest ``privacy`` event of each site ("" where it names none).
        privacy_by_round: the ``privacy`` events that name no site, by round: what the site that spent most had spent by then.
        audits: the newest ``audit`` event of each check.
        signals: the ``signals`` event of each round that has one, in order.
        warnings: the distinct texts of the warnings, in order.
        end: how the run ended; ``None`` when no event says so.
    """

    run: Run | None
    resumed_from: tuple[int, ...]
    rounds: tuple[Round, ...]
    series: Mapping[str, Series]
    sites: Mapping[str, SiteTally]
    refused: tuple[Refused, ...]
    bytes_measured: bool
    privacy: Mapping[str, Mapping[str, Any]]
    privacy_by_round: tuple[Mapping[str, Any], ...]
    audits: Mapping[str, Mapping[str, Any]]
    warnings: tuple[str, ...]
    end: End | None
    signals: tuple[Mapping[str, Any], ...] = ()

    @property
    def refused_by_reason(self) -> dict[str, int]:
        """How often each reason was given, by its stable part, most often first."""
        return dict(Counter(refused.code for refused in self.refused).most_common())

    @property
    def seconds(self) -> dict[str, float]:
        """Seconds of the whole run by phase."""
        total = dict.fromkeys(PHASES, 0.0)
        for one in self.rounds:
            for phase, seconds in one.seconds.items():
                total[phase] = total.get(phase, 0.0) + seconds
        return total


def best_of(points: Iterable[Measured]) -> Measured:
    """Return the evaluation with the highest accuracy, else the one with the lowest loss, else the last; ties: the earliest."""
    known = tuple(points)
    if accurate := [point for point in known if "accuracy" in point.metrics]:
        return max(accurate, key=lambda point: (point.metrics["accuracy"], -point.round))
    if lossy := [(point.loss, point.round, point) for point in known if point.loss is not None]:
        return min(lossy, key=lambda triple: triple[:2])[2]
    return known[-1]
