"""A killed process, a second writer, a full disk: the chain verifies, and nothing that may have been computed is uncounted."""

import contextlib
import math
import os
import random
import resource
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.ledger import Ledger, Reservation, Verification, load_or_create_key, verify

DELTA = 1e-5
CHILD = """
import math, os, signal, sys
from pathlib import Path
from cloister.privacy.ledger import Ledger, load_or_create_key, writer

def account(events, delta):
    rho = math.fsum(event["rho"] for event in events)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))

path, point = Path(sys.argv[1]), sys.argv[2]

def die(here):
    if here == point:
        os.kill(os.getpid(), signal.SIGKILL)

class Store(writer.Store):
    def append(self, entry, *, after):
        die(f"before {entry.kind}")
        if point == f"within {entry.kind}":  # its pages are in the file, and the commit is not done
            self._connection.execute("PRAGMA cache_size=1")
            self._connection.set_trace_callback(lambda sql: die(f"within {entry.kind}") if sql == "COMMIT" else None)
        super().append(entry, after=after)
        die(f"behind {entry.kind}")  # in the file, and not in the head file

write_anchor = writer.write_anchor
def anchor(ledger, value, key, *, durable):
    write_anchor(ledger, value, key, durable=durable)
    die(f"anchored {value.head.seq}")
writer.Store, writer.write_anchor = Store, anchor

key = load_or_create_key(path.with_name("key.pem"))
with Ledger.open(path, site="north", dataset="heart", key=key, account=account) as ledger:
    die("opened")
    for number in range(1, 1_000_000 if point == "loop" else 2):
        event = {"rho": 0.01, "padding": "x" * (40_000 if point.startswith("within") else 10)}
        reservation = ledger.reserve(
            "run", number, event, unit="record", relation="zero-out", delta=1e-5, code_hash="code"
        )
        print("reserved", number, flush=True)
        die("reserved")
        reservation.noise_drawn()
        print("drawn", number, flush=True)
        die("training")
        reservation.commit(output="digest")
        print("committed", number, flush=True)
        die("committed")
"""


def account(events: Sequence[Mapping[str, Any]], delta: float) -> float:
    rho = math.fsum(event["rho"] for event in events)
    return rho + 2 * math.sqrt(rho * math.log(1 / delta))


def opened(path: Path, **options: Any) -> Ledger:
    key = load_or_create_key(path.with_name("key.pem"))
    settings = {"site": "north", "dataset": "heart", "key": key, "account": account, "wait_s": 0.0}
    return Ledger.open(path, **{**settings, **options})


def reserve(ledger: Ledger, number: int, padding: int = 10) -> Reservation:
    event = {"rho": 0.01, "padding": "x" * padding}
    return ledger.reserve(
        "run", number, event, unit="record", relation="zero-out", delta=DELTA, code_hash="code"
    )


def started(path: Path, point: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, path, point], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def after_the_crash(path: Path) -> Verification:
    """Verify what a dead process left, from the files as they lie."""
    found = verify(path, account=account)
    assert found.problems == ()
    return found


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "heart.sqlite"


