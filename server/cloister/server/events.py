"""What happens in a run, as events: one JSON object a line in ``events.jsonl``, and the bus that hands them out.

Every event holds ``time`` (ISO 8601, UTC), ``round`` (0 before training) and ``kind``; then, by kind (a key may be added;
`REQUIRED` names those that a kind is never without):

===========  =========================================================================================================
kind         keys
===========  =========================================================================================================
run          name, digest, layout, parameters, seed, reproducible, sites, site_names, engine, workers, versions, rounds,
             task, classes, partition, notes, protection, rule, optimizer, resumed_from
site         site, phase (train | evaluate), status (answered | refused | missing), reason, seconds, loss;
             bytes_down and bytes_up where they were measured for the site
round        cohort, answered, missing, refused ({site, reason}), loss, update_norm, bytes_down, bytes_up, seconds by phase;
             rows and groups ({group, sites, answered, loss, reason}) where there are groups; clip and within (its noisy share of updates) under unit "site", noise_std under "…-distributed";
             transcript (lines so far, SHA-256 of the last), where one is kept
signals      direction ({norm, cosine to the last round's, last_layer: its share of the norm}), toward (median | last: what cosines are to),
             rows ({who, norm, cosine, agreement, weight: 1 is that in the mean}), alerts ({who, signal, value, middle, of})
evaluation   where (central | sites | site:<name> | baseline:pooled | baseline:local:<name>), loss, metrics, confusion,
             records
privacy      epsilon (spent), allowed, delta, asked (rounds that it is for), site (where it is a site's own), then also
             cap (what the site allows its dataset over all runs) and ledger (epsilon and delta of everything on the site's ledger,
             and its head)
audit        check, verdict, evidence, power, reason
warning      text
end          status (done | interrupted | failed), code, message, model
===========  =========================================================================================================

Formal guarantees of `EventLog`:

- An append is one whole line, handed to the operating system before the call returns: a killed process loses none.
- A line that a crash tore is removed when the log is opened again; whole lines are never touched.
- Every line is strict JSON: a NaN or an infinity becomes ``null``.
"""

from __future__ import annotations

import json
import math
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn, Protocol

from cloister.core.errors import CloisterError, IntegrityError, StorageError, UsageError

__all__ = ["REQUIRED", "EventBus", "EventLog", "Sink", "plain", "read_events"]

#: The keys that an event of a kind is never without, beside ``time``, ``round`` and ``kind``.
REQUIRED: Mapping[str, frozenset[str]] = {
    "run": frozenset({"name", "rounds", "sites", "site_names"}),
    "site": frozenset({"site", "phase", "status"}),
    "round": frozenset({"cohort", "answered"}),
    "signals": frozenset({"direction", "rows", "alerts"}),
    "evaluation": frozenset({"where", "loss", "metrics", "records"}),
    "privacy": frozenset({"epsilon"}),
    "audit": frozenset({"check", "verdict"}),
    "warning": frozenset({"text"}),
    "end": frozenset({"status"}),
}
#: Kinds that are shown while they last and never logged.
_TRANSIENT: Mapping[str, frozenset[str]] = {"asked": frozenset({"phase", "sites"})}

_BLOCK = 1 << 16


class Sink(Protocol):
    """Somebody who is told of every event: a progress display, a tracker.

    A sink may also have ``recall(events)``: on a resume it is given the events of the rounds before, once, before any other.
    """

    def handle(self, event: Mapping[str, Any], /) -> None:
        """Take one event; it must not be changed."""
        ...

    def close(self) -> None:
        """Finish: no event comes after it."""
        ...


