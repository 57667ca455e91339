"""``unit = "record-distributed"``: one step of DP-SGD over the records of all sites a round, with noise shares that add up."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest
import torch
from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from scipy import stats

from cloister.client.app import make_client_app
from cloister.client.incoming import Job
from cloister.client.releasing import releasable
from cloister.client.trainer import Trainer
from cloister.core import protocol
from cloister.core.data import TensorData
from cloister.core.randomness import SeededRandomness
from cloister.core.resolve import build_model
from cloister.core.spec import load_federation
from cloister.core.update import Layout
from cloister.privacy.accounting import account
from cloister.privacy.ledger import verify
from cloister.privacy.ledger.inspection import inspect
from cloister.privacy.ledger.telling import ToSite
from cloister.privacy.noise import cipher_generator
from cloister.privacy.poisson import poisson_rows
from cloister.privacy.record_plans import DistributedRecordPlan, distributed_record_plan
from cloister.server.exchange import Answer
from cloister.server.gathering import gatherer_from
from cloister.server.replies import CheckedUpdate, check_update
from cloister.simulation.engines import LocalEngine
from cloister.simulation.live_array import LiveArray
from cloister.simulation.simulate import resume, simulate
from cloister.simulation.sites import SimulatedSites

pytestmark = pytest.mark.usefixtures("undrawn")

CLIP, BATCH, SITES = 0.5, 8, 5


def tables(**privacy: Any) -> dict[str, dict[str, Any]]:
    return {
        "federation": {"rounds": 4},
        "cohort": {"per_round": "all", "min_sites": 3},
        "aggregation": {"protection": "plain"},
        "training": {"local_steps": 1, "batch_size": BATCH, "optimizer": {"name": "sgd", "lr": 0.3}},
        "privacy": {
            "unit": "record-distributed",
            "noise_multiplier": 1.5,
            "delta": 1e-4,
            "clip": CLIP,
            "sampling_rate": 0.2,
            **privacy,
        },
        "evaluation": {"every": 2},
    }


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


class Federation:
    """The real ClientApps and the real gatherer of a file, outside of any grid."""

    def __init__(self, path: Path, *overrides: str) -> None:
        loaded = load_federation(path, list(overrides))
        self.spec = loaded.spec
        self.sites = SimulatedSites(json.dumps(loaded.effective()), loaded.base)
        self.trainer = self.sites.bench.trainer
        self.size = self.trainer.layout.size
        self.start = self.trainer.layout.read(self.trainer.model)
        self.plan: DistributedRecordPlan = distributed_record_plan(loaded.spec)

    def ask(self, position: int, round_number: int = 1) -> Message:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 9
        job = ConfigRecord(
            {
                "protocol": protocol.PROTOCOL,
                "run": "r",
                "round": round_number,
                "federation": self.sites.federation,
                "layout": self.trainer.layout.digest,
            }
        )
        content = RecordDict({protocol.JOB: job})
        record = ArrayRecord()
        record[protocol.VECTOR] = LiveArray(self.start)
        content[protocol.MODEL] = record
        context = Context(
            run_id=1, node_id=1, node_config={"partition-id": position}, state=RecordDict(), run_config={}
        )
        return make_client_app(self.sites)(Message(content, 1, "train"), context)

    def gradient(self, answering: int = SITES, round_number: int = 1) -> npt.NDArray[np.float64]:
        """The noisy mean gradient that the server's step of one round is made of, times n·B: the sum."""
        randomness = SeededRandomness(0)
        gatherer = gatherer_from(self.spec, size=self.size, randomness=randomness)
        gathering = gatherer.start(round_number, (protocol.VECTOR,))
        for position in range(answering):
            reply = self.ask(position, round_number)
            answer = Answer(position=position, reply=reply, foreign=False, seconds=0.0)
            checked = check_update(answer, wanted=gathering.wanted, private=True)
            assert isinstance(checked, CheckedUpdate)
            assert gathering.add(checked) is None
        direction = gathering.finish().directions[protocol.VECTOR]
        return direction / -0.3 * SITES * BATCH

    def by_hand(self, position: int) -> npt.NDArray[np.float64]:
        """The sum of one site's clipped gradients in round 1, record by record with autograd."""
        model, task = self.trainer.model, self.sites.task
        name, data = self.sites.roster.name(position), self.sites.roster.split(position).train
        coins = cipher_generator(self.sites.randomness, "poisson", 1, name)
        total = np.zeros(self.size)
        self.trainer.load(self.start)
        model.eval()  # without dropout: the task of this test has none
        for row in poisson_rows(len(data), 0.2, coins):
            x, y = (part.to(self.trainer.device) for part in data.batch(row[None]))
            found = torch.autograd.grad(task.loss(model(x), y).sum(), list(model.parameters()))
            flat = torch.cat([part.reshape(-1) for part in found]).double().cpu().numpy()
            total += flat * min(1.0, CLIP / np.linalg.norm(flat))
        return total