@pytest.mark.parametrize(
    ("point", "entries", "state", "warned"),
    [
        ("before POLICY", None, None, False),
        ("within POLICY", None, None, False),
        ("behind POLICY", 1, None, True),
        ("opened", 1, None, False),
        ("before RESERVE", 1, None, False),
        ("within RESERVE", 1, None, False),
        ("behind RESERVE", 2, "open", True),
        ("anchored 1", 2, "open", False),
        ("reserved", 2, "open", False),
        ("training", 2, "open", False),
        ("before COMMIT", 2, "open", False),
        ("within COMMIT", 2, "open", False),
        ("behind COMMIT", 3, "committed", True),
        ("anchored 2", 3, "committed", False),
        ("committed", 3, "committed", False),
    ],
)
def test_a_process_killed_at_any_step_leaves_a_chain_that_verifies_and_counts(
    path: Path, point: str, entries: int | None, state: str | None, warned: bool
) -> None:
    child = started(path, point)
    said, errors = child.communicate(timeout=60)
    assert child.returncode == -signal.SIGKILL, errors
    if (
        point == "within RESERVE"
    ):  # the kill left pages of the row in the file: SQLite must take them out again
        assert path.with_name(path.name + "-journal").stat().st_size > 0
        assert b"x" * 4000 in path.read_bytes()
    if entries is None:
        with pytest.raises(IntegrityError, match="there is no ledger"):
            verify(path)
    else:
        found = after_the_crash(path)
        assert found.entries == entries
        assert (
            any("newer than the head file" in text or "not written yet" in text for text in found.warnings)
            == warned
        )
    with opened(path) as ledger:  # and the next process goes on
        reservation = ledger.find("run", 1, unit="record")
        assert (reservation.state if reservation else None) == state
        charged = 0.0 if state is None else account([{"rho": 0.01}], DELTA)
        assert ledger.spent("record") == pytest.approx(charged)
        if "drawn" in said:  # never under-counted
            assert charged > 0
        if reservation is not None:
            assert (reservation.may_reuse, reservation.may_compute) == (True, False)
            reservation.commit(output="digest")
            assert [entry.kind for entry in ledger.entries].count("COMMIT") == 1
        reserve(ledger, 2).commit()
        found = ledger.verify()
        assert (found.problems, found.warnings) == ((), ())
    assert [file.name for file in path.parent.glob(".*")] == []  # no litter of a head file half-written


@pytest.mark.parametrize("seed", [1, 2, 3, 4])
def test_a_process_killed_at_a_random_moment_leaves_a_chain_that_verifies_and_counts(
    path: Path, seed: int
) -> None:
    child = started(path, "loop")
    assert child.stdout is not None
    first = child.stdout.readline()
    time.sleep(random.Random(seed).uniform(0.0, 0.15))
    child.kill()
    with child:  # communicate() would leave out what readline() has read ahead
        said = first + child.stdout.read()
    assert "reserved 1\n" in said
    found = after_the_crash(path)
    told = {kind: said.count(kind) for kind in ("reserved", "committed")}
    with opened(path) as ledger:
        (budget,) = ledger.budgets()
        assert 0 <= budget.committed - told["committed"] <= 1  # the last one may not have been told of
        assert 0 <= budget.committed + budget.open - told["reserved"] <= 1
        assert budget.epsilon >= account([{"rho": 0.01}] * told["reserved"], DELTA) * (1 - 1e-12)
        assert found.entries == 1 + 2 * budget.committed + budget.open


class TestOneWriter:
    def test_a_second_process_is_refused_after_the_time_it_said(self, path: Path) -> None:
        with opened(path):
            script = CHILD.replace("account=account)", "account=account, wait_s=0.1)")
            done = subprocess.run(
                [sys.executable, "-c", script, path, "none"],
                capture_output=True,
                text=True,
                check=False,
                timeout=60,
            )
        assert "PolicyError" in done.stderr
        assert f"is being written by process {os.getpid()}" in done.stderr
        assert "waited 0.1 s" in done.stderr

    def test_a_second_opening_in_one_process_is_refused_too(self, path: Path) -> None:
        with opened(path):
            with pytest.raises(PolicyError) as caught:
                opened(path)
            assert (caught.value.code, caught.value.exit_code) == ("ledger-busy", 5)

    def test_who_waits_gets_it_when_the_first_is_done(self, path: Path) -> None:
        first = opened(path)
        timer = threading.Timer(0.2, first.close)
        timer.start()
        with opened(path, wait_s=20.0) as second:
            reserve(second, 1)
        timer.join()

    def test_a_dead_writer_holds_nobody_up(self, path: Path) -> None:
        child = started(path, "training")
        child.communicate(timeout=60)
        opened(path, wait_s=0.0).close()

    def test_who_reads_waits_for_nobody(self, path: Path) -> None:
        with opened(path) as ledger:
            reserve(ledger, 1)
            command = "import sys; from pathlib import Path; from cloister.privacy.ledger import verify; v = verify(Path(sys.argv[1])); print(v.ok, v.entries)"
            done = subprocess.run(
                [sys.executable, "-c", command, path], capture_output=True, text=True, check=False, timeout=60
            )
            assert done.stdout == "True 2\n", done.stderr
            reserve(ledger, 2)

    def test_a_forked_copy_writes_nothing(self, path: Path) -> None:
        script = CHILD.replace('die("opened")', "forked()").replace(
            "key = load",
            """
def forked():
    if os.fork() == 0:
        try:
            ledger.audit({"by": "the copy"})
        except Exception as error:
            print(type(error).__name__, error.code, flush=True)
        os._exit(0)
    os.wait()
key = load""",
            1,
        )
        done = subprocess.run(
            [sys.executable, "-c", script, path, "none"], capture_output=True, text=True, check=False
        )
        assert "PolicyError ledger-process" in done.stdout, done.stderr
        assert "committed 1" in done.stdout
        assert after_the_crash(path).entries == 3


