"""The events file and the bus: whole lines, strict JSON, a torn line mended, no optional sink that stops a run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.core.errors import CloisterError, IntegrityError, SpecError, UsageError
from cloister.server.events import EventBus, EventLog, plain, read_events

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


class Recorder:
    """A sink that keeps what it was told."""

    def __init__(self) -> None:
        self.events: list[Mapping[str, Any]] = []
        self.recalled: list[Mapping[str, Any]] = []
        self.closed = False

    def handle(self, event: Mapping[str, Any], /) -> None:
        self.events.append(event)

    def recall(self, events: list[Mapping[str, Any]]) -> None:
        self.recalled += events

    def close(self) -> None:
        self.closed = True


class Slow(Recorder):
    """A sink that lets other threads run before it takes an event."""

    def handle(self, event: Mapping[str, Any], /) -> None:
        time.sleep(1e-4 * (event["round"] % 3))
        super().handle(event)


class Broken(Recorder):
    """A sink that fails at the event it is told to fail at."""

    def __init__(self, error: Exception, *, at: int = 0, closing: bool = False) -> None:
        super().__init__()
        self.error, self.at, self.closing = error, at, closing

    def handle(self, event: Mapping[str, Any], /) -> None:
        if len(self.events) == self.at and not self.closing:
            raise self.error
        super().handle(event)

    def close(self) -> None:
        if self.closing:
            raise self.error


def events_of(path: Path) -> list[dict[str, Any]]:
    return list(read_events(path))


def test_an_event_is_stamped_with_utc_time_round_and_kind_and_reaches_log_and_sinks(tmp_path: Path) -> None:
    sink, path = Recorder(), tmp_path / "events.jsonl"
    noon = datetime.fromisoformat("2026-11-21T14:00:00.123456+02:00")
    bus = EventBus(EventLog(path), [sink], clock=lambda: noon)
    returned = bus.emit("warning", 3, text="slow")
    bus.close()
    assert events_of(path) == [
        {"time": "2026-11-21T12:00:00.123+00:00", "round": 3, "kind": "warning", "text": "slow"}
    ]
    assert sink.events == events_of(path) == [returned]
    assert sink.closed


@settings(max_examples=80, deadline=None)
@given(value=JSON)
def test_every_line_is_strict_json_whatever_the_event_holds(value: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        bus = EventBus(EventLog(path))
        bus.emit("warning", 1, text="x", extra=value)
        bus.emit("warning", 2, text="y")
        bus.close()
        lines = path.read_bytes().split(b"\n")
        assert len(lines) == 3
        assert lines[2] == b""
        json.loads(lines[0].decode("utf-8"), parse_constant=pytest.fail)
        first, second = read_events(path)
        assert first["extra"] == plain(value)
        assert second["round"] == 2


def test_not_finite_numbers_become_null_and_arrays_numbers() -> None:
    assert plain(
        {
            "a": float("nan"),
            "b": [float("inf"), np.float32(0.5), np.nan],
            "c": np.array([[1, 2]]),
            4: ("x", np.int64(7)),
        }
    ) == {
        "a": None,
        "b": [None, 0.5, None],
        "c": [[1, 2]],
        "4": ["x", 7],
    }


def test_a_value_without_a_place_in_json_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    bus = EventBus(EventLog(path))
    with pytest.raises(CloisterError, match="cannot hold a set"):
        bus.emit("warning", 1, text={"a set"})
    assert path.read_bytes() == b""
    bus.close()


@pytest.mark.parametrize(
    ("kind", "fields", "message"),
    [
        ("wrning", {"text": "x"}, "no event kind 'wrning'"),
        ("asked", {"phase": "train", "sites": []}, "no event kind 'asked'"),
        ("round", {"cohort": 3}, "needs answered"),
        ("warning", {"text": "x", "time": "now"}, "cannot set time"),
    ],
)
def test_an_event_of_another_shape_is_refused(
    tmp_path: Path, kind: str, fields: dict[str, Any], message: str
) -> None:
    bus = EventBus(EventLog(tmp_path / "events.jsonl"))
    with pytest.raises(CloisterError, match=message):
        bus.emit(kind, 1, **fields)
    bus.close()


def test_an_announcement_reaches_the_sinks_and_not_the_log(tmp_path: Path) -> None:
    sink, path = Recorder(), tmp_path / "events.jsonl"
    bus = EventBus(EventLog(path), [sink])
    bus.announce("asked", 2, phase="train", sites=["a", "b"])
    bus.close()
    assert path.read_bytes() == b""
    assert [(e["kind"], e["round"], e["sites"]) for e in sink.events] == [("asked", 2, ["a", "b"])]


def test_recalled_events_reach_a_sink_that_wants_them_and_not_the_log(tmp_path: Path) -> None:
    sink, path = Recorder(), tmp_path / "events.jsonl"
    bus = EventBus(EventLog(path), [sink])
    bus.recall([{"kind": "round", "round": 1}])
    bus.close()
    assert sink.recalled == [{"kind": "round", "round": 1}]
    assert sink.events == []
    assert path.read_bytes() == b""


def test_a_failing_sink_is_dropped_with_one_warning_and_the_others_go_on(tmp_path: Path) -> None:
    path, good, bad = (
        tmp_path / "events.jsonl",
        Recorder(),
        Broken(RuntimeError("http://user:secret@host"), at=1),
    )
    bus = EventBus(EventLog(path), [bad, good])
    for number in (1, 2, 3):
        bus.emit("round", number, cohort=1, answered=1)
    bus.close()
    kept = events_of(path)
    assert [event["kind"] for event in kept] == ["round", "round", "warning", "round"]
    assert kept[2]["text"] == "Broken failed and was switched off: RuntimeError"
    assert sorted(event["round"] for event in good.events if event["kind"] == "round") == [1, 2, 3]
    assert len(bad.events) == 1


def test_a_sink_that_fails_with_an_error_of_ours_leaves_its_message_and_remedy(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    bus = EventBus(EventLog(path), [Broken(SpecError("no server there", remedy="start it"))])
    bus.emit("warning", 1, text="x")
    bus.close()
    assert events_of(path)[1]["text"].endswith("no server there start it")


def test_two_sinks_that_fail_at_the_same_event_are_both_dropped(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    bus = EventBus(EventLog(path), [Broken(ValueError()), Broken(KeyError())])
    bus.emit("round", 1, cohort=1, answered=1)
    bus.emit("round", 2, cohort=1, answered=1)
    bus.close()
    assert [event["kind"] for event in events_of(path)] == ["round", "warning", "warning", "round"]


def test_a_sink_that_fails_to_close_leaves_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    bus = EventBus(EventLog(path), [Broken(OSError(), closing=True)])
    bus.emit("round", 1, cohort=1, answered=1)
    bus.close()
    assert [event["kind"] for event in events_of(path)] == ["round", "warning"]


def test_events_from_several_threads_are_whole_lines_in_the_sinks_order(tmp_path: Path) -> None:
    path, sink = tmp_path / "events.jsonl", Slow()
    bus = EventBus(EventLog(path), [sink])

    def work(name: int) -> None:
        for number in range(50):
            bus.emit("site", number, site=str(name), phase="train", status="answered")

    threads = [threading.Thread(target=work, args=(name,)) for name in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    bus.close()
    assert len(events_of(path)) == 200
    assert events_of(path) == sink.events


def test_opening_removes_a_torn_last_line_and_no_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append({"kind": "warning", "round": 1, "text": "kept"})
    log.close()
    whole = path.read_bytes()
    for torn in (b'{"kind":"war', b'{"kind":"warning","round":2}', b"\0" * 70_000, b"{" * 200_000):
        path.write_bytes(whole + torn)
        EventLog(path).close()
        assert path.read_bytes() == whole


def test_reading_leaves_out_a_torn_last_line_and_refuses_a_broken_one(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    path.write_bytes(b'{"kind":"warning","round":1,"text":"a"}\n{"kind":"wa')
    assert [event["text"] for event in read_events(path)] == ["a"]
    for broken in (
        b"nonsense\n",
        b'{"kind":"warning","round":NaN}\n',
        b'["kind"]\n',
        b'{"round":1}\n',
        b"\xff\n",
    ):
        path.write_bytes(b'{"kind":"warning","round":1,"text":"a"}\n' + broken)
        with pytest.raises(IntegrityError, match="line 2 of"):
            list(read_events(path))
    with pytest.raises(IntegrityError, match="cannot read the events file"):
        list(read_events(tmp_path / "absent.jsonl"))


def test_a_log_that_cannot_be_opened_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot open the events file"):
        EventLog(tmp_path / "no folder" / "events.jsonl")


@settings(max_examples=40, deadline=None)
@given(texts=st.lists(st.text(max_size=30), min_size=1, max_size=8), data=st.data())
def test_truncating_to_a_position_and_reopening_keeps_exactly_the_events_before_it(
    texts: list[str], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "events.jsonl"
        log = EventLog(path)
        positions = [log.position()]
        for number, text in enumerate(texts):
            log.append({"kind": "warning", "round": number, "text": text})
            positions.append(log.position())
        kept = data.draw(st.integers(0, len(texts)))
        torn = data.draw(st.binary(max_size=20)).replace(b"\n", b"")
        log.close()
        path.write_bytes(path.read_bytes() + torn)
        log = EventLog(path)
        assert log.position() == positions[-1]
        log.truncate(positions[kept])
        log.append({"kind": "warning", "round": 99, "text": "after"})
        log.close()
        assert [event["round"] for event in read_events(path)] == [*range(kept), 99]


@pytest.mark.parametrize("offset", [-1, 5, 10_000])
def test_truncating_elsewhere_than_between_two_events_is_refused_and_changes_nothing(
    tmp_path: Path, offset: int
) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path)
    log.append({"kind": "warning", "round": 1, "text": "a"})
    before = path.read_bytes()
    with pytest.raises(IntegrityError):
        log.truncate(offset)
    assert path.read_bytes() == before
    log.close()


def test_a_full_disk_leaves_no_part_of_a_line(tmp_path: Path) -> None:
    # A real limit of the operating system: the file may grow to 300 bytes and no further.
    program = """