@pytest.fixture
def federation(make_file: Callable[..., Path], tmp_path: Path) -> Callable[..., Federation]:
    def make(*overrides: str, **privacy: Any) -> Federation:
        path = make_file(**tables(**privacy))
        task = tmp_path / "rings.py"
        task.write_text(task.read_text().replace("nn.Dropout(0.2)", "nn.Dropout(0.0)"))
        return Federation(path, *overrides)

    return make


def test_integers_are_all_that_leaves_a_site(federation: Callable[..., Federation]) -> None:
    made = federation()
    reply = made.ask(0)
    assert list(reply.content) == [protocol.UPDATE]
    assert list(reply.content.array_records[protocol.UPDATE]) == [protocol.VECTOR]
    values = reply.content.array_records[protocol.UPDATE][protocol.VECTOR].numpy()
    assert values.dtype == np.uint32
    assert values.shape == (made.size,)


def test_with_little_noise_the_sum_is_that_of_the_clipped_gradients_of_all_sites(
    federation: Callable[..., Federation],
) -> None:
    """To the noise that is left, a ten-thousandth of the clip; the clip bites, and every site weighs."""
    made = federation(noise_multiplier=1e-4)
    parts = [made.by_hand(position) for position in range(SITES)]
    found, expected = made.gradient(), sum(parts)
    left = 5 * 1e-4 * CLIP * math.sqrt(SITES / 3) + SITES / made.plan.code.scale
    assert abs(found - expected).max() < left
    assert min(np.linalg.norm(part) for part in parts) > 100 * left


@pytest.mark.parametrize(("answering", "colluders"), [(5, 0), (3, 0), (5, 2), (3, 1)])
def test_the_shares_add_up_to_the_stated_noise(
    federation: Callable[..., Federation], answering: int, colluders: int
) -> None:
    """No record joins. KS over 30 rounds of 82 numbers: accepts σC·√(answered/h) at p > 1e-3, rejects 2/3 and 3/2 of it."""
    made = federation("federation.rounds=30", noise_multiplier=2.0, sampling_rate=1e-12, colluders=colluders)
    found = np.concatenate([made.gradient(answering, number) for number in range(1, 31)])
    std = 2.0 * CLIP * math.sqrt(answering / (3 - colluders))
    assert stats.kstest(found / std, "norm").pvalue > 1e-3
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(found / (std * wrong), "norm").pvalue < 1e-9
    alone = [made.ask(0, number).content.array_records[protocol.UPDATE] for number in range(1, 31)]
    shares = made.plan.code.decode(np.concatenate([one[protocol.VECTOR].numpy() for one in alone]))
    assert stats.kstest(shares / (2.0 * CLIP / math.sqrt(3 - colluders)), "norm").pvalue > 1e-3


def test_one_record_moves_the_sum_by_at_most_the_clip_and_a_rounding(
    federation: Callable[..., Federation],
) -> None:
    """A record with an enormous gradient against none in its place, under the same noise."""
    made = federation("privacy.sampling_rate=1.0")
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(20, 2, generator=generator), torch.randint(0, 2, (20,), generator=generator)
    enormous = torch.cat([x, torch.tensor([[3e4, -7e4]])]), torch.cat([y, torch.tensor([0])])

    def released(data: TensorData) -> npt.NDArray[np.float64]:
        model = build_model(made.sites.task, 1)
        trainer = Trainer(made.spec, made.sites.task, model, Layout.of(model))
        randomness = SeededRandomness(3)
        result = trainer.train(made.start, data, site="s", round_number=1, randomness=randomness)
        job = Job(
            run="r", round_number=1, federation="", layout_digest="", arrays=None, told=ToSite(), afford=False
        )
        arrays = releasable(result.change, made.spec, job, site="s", randomness=randomness)
        return made.plan.code.decode(arrays[protocol.VECTOR])

    moved = np.linalg.norm(released(TensorData(*enormous)) - released(TensorData(x, y)))
    rounding = math.sqrt(made.size) / made.plan.code.scale
    assert 0.9 * CLIP < moved <= CLIP + rounding


