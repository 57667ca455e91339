"""What a watcher keeps of a run's events: what a page shows, and no more.

Memory: a few hundred bytes a site (of at most `MOST_SITES`), the newest `KEPT` refusals, warnings and alerts, the newest `ROUNDS` rounds, and
curves of at most some hundred points each. Beyond that it does not grow with the length of a run.

What the events of the rounds add up to is `cloister.server.folding`'s; a test holds a book's sums against a whole `History`.
"""

from __future__ import annotations

import statistics
from collections import Counter, deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from cloister.server.folding import Fold, tallies
from cloister.server.history import Answer, History, Measured, Refused, Round, Series, SiteTally
from cloister.server.report.words import drawable, headline
from cloister.server.watching.curve import Band, Curve

__all__ = ["KEPT", "MOST_SITES", "ROUNDS", "Book", "SiteNow", "when"]

#: The newest refusals, warnings and alerts that are kept one by one.
KEPT = 200
#: The newest rounds that are.
ROUNDS = 10_000
#: Sites that are told apart; what others do is counted in sums only.
MOST_SITES = 5000
#: Sites whose curves are kept one by one; of all others, the lowest, the middle and the highest value.
_LINES = 12
_PACES, _METRICS, _CODES, _TEXT = 20, 24, 40, 1000


@dataclass(kw_only=True)
class SiteNow:
    """What is known of one site.

    Attributes:
        total: what became of it in the rounds that ended.
        status: what came of asking it last.
        phase, round: when that was; round 0: it was never asked.
        seen: time of its last answer, seconds since 1970; ``None``: it never answered.
        measured: the newest evaluation on its own test records.
    """

    total: SiteTally = field(default_factory=SiteTally)
    status: str = ""
    phase: str = ""
    round: int = 0
    seen: float | None = None
    measured: Measured | None = None


