"""What a hostile server, user or former member tries on a real site, and that the site neither obeys nor ends."""

from __future__ import annotations

import json
import stat
import threading
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Self, cast

import numpy as np
import pytest
import tomli_w
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, Metadata, RecordDict
from flwr.app.message import make_message
from flwr.supercore.inflatable.inflatable_object import (
    add_header_to_object_body,
    get_all_nested_objects,
    get_object_body,
)

from cloister.client import message_form
from cloister.client.controls import FileControls
from cloister.client.fleet_link import FleetLink
from cloister.client.gate.site_log import SiteLog, log_key
from cloister.client.message_form import MessageLostError, check_unfolded
from cloister.client.runner import Runner
from cloister.client.site_config import ServerTable
from cloister.core import protocol
from cloister.core.errors import IntegrityError
from cloister.core.spec import parse_federation
from cloister.privacy.identity import Role
from cloister.privacy.plan import plan_from
from cloister.server.deployment import reply_parts
from gated import Asked, GatedSite, code_of, federation, policy

NONE = {"unit": "none", "noise_multiplier": None, "delta": None, "clip": None, "sampling_rate": None}


def arriving(content: RecordDict | None, kind: str = "train") -> Message:
    """Return a message as a server may send it: with an error in place of the content where there is none."""
    metadata = Metadata(
        run_id=1,
        message_id="m",
        src_node_id=1,
        dst_node_id=9,
        reply_to_message_id="",
        group_id="",
        created_at=time.time(),
        ttl=60.0,
        message_type=kind,
    )
    if content is None:
        return make_message(metadata, error=Error(0, "none"))
    return make_message(metadata, content=content)


def scaffolded(folder: Path) -> GatedSite:
    """Return a site that lets controls leave, of two runs at once."""
    rule = {"units": ["none"], "outputs": ["update", "metrics", "control"]}
    return GatedSite(folder, policy(rule, limits={"runs": 2})).open()


def with_control(asked: Asked, number: int = 1) -> tuple[Message, int]:
    """Return a message that brings a control of zeros, and its length."""
    message = asked.message(number=number)
    vector = message.content.array_records[protocol.MODEL][protocol.VECTOR].numpy()
    message.content.array_records[protocol.MODEL][protocol.CONTROL] = Array(np.zeros_like(vector))
    return message, len(vector)


class TestWhatIsKeptOfRuns:
    """What a site keeps of a run outlives its process, and not the run."""

    def test_a_restarted_site_goes_on_with_the_control_that_it_had(self, tmp_path: Path) -> None:
        site = scaffolded(tmp_path)
        asked = site.request(federation(privacy=NONE, training={"scaffold": True}))

        def changed(number: int) -> np.ndarray:
            reply = asked.deliver(with_control(asked, number)[0])
            assert code_of(reply) == ""
            return reply.content.array_records[protocol.UPDATE][protocol.CONTROL].numpy()

        kept = FileControls(tmp_path / "state" / "sessions", asked.request.run)
        size = len(changed(1))
        first = kept.read(2, size)
        assert first.any()
        site.open()
        second = changed(2)
        assert np.array_equal(kept.read(2, size), first), "the round after the restart began with it"
        assert np.allclose(kept.read(3, size) - first, second, atol=1e-6)
        assert stat.S_IMODE(next((tmp_path / "state").glob("sessions.control-*")).stat().st_mode) == 0o600

    def test_what_is_kept_of_a_run_goes_when_its_request_is_too_old_or_it_was_denied_and_not_before(
        self, tmp_path: Path
    ) -> None:
        site = scaffolded(tmp_path)
        site.write(
            policy(
                {"units": ["none"], "outputs": ["update", "metrics", "control"]},
                who={"users": ["ada"], "request_days": 2.0},
                limits={"runs": 2},
            )
        )
        file = federation(privacy=NONE, training={"scaffold": True})
        denied, old = site.request(file), site.request(file)
        for asked in (denied, old):
            assert code_of(asked.deliver(with_control(asked)[0])) == ""

        def kept() -> int:
            site.open()
            assert site.gate is not None
            site.gate.tidy()
            return len(list((tmp_path / "state").glob("sessions.control-*")))

        assert kept() == 2
        site.clock += timedelta(days=1.9)
        assert kept() == 2, "a round may still be asked for again"
        assert code_of(old.deliver(with_control(old)[0])) == ""
        log = tmp_path / "state" / "log.jsonl"
        SiteLog(log, key=log_key(log)).append("denied", {"run": denied.request.run, "by": "me", "reason": ""})
        assert kept() == 1
        site.clock += timedelta(days=0.3)
        assert kept() == 0
        assert code_of(old.deliver(with_control(old)[0])) == "policy-request"
        site.write(
            policy(
                {"units": ["none"], "outputs": ["update", "metrics", "control"]},
                who={"users": ["ada"], "request_days": 9.0},
            )
        )
        assert code_of(old.deliver(with_control(old)[0])) == "run-over", (
            "also where the policy lets it in again"
        )