def test_the_step_is_the_servers_with_the_rounds_learning_rate(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Round by round: the norm of the update under a halving schedule, the same noise otherwise."""
    table = tables(sampling_rate=1e-12)
    constant = simulate(load_federation(make_file(**table)), out=tmp_path / "a", engine=LocalEngine(0))
    table["training"]["schedule"] = {"name": "exponential", "gamma": 0.5}
    halving = simulate(load_federation(make_file(**table)), out=tmp_path / "b", engine=LocalEngine(0))
    norms = [[event["update_norm"] for event in events_of(made.run, "round")] for made in (constant, halving)]
    np.testing.assert_allclose(np.array(norms[1]) / norms[0], [1, 0.5, 0.25, 0.125], rtol=1e-9)
    stds = [event["noise_std"] for event in events_of(constant.run, "round")]
    assert stds == pytest.approx([1.5 * CLIP * math.sqrt(5 / 3)] * 4)


def test_the_run_is_billed_as_central_steps_with_the_noise_of_its_survivors(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Three are counted on, one of them colludes, four a round answer: σ·√(3/2) in every round that a site was asked in."""
    made = simulate(
        load_federation(make_file(**tables(colluders=1)), ["cohort.per_round=4"]),
        out=tmp_path / "runs",
        engine=LocalEngine(0),
    )
    asked = Counter(event["site"] for event in events_of(made.run, "site"))
    assert len(set(asked.values())) > 1, "the fixture must tell sites apart"
    told = {event["site"]: event["epsilon"] for event in events_of(made.run, "privacy") if event["site"]}
    for site, rounds in asked.items():
        accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, 1e-3)
        gaussian = dp_accounting.GaussianDpEvent(1.5 * math.sqrt(3 / 2))
        step = dp_accounting.PoissonSampledDpEvent(0.2, gaussian)
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, rounds))
        assert told[site] == pytest.approx(accountant.get_epsilon(1e-4), rel=0.01)
    privacy = made.figures["privacy"]
    assert privacy["unit"] == "record-distributed"
    assert privacy["epsilon"] == pytest.approx(max(told.values()))
    for part in ("each single record at each honest site", "in clear with 1/2 of the noise", "conspire"):
        assert part in privacy["statement"]
    assert "record-distributed" in made.report.read_text()


def test_each_sites_ledger_is_charged_for_the_fewest_survivors(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load_federation(make_file(**tables()))
    simulate(loaded, out=tmp_path / "runs", engine=LocalEngine(0), ledgers=tmp_path / "ledgers")
    books = sorted((tmp_path / "ledgers").glob("*/*.sqlite"))
    assert len(books) == SITES
    for path in books:
        found = verify(path, account=account)
        found.require()
        expected = distributed_record_plan(loaded.spec).spent(4).epsilon
        epsilon, delta = found.epsilon["record-distributed"]
        assert epsilon == pytest.approx(expected)
        assert delta == 1e-4
        charged = [entry for entry in inspect(path).chain.entries if entry.kind == "RESERVE"]
        assert {(entry.survivors, entry.steps, entry.noise_multiplier) for entry in charged} == {(3, 1, 1.5)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "more", [{}, {"aggregation": {"average_rounds": 3, "optimizer": {"name": "fedavgm"}}}]
)
def test_any_number_of_workers_and_a_resume_give_the_same_bits(
    make_file: Callable[..., Path], tmp_path: Path, more: dict[str, Any]
) -> None:
    path = make_file(**{**tables(), **more})
    made = [
        simulate(load_federation(path), out=tmp_path / f"runs{workers}", engine=LocalEngine(workers))
        for workers in (0, 1, 2)
    ]

    class Stop:
        def handle(self, event: Any) -> None:
            if event["kind"] == "round" and event["round"] == 3:
                raise KeyboardInterrupt

        def close(self) -> None:
            pass

    with pytest.raises(KeyboardInterrupt):
        simulate(load_federation(path), out=tmp_path / "broken", engine=LocalEngine(0), sinks=(Stop(),))
    (run,) = (tmp_path / "broken").iterdir()
    made.append(resume(run, engine=LocalEngine(0)))
    assert len({one.model.read_bytes() for one in made}) == 1
    told = [[(e["epsilon"], e["site"]) for e in events_of(one.run, "privacy")] for one in made]
    assert all(one == told[0] for one in told)


@pytest.mark.slow
def test_digits_are_learned_over_ten_sites(make_file: Callable[..., Path], tmp_path: Path) -> None:
    """ε = 3 for the whole run; each site by itself, with all of the noise, comes to far less."""
    document = {
        "federation": {"name": "digits", "rounds": 120, "seed": 5},
        "task": {"use": "digits"},
        "cohort": {"sites": 10, "min_sites": 10, "per_round": "all", "partition": {"by": "iid"}},
        "training": {"local_steps": 1, "batch_size": 14, "optimizer": {"name": "sgd", "lr": 2.0}},
        "privacy": {
            "unit": "record-distributed",
            "epsilon": 3.0,
            "delta": 1e-4,
            "clip": 0.3,
            "sampling_rate": 0.1,
        },
        "aggregation": {"average_rounds": 20, "optimizer": {"name": "fedavgm", "momentum": 0.8}},
        "evaluation": {"every": 120},
    }
    path = make_file()
    import tomli_w

    path.write_text(tomli_w.dumps(document))
    shared = simulate(load_federation(path), out=tmp_path / "shared", engine=LocalEngine(2))
    document["privacy"]["unit"] = "record"  # type: ignore[index]
    document["aggregation"]["protection"] = "plain"  # type: ignore[index]
    path.write_text(tomli_w.dumps(document))
    own = simulate(load_federation(path), out=tmp_path / "own", engine=LocalEngine(2))
    accuracy = [made.figures["metrics"]["central"]["last"]["accuracy"] for made in (shared, own)]
    assert accuracy[0] > 0.85
    assert accuracy[0] > accuracy[1] + 0.02
    assert shared.figures["privacy"]["epsilon"] <= 3.0