class EventLog:
    """The append-only file ``events.jsonl``; opening it removes a torn last line.

    Raises:
        UsageError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise UsageError(
                f"cannot open the events file '{path}': {error.strerror}",
                remedy="check the run folder and its permissions",
            ) from None
        whole = _end_of_last_line(self._file)
        if whole != self.position():
            os.ftruncate(self._file, whole)

    def append(self, event: Mapping[str, Any]) -> None:
        """Add one event as one whole line; a NaN or an infinity in it becomes ``null``.

        Raises:
            CloisterError: the event holds something that JSON cannot (``code = "event"``).
            StorageError: the disk took only a part of the line; the part is removed again.
        """
        line = (
            json.dumps(plain(event), allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
            + b"\n"
        )
        start = self.position()
        rest = memoryview(line)
        try:
            while rest:
                rest = rest[os.write(self._file, rest) :]
        except OSError as error:
            os.ftruncate(self._file, start)
            raise StorageError.of(self.path, error) from None

    def position(self) -> int:
        """Return the size of the file in bytes: where the next event begins."""
        return os.fstat(self._file).st_size

    def sync(self) -> None:
        """Make every event so far last through a power cut.

        Raises:
            StorageError: the disk refuses.
        """
        try:
            os.fsync(self._file)
        except OSError as error:
            raise StorageError.of(self.path, error) from None

    def truncate(self, offset: int) -> None:
        """Forget every event from byte ``offset`` on (a `position` of before), and make that last.

        Raises:
            IntegrityError: the file does not reach that far, or no line begins there.
        """
        size = self.position()
        if not 0 <= offset <= size:
            raise IntegrityError(
                f"the events file '{self.path}' has {size} bytes, but the checkpoint was written at byte {offset}",
                remedy="restore the events file that belongs to the checkpoint",
                code="events",
            )
        if offset and os.pread(self._file, 1, offset - 1) != b"\n":
            raise IntegrityError(
                f"no event begins at byte {offset} of the events file '{self.path}'",
                remedy="restore the events file that belongs to the checkpoint",
                code="events",
            )
        os.ftruncate(self._file, offset)
        self.sync()

    def close(self) -> None:
        """Sync and close; a second call does nothing."""
        if self._file >= 0:
            try:
                self.sync()
            finally:
                os.close(self._file)
                self._file = -1


class EventBus:
    """Stamps events and hands each to the log first, then to every sink.

    The log is not optional: when it fails, the run hears of it. A sink is: one that raises is dropped, once and for all, with
    a warning event that names it. Safe to call from several threads; events reach every sink in the log's order.

    Args:
        log: where every event is kept.
        sinks: who is told, in this order.
        clock: the time of an event, with its time zone.
    """

    def __init__(
        self,
        log: EventLog,
        sinks: Sequence[Sink] = (),
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._log = log
        self._sinks = list(sinks)
        self._clock = clock
        self._lock = threading.RLock()

    def emit(self, kind: str, number: int, /, **fields: Any) -> dict[str, Any]:
        """Log an event of round ``number`` and tell every sink; return it as it was logged.

        Raises:
            CloisterError: the kind is unknown, or a key that it is never without is not there (``code = "event"``).
        """
        with self._lock:
            event = self._stamp(kind, number, fields, REQUIRED)
            self._log.append(event)
            self._tell(event)
        return event

    def announce(self, kind: str, number: int, /, **fields: Any) -> None:
        """Tell every sink and log nothing: ``asked`` with ``phase`` and ``sites`` (names), when the cohort is asked."""
        with self._lock:
            self._tell(self._stamp(kind, number, fields, _TRANSIENT))

    def recall(self, events: Iterable[Mapping[str, Any]]) -> None:
        """Hand the events of the rounds before a resume to every sink that has a ``recall``; nothing is logged."""
        with self._lock:
            past = list(events)
            for sink in tuple(self._sinks):
                if callable(recall := getattr(sink, "recall", None)):
                    self._try(sink, recall, past)

    def position(self) -> int:
        """Return the log's size in bytes, for a checkpoint."""
        return self._log.position()

    def sync(self) -> None:
        """Make every event so far last through a power cut."""
        self._log.sync()

    def close(self) -> None:
        """Close every sink, then the log. A sink that fails to close leaves a warning event."""
        with self._lock:
            while self._sinks:
                sink = self._sinks.pop()
                try:
                    sink.close()
                except Exception as error:  # noqa: BLE001 - an optional sink never stops a run
                    self._dropped(sink, error)
            self._log.close()

    def _stamp(
        self, kind: str, number: int, fields: Mapping[str, Any], kinds: Mapping[str, frozenset[str]]
    ) -> dict[str, Any]:
        if kind not in kinds:
            raise CloisterError(
                f"there is no event kind '{kind}'; known: {', '.join(sorted(kinds))}", code="event"
            )
        if missing := kinds[kind] - fields.keys():
            raise CloisterError(f"an event of kind '{kind}' needs {', '.join(sorted(missing))}", code="event")
        if taken := fields.keys() & {"time", "round", "kind"}:
            raise CloisterError(f"an event cannot set {', '.join(sorted(taken))} itself", code="event")
        time = self._clock().astimezone(UTC).isoformat(timespec="milliseconds")
        stamped: dict[str, Any] = plain({"time": time, "round": number, "kind": kind, **fields})
        return stamped

    def _tell(self, event: Mapping[str, Any]) -> None:
        for sink in tuple(self._sinks):
            if sink in self._sinks:  # not dropped while this event was handed out
                self._try(sink, sink.handle, event)

    def _try(self, sink: Sink, call: Callable[[Any], None], argument: Any) -> None:
        try:
            call(argument)
        except Exception as error:  # noqa: BLE001 - an optional sink never stops a run
            self._sinks.remove(sink)
            self._dropped(sink, error)

    def _dropped(self, sink: Sink, error: Exception) -> None:
        # Our own errors say what to do; a foreign one may quote an address with a password: only its type is told.
        why = (
            f"{error.message} {error.remedy}".strip()
            if isinstance(error, CloisterError)
            else type(error).__name__
        )
        self.emit("warning", 0, text=f"{type(sink).__name__} failed and was switched off: {why}")


