"""Runs under a joint key, honest and not: the transcript audit passes what is as it should be, and says of each fault which it was."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.server.audit.transcript import audit_transcript
from cloister.server.transcript import MESSAGES
from joint import needs_openfhe
from transcripts import LIAR, VICTIM, Line, failed, fields, heart_run, is_reply, put, rewritten

pytestmark = [pytest.mark.usefixtures("undrawn"), pytest.mark.slow, needs_openfhe]


@pytest.fixture(scope="module")
def honest(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return heart_run(repository, tmp_path_factory.mktemp("runs"), "threshold-bfv")


@pytest.fixture
def copied(honest: Path, tmp_path: Path) -> Path:
    shutil.copytree(honest, tmp_path / "run")
    return tmp_path / "run"


def test_an_honest_run_passes_says_what_it_rests_on_and_does_not_keep_what_the_server_hands_on(
    honest: Path,
) -> None:
    found = audit_transcript(honest)
    assert (found["verdict"], failed(found), found["clear_fields"]) == ("passed", {}, [])
    verdicts = {check["name"]: check["verdict"] for check in found["checks"]}
    assert verdicts.pop("sums") == "not tested"
    assert set(verdicts.values()) == {"passed"}
    assert found["decryption"]["holder"] == "all sites of a session together"
    assert "N = 8192 and a modulus of 180 bits" in found["decryption"]["rests_on"]
    assert all(one["vectors"] == 4 and one["opens"] == [4] for one in found["sessions"])
    assert (
        honest / "transcript" / MESSAGES
    ).stat().st_size < THRESHOLD.chunk_bytes  # neither shares nor proofs, nor what went on to others


def _share(line: Line) -> None:
    if is_reply(line, "show"):
        put(fields(line)["signature"], bytes(64))


def _commitment(line: Line) -> None:
    if is_reply(line, "hold"):
        put(fields(line)["commitment"], bytes(32))


def _length(line: Line) -> None:
    if is_reply(line, "show"):
        fields(line)["share"]["bytes"] += 1


def _beside(line: Line) -> None:
    if is_reply(line, "open"):
        number = {"name": "loss", "type": "float", "bytes": 8, "sha256": "0" * 64}
        line["records"].append({"name": "report", "kind": "config", "fields": [number], "more": 0})


def _longer(line: Line) -> None:
    if is_reply(line, "open"):
        fields(line)["sum"]["shape"] = [THRESHOLD.chunk_bytes]


@pytest.mark.parametrize(
    ("plant", "check", "reason"),
    [
        (_share, "signatures", f"the share of '{LIAR}'"),
        (_commitment, "signatures", "not that of the commitments"),
        (_length, "clear", f"'{LIAR}' sent secure.share in clear"),
        (_beside, "clear", f"'{LIAR}' sent report.loss in clear"),
        (_longer, "clear", f"'{LIAR}' sent update.sum in clear"),
    ],
)
def test_what_is_not_as_it_must_be_is_found(
    copied: Path, plant: Callable[[Line], None], check: str, reason: str
) -> None:
    def change(line: Line) -> Line:
        plant(line)
        return line

    rewritten(copied, change)
    assert reason in failed(audit_transcript(copied))[check]


def test_a_sum_that_not_all_holders_helped_to_open_is_none(copied: Path) -> None:
    rewritten(copied, lambda line: None if is_reply(line, "open", VICTIM) else line)
    assert "the run used a sum (train of 4 sites)" in failed(audit_transcript(copied))["complete"]


def test_a_second_opening_under_one_key_is_found(copied: Path) -> None:
    """The server asks for another sum of the same session, and a site answers again."""
    path = copied / "transcript" / MESSAGES
    lines: list[bytes] = []
    for raw in path.read_bytes().splitlines():
        lines.append(raw)
        line = json.loads(raw)
        if (line["kind"], line.get("step"), line.get("round"), line.get("phase")) == (
            "asked",
            "open",
            2,
            "train",
        ):
            put(next(one for one in line["said"] if one["name"] == "digest"), bytes(32))
            lines.append(json.dumps(line).encode())
        if is_reply(line, "open"):
            lines.append(raw)
    path.write_bytes(b"".join(line + b"\n" for line in lines))
    rewritten(copied, lambda line: line)
    reasons = failed(audit_transcript(copied))["signatures"]
    assert "asked the holders of one key to open 2 sums" in reasons
    assert f"'{LIAR}' helped 2 times" in reasons


def test_a_sum_that_leaves_a_holder_out_and_was_opened_is_found(copied: Path) -> None:
    rewritten(copied, lambda line: None if is_reply(line, "seal", VICTIM) else line)
    assert "helped to open a sum that not all 4 holders" in failed(audit_transcript(copied))["signatures"]
