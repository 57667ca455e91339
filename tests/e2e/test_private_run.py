"""A run under record-level differential privacy: what leaves a site, what it costs, what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting  # type: ignore[import-untyped]
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from cloister.client.app import make_client_app
from cloister.core import protocol
from cloister.core.errors import SpecError
from cloister.core.spec import load_federation
from cloister.server.exchange import Answer
from cloister.server.replies import CheckedUpdate, Refused, Wanted, check_update
from cloister.simulation.engines import LocalEngine
from cloister.simulation.live_array import LiveArray
from cloister.simulation.simulate import simulate
from cloister.simulation.sites import SimulatedSites

pytestmark = pytest.mark.usefixtures("undrawn")

PRIVACY = {"unit": "record", "noise_multiplier": 1.3, "delta": 1e-4, "clip": 1.0, "sampling_rate": 0.1}
TABLES: dict[str, dict[str, Any]] = {
    "training": {"local_steps": 5},
    "privacy": PRIVACY,
    "aggregation": {"protection": "plain"},
}


def run(path: Path, out: Path, *overrides: str) -> Any:
    return simulate(load_federation(path, list(overrides)), out=out, engine=LocalEngine(0))


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


def ask(path: Path, kind: str) -> Message:
    """Send one message to the real ClientApp of site 0 and return its reply."""
    loaded = load_federation(path)
    sites = SimulatedSites(json.dumps(loaded.effective()), loaded.base)
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 9
    layout = sites.bench.trainer.layout
    job = ConfigRecord(
        {
            "protocol": protocol.PROTOCOL,
            "run": "r",
            "round": 1,
            "federation": sites.federation,
            "layout": layout.digest,
        }
    )
    content = RecordDict({protocol.JOB: job})
    record = ArrayRecord()
    record[protocol.VECTOR] = LiveArray(layout.read(sites.bench.trainer.model))
    content[protocol.MODEL] = record
    context = Context(run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config={})
    return make_client_app(sites)(Message(content, 1, kind), context)


def test_the_update_is_all_that_leaves_a_site(make_file: Callable[..., Path]) -> None:
    private, open_ = (
        ask(make_file(**TABLES), "train"),
        ask(make_file(training={"local_steps": 5}, aggregation={"protection": "plain"}), "train"),
    )
    assert list(private.content) == [protocol.UPDATE]
    assert list(private.content.array_records[protocol.UPDATE]) == [protocol.VECTOR]
    assert protocol.REPORT in open_.content


def test_a_site_measures_nothing_for_others_in_a_private_run(make_file: Callable[..., Path]) -> None:
    reply = ask(make_file(**TABLES), "evaluate")
    assert reply.content.config_records[protocol.REFUSAL]["code"] == "withheld"
    assert protocol.REPORT not in reply.content


def test_the_server_refuses_a_private_reply_that_tells_more(make_file: Callable[..., Path]) -> None:
    private, open_ = (
        ask(make_file(**TABLES), "train"),
        ask(make_file(training={"local_steps": 5}, aggregation={"protection": "plain"}), "train"),
    )
    size = len(private.content.array_records[protocol.UPDATE][protocol.VECTOR].numpy())

    def check(reply: Message) -> CheckedUpdate | Refused:
        answer = Answer(position=0, reply=reply, foreign=False, seconds=0.0)
        return check_update(answer, wanted={protocol.VECTOR: Wanted(size=size)}, private=True)

    assert isinstance(check(private), CheckedUpdate)
    assert isinstance(check(open_), Refused)


def test_no_event_of_a_private_run_holds_a_loss_or_a_count_of_a_site(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    made = run(make_file(**TABLES), tmp_path / "runs")
    assert all(event["loss"] is None for event in events_of(made.run, "site") + events_of(made.run, "round"))
    assert {event["where"] for event in events_of(made.run, "evaluation")} == {"central"}


def test_the_run_is_billed_as_the_composition_of_all_its_steps(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    """4 rounds of 5 steps, 3 of 5 sites a round: each site by the rounds that it was asked in, dp-accounting called directly."""
    made = run(make_file(**TABLES), tmp_path / "runs")
    asked: dict[str, int] = {}
    for event in events_of(made.run, "site"):
        asked[event["site"]] = asked.get(event["site"], 0) + 1
    assert len(set(asked.values())) > 1, "the fixture must tell sites apart"
    told = {event["site"]: event["epsilon"] for event in events_of(made.run, "privacy") if event["site"]}
    for site, rounds in asked.items():
        accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, 1e-3)
        step = dp_accounting.PoissonSampledDpEvent(0.1, dp_accounting.GaussianDpEvent(1.3))
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, 5 * rounds))
        assert told[site] == pytest.approx(accountant.get_epsilon(1e-4), rel=0.01)
    assert made.figures["privacy"]["epsilon"] == pytest.approx(max(told.values()))
    assert made.figures["privacy"]["unit"] == "record"


@pytest.mark.slow
def test_noise_is_calibrated_to_the_whole_run(make_file: Callable[..., Path], tmp_path: Path) -> None:
    tables = {**TABLES, "cohort": {"per_round": "all"}}
    tables["privacy"] = {**PRIVACY, "epsilon": 2.0}
    del tables["privacy"]["noise_multiplier"]
    made = run(make_file(**tables), tmp_path / "runs")
    assert 2.0 * 0.98 <= made.figures["privacy"]["epsilon"] <= 2.0


@pytest.mark.slow
def test_more_noise_moves_the_model_more_and_costs_less(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    path = make_file(**TABLES, evaluation={"every": 0})
    norms, costs = [], []
    for sigma in ("0.8", "8.0"):
        made = run(path, tmp_path / sigma, f"privacy.noise_multiplier={sigma}")
        norms.append(np.mean([event["update_norm"] for event in events_of(made.run, "round")]))
        costs.append(made.figures["privacy"]["epsilon"])
    assert norms[1] > 3 * norms[0]
    assert costs[1] < costs[0] / 3


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("training.local_epochs=1", "local_steps"),
        ("training.scaffold=true", "scaffold"),
        ("training.precision='mixed'", "mixed"),
        ("training.gradient_clip=1.0", "gradient_clip"),
        ("aggregation.weighting={records_cap=5}", "records_cap"),
        ("evaluation.sites=true", "evaluation.sites"),
        ("privacy.epsilon=1.0", "either epsilon"),
        ("privacy.clip=0.0", "clip"),
        ("privacy.sampling_rate=1.5", "sampling_rate"),
        ("privacy.unit='none'", "does not go with unit"),
    ],
)
def test_what_would_void_the_guarantee_is_refused_before_any_training(
    make_file: Callable[..., Path], override: str, says: str
) -> None:
    with pytest.raises(SpecError, match=says) as refused:
        load_federation(make_file(**TABLES), [override])
    assert refused.value.exit_code == 3