import resource, signal, sys
from pathlib import Path
from cloister.core.errors import CloisterError
from cloister.server.events import EventLog
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
log = EventLog(Path(sys.argv[1]))
log.append({"kind": "warning", "round": 1, "text": "a"})
resource.setrlimit(resource.RLIMIT_FSIZE, (300, 300))
try:
    log.append({"kind": "warning", "round": 2, "text": "b" * 1000})
except CloisterError as error:
    print(error.code)
"""
    path = tmp_path / "events.jsonl"
    done = subprocess.run(
        [sys.executable, "-c", program, str(path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "disk"
    assert path.read_bytes().endswith(b'"text":"a"}\n')


def test_a_killed_process_loses_no_event_that_it_had_logged(tmp_path: Path) -> None:
    program = """
import os, sys
from pathlib import Path
from cloister.server.events import EventBus, EventLog
bus = EventBus(EventLog(Path(sys.argv[1])))
for number in range(10_000_000):
    bus.emit("warning", number, text="x" * 200)
    os.write(1, b"%d\\n" % number)
"""
    path = tmp_path / "events.jsonl"
    with subprocess.Popen([sys.executable, "-c", program, str(path)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        last = 0
        while last < 300:
            last = int(process.stdout.readline())
        os.kill(process.pid, signal.SIGKILL)
        told = [int(line) for line in process.stdout.read().split(b"\n")[:-1]]
    EventLog(path).close()
    numbers = [event["round"] for event in read_events(path)]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) > max([last, *told])


def test_times_default_to_now_in_utc(tmp_path: Path) -> None:
    bus = EventBus(EventLog(tmp_path / "events.jsonl"))
    before = datetime.now(UTC)
    stamped = datetime.fromisoformat(bus.emit("warning", 0, text="x")["time"])
    bus.close()
    assert abs((stamped - before).total_seconds()) < 5
