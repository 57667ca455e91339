"""A site's gate: what it refuses, each thing tried on the real ClientApp of a real site's folder; and what it lets out."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord, Context, Message, MetricRecord, RecordDict

from cloister.client.gate.log_entry import LogEntry
from cloister.client.gate.log_state import LogState
from cloister.client.gate.log_verification import verify_log
from cloister.client.gate.showing import status_text
from cloister.core import protocol
from cloister.core.errors import IntegrityError, SpecError
from cloister.privacy.ledger.inspection import inspect
from cloister.privacy.request import JobRequest
from gated import RECORD, TASK, GatedSite, code_of, federation, policy

NONE = {"unit": "none", "noise_multiplier": None, "delta": None, "clip": None, "sampling_rate": None}


@pytest.fixture
def site(tmp_path: Path) -> Callable[..., GatedSite]:
    def make(rule: dict[str, Any] | None = None, **tables: dict[str, Any]) -> GatedSite:
        return GatedSite(tmp_path, policy(rule, **tables)).open()

    return make


def trained(folder: Path) -> bool:
    """Whether anything was ever charged: training begins with a charge."""
    path = folder / "state" / "ledgers" / "rings.sqlite"
    return path.exists() and any(entry.kind == "RESERVE" for entry in inspect(path).chain.entries)


def test_what_a_policy_allows_is_trained_and_every_array_that_left_is_in_the_log(
    site: Callable[..., GatedSite],
) -> None:
    made = site()
    asked = made.request(federation())
    assert list(asked.send("query").content) == [protocol.SITE]
    reply = asked.send()
    array = reply.content.array_records[protocol.UPDATE][protocol.VECTOR]
    line = made.lines()[-1]
    assert line["kind"] == "left"
    (told,) = [one for record in line["said"]["records"] for one in record.get("arrays", [])]
    import hashlib

    assert told["sha256"] == hashlib.sha256(array.data).hexdigest()
    assert (told["shape"], told["dtype"]) == (list(array.shape), "float32")
    assert line["said"]["after"] == ["trained", "each record's gradient clipped", "noised at each step"]
    assert line["said"]["ledger"]["epsilon"] > 0
    assert {record["record"] for record in line["said"]["records"]} == set(reply.content)
    assert made.kinds() == ["opened", "started", "policy", "asked", "allowed", "left", "left"]
    assert verify_log(made.folder / "state" / "log.jsonl", consortium=made.kit.consortium).ok


def test_the_reply_itself_is_what_the_app_answered(site: Callable[..., GatedSite]) -> None:
    made = site()
    assert list(made.request(federation()).send().content) == [protocol.LEDGER, protocol.UPDATE]


@pytest.mark.parametrize(
    ("rule", "tables", "file", "code"),
    [
        ({}, {"who": {"users": ["bob"]}}, {}, "policy-user"),
        ({"users": ["bob"]}, {}, {}, "policy-user"),
        ({}, {}, {"task": {"use": "heart"}}, "policy-task"),
        ({"code": "0" * 64}, {}, {}, "policy-code"),
        ({"cloister": ["0.0.1"]}, {}, {}, "policy-version"),
        ({"layouts": ["0" * 64]}, {}, {}, "policy-layout"),
        ({"protection": ["masked", "bfv"]}, {}, {}, "policy-protection"),
        ({"units": ["site"]}, {}, {}, "policy-unit"),
        ({"sites_in_sum": 4}, {}, {}, "policy-sites"),
        (
            {
                "sites_in_sum": 4,
                "protection": ["masked"],
                "units": ["none"],
                "outputs": ["update", "sums of metrics"],
            },
            {},
            {
                "privacy": NONE,
                "cohort": {"sites": 20, "min_sites": 20},
                "aggregation": {"protection": "masked", "rule": "median", "group_size": 4, "byzantine": 1},
            },
            "policy-sites",
        ),
        (
            {"colluders": 1, "units": ["record-distributed"]},
            {},
            {
                "privacy": {"unit": "record-distributed"},
                "training": {"local_steps": 1},
                "cohort": {"per_round": 4},
            },
            "policy-colluders",
        ),
        ({"rounds": 2}, {}, {}, "policy-rounds"),
        ({"epsilon_run": 0.1}, {}, {}, "policy-epsilon"),
        ({}, {"data": {"rings": {"epsilon_cap": 0.1, "delta_cap": 1e-4}}}, {}, "budget"),
        ({}, {"data": {"rings": {"epsilon_cap": 9.0, "delta_cap": 1e-6}}}, {}, "delta"),
        (
            {},
            {
                "data": {
                    "rings": {
                        "epsilon_cap": 99.0,
                        "delta_cap": 1e-4,
                        "epsilon_per": {"days": 7, "epsilon": 0.1},
                    }
                }
            },
            {},
            "budget",
        ),
        ({}, {"data": {"rings": {"min_records": 91}}}, {}, "policy-records"),
        ({"units": ["none"]}, {}, {"privacy": NONE, "evaluation": {"sites": False}}, "policy-output"),
        (
            {"units": ["none"], "protection": ["masked"]},
            {},
            {"privacy": NONE, "aggregation": {"protection": "masked"}},
            "policy-output",
        ),
        (
            {
                "units": ["none"],
                "outputs": ["update", "metrics"],
                "metrics": ["loss", "records", "steps", "accuracy"],
            },
            {},
            {"privacy": NONE},
            "policy-metric",
        ),
        (
            {"units": ["none"], "outputs": ["update", "metrics"]},
            {},
            {"privacy": NONE, "training": {"scaffold": True}},
            "policy-output",
        ),
        ({}, {}, {"task": {"fault": "wide"}}, "policy-model"),
        ({}, {}, {"task": {"fault": "imprint"}}, "policy-imprint"),
        ({}, {"when": {"hours": ["Mon-Sun 00:00-00:01"]}}, {}, "wait-hours"),
        ({}, {"limits": {"gpu": False}}, {"training": {"device": "cuda"}}, "policy-gpu"),
    ],
)
def test_what_a_policy_does_not_allow_is_refused_before_any_training(
    site: Callable[..., GatedSite], rule: dict[str, Any], tables: Any, file: Any, code: str
) -> None:
    made = site(rule, **tables)
    made.clock = datetime(2026, 11, 25, 12, tzinfo=UTC)
    asked = made.request(federation(**file))
    for kind in ("query", "train"):
        assert asked.code(kind) == code
    assert not trained(made.folder)
    assert made.lines()[-1]["said"]["code"] == code
    assert "left" not in made.kinds()


def test_the_limits_just_met_are_allowed(site: Callable[..., GatedSite]) -> None:
    made = site({"rounds": 3, "sites_in_sum": 3}, data={"rings": {"min_records": 90}})
    assert made.request(federation()).code() == ""


def test_a_clear_metric_leaves_where_it_is_allowed(site: Callable[..., GatedSite]) -> None:
    made = site({"units": ["none"], "outputs": ["update", "metrics"]})
    asked = made.request(federation(privacy=NONE))
    assert protocol.REPORT in asked.send().content
    assert protocol.REPORT in asked.send("evaluate").content


def test_the_code_that_is_allowed_is_the_one_that_the_command_prints(site: Callable[..., GatedSite]) -> None:
    from cloister.client.gate.program import program_digest
    from cloister.core.spec.tables import TaskTable

    made = site()
    code = program_digest(None, TaskTable(use="rings.py:Rings"), made.folder)
    made.write(policy({"code": [code]}))
    asked = made.request(federation())
    assert asked.code() == ""
    with (made.folder / "rings.py").open("a") as file:
        file.write("\n# another program\n")
    made.open()
    assert asked.code("query") == "policy-code"


def test_a_task_that_raises_is_refused_without_its_words(site: Callable[..., GatedSite]) -> None:
    reply = site().request(federation(task={"fault": "raise"})).send("query")
    assert code_of(reply) == "task-raised"
    assert "Jane" not in str(reply.content)


class TestRequests:
    """Who asks, for what, since when: never by the server's word."""

    def test_no_request_a_forged_one_and_one_of_a_stranger(
        self, site: Callable[..., GatedSite], tmp_path: Path
    ) -> None:
        made = site()
        asked = made.request(federation())
        bare = asked.message()
        del bare.content[protocol.REQUEST]
        assert code_of(asked.deliver(bare)) == "request"
        forged = asked.signed.encoded.replace(b'"to learn"', b'"to teach"')
        asked.signed = replace(asked.signed, encoded=forged)
        assert asked.code() == "signature"
        (tmp_path / "other").mkdir()
        stranger = GatedSite(tmp_path / "other", policy()).users["ada"]
        made.users["ada"] = stranger
        assert made.request(federation()).code() == "identity"
        assert "asked" not in made.kinds(), "a run that nobody vouched for is no run"

    def test_a_site_is_no_user(self, site: Callable[..., GatedSite]) -> None:
        made = site()
        made.users["ada"] = made.kit.identity
        assert made.request(federation()).code() == "identity"

    def test_a_user_who_is_revoked_in_the_middle_of_a_run(self, site: Callable[..., GatedSite]) -> None:
        made = site()
        asked = made.request(federation())
        assert asked.code() == ""
        made.revoke(made.users["ada"])
        assert asked.code(number=2) == "identity-revoked"

    def test_a_request_of_another_run_another_file_or_for_other_sites(
        self, site: Callable[..., GatedSite]
    ) -> None:
        made = site()
        asked = made.request(federation())
        assert asked.code(run="another") == "policy-request"
        assert asked.code(federation=json.dumps(federation(federation={"rounds": 4}))) == "policy-request"
        assert made.request(federation(), sites=("south",)).code() == "policy-request"
        assert made.request(federation(), sites=("north", "south")).code() == ""

    def test_an_old_request_and_one_that_is_dated_ahead(self, site: Callable[..., GatedSite]) -> None:
        made = site(who={"users": "*", "request_days": 2.0})
        assert made.request(federation(), days_ago=1.9).code("query") == ""
        assert made.request(federation(), days_ago=2.1).code("query") == "policy-request"
        assert made.request(federation(), days_ago=-0.1).code("query") == "policy-request"

    def test_a_run_outlives_its_request_by_nothing(self, site: Callable[..., GatedSite]) -> None:
        made = site(who={"users": "*", "request_days": 2.0})
        asked = made.request(federation())
        assert asked.code() == ""
        made.clock += timedelta(days=3)
        assert asked.code(number=2) == "policy-request"


