"""From events to a `History`.

`Fold` takes events one by one; `Fold.history` returns what they add up to. The result depends on the events of the rounds
that counted and on nothing else: a ``run`` event that resumes from round k takes back every round after k, and a round that is
told twice counts once, as told last. So a resumed run has the history of an unbroken one, but for `History.resumed_from`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from cloister.server.history import (
    Answer,
    End,
    History,
    Measured,
    Refused,
    Round,
    Run,
    Series,
    SiteTally,
    best_of,
)

__all__ = ["Fold", "tallies"]


class Fold:
    """Takes events and keeps what they add up to. Kinds that it does not know are passed over.

    Args:
        live: only what a display of the current state needs: no confusion matrix, no answer of a round that ended, so
            memory grows by a few numbers a round. `history` is then without them.
    """

    def __init__(self, *, live: bool = False) -> None:
        self._live = live
        self.run: Run | None = None
        self.end: End | None = None
        self.rounds: dict[int, Round] = {}
        self.warnings: dict[str, int] = {}
        self.privacy: dict[str, Mapping[str, Any]] = {}
        self._privacy_rounds: dict[int, Mapping[str, Any]] = {}
        self._audits: dict[str, Mapping[str, Any]] = {}
        self._signals_of: dict[int, Mapping[str, Any]] = {}
        self._resumed: list[int] = []
        self._points: dict[str, dict[int, Measured]] = {}
        self._answers: dict[int, list[Answer]] = {}

    @classmethod
    def of(cls, events: Iterable[Mapping[str, Any]], *, live: bool = False) -> Fold:
        """Return the fold of these events."""
        fold = cls(live=live)
        for event in events:
            fold.add(event)
        return fold

    def add(self, event: Mapping[str, Any]) -> None:
        """Take one event."""
        if take := getattr(self, f"_{event['kind']}", None) if event["kind"] in _KINDS else None:
            take(event, int(event["round"]))

    def newest(self, where: str) -> Measured | None:
        """Return the newest evaluation at ``where``."""
        points = self._points.get(where)
        return points[max(points)] if points else None

    def history(self) -> History:
        """Return what the events so far add up to."""
        rounds = tuple(self.rounds[number] for number in sorted(self.rounds))
        sites, measured = tallies(rounds, self._answers)
        return History(
            run=self.run,
            resumed_from=tuple(self._resumed),
            rounds=rounds,
            series={where: _series(points) for where, points in self._points.items()},
            sites=sites,
            refused=_refusals(self.rounds, self._answers),
            bytes_measured=measured,
            privacy=dict(self.privacy),
            privacy_by_round=tuple(self._privacy_rounds[number] for number in sorted(self._privacy_rounds)),
            audits=dict(self._audits),
            warnings=tuple(self.warnings),
            end=self.end,
            signals=tuple(self._signals_of[number] for number in sorted(self._signals_of)),
        )

    def _run(self, event: Mapping[str, Any], _: int) -> None:
        if (resumed := event.get("resumed_from")) is not None:
            self._resumed.append(int(resumed))
            self._take_back(after=int(resumed))
        self.end = None
        if self.run is None:
            self.run = _read_run(event)

    def _take_back(self, after: int) -> None:
        tables: list[dict[int, Any]] = [
            self.rounds,
            self._answers,
            self._privacy_rounds,
            self._signals_of,
            *self._points.values(),
        ]
        for table in tables:
            for number in [number for number in table if number > after]:
                del table[number]
        self._points = {where: points for where, points in self._points.items() if points}
        self.warnings = {text: number for text, number in self.warnings.items() if number <= after}

    def _site(self, event: Mapping[str, Any], number: int) -> None:
        keys = ("reason", "seconds", "loss", "bytes_down", "bytes_up")
        answer = Answer(
            site=event["site"],
            phase=event["phase"],
            status=event["status"],
            **{key: event.get(key) for key in keys},
        )
        self._answers.setdefault(number, []).append(answer)

    def _round(self, event: Mapping[str, Any], number: int) -> None:
        refused = (
            Refused(
                round=number, site=entry["site"], phase="train", reason=entry["reason"] or "no reason given"
            )
            for entry in event.get("refused") or ()
        )
        self.rounds[number] = Round(
            round=number,
            cohort=event["cohort"],
            answered=event["answered"],
            missing=tuple(event.get("missing") or ()),
            refused=tuple(refused),
            loss=event.get("loss"),
            update_norm=event.get("update_norm"),
            bytes_down=event.get("bytes_down") or 0,
            bytes_up=event.get("bytes_up") or 0,
            seconds={
                phase: seconds
                for phase, seconds in (event.get("seconds") or {}).items()
                if seconds is not None
            },
        )
        if self._live:
            self._answers.clear()

    def _evaluation(self, event: Mapping[str, Any], number: int) -> None:
        where = event["where"]
        confusion = None if self._live else event.get("confusion")
        point = Measured(
            round=number,
            loss=event["loss"],
            metrics={name: value for name, value in event["metrics"].items() if value is not None},
            confusion=tuple(tuple(row) for row in confusion) if confusion else None,
            records=event["records"],
        )
        self._points.setdefault(where, {})[number] = point

    def _privacy(self, event: Mapping[str, Any], number: int) -> None:
        self.privacy[event.get("site") or ""] = event
        if not event.get("site") and not self._live:
            self._privacy_rounds[number] = event

    def _signals(self, event: Mapping[str, Any], number: int) -> None:
        if not self._live:
            self._signals_of[number] = event

    def _audit(self, event: Mapping[str, Any], _: int) -> None:
        self._audits[event["check"]] = event

    def _warning(self, event: Mapping[str, Any], number: int) -> None:
        self.warnings.setdefault(event["text"], number)

    def _end(self, event: Mapping[str, Any], _: int) -> None:
        self.end = End(
            status=event["status"],
            code=_text(event.get("code")),
            message=event.get("message"),
            model=event.get("model"),
        )


_KINDS = frozenset({"run", "site", "round", "evaluation", "privacy", "signals", "audit", "warning", "end"})


def _read_run(event: Mapping[str, Any]) -> Run:
    plain = (
        "digest",
        "layout",
        "parameters",
        "seed",
        "engine",
        "workers",
        "partition",
        "protection",
        "rule",
        "optimizer",
    )
    return Run(
        name=event["name"],
        rounds=event["rounds"],
        sites=event["sites"],
        site_names=tuple(event["site_names"]),
        reproducible=bool(event.get("reproducible", True)),
        versions=event.get("versions") or {},
        task=event.get("task") or {},
        classes=tuple(event.get("classes") or ()),
        notes=tuple(event.get("notes") or ()),
        **{key: event.get(key) for key in plain},
    )


def _series(points: Mapping[int, Measured]) -> Series:
    """The points by round; only the last and the best keep their confusion matrix."""
    ordered = tuple(points[key] for key in sorted(points))
    kept = {ordered[-1].round, best_of(ordered).round}
    return Series(
        points=tuple(point if point.round in kept else replace(point, confusion=None) for point in ordered)
    )


def _text(value: Any) -> str | None:
    return None if value is None else str(value)


def _refusals(rounds: Mapping[int, Round], answers: Mapping[int, Sequence[Answer]]) -> tuple[Refused, ...]:
    """Every refusal once, though both the site's event and the round's tell of it; those of unfinished rounds too."""
    found: list[Refused] = []
    for number in sorted(rounds.keys() | answers.keys()):
        told = [
            Refused(
                round=number, site=answer.site, phase=answer.phase, reason=answer.reason or "no reason given"
            )
            for answer in answers.get(number, ())
            if answer.status == "refused"
        ]
        known = {(refused.site, refused.phase) for refused in told}
        of_round = rounds[number].refused if number in rounds else ()
        found += [*told, *(refused for refused in of_round if (refused.site, refused.phase) not in known)]
    return tuple(found)


def tallies(
    rounds: tuple[Round, ...], answers: Mapping[int, Sequence[Answer]]
) -> tuple[dict[str, SiteTally], bool]:
    """Return what became of each site in ``rounds``, and whether every site's bytes were measured for itself.

    Args:
        rounds: rounds that ended.
        answers: what came of asking each site, by round.
    """
    found: dict[str, SiteTally] = {}
    measured = bool(rounds)
    for one in rounds:
        known = {
            (answer.site, answer.phase): answer for answer in answers.get(one.round, ())
        }  # the last attempt counts
        outcome = {site: answer.status for (site, phase), answer in known.items() if phase == "train"}
        outcome |= dict.fromkeys(one.missing, "missing")
        outcome |= {refused.site: "refused" for refused in one.refused if refused.phase == "train"}
        arrived = sum(status != "missing" for status in outcome.values())
        for site, status in outcome.items():
            answer = known.get((site, "train")) or Answer(site=site, phase="train", status=status)
            phases = [told for told in (answer, known.get((site, "evaluate"))) if told is not None]
            own = any(told.bytes_down is not None or told.bytes_up is not None for told in phases)
            measured = measured and own
            down = sum(told.bytes_down or 0 for told in phases) if own else one.bytes_down / len(outcome)
            share = one.bytes_up / arrived if status != "missing" else 0.0
            up = sum(told.bytes_up or 0 for told in phases) if own else share
            old = found.get(site, SiteTally())
            found[site] = SiteTally(
                asked=old.asked + 1,
                answered=old.answered + (status == "answered"),
                refused=old.refused + (status == "refused"),
                missing=old.missing + (status == "missing"),
                seconds=old.seconds + (answer.seconds or 0.0),
                loss=answer.loss if answer.loss is not None else old.loss,
                bytes_down=old.bytes_down + down,
                bytes_up=old.bytes_up + up,
            )
    return found, measured
