"""A site's log finds what was done to it, survives a crash, and is written by several processes."""

from __future__ import annotations

import json
import multiprocessing
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from cloister.client.gate.log_entry import LogEntry
from cloister.client.gate.log_verification import LogVerification, verify_log
from cloister.client.gate.site_log import LOG, SiteLog, log_key
from cloister.core.command import run
from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.identity import ConsortiumAuthority, Role

AUTHORITY = ConsortiumAuthority("tests", Ed25519PrivateKey.generate())
NORTH = AUTHORITY.identity("north", Role.SITE, Ed25519PrivateKey.generate())
LINES = 5


def opened(folder: Path, took: Callable[[LogEntry], None] = lambda _: None) -> SiteLog:
    path = folder / LOG
    return SiteLog(path, key=log_key(path), identity=NORTH, took=took, durable=False)


@pytest.fixture
def log(tmp_path: Path) -> Path:
    made = opened(tmp_path)
    for number in range(LINES - 1):
        made.append("refused", {"run": f"run-{number}", "why": "ε"})
    return tmp_path / LOG


def verified(log: Path) -> LogVerification:
    return verify_log(log, consortium=AUTHORITY.consortium())


def codes(log: Path) -> list[str]:
    return [code for code, _ in verified(log).problems]


def test_a_log_verifies_and_its_site_s_certificate_vouches_for_its_key(log: Path) -> None:
    found = verified(log)
    assert (found.entries, found.site, found.vouched, found.problems) == (LINES, "north", True, [])
    assert not found.warnings
    other = ConsortiumAuthority("others", Ed25519PrivateKey.generate()).consortium()
    assert [code for code, _ in verify_log(log, consortium=other).problems] == ["log-key"]
    assert [code for code, _ in verify_log(log, public_key="0" * 64).problems] == ["log-key"]
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.slow
def test_every_flipped_byte_is_found(log: Path) -> None:
    """Each byte of log and head file, with one of its bits: none is free."""
    for path in (log, log.with_suffix(".head")):
        raw = path.read_bytes()
        for place in range(len(raw)):
            changed = bytearray(raw)
            changed[place] ^= 1 << (place % 7)
            path.write_bytes(changed)
            assert not verified(log).ok, (path.name, place)
        path.write_bytes(raw)
    assert verified(log).ok


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda lines: [*lines[:2], *lines[3:]], "log-chain"),
        (lambda lines: [lines[0], lines[2], lines[1], *lines[3:]], "log-chain"),
        (lambda lines: [*lines[:3], lines[2], *lines[3:]], "log-chain"),
        (lambda lines: lines[1:], "log-chain"),
        (lambda lines: lines[:-1], "log-rollback"),
        (lambda _: [], "log-rollback"),
    ],
)
def test_a_line_removed_moved_repeated_or_cut_off_is_found_and_the_site_does_not_start(
    log: Path, change: Callable[[list[bytes]], list[bytes]], code: str
) -> None:
    log.write_bytes(b"".join(change(log.read_bytes().splitlines(keepends=True))))
    assert codes(log) == [code]
    with pytest.raises(IntegrityError) as caught:
        opened(log.parent)
    assert caught.value.code == code


def test_a_line_of_another_history_that_the_site_itself_signed_does_not_fit(
    log: Path, tmp_path: Path
) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in (log, log.with_suffix(".head"), log.with_suffix(".pem")):
        (copy / path.name).write_bytes(path.read_bytes())
        (copy / path.name).chmod(0o600)
    for folder, code in ((copy, "policy-user"), (log.parent, "policy-unit")):
        made = opened(folder)
        made.append("refused", {"code": code})
        made.append("stopped", {})
    lines, others = (one.read_bytes().splitlines(keepends=True) for one in (log, copy / LOG))
    log.write_bytes(b"".join([*lines[:LINES], others[LINES], *lines[LINES + 1 :]]))
    assert codes(log) == ["log-chain"]


def test_half_a_line_of_a_complete_log_is_a_lost_line_and_no_crash(log: Path) -> None:
    log.write_bytes(log.read_bytes()[:-10])
    assert codes(log) == ["log-rollback"]
    with pytest.raises(IntegrityError, match="lines were lost"):
        opened(log.parent)


def test_lines_signed_by_another_key_are_found(log: Path) -> None:
    """Somebody who can write the files, and not read the key, makes a whole new log with its head."""
    log.unlink()
    log.with_suffix(".head").unlink()
    kept = log.with_suffix(".pem").read_bytes()
    log.with_suffix(".pem").unlink()
    false = SiteLog(
        log, key=log_key(log), identity=AUTHORITY.identity("south", Role.SITE, Ed25519PrivateKey.generate())
    )
    false.append("refused", {})
    log.with_suffix(".pem").write_bytes(kept)
    assert verify_log(log, public_key=public(kept)).problems
    with pytest.raises(IntegrityError, match="not signed by the key"):
        opened(log.parent)