class TestWeights:
    """Weights that copy records, sent in a later round for an honest architecture."""

    @staticmethod
    def vector(made: GatedSite) -> np.ndarray:
        trainer = made.source.workbench(json.dumps(federation())).trainer
        return trainer.layout.read(trainer.model)

    def test_an_imprint_in_a_later_round(self, site: Callable[..., GatedSite]) -> None:
        made = site()
        asked = made.request(federation())
        honest = self.vector(made)
        assert asked.code(vector=honest) == ""
        planted = honest.copy()
        first = planted[: 32 * 8].reshape(32, 8)
        first[4:14] = np.linspace(1, 2, 10)[:, None] * first[4]
        assert asked.code(number=2, vector=planted) == "policy-imprint"
        charged = inspect(made.folder / "state/ledgers/rings.sqlite").chain.entries
        assert sum(entry.kind == "RESERVE" for entry in charged) == 1
        assert asked.code(number=2, vector=honest) == "", (
            "the run goes on when the server sends a model again"
        )

    def test_a_row_that_outweighs_all_others(self, site: Callable[..., GatedSite]) -> None:
        made = site()
        planted = self.vector(made)
        planted[8:16] *= 5000
        assert made.request(federation()).code(vector=planted) == "policy-weights"


class TestOfficer:
    """What somebody at the site decides holds from the next message on."""

    def test_held_until_it_is_approved_without_a_restart(self, site: Callable[..., GatedSite]) -> None:
        made = site({"approval": "always"}, data={"rings": {"epsilon_cap": 50.0, "delta_cap": 1e-4}})
        asked = made.request(federation())
        assert asked.code("query") == "wait-approval"
        assert asked.code() == "wait-approval"
        (held,) = made.gate.status()["held"]  # type: ignore[union-attr]
        assert (held["user"], held["purpose"], held["dataset"], held["unit"]) == (
            "ada",
            "to learn",
            "rings",
            "record",
        )
        assert held["cost"]["before"] == 0
        assert 0 < held["cost"]["after"] < held["cost"]["cap"] == 50
        assert any("update" in sentence for sentence in held["server_sees"])
        assert not trained(made.folder)
        decide(made, "approve", asked.request.run)
        assert asked.code() == ""
        assert made.request(federation()).code() == "wait-approval", "always: the next run waits too"
        made.open()
        assert asked.code(number=2) == "", "an approval outlives a restart"

    def test_what_was_approved_is_approved_again_when_the_policy_alters_it_and_written_anew_when_not(
        self, site: Callable[..., GatedSite]
    ) -> None:
        rule, limits = {"approval": "always", "epsilon_run": 50.0}, {"epsilon_cap": 50.0, "delta_cap": 1e-4}
        made = site(rule, data={"rings": limits})
        asked = made.request(federation())
        assert asked.code() == "wait-approval"
        decide(made, "approve", asked.request.run)
        assert asked.code() == ""
        held = [line["said"] for line in made.lines() if line["kind"] == "held"]
        # something that is no part of it: the facts are written under the new policy, and the run goes on
        made.write(policy(rule, data={"rings": limits}, when={"hours": ["Mon-Sun 00:00-24:00"]}))
        assert asked.code(number=2) == ""
        allowed = [line["said"] for line in made.lines() if line["kind"] == "allowed"]
        assert len(allowed) == 2
        assert allowed[0]["policy"] != allowed[1]["policy"]
        assert allowed[1]["terms"] == held[0]["terms"]
        assert allowed[1]["cost"]["before"] > 0
        assert made.kinds().count("held") == 1
        # what one run may cost, what the data set may cost, another program: each is asked about again, once
        dearer = {**rule, "epsilon_run": 60.0}

        def another_program() -> None:
            (made.folder / "rings.py").write_text(TASK + "\n# another program\n")
            made.open()

        again: list[Callable[[], None]] = [
            lambda: made.write(policy(dearer, data={"rings": limits})),
            lambda: made.write(policy(dearer, data={"rings": {**limits, "epsilon_cap": 60.0}})),
            another_program,
        ]
        for number, change in enumerate(again, start=2):
            change()
            assert asked.code(number=2) == "wait-approval"
            assert asked.code(number=2) == "wait-approval"
            assert made.kinds().count("held") == number
            assert [run["run"] for run in made.gate.status()["held"]] == [asked.request.run]  # type: ignore[union-attr]
            decide(made, "approve", asked.request.run)
            assert asked.code(number=2) == ""
            made.open()
            assert asked.code(number=2) == "", "the new approval outlives a restart"

    def test_first_of_its_kind_only(self, site: Callable[..., GatedSite]) -> None:
        made = site({"approval": "first"})
        first = made.request(federation())
        assert first.code("query") == "wait-approval"
        decide(made, "approve", first.request.run)
        again = made.request(federation(federation={"rounds": 2}))
        assert again.code("query") == ""
        assert made.open().request(federation()).code("query") == ""
        made.write(policy({"approval": "first"}, who={"users": "*"}))
        assert made.request(federation(), "eve").code("query") == "wait-approval"

    def test_denied_also_in_the_middle(self, site: Callable[..., GatedSite]) -> None:
        made = site({"approval": "always"})
        asked = made.request(federation())
        asked.send("query")
        decide(made, "deny", asked.request.run)
        assert asked.code() == "policy-denied"
        made.write(policy())
        running = made.request(federation())
        assert running.code() == ""
        decide(made, "deny", running.request.run)
        assert running.code(number=2) == "policy-denied"
        assert made.request(federation()).code() == "", "another request is another run"

    def test_paused_and_resumed(self, site: Callable[..., GatedSite]) -> None:
        made = site()
        asked = made.request(federation())
        decide(made, "pause", "--reason", "maintenance")
        assert asked.code() == "wait-paused"
        made.open()
        assert asked.code() == "wait-paused", "a pause outlives a restart"
        decide(made, "resume")
        assert asked.code() == ""

    def test_a_changed_policy(self, site: Callable[..., GatedSite]) -> None:
        made = site()
        asked = made.request(federation())
        assert asked.code() == ""
        made.write(policy({"units": ["site"]}))
        assert asked.code(number=2) == "policy-unit"
        made.write(policy())
        assert asked.code(number=2) == ""
        (made.folder / "policy.toml").write_text("[who]\nuser = []\n")
        assert asked.code(number=3) == "policy-unreadable"
        made.write(policy())
        assert asked.code(number=3) == ""
        assert made.kinds().count("policy") == 3

    def test_one_run_at_a_time(self, site: Callable[..., GatedSite]) -> None:
        made = site()
        first, second = made.request(federation()), made.request(federation())
        assert first.code("query", number=0, afford=True) == ""
        assert second.code("query", number=0, afford=True) == "", "asking for leave begins nothing"
        assert first.code() == ""
        assert second.code("query") == "", "who it is it always says"
        assert second.code("query", number=0, afford=True) == "wait-busy", (
            "before the others' budget is spent on a round that cannot be"
        )
        assert second.code() == "wait-busy"
        assert first.code("query", number=1, afford=True) == "", "a run that goes on is not in its own way"
        assert first.code(number=3) == "", "its last round"
        assert second.code("query", number=0, afford=True) == ""
        assert second.code() == ""
        assert first.code("evaluate", number=3) == "withheld", (
            "what is left of a run is not held up by the next"
        )
        third = made.request(federation())
        assert third.code() == "wait-busy"
        made.write(policy(limits={"runs": 2}))
        assert third.code() == ""


