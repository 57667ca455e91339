"""Encrypted runs, honest and not: the transcript audit passes what is as it should be, and says of each fault which it was."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, RecordDict

from cloister.client.protecting import Encrypted
from cloister.core import protocol
from cloister.core.errors import CloisterError
from cloister.privacy.homomorphic import BFV, CKKS, Ciphertexts, Form, Parameters, commitment
from cloister.server import transcript as transcript_module
from cloister.server.audit.transcript import audit_transcript
from cloister.server.audit.transcript.checks import check_fresh
from cloister.server.audit.transcript.encrypted import ENCRYPTED
from cloister.server.audit.transcript.examined import Looked
from cloister.server.audit.transcript.reading import Start, read_transcript
from cloister.server.audit.transcript.sessions import sessions_of
from cloister.server.audit.transcript.telling import told
from cloister.server.protected import CONTAINER, parts_of
from cloister.server.transcript import VECTORS
from transcripts import LIAR, VICTIM, Line, failed, fields, heart_run, is_reply, put, rewritten

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def honest(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return heart_run(repository, tmp_path_factory.mktemp("runs"), "bfv")


@pytest.fixture
def copied(honest: Path, tmp_path: Path) -> Path:
    shutil.copytree(honest, tmp_path / "run")
    return tmp_path / "run"


def test_an_honest_bfv_run_passes_and_says_what_it_rests_on(honest: Path) -> None:
    found = audit_transcript(honest)
    assert (found["verdict"], failed(found), found["clear_fields"]) == ("passed", {}, [])
    verdicts = {check["name"]: check["verdict"] for check in found["checks"]}
    assert verdicts.pop("sums") == "not tested"
    assert set(verdicts) == {"complete", "clear", "signatures", "fresh", "opening", "uniform"}
    assert set(verdicts.values()) == {"passed"}
    assert found["reason"].endswith("not tested: sums")
    assert found["decryption"]["holder"] == "the key authority"
    assert "N = 4096 and a modulus of 109 bits" in found["decryption"]["rests_on"]
    assert all(one["vectors"] == 4 and one["opens"] == [4] for one in found["sessions"])
    assert any("the key authority alone" in one for one in told(found) if isinstance(one, str))


def test_an_honest_ckks_run_passes_also_where_containers_were_not_kept(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    length = 60 + CKKS.chunk_bytes
    monkeypatch.setitem(transcript_module.LIMITS, "bounded", 6 * length)
    folder = heart_run(repository, tmp_path, "ckks")
    assert (folder / "transcript" / VECTORS).stat().st_size == 6 * length
    found = audit_transcript(folder)
    assert (found["verdict"], failed(found)) == ("passed", {})
    assert all(len(one["survivors"]) == 4 for one in found["sessions"])
    sites = {test["site"] for test in found["uniformity"]["tests"] if test["rounds"] == "2"}
    assert {VICTIM, LIAR} <= sites


def test_integers_that_a_site_sends_as_residues_are_found(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One site encrypts nothing; another puts its integers into the place of polynomial 0 of a ciphertext."""
    protect = Encrypted.protect

    def plain(self: Encrypted, arrays: dict[str, Any]) -> RecordDict:
        name = self._book.credentials.identity.name
        if name not in (VICTIM, LIAR):
            return protect(self, arrays)
        form, values = Form.of(self._manifest), arrays[protocol.SUM]
        container = self._codec.encrypt(values, self._manifest)
        (one,) = Ciphertexts.read(container, form)
        one[0] = 0
        for place, prime in enumerate(form.parameters.primes):
            one[0, place, : values.size] = values % prime
        if name == VICTIM:
            one[1] = 0
        container = form.write([one])
        with self._book.turn() as turn:
            turn.keep_ciphertext(self._manifest, container)
        return RecordDict({protocol.SECURE: ConfigRecord({protocol.COMMITMENT: commitment(container)})})

    monkeypatch.setattr(Encrypted, "protect", plain)
    with pytest.raises(CloisterError):  # the authority opens no such sum
        heart_run(repository, tmp_path, "bfv")
    (folder,) = tmp_path.iterdir()
    found = audit_transcript(folder)
    reasons = failed(found)
    assert set(reasons) - {"complete"} == {"uniform", "opening"}
    assert f"the vector of '{VICTIM}' opens" in reasons["opening"]
    assert LIAR not in reasons["opening"]
    # An honest site's ciphertext is random and fails by chance now and then; these two fail beyond any chance.
    wrong = {test["site"] for test in found["uniformity"]["tests"] if test["p"] < 1e-9}
    assert {VICTIM, LIAR} <= wrong <= {VICTIM, LIAR, "all sites"}