def public(pem: bytes) -> str:
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    from cloister.privacy.ledger.keys import public_key_of

    key = load_pem_private_key(pem, None)
    assert isinstance(key, Ed25519PrivateKey)
    return public_key_of(key)


def test_without_its_head_file_or_with_an_older_one(log: Path) -> None:
    head = log.with_suffix(".head")
    older = head.read_bytes()
    made = opened(log.parent)
    made.append("started", {})
    made.append("stopped", {})
    newer = head.read_bytes()
    head.write_bytes(older)
    assert codes(log) == ["log-head"]
    head.unlink()
    assert codes(log) == ["log-head"]
    with pytest.raises(IntegrityError, match="head file"):
        opened(log.parent)
    head.write_bytes(newer)
    assert not codes(log)


@given(st.integers(min_value=1, max_value=300))
def test_a_line_that_a_crash_tore_is_removed_and_said(
    tmp_path_factory: pytest.TempPathFactory, size: int
) -> None:
    folder = tmp_path_factory.mktemp("torn")
    opened(folder)
    log = folder / LOG
    opened(folder).append("started", {})
    before = log.read_bytes()
    log.write_bytes(before + opened_line(folder)[:size].rstrip(b"\n"))
    found = verified(log)
    assert found.ok
    assert found.warnings
    seen: list[LogEntry] = []
    opened(folder, seen.append)
    assert [entry.kind for entry in seen] == ["opened", "started", "mended"]
    assert log.read_bytes().startswith(before)
    assert verified(log).ok
    assert not verified(log).warnings


def opened_line(folder: Path) -> bytes:
    return (folder / LOG).read_bytes().splitlines(keepends=True)[-1]


def test_a_crash_between_the_line_and_its_head_is_no_loss(log: Path) -> None:
    head = log.with_suffix(".head").read_bytes()
    opened(log.parent).append("started", {})
    log.with_suffix(".head").write_bytes(head)
    found = verified(log)
    assert found.ok
    assert found.warnings
    opened(log.parent).append("stopped", {})
    assert verified(log).entries == LINES + 2


def test_a_log_that_is_replaced_or_cut_while_it_is_open_stops_everything(log: Path) -> None:
    made = opened(log.parent)
    raw = log.read_bytes()
    log.write_bytes(raw[: len(raw) // 2])
    with pytest.raises(IntegrityError, match="cut or replaced"):
        made.append("left", {})
    other = log.with_name("other")
    other.write_bytes(raw + raw)
    other.replace(log)
    with pytest.raises(IntegrityError, match="cut or replaced"):
        made.refresh()
    log.unlink()
    with pytest.raises(IntegrityError, match="gone"):
        made.refresh()


def test_the_time_never_goes_back(tmp_path: Path) -> None:
    times = [
        datetime(2026, 1, 2, tzinfo=UTC),
        datetime(2026, 1, 3, tzinfo=UTC),
        datetime(2026, 1, 1, tzinfo=UTC),
    ]
    path = tmp_path / LOG
    made = SiteLog(path, key=log_key(path), identity=NORTH, durable=False, now=lambda: times.pop(0))
    assert made.append("started", {}).at.day == 3
    assert made.append("stopped", {}).at.day == 3


def test_what_is_no_plain_data_is_not_written(log: Path) -> None:
    before = log.read_bytes()
    with pytest.raises(PolicyError):
        opened(log.parent).append("left", {"loss": float("nan")})
    assert log.read_bytes() == before


def _write(folder: Path, name: str) -> None:
    made = opened(folder)
    for number in range(20):
        made.append("refused", {"by": name, "number": number})


def test_several_processes_write_one_chain(log: Path) -> None:
    processes = [
        multiprocessing.get_context("fork").Process(target=_write, args=(log.parent, name)) for name in "ab"
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert verified(log).entries == LINES + 40
    said = [json.loads(line)["said"] for line in log.read_text().splitlines()]
    assert [one["number"] for one in said if one.get("by") == "a"] == list(range(20))


def test_the_command_shows_verifies_and_finds(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(log.parent)
    assert run(["site", "log", folder, "--json", "--last", "2"]) == 0
    assert [line["run"] for line in json.loads(capsys.readouterr().out)["lines"]] == ["run-2", "run-3"]
    assert run(["site", "log", folder, "--since", "2100-01-01", "--json"]) == 0
    assert not json.loads(capsys.readouterr().out)["lines"]
    assert run(["site", "log", folder, "--since", "soon"]) == 2
    assert run(["site", "log", folder]) == 0
    assert "run-3" in capsys.readouterr().out
    assert run(["site", "log", folder, "--verify"]) == 0
    assert f"verified: {LINES} lines" in capsys.readouterr().out
    log.write_bytes(log.read_bytes().replace(b"run-2", b"run-9"))
    assert run(["site", "log", folder, "--verify", "--json"]) == 7
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "log-line"