def read_events(path: Path) -> Iterator[dict[str, Any]]:
    """Yield the events of a file, oldest first; a torn last line is left out.

    Raises:
        IntegrityError: while reading: there is no such file, or a whole line is not an event.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise IntegrityError(
            f"cannot read the events file '{path}': {error.strerror}",
            remedy="check that it is a run folder",
            code="events",
        ) from None
    with file:
        for number, line in enumerate(file, start=1):
            if line.endswith(b"\n"):
                yield _event(line, f"line {number} of '{path}'")


def plain(value: Any) -> Any:  # noqa: PLR0911 - one line a type
    """Return ``value`` as what JSON knows: NaN and infinity become ``None``, arrays and scalars of numpy and torch numbers.

    Raises:
        CloisterError: something in it has no place in JSON (``code = "event"``).
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):  # a lone surrogate has no UTF-8: it becomes "?"
        return value if type(value) is str and value.isascii() else value.encode("utf-8", "replace").decode()
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {plain(str(key)): plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, os.PathLike):
        return plain(os.fsdecode(value))
    if callable(convert := getattr(value, "tolist", None)):
        return plain(convert())
    raise CloisterError(f"an event cannot hold a {type(value).__name__}", code="event")


def _event(line: bytes, where: str) -> dict[str, Any]:
    try:
        event = json.loads(line, parse_constant=_refuse_constant)
    except ValueError:
        event = None
    if (
        not isinstance(event, dict)
        or not isinstance(event.get("kind"), str)
        or not isinstance(event.get("round"), int)
    ):
        raise IntegrityError(
            f"{where} is not an event", remedy="restore the file, or start the run anew", code="events"
        )
    return event


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)


def _end_of_last_line(file: int) -> int:
    """Return the offset just after the last newline (0 where there is none)."""
    end = os.fstat(file).st_size
    while end:
        start = max(0, end - _BLOCK)
        found = os.pread(file, end - start, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