def test_what_comes_beside_the_ciphertexts_is_named(copied: Path) -> None:
    text = {"name": "rows", "type": "str", "bytes": 5, "sha256": "0" * 64}

    def change(line: Line) -> Line:
        if is_reply(line, "seal"):
            line["records"].append({"name": "note", "kind": "config", "fields": [text], "more": 0})
        if is_reply(line, "add"):
            numbers = {"name": "sum", "type": "array:uint32", "shape": [41], "bytes": 164, "sha256": "0" * 64}
            line["records"].append({"name": "update", "kind": "array", "fields": [numbers], "more": 0})
        return line

    rewritten(copied, change)
    reasons = failed(audit_transcript(copied))
    assert set(reasons) == {"clear"}
    assert f"'{LIAR}' sent note.rows in clear" in reasons["clear"]
    assert f"'{LIAR}' sent update.sum in clear" in reasons["clear"]


def test_a_container_left_out_is_missed_by_the_sum(copied: Path) -> None:
    rewritten(copied, lambda line: None if is_reply(line, "seal") else line)
    reasons = failed(audit_transcript(copied))
    assert "the run used a sum (train of 4 sites)" in reasons["complete"]


def _signature(line: Line) -> None:
    if is_reply(line, "seal"):
        put(fields(line)["signature"], bytes(64))


def _commitment(line: Line) -> None:
    if is_reply(line, "add"):
        put(fields(line)["commitment"], bytes(32))


def _digest(line: Line) -> None:
    if (line["kind"], line.get("step"), line.get("round")) == ("asked", "seal", 2):
        put(line["said"][0], bytes(32))


def _container(line: Line) -> None:
    if is_reply(line, "seal"):  # that of another site
        fields(line)["sum"] |= {"at": _container.at, "sha256": _container.sha256}  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("plant", "reason"),
    [
        (_signature, f"the ciphertexts of '{LIAR}'"),
        (_commitment, "did not send all sites one digest"),
        (_digest, "did not send all sites one digest"),
        (_container, f"the ciphertexts of '{LIAR}'"),
    ],
)
def test_what_is_not_signed_as_it_must_be_is_found(
    copied: Path, plant: Callable[[Line], None], reason: str
) -> None:
    def look(line: Line) -> Line:
        if is_reply(line, "seal", VICTIM):
            vars(_container).update({key: fields(line)["sum"][key] for key in ("at", "sha256")})
        return line

    def change(line: Line) -> Line:
        plant(line)
        return line

    rewritten(copied, look)
    rewritten(copied, change)
    assert reason in failed(audit_transcript(copied))["signatures"]


def test_a_commitment_that_came_too_late_is_found(copied: Path) -> None:
    """A site that could see the others' ciphertexts before it fixed its own."""
    late: list[Line] = []

    def hold(line: Line) -> Line | None:
        if is_reply(line, "add"):
            late.append(line)
            return None
        return line

    def change(line: Line) -> Line:
        if is_reply(line, "seal"):
            return {**late[0], "phase": line["phase"]}
        return line

    rewritten(copied, hold)
    rewritten(copied, change)
    assert f"the commitment of '{LIAR}' came after" in failed(audit_transcript(copied))["signatures"]


def test_a_key_of_another_session_is_found(copied: Path) -> None:
    keys: list[Line] = []

    def change(line: Line) -> Line:
        if line["kind"] == "asked" and line["step"] == "add":
            place = next(n for n, one in enumerate(line["said"]) if one["name"] == "key")
            keys.append(line["said"][place])
            line["said"][place] = keys[0]
        return line

    rewritten(copied, change)
    reasons = failed(audit_transcript(copied))
    assert "the session's key" in reasons["signatures"]