class TestWhatMayLeave:
    def test_measurements_that_the_user_did_not_ask_for_do_not_leave(self, tmp_path: Path) -> None:
        site = GatedSite(tmp_path, policy({"units": ["none"], "outputs": ["update", "metrics"]})).open()
        asked = site.request(federation(privacy=NONE, evaluation={"sites": False}))
        assert asked.code() == ""
        assert asked.code("evaluate") == "withheld"

    def test_nor_in_a_sum_where_the_policy_lets_updates_leave_only(self, tmp_path: Path) -> None:
        site = GatedSite(
            tmp_path, policy({"units": ["none"], "protection": ["masked"], "outputs": ["update"]})
        ).open()
        file = federation(privacy=NONE, aggregation={"protection": "masked"}, evaluation={"sites": False})
        assert site.request(file).code("evaluate") == "withheld"

    @pytest.mark.parametrize("scale", [1e-25, 1e-12, 1.0, 1e15])
    def test_a_planted_layer_is_found_however_short_its_rows_are(self, tmp_path: Path, scale: float) -> None:
        site = GatedSite(tmp_path, policy()).open()
        asked = site.request(federation())
        trainer = site.source.workbench(json.dumps(asked.file)).trainer
        tensors = {
            name: tensor.copy()
            for name, tensor in trainer.layout.split(trainer.layout.read(trainer.model)).items()
        }
        tensors["0.weight"][:] = scale * np.linspace(0.5, 1, 32)[:, None]
        tensors["0.bias"][:] = scale * np.linspace(-2, 2, 32)
        vector = np.concatenate([tensor.ravel() for tensor in tensors.values()]).astype(np.float32)
        assert asked.code(vector=vector) in ("policy-imprint", "policy-weights")
        if scale <= 1:
            assert asked.code(vector=vector) == "policy-imprint"

    def test_a_control_of_another_run_does_not_go_into_this_one(self, tmp_path: Path) -> None:
        """The server chooses Flower's run, and so the context: two jobs in one must not share what the site keeps."""
        site = scaffolded(tmp_path)
        file = federation(privacy=NONE, training={"scaffold": True})
        first, second = site.request(file), site.request(file)
        context = Context(run_id=1, node_id=9, node_config={}, state=RecordDict(), run_config={})
        ones = []
        for asked in (first, second):
            message, size = with_control(asked)
            assert code_of(site.app(message, context)) == ""
            controls = FileControls(tmp_path / "state" / "sessions", asked.request.run)
            assert not controls.read(1, size).any()
            ones.append(controls.read(2, size))
        assert ones[0].any()
        assert ones[1].any()
        assert not context.state.array_records


