"""Progress: what a person sees, at what cost, and that nobody else can write to the terminal."""

from __future__ import annotations

import io
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from cloister.server.events import EventBus, EventLog, read_events
from cloister.server.progress import Progress

SITES = [f"hospital-{number}" for number in range(16)]
RUN = {"name": "heart", "rounds": 4, "sites": 16, "site_names": SITES}


class Clock:
    """Seconds that only the test moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class Shown:
    """A progress display on a bus of its own, and what it wrote."""

    def __init__(self, folder: Path, *, terminal: bool = False, line_every_s: float = 0.0) -> None:
        self.file, self.clock = io.StringIO(), Clock()
        console = Console(
            file=self.file,
            force_terminal=terminal,
            width=110,
            height=40,
            color_system=None,
            legacy_windows=False,
        )
        self.progress = Progress(console=console, line_every_s=line_every_s, clock=self.clock)
        self.bus = EventBus(EventLog(folder / f"events-{terminal}.jsonl"), [self.progress])

    @property
    def text(self) -> str:
        return self.file.getvalue()

    def block(self) -> str:
        """The block as it would be drawn now."""
        file = io.StringIO()
        Console(file=file, width=110, color_system=None).print(self.progress._block())
        return file.getvalue()

    def round(self, number: int, *, seconds: float = 2.0, missing: tuple[str, ...] = ()) -> None:
        self.bus.announce("asked", number, phase="train", sites=SITES)
        for site in SITES:
            status = "missing" if site in missing else "answered"
            self.bus.emit(
                "site", number, site=site, phase="train", status=status, reason=None, seconds=0.1, loss=0.5
            )
        self.bus.emit(
            "evaluation",
            number,
            where="central",
            loss=0.4,
            metrics={"accuracy": 0.801, "f1": 0.75},
            records=254,
        )
        self.clock.now += seconds
        self.bus.emit(
            "round", number, cohort=16, answered=16 - len(missing), missing=list(missing), refused=[], loss=0.4321,
            bytes_down=1_230_000, bytes_up=4_560_000, seconds={"train": seconds},
        )  # fmt: skip


@pytest.fixture
def plain(tmp_path: Path) -> Shown:
    return Shown(tmp_path)


@pytest.fixture
def live(tmp_path: Path) -> Iterator[Shown]:
    shown = Shown(tmp_path, terminal=True)
    yield shown
    shown.bus.close()


def test_without_a_terminal_each_round_is_one_line_with_all_that_matters(plain: Shown) -> None:
    plain.bus.emit("run", 0, **RUN)
    plain.round(1)
    plain.round(2, missing=("hospital-3",))
    lines = plain.text.splitlines()
    assert len(lines) == 2
    for part in (
        "round 1/4",
        "16/16 sites",
        "loss 0.432",
        "accuracy 80.1% (central, n=254)",
        "down 1.23 MB",
        "up 4.56 MB",
        "2.00 s",
    ):
        assert part in lines[0]
    assert "left" not in lines[0]
    assert "15/16 sites" in lines[1]
    assert "missing hospital-3" in lines[1]
    assert "about 4.00 s left" in lines[1]


def test_fast_rounds_are_throttled_and_the_first_and_last_are_told(tmp_path: Path) -> None:
    shown = Shown(tmp_path, line_every_s=1.0)
    shown.bus.emit("run", 0, **{**RUN, "rounds": 20})
    for number in range(1, 21):
        shown.round(number, seconds=0.25)
    told = [int(line.split("/")[0].removeprefix("round ")) for line in shown.text.splitlines()]
    assert told == [1, 5, 9, 13, 17, 20]


def test_a_run_that_stops_between_two_lines_still_tells_its_last_round(tmp_path: Path) -> None:
    shown = Shown(tmp_path, line_every_s=60.0)
    shown.bus.emit("run", 0, **RUN)
    shown.round(1)
    shown.round(2)
    shown.bus.emit("end", 0, status="interrupted", message="go on with --resume")
    lines = shown.text.splitlines()
    assert [line.split()[1] for line in lines[:2]] == ["1/4", "2/4"]
    assert lines[2] == "interrupted after two rounds, 4.00 s: go on with --resume"


def test_refusals_and_warnings_are_told_at_once(plain: Shown) -> None:
    plain.bus.emit("run", 0, **RUN)
    plain.bus.emit("site", 1, site="hospital-2", phase="train", status="refused", reason="not-finite: NaN")
    plain.bus.emit("warning", 1, text="round 1 was not aggregated")
    assert plain.text.splitlines() == [
        "round 1: hospital-2 refused: not-finite: NaN",
        "warning: round 1 was not aggregated",
    ]


def test_the_block_names_a_handful_of_the_sites_awaited(live: Shown) -> None:
    live.bus.emit("run", 0, **RUN)
    live.bus.announce("asked", 1, phase="train", sites=SITES)
    live.bus.emit("site", 1, site="hospital-0", phase="train", status="answered")
    live.bus.emit("site", 1, site="hospital-5", phase="train", status="missing")
    block = live.block()
    assert "1 of 4, training" in block
    assert "1 answered of 16 asked; awaiting hospital-1, hospital-2, hospital-3, hospital-4 +10" in block
    assert "time left not known yet" in block


def test_the_block_shows_loss_metrics_bytes_time_left_and_epsilon(live: Shown) -> None:
    live.bus.emit("run", 0, **RUN)
    assert "ε" not in live.block()
    for number in (1, 2):
        live.round(number, seconds=10.0)
    live.bus.emit("privacy", 2, epsilon=1.25, allowed=3.0, site="hospital-1")
    live.bus.emit("privacy", 2, epsilon=0.5, allowed=1.0, site="hospital-2")
    live.clock.now += 4
    block = live.block()
    assert "0.432 (training, mean of sites)" in block
    assert "accuracy 80.1%, f1 75.0%, loss 0.400 (n=254)" in block
    assert set(block.splitlines()[1]) <= set("━╸╺ "), "the bar has a line of its own"
    assert "1.23 MB down, 4.56 MB up a round" in block
    assert "24.0 s, about 16.0 s left" in block
    live.clock.now += 20
    assert "44.0 s, about 10.0 s left" in live.block(), "a slow round leaves the others their time"
    assert "ε 0.500 of 1.00" in block, "the site nearest to its limit"


def test_after_the_last_round_the_block_says_that_the_run_is_finishing(live: Shown) -> None:
    live.bus.emit("run", 0, **RUN)
    for number in range(1, 5):
        live.round(number)
    assert "4 of 4, finishing" in live.block()


def test_the_terminal_gets_the_block(tmp_path: Path) -> None:
    shown = Shown(tmp_path, terminal=True)
    shown.bus.emit("run", 0, **RUN)
    shown.round(1)
    shown.bus.emit("end", 1, status="done")
    shown.bus.close()
    assert "16 answered of 16 asked" in shown.text
    assert "done after one round" in shown.text


def test_no_thread_is_started_and_nothing_written_before_the_first_event(tmp_path: Path) -> None:
    before = set(threading.enumerate())
    shown = Shown(tmp_path, terminal=True)
    assert set(threading.enumerate()) == before
    assert shown.text == ""
    shown.bus.emit("run", 0, **RUN)
    assert set(threading.enumerate()) > before
    shown.bus.close()
    assert set(threading.enumerate()) == before


def test_a_hostile_name_or_reason_reaches_the_terminal_as_text(tmp_path: Path) -> None:
    name = "evil\x1b[2J\r\n\u202e[bold red]x[/]"
    for terminal in (False, True):
        shown = Shown(tmp_path, terminal=terminal)
        shown.bus.emit("run", 0, **{**RUN, "name": name})
        shown.bus.announce("asked", 1, phase="train", sites=[name])
        block = shown.block()
        shown.bus.emit("site", 1, site=name, phase="train", status="refused", reason=name)
        shown.bus.emit("warning", 1, text=name)
        shown.bus.emit("round", 1, cohort=1, answered=0, missing=[name])
        shown.bus.emit("end", 1, status="failed", message=name)
        shown.bus.close()
        for text in (block, shown.text):
            assert "\x1b[2J" not in text
            assert "\u202e" not in text
            assert "evil\ufffd[2J\ufffd\ufffd\ufffd[bold red]x[/]" in text


def test_a_resumed_display_goes_on_where_it_stood(tmp_path: Path, plain: Shown) -> None:
    plain.bus.emit("run", 0, **RUN)
    plain.round(1)
    plain.round(2)
    plain.bus.close()
    again = Shown(tmp_path, terminal=True)
    again.bus.recall(read_events(tmp_path / "events-False.jsonl"))
    assert "2 of 4" in again.block()
    again.round(3)
    assert "3 of 4" in again.block()
    again.bus.close()
    assert "going on after round 2" in again.text


def test_an_event_costs_little_while_the_display_is_live(tmp_path: Path) -> None:
    """50 sites and 4 rounds a second are 400 events a second: at 0.1 ms each they would take a twenty-fifth of a core."""
    shown = Shown(tmp_path, terminal=True)
    shown.progress.handle({"kind": "run", "round": 0, **RUN})
    event = {
        "kind": "site",
        "round": 1,
        "phase": "train",
        "status": "answered",
        "reason": None,
        "seconds": 0.1,
        "loss": 0.5,
    }
    started = time.process_time()
    for number in range(5000):
        shown.progress.handle({**event, "round": number // 100, "site": f"s{number % 100}"})
    cost = (time.process_time() - started) / 5000
    shown.bus.close()
    assert cost < 1e-4


@pytest.mark.slow
def test_lines_go_to_standard_error_by_default() -> None:
    program = """
from cloister.server.progress import Progress
progress = Progress()
progress.handle({"kind": "warning", "round": 0, "text": "hello"})
progress.close()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == ""
    assert re.fullmatch(r"warning: hello\s*", done.stderr)
