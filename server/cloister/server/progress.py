"""What a person sees while a run lasts, on standard error.

On a terminal: one live block with the round, the sites answered and awaited, loss, metrics, bytes, ε spent and the time left.
Elsewhere: one line a round, at most one each `Progress.line_every_s`, so that a fast run does not fill a log file.

Formal guarantees:

- Nothing is written and no thread is started before `Progress.start`, which the first event calls.
- Taking an event costs a few microseconds: drawing happens apart, a fixed number of times a second.
- A name or a reason that comes from a site cannot move the cursor, change colours or span lines.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from cloister.server.folding import Fold
from cloister.server.history import Measured
from cloister.server.report.words import (
    DASH,
    bytes_text,
    headline,
    listed,
    metric_label,
    metric_text,
    number,
    order,
    plural,
    seconds_text,
    shown,
)

__all__ = ["Progress"]

_REASON_LIMIT = 160
_REMEMBERED = 20


class Progress:
    """Shows a run as it happens; a `cloister.server.events.Sink`.

    Args:
        console: where to write; standard error where none is given.
        draws_per_s: how often the live block is drawn.
        line_every_s: the least time between two plain lines; the first and the last round are always told.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        *,
        console: Console | None = None,
        draws_per_s: float = 4.0,
        line_every_s: float = 1.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._console = console or Console(stderr=True)
        self._draws_per_s = draws_per_s
        self._line_every_s = line_every_s
        self._clock = clock
        self._lock = threading.Lock()
        self._fold = Fold(live=True)
        self._live: Live | None = None
        self._started: float | None = None
        self._at_round = 0.0
        self._paces: deque[float] = deque(maxlen=_REMEMBERED)
        self._round = 0
        self._phase = ""
        self._awaited: dict[str, None] = {}
        self._asked = 0
        self._answered = 0
        self._last_line: float | None = None
        self._told_round = 0

    def start(self) -> None:
        """Begin to show; a second call does nothing."""
        if self._started is not None:
            return
        self._started = self._at_round = self._clock()
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                get_renderable=self._block,
                refresh_per_second=self._draws_per_s,
                transient=False,
            )
            self._live.start()

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Take the events of the rounds before a resume, so that the display goes on where it stood."""
        with self._lock:
            for event in events:
                self._fold.add(event)
            self._round = self._told_round = max(self._fold.rounds, default=0)
        self._say(f"going on after round {self._round}")

    def handle(self, event: Mapping[str, Any], /) -> None:
        """Take one event."""
        self.start()
        kind = event["kind"]
        with self._lock:
            self._fold.add(event)
            if kind == "asked":
                self._ask(event)
            elif kind == "site":
                self._hear(event)
            elif kind == "round":
                self._end_round(event)
        if kind == "warning":
            self._say(f"warning: {shown(event['text'], _REASON_LIMIT)}", style="yellow")
        elif kind == "site" and event["status"] == "refused":
            reason = shown(event.get("reason") or "no reason given", _REASON_LIMIT)
            self._say(f"round {event['round']}: {shown(event['site'])} refused: {reason}", style="yellow")
        elif kind == "round" and not self._live:
            self._tell_round(event["round"])
        elif kind == "end":
            self._tell_end(event)

    def close(self) -> None:
        """Draw a last time and let the terminal go; a second call does nothing."""
        if self._live:
            self._live.stop()
            self._live = None

    def _ask(self, event: Mapping[str, Any]) -> None:
        self._round, self._phase = event["round"], event["phase"]
        self._awaited = dict.fromkeys(event["sites"])
        self._asked, self._answered = len(self._awaited), 0

    def _hear(self, event: Mapping[str, Any]) -> None:
        if (event["round"], event["phase"]) != (self._round, self._phase):  # nobody announced whom was asked
            self._ask({**event, "sites": ()})
        self._awaited.pop(event["site"], None)
        self._answered += event["status"] == "answered"

    def _end_round(self, event: Mapping[str, Any]) -> None:
        now = self._clock()
        self._paces.append(now - self._at_round)
        self._at_round = now
        self._round, self._phase, self._awaited = event["round"], "", {}
        self._asked, self._answered = event["cohort"], event["answered"]

    def _planned(self) -> int:
        return self._fold.run.rounds if self._fold.run else 0

    def _left(self) -> float | None:
        """Seconds left by the median pace of the newest rounds; ``None`` before the second round ended."""
        rounds = self._planned() - max(self._fold.rounds, default=0)
        if len(self._paces) < 2 or rounds < 0:
            return None
        pace = statistics.median(self._paces)
        return max(0, rounds - 1) * pace + max(0.0, min(rounds, 1) * pace - (self._clock() - self._at_round))

    def _say(self, text: str, style: str = "") -> None:
        self.start()
        self._console.print(Text(text, style=style), soft_wrap=True, highlight=False)

    def _tell_round(self, number_of: int) -> None:
        now = self._clock()
        last = number_of == self._planned()
        if last or self._last_line is None or now - self._last_line >= self._line_every_s:
            self._last_line, self._told_round = now, number_of
            self._say(self._line())

    def _tell_end(self, event: Mapping[str, Any]) -> None:
        ended = max(self._fold.rounds, default=0)
        if not self._live and ended > self._told_round:
            self._say(self._line())
        took = seconds_text(self._clock() - self._started) if self._started is not None else DASH
        message = shown(event.get("message") or "", _REASON_LIMIT)
        style = {"done": "green", "interrupted": "yellow"}.get(event["status"], "red")
        self._say(
            f"{event['status']} after {plural(ended, 'round')}, {took}" + (f": {message}" if message else ""),
            style=style,
        )

    def _line(self) -> str:
        """Everything about the newest round, in one line."""
        ended = max(self._fold.rounds, default=0)
        one = self._fold.rounds[ended]
        parts = [f"round {ended}/{self._planned()}", f"{one.answered}/{one.cohort} sites"]
        if one.missing:
            parts.append(f"missing {listed(one.missing, 4)}")
        parts += [f"loss {number(one.loss)}", *self._measured()]
        parts += [f"down {bytes_text(one.bytes_down)}", f"up {bytes_text(one.bytes_up)}", *self._spent()]
        parts.append(seconds_text(sum(one.seconds.values())))
        if (left := self._left()) is not None and ended < self._planned():
            parts.append(f"about {seconds_text(left)} left")
        return "  ".join(parts)

    def _measured(self) -> list[str]:
        parts = []
        for where, name in (("central", "central"), ("sites", "mean of sites")):
            point = self._fold.newest(where)
            if point is not None and (metric := headline(list(point.metrics))) is not None:
                parts.append(
                    f"{metric_label(metric).lower()} {metric_text(metric, point.metrics[metric])} ({name}, n={point.records})"
                )
        return parts

    def _spent(self) -> list[str]:
        """ε spent of ε allowed, of the site that has spent most of it."""
        events = list(self._fold.privacy.values())
        if not events:
            return []
        most = max(events, key=lambda event: (event["epsilon"] or 0.0) / (event.get("allowed") or 1.0))
        allowed = f" of {number(most['allowed'])}" if most.get("allowed") is not None else ""
        return [f"ε {number(most['epsilon'])}{allowed}"]

    def _block(self) -> RenderableType:
        with self._lock:
            ended = max(self._fold.rounds, default=0)
            planned = self._planned()
            grid = Table.grid(padding=(0, 2))
            grid.add_column(style="dim", no_wrap=True)
            grid.add_column(overflow="ellipsis")
            finishing = planned and ended >= planned and self._fold.end is None
            doing = ", finishing" if finishing else _phase(self._phase)
            grid.add_row(
                "round", f"{min(max(self._round, ended), planned or self._round)} of {planned}{doing}"
            )
            grid.add_row("sites", Text(self._sites()))
            if ended:
                one = self._fold.rounds[ended]
                grid.add_row("loss", f"{number(one.loss)} (training, mean of sites)")
            for where, name in (("central", "central"), ("sites", "mean of sites")):
                if (point := self._fold.newest(where)) is not None:
                    grid.add_row(name, Text(_metrics(point)))
            if ended:
                grid.add_row(
                    "bytes", f"{bytes_text(one.bytes_down)} down, {bytes_text(one.bytes_up)} up a round"
                )
            for spent in self._spent():
                grid.add_row("privacy", Text(spent))
            grid.add_row("time", self._time())
            bar = Table.grid()  # a bar alone does not end its line
            bar.add_row(ProgressBar(total=max(planned, 1), completed=ended, width=48))
            name = self._fold.run.name if self._fold.run else ""
            return Group(Text(shown(name), style="bold"), bar, grid)

    def _sites(self) -> str:
        text = f"{self._answered} answered" + (f" of {self._asked} asked" if self._asked else "")
        return text + (f"; awaiting {listed(tuple(self._awaited), 4)}" if self._awaited else "")

    def _time(self) -> str:
        now = self._clock()
        since = now - (self._started if self._started is not None else now)
        left = self._left()
        return f"{seconds_text(round(since, 1))}, " + (
            "time left not known yet" if left is None else f"about {seconds_text(round(left))} left"
        )


def _phase(phase: str) -> str:
    return {"train": ", training", "evaluate": ", evaluating"}.get(phase, "")


def _metrics(point: Measured) -> str:
    names = order([name for name in point.metrics if name != "loss"])[:5]
    parts = [f"{metric_label(name).lower()} {metric_text(name, point.metrics[name])}" for name in names]
    return ", ".join([*parts, f"loss {number(point.loss)}"]) + f" (n={point.records})"