@contextlib.contextmanager
def no_file_above(size: int) -> Iterator[None]:
    """Let every write that would make a file longer fail, as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextlib.contextmanager
def without_rights() -> Iterator[None]:
    """Be nobody for a while: to root, no file is read-only."""
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if root:
            os.seteuid(0)


class TestDisk:
    def test_a_full_disk_is_a_clear_error_and_nothing_is_half_written(self, path: Path) -> None:
        with opened(path) as ledger:
            reserve(ledger, 1).commit()
            before = path.read_bytes()
            with no_file_above(len(before)), pytest.raises(IntegrityError) as caught:
                reserve(ledger, 2, padding=60_000)
            assert (caught.value.code, caught.value.exit_code) == ("ledger-unwritable", 7)
            assert "make room" in caught.value.remedy
            assert path.read_bytes() == before
            assert len(ledger.entries) == 3
            reserve(ledger, 2, padding=60_000).commit()  # with room again
            assert ledger.verify().problems == ()

    def test_a_disk_too_full_for_a_new_ledger_leaves_none(self, path: Path) -> None:
        load_or_create_key(path.with_name("key.pem"))
        with no_file_above(4096), pytest.raises(IntegrityError) as caught:
            opened(path)
        assert caught.value.code == "ledger-unwritable"
        with opened(path) as ledger:
            assert len(ledger.entries) == 1

    def test_a_head_file_that_cannot_be_written_stops_the_ledger_one_entry_ahead(self, path: Path) -> None:
        head = path.with_name(path.name + ".head")
        with opened(path) as ledger:
            reserve(ledger, 1)
            kept = head.read_bytes()
            head.unlink()
            head.mkdir()
            with pytest.raises(IntegrityError) as caught:
                reserve(ledger, 2)
            assert caught.value.code == "ledger-unwritable"
            for _ in range(2):
                with pytest.raises(IntegrityError):
                    reserve(ledger, 3)
            head.rmdir()
            head.write_bytes(kept)
            assert verify(path).warnings[0].startswith("entry 2 is newer than the head file")
            reserve(ledger, 3)
            assert len(ledger.entries) == 4  # the second one stands and is charged
            assert ledger.spent("record") == pytest.approx(account([{"rho": 0.01}] * 3, DELTA))
            assert ledger.verify().problems == ()

    def test_a_read_only_ledger_is_a_clear_error_and_can_still_be_verified(self) -> None:
        with tempfile.TemporaryDirectory() as folder:  # pytest's own can only be entered by its owner
            path = Path(folder) / "heart.sqlite"
            opened(path).close()
            key = load_or_create_key(path.with_name("key.pem"))
            for file in (Path(folder), *Path(folder).iterdir()):
                file.chmod(0o555)
            before = path.read_bytes()
            try:
                with without_rights():
                    with pytest.raises(IntegrityError) as caught:
                        Ledger.open(path, site="north", dataset="heart", key=key, account=account)
                    assert caught.value.code == "ledger-unwritable"
                    assert "Permission denied" in caught.value.message
                    assert verify(path, account=account).problems == ()
            finally:
                Path(folder).chmod(0o755)
            assert path.read_bytes() == before