class TestPolicyAndRevocation:
    def test_a_policy_that_names_another_data_set_holds_for_a_run_under_way(self, tmp_path: Path) -> None:
        site = GatedSite(tmp_path, policy())
        told = {
            "site": {"name": "north"},
            "server": {"address": "localhost:8443"},
            "data": {"rings": {"task": "rings.py:Rings"}, "other": {"task": "rings.py:Rings"}},
        }
        (tmp_path / "site.toml").write_text(tomli_w.dumps(told))
        asked = site.open().request(federation())
        assert asked.code() == ""
        site.write(policy({"dataset": "other"}))
        assert asked.code(number=2) == ""
        folder = tmp_path / "state" / "ledgers"
        from cloister.privacy.ledger.inspection import inspect

        charged = {
            name: [
                entry.round
                for entry in inspect(folder / f"{name}.sqlite").chain.entries
                if entry.kind == "RESERVE"
            ]
            for name in ("rings", "other")
        }
        assert charged == {"rings": [1], "other": [2]}

    def test_a_server_or_site_that_was_struck_off_is_not_believed_in_a_session(self, tmp_path: Path) -> None:
        site = GatedSite(tmp_path, policy()).open()
        server = site.member("server", Role.SERVER)
        bench = site.source.workbench(json.dumps(federation()))
        context = Context(run_id=1, node_id=9, node_config={}, state=RecordDict(), run_config={})

        def believed() -> None:
            credentials = site.source.site(context, bench).credentials
            assert credentials is not None
            credentials.consortium.member(server.certificate, role=Role.SERVER)

        believed()
        site.revoke(server)
        with pytest.raises(IntegrityError) as caught:
            believed()
        assert caught.value.code == "identity-revoked"

    def test_repeats_are_those_of_the_rule_that_allows_the_run(self, tmp_path: Path) -> None:
        rules = policy({"users": ["eve"], "repeated_rounds": 9})
        rules["allow"].append({**rules["allow"][0], "users": ["ada"], "repeated_rounds": 0})
        rules["who"]["users"] = ["ada", "eve"]
        site = GatedSite(tmp_path, rules).open()
        asked = site.request(federation())
        assert asked.code() == ""
        trainer = site.source.workbench(json.dumps(asked.file)).trainer
        other = trainer.layout.read(trainer.model) * np.float32(0.5)
        assert asked.code(vector=other) == "policy-repeats"

    def test_repeated_rounds_do_not_bring_a_run_beyond_what_a_run_may_cost(self, tmp_path: Path) -> None:
        """Not while the site runs, and not after a restart, when everything is decided anew; and the refusal is in the site's log."""
        site = GatedSite(tmp_path, policy()).open()
        trainer = site.source.workbench(json.dumps(federation())).trainer
        plan = plan_from(parse_federation(federation(), base=tmp_path).spec, trainer.layout.size)
        assert plan is not None
        whole, more = plan.spent(plan.rounds).epsilon, plan.spent(plan.rounds + 1).epsilon
        site.write(policy({"epsilon_run": (whole + more) / 2}, limits={"runs": 2}))
        asked = site.open().request(federation())
        models = [trainer.layout.read(trainer.model) * np.float32(scale) for scale in (1.0, 0.5)]
        assert asked.code(vector=models[0]) == ""
        assert asked.code(vector=models[1]) == "policy-epsilon"
        assert site.lines()[-1]["said"]["code"] == "policy-epsilon"
        assert site.open().request(federation()).code() == "", "another run has its own"
        site.write(policy({"epsilon_run": more}, limits={"runs": 2}))
        assert asked.code(vector=models[1]) == ""
        site.write(policy({"epsilon_run": (whole + more) / 2}, limits={"runs": 2}))
        assert asked.code(number=2) == "policy-epsilon", (
            "what was charged is counted when the policy is changed"
        )

    def test_another_users_signature_of_a_request_is_no_right_to_its_run(self, tmp_path: Path) -> None:
        rules = policy()
        rules["who"]["users"] = ["ada", "eve"]
        site = GatedSite(tmp_path, rules).open()
        asked = site.request(federation())
        assert asked.code() == ""
        asked.signed = asked.request.signed(site.users["eve"])
        assert asked.code() == "policy-user"