def decide(made: GatedSite, *arguments: str) -> None:
    from cloister.core.command import run

    assert run(["site", *arguments, str(made.folder)]) == 0


class TestOutgoing:
    """What an app answers is looked at, and written down, before it leaves."""

    @staticmethod
    def answering(content: RecordDict) -> Callable[[Message, Context], Message]:
        return lambda message, _: Message(content, reply_to=message)

    @pytest.mark.parametrize(
        ("content", "code"),
        [
            ({"extra": MetricRecord({"mean_age": 54.2})}, "policy-output"),
            ({protocol.REPORT: MetricRecord({"loss": 0.1})}, "policy-output"),
            ({protocol.UPDATE: ArrayRecord({"records": Array(np.zeros(3))})}, "policy-output"),
            ({protocol.UPDATE: ArrayRecord({protocol.CONTROL: Array(np.zeros(3))})}, "policy-output"),
        ],
    )
    def test_a_program_that_sends_more_is_stopped(
        self, site: Callable[..., GatedSite], content: dict[str, Any], code: str
    ) -> None:
        made = site().open(self.answering(RecordDict(content)))
        reply = made.request(federation()).send()
        assert code_of(reply) == code
        assert list(reply.content) == [protocol.REFUSAL]

    def test_a_refusal_of_the_app_leaves_and_is_written_down(self, site: Callable[..., GatedSite]) -> None:
        made = site()
        assert made.request(federation()).code(number=9) == "job-malformed"
        assert made.lines()[-1]["said"] | {"why": ""} == {
            "run": made.lines()[-1]["said"]["run"],
            "message": "train",
            "code": "job-malformed",
            "why": "",
            "by": "site",
        }

    def test_what_cannot_be_written_down_does_not_leave(self, site: Callable[..., GatedSite]) -> None:
        made = site()
        asked = made.request(federation())
        assert asked.code("query") == ""
        real = made.app._app

        def filling(message: Message, context: Context) -> Message:
            reply = real(message, context)
            (made.folder / "state" / "log.head").unlink()
            (made.folder / "state" / "log.head").mkdir()  # no file can take its place
            return reply

        made.app._app = filling
        reply = asked.send()
        assert code_of(reply).startswith("log-")
        assert list(reply.content) == [protocol.REFUSAL]

    def test_the_same_refusal_again_and_again_does_not_fill_the_disk(
        self, site: Callable[..., GatedSite]
    ) -> None:
        made = site({"units": ["site"]})
        asked = made.request(federation())
        for _ in range(5):
            assert asked.code() == "policy-unit"
        assert made.kinds().count("refused") == 1