class Book:
    """Takes the events of one run, oldest first."""

    def __init__(self) -> None:
        self.fold = Fold(live=True)
        self.begun: float | None = None
        self.newest: float | None = None
        self.round_at: float | None = None
        self.number = 0
        self.ended = 0
        self.phase = ""
        self.unreadable = 0
        self.names: dict[str, None] = {}
        self.sites: dict[str, SiteNow] = {}
        self.heard: dict[str, str] = {}
        self.refused: deque[tuple[Refused, float | None]] = deque(maxlen=KEPT)
        self.refusals: Counter[str] = Counter()
        self.measured: dict[str, Measured] = {}
        self.metrics: dict[tuple[str, str], Curve] = {}
        self.lines: dict[str, dict[str, Curve]] = {}
        self.bands: dict[str, Band] = {}
        self.lead: str | None = None
        self.loss, self.norm = Curve(), Curve()
        self.down, self.up = Curve(), Curve()
        self.seconds: dict[str, float] = {}
        self.by_phase: dict[str, Curve] = {}
        self.total_down = self.total_up = 0
        self.asked = self.answered = 0
        self.spent = Curve()
        self.spent_at: int | None = None
        self.rounds_asked: int | None = None
        self.signals: Mapping[str, Any] | None = None
        self.cosine = Curve()
        self.alerts: deque[Mapping[str, Any]] = deque(maxlen=KEPT)
        self.paces: deque[float] = deque(maxlen=_PACES)
        self._answers: list[Answer] = []
        self._told: set[tuple[str, str]] = set()

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event; one whose values are not what its kind has is counted and passed over."""
        try:
            self._add(event)
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError):
            self.unreadable += 1

    def pace(self) -> float | None:
        """Return the median seconds of the newest rounds; ``None`` before the second round ended."""
        return statistics.median(self.paces) if len(self.paces) > 1 else None

    def _add(self, event: Mapping[str, Any]) -> None:
        kind, number, at = event["kind"], event["round"], when(event.get("time"))
        if kind == "evaluation":
            self._evaluation(event, number)
        elif kind == "signals":
            self._signal(event, number)
        else:
            self.fold.add(event)
        if at is not None:
            self.newest = at
            self.begun = at if self.begun is None else self.begun
        if number > self.number:
            self.number, self.phase, self.heard = number, "train", {}
        if kind == "run":
            self.names = dict.fromkeys(str(name) for name in event["site_names"][:MOST_SITES])
            self.round_at = at
        elif kind == "site":
            self._site(event, number, at)
        elif kind == "round":
            self._round(number, at)
        elif kind == "privacy" and not event.get("site"):
            self.spent.add(number, _finite(event.get("epsilon")))
            self.spent_at, self.rounds_asked = number, event.get("asked")
        self._prune()

    def _prune(self) -> None:
        while len(self.fold.rounds) > ROUNDS:
            del self.fold.rounds[next(iter(self.fold.rounds))]
        while len(self.fold.warnings) > KEPT:
            del self.fold.warnings[next(iter(self.fold.warnings))]

    def _site(self, event: Mapping[str, Any], number: int, at: float | None) -> None:
        name, phase, status = str(event["site"]), str(event["phase"]), str(event["status"])
        keys = ("reason", "seconds", "loss", "bytes_down", "bytes_up")
        answer = Answer(site=name, phase=phase, status=status, **{key: event.get(key) for key in keys})
        self._answers.append(answer)
        if phase != self.phase or name in self.heard:  # a new phase, or a round that is tried again
            self.phase, self.heard = phase, {}
        self.heard[name] = status
        site = self._known(name)
        if site is not None:
            site.status, site.phase, site.round = status, phase, number
            if status != "missing":
                site.seen = at
        if status == "refused":
            reason = str(answer.reason or "no reason given")[:_TEXT]
            self._refuse(Refused(round=number, site=name, phase=phase, reason=reason), at)

    def _refuse(self, refused: Refused, at: float | None) -> None:
        self._told.add((refused.site, refused.phase))
        self.refused.append((refused, at))
        code = refused.code
        self.refusals[code if code in self.refusals or len(self.refusals) < _CODES else "other"] += 1

    def _round(self, number: int, at: float | None) -> None:
        one = self.fold.rounds[number]
        for refused in one.refused:
            if (refused.site, refused.phase) not in self._told:
                self._refuse(refused, at)
        self._tally(one)
        if at is not None and self.round_at is not None and number > self.ended:
            self.paces.append(max(0.0, at - self.round_at) / (number - self.ended))
        self.round_at, self.ended = at, max(self.ended, number)
        self.phase, self.heard, self._answers, self._told = "", {}, [], set()
        self.loss.add(number, _finite(one.loss))
        self.norm.add(number, _finite(one.update_norm))
        self.down.add(number, one.bytes_down)
        self.up.add(number, one.bytes_up)
        self.total_down += one.bytes_down
        self.total_up += one.bytes_up
        self.asked += one.cohort
        self.answered += one.answered
        for phase, seconds in one.seconds.items():
            if phase in self.by_phase or len(self.by_phase) < _METRICS:
                self.seconds[phase] = self.seconds.get(phase, 0.0) + seconds
                self.by_phase.setdefault(phase, Curve()).add(number, seconds)
        for band in self.bands.values():
            band.settle()

    def _tally(self, one: Round) -> None:
        for name, new in tallies((one,), {one.round: self._answers})[0].items():
            site = self._known(name)
            if site is not None:
                old = site.total
                site.total = SiteTally(
                    asked=old.asked + new.asked,
                    answered=old.answered + new.answered,
                    refused=old.refused + new.refused,
                    missing=old.missing + new.missing,
                    seconds=old.seconds + new.seconds,
                    loss=new.loss if new.loss is not None else old.loss,
                    bytes_down=old.bytes_down + new.bytes_down,
                    bytes_up=old.bytes_up + new.bytes_up,
                )

    def _known(self, name: str) -> SiteNow | None:
        if name not in self.sites and len(self.sites) >= MOST_SITES:
            return None
        return self.sites.setdefault(name, SiteNow())

    def _evaluation(self, event: Mapping[str, Any], number: int) -> None:
        where = str(event["where"])
        metrics = {
            str(name): float(value)
            for name, value in list(event["metrics"].items())[:_METRICS]
            if value is not None
        }
        loss = _finite(event["loss"])
        point = Measured(round=number, loss=loss, metrics=metrics, confusion=None, records=event["records"])
        if where.startswith("site:"):
            self._site_measured(where.removeprefix("site:"), point)
        elif where in self.measured or len(self.measured) < MOST_SITES:
            self.measured[where] = point
            if where in ("central", "sites"):
                self.lead = headline(list(metrics)) or self.lead
                for name, value in [*metrics.items(), *([] if loss is None else [("loss", loss)])]:
                    if (name, where) in self.metrics or len(self.metrics) < 2 * _METRICS:
                        self._curve(self.metrics.setdefault((name, where), Curve()), name, number, value)

    def _site_measured(self, name: str, point: Measured) -> None:
        site = self._known(name)
        if site is not None:
            site.measured = point
        lead = headline(list(point.metrics))
        values = {"loss": point.loss, **({} if lead is None else {lead: point.metrics[lead]})}
        if name not in self.lines and len(self.lines) < _LINES:
            self.lines[name] = {}
        for metric, value in values.items():
            if value is None or not drawable(metric, value):
                continue
            self.bands.setdefault(metric, Band()).add(point.round, name, value)
            if name in self.lines:
                self.lines[name].setdefault(metric, Curve()).add(point.round, value)

    def history(self) -> History:
        """Return what the report's words and figures are made of; of each series it has the newest evaluation only."""
        return replace(
            self.fold.history(),
            sites={name: site.total for name, site in self.sites.items() if site.total.asked},
            series={where: Series(points=(point,)) for where, point in self.measured.items()},
            privacy_by_round=tuple(
                {
                    "round": number,
                    "epsilon": value,
                    "asked": self.rounds_asked if number == self.spent_at else None,
                }
                for number, value in self.spent.points()
            ),
        )

    @staticmethod
    def _curve(curve: Curve, metric: str, number: int, value: float) -> None:
        if drawable(metric, value):
            curve.add(number, value)

    def _signal(self, event: Mapping[str, Any], number: int) -> None:
        direction, rows, alerts = event["direction"], event["rows"], event["alerts"]
        self.cosine.add(number, _finite(direction.get("cosine")))
        self.signals = {
            "round": number,
            "toward": event.get("toward"),
            "rows": [dict(row) for row in rows[:KEPT]],
        }
        self.alerts.extend({**alert, "round": number} for alert in alerts[:KEPT])


def when(text: Any) -> float | None:
    """Return the seconds since 1970 of an event's time; ``None`` where it has none."""
    try:
        return datetime.fromisoformat(text).timestamp()
    except (TypeError, ValueError, OverflowError):
        return None


def _finite(value: Any) -> float | None:
    return None if value is None else float(value)