class TestWhatIsWrittenOfStrangers:
    def test_nothing_is_kept_of_runs_of_a_user_whom_the_policy_does_not_name(self, tmp_path: Path) -> None:
        site = GatedSite(tmp_path, policy()).open()
        assert site.request(federation(), "eve").code("query") == "policy-user"
        assert "asked" not in site.kinds()

    def test_refusals_under_ever_new_names_do_not_fill_the_log(self, tmp_path: Path) -> None:
        site = GatedSite(tmp_path, policy()).open()
        message = site.request(federation()).message("query")
        del message.content[protocol.REQUEST]
        codes = []
        for number in range(200):
            message.content.config_records[protocol.JOB]["run"] = f"run-{number}"
            codes.append(code_of(site.app(message, cast("Context", None))))
        assert set(codes[:100]) == {"request"}
        assert set(codes[-50:]) == {"refused-often"}
        assert len(site.lines()) < 130

    def test_a_refusal_does_not_quote_without_end_what_the_server_sent(self, tmp_path: Path) -> None:
        site = GatedSite(tmp_path, policy()).open()
        message = site.request(federation()).message("query")
        message.content.config_records[protocol.JOB]["protocol"] = "x" * (1 << 20)
        site.app(message, cast("Context", None))
        assert (tmp_path / "state" / "log.jsonl").stat().st_size < 1 << 14

    def test_one_request_in_many_spellings_is_one_run_and_one_model(self, tmp_path: Path) -> None:
        site = GatedSite(tmp_path, policy()).open()
        asked = site.request(federation())
        for spaces in range(3):
            assert asked.code("query", federation=json.dumps(asked.file) + " " * spaces) == ""
        assert site.kinds().count("allowed") == 1


class TestTheRunnerGoesOn:
    def test_a_message_without_content_is_refused(self, tmp_path: Path) -> None:
        site = GatedSite(tmp_path, policy()).open()
        assert code_of(site.app(arriving(None), cast("Context", None))) == "job-malformed"

    def test_a_refusal_that_quotes_half_a_surrogate_pair_can_be_sent(self, tmp_path: Path) -> None:
        site = GatedSite(tmp_path, policy()).open()
        reply = site.request({"\ud800": 1}).send("query")
        assert code_of(reply)
        assert reply.object_id

    @pytest.mark.parametrize("where", ["receive", "answer", "send"])
    def test_a_fault_of_any_kind_ends_one_message_and_not_the_site(
        self, where: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("cloister.client.runner._FIRST_PAUSE_S", 0.01)
        stop = threading.Event()
        seen: list[str] = []

        def fault(here: str) -> None:
            seen.append(here)
            if here == where and seen.count(here) == 1:
                raise KeyError(here)

        class Line:
            node_id = 9

            def __enter__(self) -> Self:
                return self

            def __exit__(self, *_: object) -> None:
                """Hang up."""

            def receive(self) -> Message:
                fault("receive")
                return arriving(RecordDict({"n": ConfigRecord({"n": 1})}))

            def send(self, reply: Message, seconds: float) -> int:
                fault("send")
                if len(seen) > 4:
                    stop.set()
                return int(seconds) + len(reply.content)

        def answer(given: Message, _: Context) -> Message:
            fault("answer")
            return Message(given.content, reply_to=given)

        server = ServerTable(address="127.0.0.1:1", busy_poll_s=0.01, idle_poll_s=0.05)
        Runner(server, lambda: cast("FleetLink", Line()), answer).run(stop)
        assert "send" in seen[seen.index(where) + 1 :]

    def test_a_pack_without_what_it_packs_is_a_message_lost(self) -> None:
        with pytest.raises(MessageLostError):
            message_form.unpack(RecordDict({protocol.PACKED: ConfigRecord({"else": 1})}))

    @pytest.mark.parametrize(
        ("check", "refusal"),
        [(check_unfolded, MessageLostError), (reply_parts._check_unfolded, ValueError)],
        ids=["at a site", "at the server"],
    )
    def test_an_array_that_names_one_piece_again_and_again_is_not_unfolded(
        self, check: Callable[[Mapping[str, bytes], int], None], refusal: type[Exception]
    ) -> None:
        array = Array(np.zeros(1 << 10, dtype=np.float32))
        content = RecordDict({"a": ArrayRecord({"v": array})})
        parts = {name: one.deflate() for name, one in get_all_nested_objects(content).items()}
        check(parts, 1 << 16)
        name = array.object_id
        told = json.loads(get_object_body(parts[name], Array))
        told["arraychunk_ids"] = [0] * 1000
        parts[name] = add_header_to_object_body(json.dumps(told).encode(), array)
        with pytest.raises(refusal):
            check(parts, 1 << 20)
