"""Hostile or broken sites in real masked runs: the transcript audit finds each, and says which it was."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from cloister.client.app import make_client_app
from cloister.core import protocol
from cloister.core.errors import PeersMissing
from cloister.core.spec import load_federation
from cloister.privacy.masking import Confirmations, Deliveries, Reveal, SiteSession
from cloister.privacy.masking import site as site_module
from cloister.privacy.masking.stream import add_streams
from cloister.privacy.updates.modular import Residues
from cloister.server.audit.transcript import audit_transcript
from cloister.simulation import engines
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import simulate

pytestmark = pytest.mark.usefixtures("undrawn")

ROUNDS = 2
VICTIM, LIAR = "cleveland", "hungarian"
Reply = Callable[[Message, Message], Message]


def run(repository: Path, out: Path, *overrides: str) -> dict[str, Any]:
    settings = [
        f"federation.rounds={ROUNDS}",
        "evaluation.baselines=[]",
        "evaluation.central=false",
        *overrides,
    ]
    loaded = load_federation(repository / "examples" / "heart" / "federation.toml", settings)
    with suppress(PeersMissing):  # a sum that cannot be is thrown away, and what was received stays received
        simulate(loaded, out=out, engine=LocalEngine(0))
    (folder,) = out.glob("heart-*")
    return audit_transcript(folder)


def failed(found: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["reason"] for check in found["checks"] if check["verdict"] == "failed"}


def hostile(monkeypatch: pytest.MonkeyPatch, answer: Callable[[str, Message, Message], Message]) -> None:
    """Let every reply of the real ClientApp pass through ``answer`` (site's name, message, reply)."""

    def make(sites: Any, **given: Any) -> ClientApp:
        honest, app = make_client_app(sites, **given), ClientApp()

        def through(message: Message, context: Context) -> Message:
            name = sites.roster.name(int(context.node_config["partition-id"]))
            return answer(name, message, honest(message, context))

        app.train()(through)
        app.evaluate()(through)
        app.query()(through)
        app.query("secure")(through)
        return app

    monkeypatch.setattr(engines, "make_client_app", make)


def with_record(record: str, made: Any, kind: str = "train") -> Callable[[str, Message, Message], Message]:
    """One site adds a record to its answer in round 2."""

    def answer(name: str, message: Message, reply: Message) -> Message:
        if name == LIAR and message.metadata.message_type == kind and message.metadata.group_id == "2":
            reply.content[record] = made()
        return reply

    return answer


def test_an_honest_run_passes(repository: Path, tmp_path: Path) -> None:
    found = run(repository, tmp_path)
    assert (found["verdict"], failed(found)) == ("passed", {})
    assert {check["name"] for check in found["checks"]} == {
        "clear",
        "complete",
        "fresh",
        "opening",
        "shares",
        "signatures",
        "sums",
        "uniform",
    }
    assert all(one["found"] for one in found["uniformity"]["power"])
    assert len(found["sessions"]) == 2 * ROUNDS


@pytest.mark.parametrize(
    ("record", "made", "field", "tells"),
    [
        ("report", lambda: MetricRecord({"metric.accuracy": 0.9}), "report.metric.accuracy", "accuracy"),
        ("report", lambda: MetricRecord({"loss": 0.9}), "report.loss", "mean loss"),
        ("note", lambda: ConfigRecord({"rows": "1,2,3"}), "note.rows", "no step of the protocol"),
        ("empty", MetricRecord, "empty.(empty)", "such a record"),
        (
            "update",
            lambda: ArrayRecord({"vector": Array(np.zeros(32, dtype=np.float32))}),
            "update.vector",
            "reconstructed",
        ),
        (
            "update",
            lambda: ArrayRecord({"sum": Array(np.zeros(39, dtype=np.uint32))}),
            "update.sum",
            "nothing covers",
        ),
    ],
)
def test_whatever_a_site_sends_in_clear_is_named(
    repository: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    record: str,
    made: Callable[[], Any],
    field: str,
    tells: str,
) -> None:
    hostile(monkeypatch, with_record(record, made))
    found = run(repository, tmp_path)
    (one,) = found["clear_fields"]
    assert f"{one['record']}.{one['field']}" == field
    assert (one["sites"], one["rounds"], one["times"]) == ([LIAR], [2, 2], 1)
    assert tells in one["tells"]
    assert set(failed(found)) == {"clear"}
    assert field in found["reason"]


def test_a_site_that_leaves_all_its_masks_off_is_found(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SiteSession.mask

    def mask(self: SiteSession, sealed: Deliveries, values: Residues) -> Residues:
        plain = values.copy()
        masked = honest(self, sealed, values)
        if self._identity.name == VICTIM:
            masked[:] = plain
        return masked

    monkeypatch.setattr(SiteSession, "mask", mask)
    reasons = failed(run(repository, tmp_path))
    assert f"the vectors of '{VICTIM}'" in reasons["uniform"]
    assert "clear" not in reasons


def test_a_site_that_masks_only_the_low_half_is_found(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = SiteSession.mask

    def mask(self: SiteSession, sealed: Deliveries, values: Residues) -> Residues:
        plain = values.copy()
        masked = honest(self, sealed, values)
        if self._identity.name == VICTIM:
            masked[:] = plain + ((masked - plain) & np.uint32(0xFFFF))
        return masked

    monkeypatch.setattr(SiteSession, "mask", mask)
    assert f"the vectors of '{VICTIM}'" in failed(run(repository, tmp_path))["uniform"]


def test_pairwise_masks_that_all_leave_off_are_found_though_sums_are_right_and_vectors_look_uniform(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def only_own(values: Residues, streams: Iterable[tuple[bytes, int]]) -> None:
        add_streams(values, list(streams)[:1])

    monkeypatch.setattr(site_module, "add_streams", only_own)
    found = run(repository, tmp_path)
    reasons = failed(found)
    assert set(reasons) == {"uniform"}  # the sums are those of the run
    assert "known masks off" in reasons["uniform"]
    wrong = [test for test in found["uniformity"]["tests"] if test["failed"]]
    assert all("known masks off" in test["group"] for test in wrong)


def test_a_site_that_reveals_the_other_secret_of_a_survivor_is_found(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One site, when it is asked for shares of survivors' seeds, gives that of one mask key as well as others give its seed's."""
    honest = SiteSession.reveal

    def reveal(self: SiteSession, confirmations: Confirmations) -> Reveal:
        held = self._state.held(self._identity.name)
        told = honest(self, confirmations)
        if self._identity.name != LIAR:
            return told
        keep = [place for place, name in enumerate(told.seeds_of) if name != VICTIM]
        return replace(
            told,
            seeds_of=tuple(told.seeds_of[place] for place in keep),
            seed_shares=tuple(told.seed_shares[place] for place in keep),
            keys_of=(VICTIM,),
            key_shares=(held[VICTIM][64:],),
        )

    monkeypatch.setattr(SiteSession, "reveal", reveal)
    reasons = failed(run(repository, tmp_path))
    assert f"shares of both secrets of '{VICTIM}' were revealed" in reasons["shares"]
    assert "opening" not in reasons  # one share of the key opens nothing


def test_a_survivor_whose_mask_key_the_others_reveal_too_opens(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sites that hand over both shares, beside the protocol: the attacker's side opens the vector, and the audit says whose."""
    kept: dict[str, dict[str, bytes]] = {}
    honest = SiteSession.reveal

    def reveal(self: SiteSession, confirmations: Confirmations) -> Reveal:
        kept[self._identity.name] = self._state.held(self._identity.name)
        return honest(self, confirmations)

    def answer(name: str, message: Message, reply: Message) -> Message:
        said = message.content.config_records.get(protocol.SECURE)
        if said is not None and said[protocol.STEP] == protocol.REVEAL and name != VICTIM:
            fields = dict(reply.content.config_records[protocol.SECURE])
            fields |= {"keys_of": [VICTIM], "key_shares": [kept[name][VICTIM][64:]]}
            return Message(RecordDict({protocol.SECURE: ConfigRecord(fields)}), reply_to=message)
        return reply

    monkeypatch.setattr(SiteSession, "reveal", reveal)
    hostile(monkeypatch, answer)
    reasons = failed(run(repository, tmp_path))  # the server uses none of it
    (folder,) = tmp_path.iterdir()
    assert '"kind": "round"' not in (folder / "events.jsonl").read_text()
    assert f"the vector of '{VICTIM}' opens" in reasons["opening"]
    assert f"both secrets of '{VICTIM}'" in reasons["shares"]
    assert "reveal" not in reasons.get("signatures", "")


def test_keys_that_a_site_uses_again_are_found(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A site whose random numbers are always the same."""

    honest = SiteSession.begin.__func__  # type: ignore[attr-defined]

    def begin(cls: type[SiteSession], identity: Any, *given: Any, **named: Any) -> SiteSession:
        if identity.name != VICTIM:
            made: SiteSession = honest(cls, identity, *given, **named)
            return made
        monkeypatch.setattr(site_module, "os", Counted())
        try:
            made = honest(cls, identity, *given, **named)
        finally:
            monkeypatch.setattr(site_module, "os", os)
        return made

    class Counted:
        def __init__(self) -> None:
            self.calls = 0

        def urandom(self, size: int) -> bytes:
            self.calls += 1
            return bytes([self.calls] * size)

    monkeypatch.setattr(SiteSession, "begin", classmethod(begin))
    reasons = failed(run(repository, tmp_path))
    assert f"'{VICTIM}' uses a key again" in reasons["fresh"]
    assert set(reasons) == {"fresh"}


def test_a_site_that_drops_after_sharing_changes_nothing(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(name: str, message: Message, reply: Message) -> Message:
        if name == LIAR and message.metadata.message_type == "train":
            refusal = ConfigRecord({"code": "site-failed", "message": "the site's code raised ValueError"})
            return Message(RecordDict({protocol.REFUSAL: refusal}), reply_to=message)
        return reply

    hostile(monkeypatch, answer)
    found = run(repository, tmp_path)
    assert (found["verdict"], failed(found)) == ("passed", {})
    trained = [one for one in found["sessions"] if one["kind"] == "train"]
    assert all(one["key_shares"] == {LIAR: 3} and one["opens"] == [3] for one in trained)


def test_a_vector_that_came_and_is_not_in_the_sum_stays_closed(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A vector with a record too many is refused, its pairwise masks are taken off, and its own mask stays on."""
    hostile(monkeypatch, with_record("note", lambda: ConfigRecord({"text": "x"})))
    found = run(repository, tmp_path)
    assert set(failed(found)) == {"clear"}
    (session,) = [one for one in found["sessions"] if (one["kind"], one["round"]) == ("train", 2)]
    assert session["masks_left"][LIAR] == 1
    assert LIAR not in session["survivors"]