class TestOpening:
    """A site without a sound policy does not start."""

    def test_without_a_policy(self, tmp_path: Path) -> None:
        made = GatedSite(tmp_path, policy())
        (tmp_path / "policy.toml").unlink()
        with pytest.raises(SpecError) as caught:
            made.open()
        assert "policy init" in caught.value.remedy

    @pytest.mark.parametrize(
        ("rule", "tables", "says"),
        [
            ({"protecton": ["plain"]}, {}, "did you mean 'protection'"),
            ({"dataset": "ring"}, {}, "did you mean 'rings'"),
            ({}, {"data": {"rings": {"epsilon_cup": 1.0}}}, "did you mean 'epsilon_cap'"),
            ({"task": "heart"}, {}, "is for the task 'rings.py:Rings'"),
            ({}, {"data": {"rings": {"epsilon_cap": 1.0}}}, "go together"),
            ({}, {"when": {"hours": "Mon-Fry 18:00-06:00"}}, "no week has"),
            ({}, {"when": {"hours": "18:00-25:00"}}, "no day has"),
            ({}, {"when": {"time_zone": "Mars/Olympus"}}, "no time zone"),
            ({"code": "abc"}, {}, "allow[0].code"),
        ],
    )
    def test_a_wrong_policy_is_refused_with_the_key(
        self, tmp_path: Path, rule: dict[str, Any], tables: dict[str, Any], says: str
    ) -> None:
        with pytest.raises(SpecError) as caught:
            GatedSite(tmp_path, policy(rule, **tables)).open()
        assert says in caught.value.message

    def test_an_empty_policy_allows_nothing(self, tmp_path: Path) -> None:
        made = GatedSite(tmp_path, {"who": {"users": []}}).open()
        assert made.request(federation()).code("query") == "policy-user"

    def test_the_floors_of_its_sessions_are_the_policy_s(self, site: Callable[..., GatedSite]) -> None:
        made = site({"protection": ["masked"], "sites_in_sum": 5})
        assert made.gate is not None
        assert made.gate.floors.least == 5
        made.write(policy({"protection": ["masked"], "sites_in_sum": 2}))
        assert made.gate.floors.least == 3, "of a sum of two each knows the other's share"

    def test_the_cap_is_written_into_the_ledger(self, site: Callable[..., GatedSite]) -> None:
        made = site(data={"rings": {"epsilon_cap": 50.0, "delta_cap": 1e-4}})
        asked = made.request(federation())
        asked.send("query")
        made.write(policy(data={"rings": {"epsilon_cap": 40.0, "delta_cap": 1e-4}}))
        asked.send("query")
        asked.send("query")
        caps = [
            json.loads(entry.event)["epsilon"]
            for entry in inspect(made.folder / "state/ledgers/rings.sqlite").chain.entries
            if "epsilon" in entry.event
        ]
        assert caps == [50.0, 40.0]

    def test_a_run_that_was_charged_for_some_rounds_is_asked_for_the_rest_only(
        self, site: Callable[..., GatedSite]
    ) -> None:
        """The cap fits exactly this run: after a restart in its middle it still does."""
        from cloister.core.spec import parse_federation
        from cloister.privacy.plan import plan_from

        file = federation()
        plan = plan_from(parse_federation(file, base=Path()).spec, 1)
        assert plan is not None
        cap = plan.spent(3).epsilon * 1.0001
        made = site(data={"rings": {"epsilon_cap": cap, "delta_cap": RECORD["delta"]}})
        asked = made.request(file)
        for number in (1, 2):
            assert asked.code(number=number) == ""
        made.open()
        assert asked.code(number=3) == ""
        assert made.request(file).code("query") == "budget"