def test_a_key_of_nobody_or_none_is_found(copied: Path) -> None:
    def change(line: Line) -> Line:
        if line["kind"] == "asked" and line["step"] == "add":
            if line["phase"] == "train":
                put(next(one for one in line["said"] if one["name"] == "key"), b"a key of the server's own")
            else:
                line["said"] = [one for one in line["said"] if one["name"] != "key"]
        return line

    rewritten(copied, change)
    reason = failed(audit_transcript(copied))["signatures"]
    assert "the public key cannot be read" in reason
    assert "handed out 0 public keys" in reason


def test_a_container_that_comes_again_is_found(copied: Path) -> None:
    """The same commitment and the same container in two rounds."""
    before: dict[str, Line] = {}

    def change(line: Line) -> Line:
        for step, name in (("add", "commitment"), ("seal", "sum")):
            if is_reply(line, step, number=1):
                before[name] = dict(fields(line)[name])
            if is_reply(line, step, number=2):
                fields(line)[name].update(before[name])
        return line

    rewritten(copied, change)
    reasons = failed(audit_transcript(copied))
    assert f"'{LIAR}' uses a key again, or commits to the same" in reasons["fresh"]
    assert "uniform" in reasons  # the difference of the rounds is 0


def test_a_site_that_seals_twice_is_found(copied: Path) -> None:
    """Another site's answer is put down as a second one of this site."""

    def change(line: Line) -> Line:
        return {**line, "site": LIAR} if is_reply(line, "seal", VICTIM) else line

    rewritten(copied, change)
    assert f"'{LIAR}' sent two vectors in one session" in failed(audit_transcript(copied))["fresh"]


def test_a_round_that_is_summed_twice_over_different_sites_is_found(honest: Path) -> None:
    record = read_transcript(honest / "transcript")
    start, scheme = record.lines[0], ENCRYPTED["bfv"]
    assert isinstance(start, Start)
    assert start.authority is not None
    session = sessions_of(record)[0][0]
    fewer = [one for one in session.replies if (one.step, one.site) != ("seal", LIAR)]
    looked = [
        Looked(session=one, found=scheme.examine(one, record, start.authority), scheme=scheme)
        for one in (session, replace(session, replies=fewer))
    ]
    assert [len(one.found.survivors) for one in looked] == [4, 3]
    assert [one.found.groups for one in looked] == [(looked[0].found.survivors,), ()], (
        "a sum is of all or none"
    )
    # The second session stands in for one of three sites, with a key of its own.
    looked[1].found.groups = (looked[1].found.survivors,)
    looked[1].found.public.clear()
    assert "2 sums of different sites were opened" in check_fresh(looked).reason


@pytest.mark.parametrize("parameters", [BFV, CKKS])
def test_parts_of_uniform_residues_are_uniform_numbers(parameters: Parameters) -> None:
    form = Form(parameters=parameters, key="0" * 64, size=1, lanes=1)
    generator = np.random.default_rng(1)
    shape = (2, len(parameters.primes), parameters.degree)
    one = np.stack(
        [
            generator.integers(0, prime, (2, parameters.degree), dtype=np.uint64)
            for prime in parameters.primes
        ],
        axis=1,
    )
    assert one.shape == shape
    for place, prime in enumerate(parameters.primes):
        one[1, place, :3] = (0, 1, prime - 1)
    data = form.write([one])
    parts = parts_of(CONTAINER + parameters.scheme, data)
    assert len(parts) == 2 * len(parameters.primes)
    for place, prime in enumerate(parameters.primes):
        title = f"residues of prime {place + 1} of {len(parameters.primes)}"
        high, low = parts[f"{title}, high"], parts[f"{title}, low"]
        wanted = [int(r) for r in [*one[1, place], *one[0, place]]]
        assert high.tolist() == [(r << 32) // prime for r in wanted]
        assert low.tolist() == [r & 0xFFFFFFFF for r in wanted]
    assert parts_of(CONTAINER + parameters.scheme, data[:-1]) == {}
    assert parts_of(CONTAINER + "nothing", data) == {}
