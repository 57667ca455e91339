"""``cloister audit transcript RUN``: real runs, what it prints, how it ends, and what becomes of a transcript that was tampered with."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cloister.core.command import run as cloister
from cloister.core.errors import IntegrityError, UsageError
from cloister.core.spec import load_federation
from cloister.server import transcript as transcript_module
from cloister.server.audit.transcript import audit_transcript
from cloister.server.transcript import MESSAGES, VECTORS
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import resume, simulate
from transcripts import failed, rewritten

SMALL = ["federation.rounds=2", "evaluation.baselines=[]", "evaluation.central=false"]


pytestmark = pytest.mark.usefixtures("undrawn")


def run(repository: Path, out: Path, *overrides: str, ledgers: Path | None = None) -> Path:
    loaded = load_federation(repository / "examples" / "heart" / "federation.toml", [*SMALL, *overrides])
    return simulate(loaded, out=out, engine=LocalEngine(0), ledgers=ledgers).run


@pytest.fixture(scope="module")
def honest(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run(repository, tmp_path_factory.mktemp("runs"))


@pytest.fixture
def copied(honest: Path, tmp_path: Path) -> Path:
    shutil.copytree(honest, tmp_path / "run")
    return tmp_path / "run"


def without(**wanted: Any) -> Callable[[dict[str, Any]], dict[str, Any] | None]:
    """Leave out the received lines that are such."""

    def change(line: dict[str, Any]) -> dict[str, Any] | None:
        gone = line["kind"] == "received" and all(line.get(key) == value for key, value in wanted.items())
        return None if gone else line

    return change


@pytest.mark.usefixtures("drawn")
def test_the_command_ends_with_0_and_leaves_a_page_and_figures(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cloister(["audit", "transcript", str(copied), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["verdict"] == "passed"
    assert "error" not in found
    page = Path(found["page"]).read_text(encoding="utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "https://" not in page
    assert "<path" in page.partition("<svg")[2]
    assert json.loads(Path(found["figures"]).read_text())["checks"] == found["checks"]
    assert {path.stat().st_mode & 0o777 for path in (Path(found["page"]), Path(found["figures"]))} == {0o600}


def test_a_person_reads_verdict_checks_and_who_could_decrypt(
    copied: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cloister(["audit", "transcript", str(copied)]) == 0
    told = capsys.readouterr().out
    assert "verdict: passed: the server could read sums only" in told
    assert (
        "3 of 3, any of the 3 other sites of the round; with 2 of them, if the server also lies"
        in " ".join(told.split())
    )
    assert "a sum of 4" in told


def test_the_audit_is_in_the_help_of_its_group(capsys: pytest.CaptureFixture[str]) -> None:
    assert cloister(["audit", "--help"]) == 0
    assert "transcript" in capsys.readouterr().out


def test_a_plain_run_is_not_protected_and_says_what_the_server_read(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = run(repository, tmp_path, "aggregation.protection=plain", "audit.transcript=full")
    assert cloister(["audit", "transcript", str(folder), "--json"]) == 8
    found = json.loads(capsys.readouterr().out)
    assert (found["verdict"], found["error"]["code"]) == ("not protected", "not-protected")
    fields = {f"{one['record']}.{one['field']}" for one in found["clear_fields"]}
    assert {"update.vector", "report.loss", "report.records", "report.confusion"} <= fields
    assert failed(found) == {}
    assert cloister(["audit", "transcript", str(folder)]) == 8


def test_a_run_without_a_transcript_is_a_wrong_question(repository: Path, tmp_path: Path) -> None:
    folder = run(repository, tmp_path, "audit.transcript=off")
    assert not (folder / "transcript").exists()
    with pytest.raises(UsageError, match="kept no transcript"):
        audit_transcript(folder)
    with pytest.raises(UsageError, match="is no run"):
        audit_transcript(tmp_path)


def test_a_transcript_that_is_gone_is_not_no_transcript(copied: Path) -> None:
    shutil.rmtree(copied / "transcript")
    with pytest.raises(IntegrityError, match="there is none"):
        audit_transcript(copied)


def test_a_removed_line_ends_with_7(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "transcript" / MESSAGES
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:9], *lines[10:]]))
    assert cloister(["audit", "transcript", str(copied), "--json"]) == 7
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "transcript-chain"


def test_last_lines_that_were_removed_are_missed_by_the_events(copied: Path) -> None:
    path = copied / "transcript" / MESSAGES
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-3]))
    with pytest.raises(IntegrityError, match="at the end of round 2") as caught:
        audit_transcript(copied)
    assert caught.value.code == "transcript-chain"


def test_a_flipped_byte_of_a_vector_ends_with_7(copied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = copied / "transcript" / VECTORS
    data = bytearray(path.read_bytes())
    data[200] ^= 4
    path.write_bytes(data)
    assert cloister(["audit", "transcript", str(copied), "--json"]) == 7
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "transcript-digest"


def test_a_reply_left_out_with_a_new_chain_is_missed_by_the_events(copied: Path) -> None:
    rewritten(copied, without(step="add", site="hungarian", round=1, phase="train"))
    found = audit_transcript(copied)
    assert (
        "round 1: the run tells of 1 replies of 'hungarian' (train), and the transcript holds 0"
        in failed(found)["complete"]
    )


def test_shares_left_out_with_a_new_chain_leave_a_sum_that_does_not_open(copied: Path) -> None:
    rewritten(copied, without(step="reveal", round=1, phase="evaluate"))
    assert "round 1: the run used a sum (evaluate)" in failed(audit_transcript(copied))["complete"]


def test_a_vector_put_in_the_place_of_another_is_not_the_run_s_sum(copied: Path) -> None:
    def change(line: dict[str, Any]) -> dict[str, Any]:
        if line["kind"] == "received" and (line["step"], line["phase"], line["round"], line["site"]) == (
            "add",
            "train",
            1,
            "hungarian",
        ):
            data = (copied / "transcript" / VECTORS).read_bytes()
            field = line["records"][0]["fields"][0]
            field["at"] = len(data) - field["bytes"]
            field["sha256"] = hashlib.sha256(data[field["at"] :]).hexdigest()
        return line

    rewritten(copied, change)
    assert "round 1 (train): the run tells of a loss" in failed(audit_transcript(copied))["sums"]


def test_a_second_share_type_put_in_is_found(copied: Path) -> None:
    def change(line: dict[str, Any]) -> dict[str, Any]:
        if line["kind"] == "received" and (line["step"], line["site"], line["round"]) == (
            "reveal",
            "hungarian",
            2,
        ):
            for field in line["records"][0]["fields"]:
                kind = {"keys_of": "str[]", "key_shares": "bytes[]"}.get(field["name"])
                parts = [b"cleveland"] if field["name"] == "keys_of" else [bytes(64)]
                if kind:
                    import base64

                    value: list[str] = (
                        ["cleveland"] if kind == "str[]" else [base64.b64encode(bytes(64)).decode()]
                    )
                    digest = transcript_module.digest_of(kind, parts)
                    field |= {"type": kind, "value": value, "bytes": len(parts[0]), "sha256": digest}
        return line

    rewritten(copied, change)
    reasons = failed(audit_transcript(copied))
    assert "shares of both secrets of 'cleveland' were revealed" in reasons["shares"]
    assert "secure" in reasons["clear"]  # no message of the protocol


def test_a_confirmation_of_another_set_is_found(copied: Path) -> None:
    def change(line: dict[str, Any]) -> dict[str, Any]:
        if line["kind"] == "received" and (line["step"], line["site"], line["round"]) == (
            "confirm",
            "hungarian",
            2,
        ):
            import base64

            (field,) = line["records"][0]["fields"]
            field |= {
                "value": base64.b64encode(bytes(64)).decode(),
                "sha256": transcript_module.digest_of("bytes", [bytes(64)]),
            }
        return line

    rewritten(copied, change)
    assert "'hungarian' signed another set of survivors" in failed(audit_transcript(copied))["signatures"]


def test_another_authority_is_refused_and_the_right_one_is_said(copied: Path) -> None:
    found = audit_transcript(copied)
    assert audit_transcript(copied, authority=found["authority"])["authority_given"]
    with pytest.raises(IntegrityError, match="public key"):
        audit_transcript(copied, authority="0" * 64)


def test_a_transcript_of_another_run_is_refused(copied: Path, repository: Path, tmp_path: Path) -> None:
    other = run(repository, tmp_path / "other", "federation.seed=8")
    shutil.rmtree(copied / "transcript")
    shutil.copytree(other / "transcript", copied / "transcript")
    with pytest.raises(IntegrityError, match="another run"):
        audit_transcript(copied)


def test_beyond_the_limit_vectors_are_tested_and_sums_are_not(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    two_sessions = 4 * (152 + 80)  # of four sites' updates and of their measurements
    monkeypatch.setitem(transcript_module.LIMITS, "bounded", two_sessions)
    monkeypatch.setattr("cloister.server.conduct.LIMITS", transcript_module.LIMITS)
    folder = run(repository, tmp_path)
    assert (folder / "transcript" / VECTORS).stat().st_size == two_sessions
    found = audit_transcript(folder)
    assert (found["verdict"], failed(found)) == ("passed", {})
    assert [one["opened"] for one in found["sessions"]] == [True, True, False, False]
    assert sum(test["name"] == "near" for test in found["uniformity"]["tests"]) >= 16


@pytest.mark.slow
def test_a_private_run_with_ledgers_shows_no_more(repository: Path, tmp_path: Path) -> None:
    private = [
        "privacy.unit=record",
        "privacy.epsilon=8",
        "privacy.delta=1e-4",
        "privacy.clip=1.0",
        "privacy.sampling_rate=0.2",
    ]
    folder = run(
        repository,
        tmp_path,
        *private,
        "aggregation.weighting=uniform",
        "evaluation.sites=false",
        ledgers=tmp_path / "ledgers",
    )
    found = audit_transcript(folder)
    assert (found["verdict"], failed(found)) == ("passed", {})
    assert "ledger" in (folder / "transcript" / MESSAGES).read_text()


def test_a_run_that_goes_on_keeps_what_it_received_before(repository: Path, tmp_path: Path) -> None:
    from cloister.server.coordinator import Coordinator

    class Stop(Exception):  # noqa: N818
        pass

    save = Coordinator._save

    def stop(self: Coordinator, state: Any) -> None:
        if state.round_number == 2:
            raise Stop
        save(self, state)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Coordinator, "_save", stop)
        with pytest.raises(Stop):
            run(repository, tmp_path, "federation.rounds=3")
    (folder,) = tmp_path.iterdir()
    before = (folder / "transcript" / MESSAGES).read_bytes()
    resume(folder, engine=LocalEngine(0))
    assert (folder / "transcript" / MESSAGES).read_bytes().startswith(before)
    found = audit_transcript(folder)
    assert (found["verdict"], failed(found)) == ("passed", {})
    assert found["starts"] == 2
    assert [one["round"] for one in found["sessions"] if one["kind"] == "train"] == [1, 2, 2, 3]


def test_a_full_disk_ends_the_run_with_its_error(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cloister.core.errors import StorageError
    from cloister.server.transcript import Transcript

    append = Transcript._append
    calls = 0

    def full(self: Transcript, file: int, data: Any) -> int:
        nonlocal calls
        calls += 1
        if calls > 60:
            raise StorageError.of(self._path, OSError(28, "No space left on device"))
        return append(self, file, data)

    monkeypatch.setattr(Transcript, "_append", full)
    with pytest.raises(StorageError, match="No space left"):
        run(repository, tmp_path)
    (folder,) = tmp_path.iterdir()
    last = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    assert (last["status"], last["code"]) == ("failed", "disk")