@pytest.mark.slow
def test_memory_is_limited_while_a_message_is_worked_on(site: Callable[..., GatedSite]) -> None:
    import re

    in_use = int(re.search(r"VmData:\s+(\d+)", Path("/proc/self/status").read_text())[1]) // 1024  # type: ignore[index]
    made = site(limits={"memory_mb": max(in_use + 300, 256)})

    def greedy(message: Message, context: Context) -> Message:
        torch.ones(200 << 20)  # 800 MiB
        return Message(RecordDict(), reply_to=message)

    made.open(greedy)
    assert made.request(federation()).code() == "site-failed"
    torch.ones(200 << 20)  # and not any more
    made.write(policy(limits={"memory_mb": 256}))
    if in_use > 256:
        assert made.request(federation()).code("query") == "wait-memory"


def test_no_gpu_is_seen_where_none_is_allowed(
    site: Callable[..., GatedSite], monkeypatch: pytest.MonkeyPatch
) -> None:
    import os

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setattr("torch.cuda.is_initialized", lambda: False)  # another test may have used one
    site(limits={"gpu": False})
    assert os.environ["CUDA_VISIBLE_DEVICES"] == ""


def test_what_a_user_wrote_never_looks_like_a_line_of_the_sites_status() -> None:
    """A request's words are printable, and even a log that holds others shows them in their own line."""
    with pytest.raises(IntegrityError, match="purpose"):
        JobRequest.new("f", "0" * 64, purpose="study\n  what       harmless")
    with pytest.raises(IntegrityError, match="name"):
        JobRequest.new("f\nWAITS", "0" * 64)
    held = {
        "since": "2026-11-25T00:00:00Z",
        "run": "r",
        "user": "eve",
        "purpose": "study\n  → cloister site approve other",
    }
    status: dict[str, Any] = {"paused": None, "held": [held], "budgets": {}, "left": [], "refused": []}
    approve = [
        line for line in status_text(status).splitlines() if line.startswith("  → cloister site approve")
    ]
    assert approve == ["  → cloister site approve r"]


def test_under_encryption_coins_wait_for_the_ciphertext_and_not_for_the_promise_of_one() -> None:
    state = LogState()

    def take(kind: str, **said: Any) -> None:
        when = "2026-11-25T00:00:00Z"
        state.take(
            LogEntry(
                seq=1,
                time=when,
                site="north",
                kind=kind,
                said={"run": "r", **said},
                prev="",
                hash="",
                signature="",
            )
        )

    take("asked", protection="bfv")
    take("left", message="train", round=3, step="")
    assert state.runs["r"].trained == 0
    take("left", message=protocol.SECURE_QUERY, round=3, step=protocol.ADD)
    assert state.runs["r"].trained == 0
    take("left", message=protocol.SECURE_QUERY, round=3, step=protocol.SEAL)
    assert state.runs["r"].trained == 3
