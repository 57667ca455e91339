"""Runs whose unit is a whole site: what leaves it, what the server makes of it, what it costs."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import dp_accounting  # type: ignore[import-untyped]
import numpy as np
import numpy.typing as npt
import pytest
from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from safetensors.numpy import load_file
from scipy import stats

from cloister.client.app import make_client_app
from cloister.client.incoming import Job
from cloister.client.releasing import releasable
from cloister.core import command, protocol
from cloister.core.errors import SpecError
from cloister.core.randomness import SeededRandomness
from cloister.core.spec import load_federation
from cloister.privacy.ledger.telling import ToSite
from cloister.server.exchange import Answer
from cloister.server.gathering import Gathered, gatherer_from
from cloister.server.replies import CheckedUpdate, Refused, Wanted, check_update
from cloister.simulation.engines import LocalEngine
from cloister.simulation.live_array import LiveArray
from cloister.simulation.simulate import simulate
from cloister.simulation.sites import SimulatedSites

pytestmark = pytest.mark.usefixtures("undrawn")

UNITS = ("site", "site-local", "site-distributed")
CLIP = 0.05
COHORT = {"per_round": "all", "min_sites": 3}


def tables(unit: str, noise: float = 1.0, **more: Any) -> dict[str, dict[str, Any]]:
    return {
        "cohort": COHORT,
        "aggregation": {"protection": "plain"},
        "privacy": {"unit": unit, "noise_multiplier": noise, "delta": 1e-3, "clip": CLIP, **more},
    }


def run(path: Path, out: Path, *overrides: str, **options: Any) -> Any:
    return simulate(load_federation(path, list(overrides)), out=out, engine=LocalEngine(0), **options)


def events_of(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


class Federation:
    """The real ClientApp of every site of a file, asked for one round, outside of any grid."""

    def __init__(self, path: Path, *overrides: str) -> None:
        loaded = load_federation(path, list(overrides))
        self.spec = loaded.spec
        self.sites = SimulatedSites(json.dumps(loaded.effective()), loaded.base)
        self.trainer = self.sites.bench.trainer
        self.size = self.trainer.layout.size
        self.start = self.trainer.layout.read(self.trainer.model)

    def ask(self, position: int, round_number: int = 1, **told: float) -> Message:
        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 9
        job = ConfigRecord(
            {
                "protocol": protocol.PROTOCOL,
                "run": "r",
                "round": round_number,
                "federation": self.sites.federation,
                "layout": self.trainer.layout.digest,
                **told,
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

    def sent(self, position: int) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = (
            self.ask(position).content.array_records[protocol.UPDATE][protocol.VECTOR].numpy()
        )
        return array


@pytest.fixture
def federation(make_file: Callable[..., Path]) -> Callable[..., Federation]:
    def make(unit: str, noise: float = 1.0, *overrides: str, **more: Any) -> Federation:
        return Federation(make_file(**tables(unit, noise, **more)), *overrides)

    return make


@pytest.mark.parametrize("unit", UNITS)
def test_the_update_is_all_that_leaves_a_site(federation: Callable[..., Federation], unit: str) -> None:
    reply = federation(unit).ask(0)
    assert list(reply.content) == [protocol.UPDATE]
    assert list(reply.content.array_records[protocol.UPDATE]) == [protocol.VECTOR]


@pytest.mark.parametrize("unit", UNITS)
def test_with_tiny_noise_the_model_is_that_of_the_clipped_mean(
    make_file: Callable[..., Path], tmp_path: Path, unit: str
) -> None:
    """One round of all five sites; the clip bites (the plain mean is far away), and by hand the result is Σ clip(Δ)/5."""
    one = {"federation": {"rounds": 1}}
    made = run(make_file(**tables(unit, 1e-4), **one), tmp_path / "runs")
    plain = Federation(make_file(cohort=COHORT, aggregation={"protection": "plain"}, **one))
    changes = [plain.sent(position).astype(np.float64) for position in range(5)]
    norms = [float(np.linalg.norm(change)) for change in changes]
    assert max(norms) > 2 * CLIP, "the clip must bite"
    mean = sum(change * min(1, CLIP / norm) for change, norm in zip(changes, norms, strict=True)) / 5
    moved = model_of(made, plain) - plain.start
    assert np.linalg.norm(moved - mean) < 2e-3 * np.linalg.norm(mean)
    assert np.linalg.norm(moved - sum(changes) / 5) > 0.3 * np.linalg.norm(mean)


@pytest.mark.parametrize("unit", UNITS)
def test_the_run_is_billed_by_the_rounds_that_a_site_was_asked_in(
    make_file: Callable[..., Path], tmp_path: Path, unit: str
) -> None:
    """Three of five sites a round, noise z = 3: a Gaussian composed by dp-accounting itself; Skellam noise is within 2% above it."""
    made = run(make_file(**tables(unit, 3.0)), tmp_path / "runs", "cohort.per_round=3")
    asked: dict[str, int] = {}
    for event in events_of(made.run, "site"):
        asked[event["site"]] = asked.get(event["site"], 0) + 1
    assert len(set(asked.values())) > 1, "the fixture must tell sites apart"
    told = {event["site"]: event for event in events_of(made.run, "privacy") if event["site"]}
    for site, rounds in asked.items():
        accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, 1e-4)
        accountant.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(3.0), rounds))
        if unit == "site-distributed":
            assert told[site]["pld"] is None
            least, most = (
                1.0,
                1.25,
            )  # Rényi bounds are looser than PLD: the event itself is checked in test_site_plans
        else:
            least, most = 0.99, 1.01
        epsilon = accountant.get_epsilon(1e-3)
        assert least * epsilon <= told[site]["epsilon"] <= most * epsilon
    figures = made.figures["privacy"]
    assert figures["unit"] == unit
    assert figures["epsilon"] == pytest.approx(max(event["epsilon"] for event in told.values()))
    assert "each site: all that its data contributed" in figures["statement"]
    assert "charged in full for every round" in figures["statement"]
    assert unit in made.report.read_text()


@pytest.mark.parametrize("unit", UNITS)
def test_no_event_of_a_private_run_holds_a_loss_or_a_count_of_a_site(
    make_file: Callable[..., Path], tmp_path: Path, unit: str
) -> None:
    made = run(make_file(**tables(unit)), tmp_path / "runs", "federation.rounds=2")
    assert all(event["loss"] is None for event in events_of(made.run, "site") + events_of(made.run, "round"))
    assert {event["where"] for event in events_of(made.run, "evaluation")} == {"central"}


def gathered(federation: Federation, changes: list[npt.NDArray[np.float32]]) -> Gathered:
    """What the server makes of these changes of sites 0, 1, …, each released as its site would."""
    size = len(changes[0])
    randomness = SeededRandomness(7)
    gathering = gatherer_from(federation.spec, size=size, randomness=randomness).start(1, (protocol.VECTOR,))
    for position, change in enumerate(changes):
        job = Job(
            run="r", round_number=1, federation="", layout_digest="", arrays=None, told=ToSite(), afford=False
        )
        arrays = releasable(change, federation.spec, job, site=str(position), randomness=randomness)
        assert gathering.add(CheckedUpdate(arrays=arrays, loss=None, records=1)) is None
    return gathering.finish()


def direction(federation: Federation, changes: list[npt.NDArray[np.float32]]) -> npt.NDArray[np.float64]:
    return gathered(federation, changes).directions[protocol.VECTOR]


@pytest.mark.parametrize("unit", UNITS)
def test_an_enormous_update_moves_the_model_by_at_most_the_clip_over_n(
    federation: Callable[..., Federation], unit: str
) -> None:
    """Against zero in its place, under the very same noise; integers may be a rounding apart."""
    made = federation(unit)
    changes = [np.full(500, 1e-4, dtype=np.float32) for _ in range(5)]
    enormous = [np.full(500, 1e30, dtype=np.float32), *changes[1:]]
    zero = [np.zeros(500, dtype=np.float32), *changes[1:]]
    moved = np.linalg.norm(direction(made, enormous) - direction(made, zero))
    assert 0.5 * CLIP / 5 < moved <= CLIP / 5 * (1.01 if unit == "site-distributed" else 1 + 1e-9)


@pytest.mark.parametrize("answered", [3, 5])
@pytest.mark.parametrize("unit", UNITS)
def test_the_noise_is_of_the_stated_size_and_the_divisor_does_not_follow_who_answered(
    federation: Callable[..., Federation], unit: str, answered: int
) -> None:
    """KS on 8,192 coordinates: accepts σ (false alarm 1e-4), rejects 2σ/3 and 3σ/2. n = 5, min_sites = 3."""
    made = federation(unit, 2.0)
    came = gathered(made, [np.zeros(8192, dtype=np.float32)] * answered)
    found = came.directions[protocol.VECTOR]
    shares = {"site": 1.0, "site-local": answered, "site-distributed": answered / 3}[unit]
    std = 2.0 * CLIP * math.sqrt(shares) / 5
    assert came.facts.get("noise_std", 5 * std) == pytest.approx(5 * std)
    assert stats.kstest(found / std, "norm").pvalue > 1e-4
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(found / (std * wrong), "norm").pvalue < 1e-9


@pytest.mark.parametrize("unit", UNITS)
def test_the_sum_is_divided_by_n_however_many_answered(
    federation: Callable[..., Federation], unit: str
) -> None:
    made = federation(unit, 1e-6)
    change = np.full(500, 1e-3, dtype=np.float32)
    np.testing.assert_allclose(direction(made, [change] * 3), 3e-3 / 5, rtol=0.01)


def test_a_reply_longer_than_the_clip_is_refused_with_the_reason(
    federation: Callable[..., Federation],
) -> None:
    """A real site that was told another clip than the server's."""
    made = federation("site", adaptive_clip={"count_noise": 3.0})
    gatherer = gatherer_from(made.spec, size=made.size, randomness=SeededRandomness(7))
    assert gatherer.job() == {protocol.CLIP: CLIP}
    for clip, refused in ((CLIP, False), (1.001 * CLIP, True)):
        gathering = gatherer.start(1, (protocol.VECTOR,))
        answer = Answer(position=0, reply=made.ask(0, clip=clip), foreign=False, seconds=0.0)
        checked = check_update(answer, wanted=gathering.wanted, private=True)
        assert isinstance(checked, CheckedUpdate)
        found = gathering.add(checked)
        assert isinstance(found, Refused) == refused
        if found is not None:
            assert found.reason == "norm-above-clip"
    without = gatherer_from(made.spec, size=made.size, randomness=SeededRandomness(7)).start(1, ())
    refused_sum, empty_sum = (one.finish().directions[protocol.VECTOR] for one in (gathering, without))
    assert np.array_equal(refused_sum, empty_sum), "what was refused is not in the sum"


def test_a_bit_that_is_none_is_refused(federation: Callable[..., Federation]) -> None:
    made = federation("site", adaptive_clip={"count_noise": 3.0})
    gathering = gatherer_from(made.spec, size=4, randomness=SeededRandomness(7)).start(1, (protocol.VECTOR,))
    zeros, bit = np.zeros(4, dtype=np.float32), np.array([40.0], dtype=np.float32)
    arrays = {protocol.VECTOR: zeros, protocol.WITHIN: bit}
    found = gathering.add(CheckedUpdate(arrays=arrays, loss=None, records=1))
    assert isinstance(found, Refused)


def test_integers_beyond_twenty_bits_are_refused(federation: Callable[..., Federation]) -> None:
    made = federation("site-distributed")
    gathering = gatherer_from(made.spec, size=4, randomness=SeededRandomness(7)).start(1, (protocol.VECTOR,))
    for value, refused in (((1 << 20) - 1, False), (1 << 20, True)):
        values = np.array([0, 1, 2, value], dtype=np.uint32)
        found = gathering.add(CheckedUpdate(arrays={protocol.VECTOR: values}, loss=None, records=1))
        assert isinstance(found, Refused) == refused


def test_integers_travel_as_bytes_as_well_as_in_memory(federation: Callable[..., Federation]) -> None:
    made = federation("site-distributed")
    values = made.sent(0)
    assert values.dtype == np.uint32
    assert len(values) == 128
    reply = made.ask(0)
    reply.content.array_records[protocol.UPDATE][protocol.VECTOR] = Array(values)
    wanted = {protocol.VECTOR: Wanted(size=128, dtype="uint32")}
    answer = Answer(position=0, reply=reply, foreign=False, seconds=0.0)
    checked = check_update(answer, wanted=wanted, private=True)
    assert isinstance(checked, CheckedUpdate)
    assert np.array_equal(checked.arrays[protocol.VECTOR], values)
    floats = {protocol.VECTOR: Wanted(size=128)}
    assert isinstance(check_update(answer, wanted=floats, private=True), Refused)


def test_a_site_refuses_a_job_without_the_clip_that_it_needs(federation: Callable[..., Federation]) -> None:
    made = federation("site", adaptive_clip={"count_noise": 3.0})
    several: tuple[dict[str, Any], ...] = ({}, {"clip": -1.0}, {"clip": math.inf})
    for told in several:
        reply = made.ask(0, **told)
        assert reply.content.config_records[protocol.REFUSAL]["code"] == "job-malformed"
        assert protocol.UPDATE not in reply.content.array_records


def test_an_adaptive_clip_follows_the_norms_and_is_told_in_each_round(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    """Started far below the norms, with hardly any noise: the clip rises by exp(η·γ) a round, as by hand."""
    adaptive = {"quantile": 0.5, "rate": 1.0, "count_noise": 0.01}
    path = make_file(**tables("site", 1e-3, adaptive_clip=adaptive))
    made = run(path, tmp_path / "runs", "privacy.clip=1e-4")
    clips = [event["clip"] for event in events_of(made.run, "round")]
    assert clips[0] == 1e-4
    for before, after in pairwise(clips):
        assert after / before == pytest.approx(math.exp(0.5), rel=0.02)


@pytest.mark.parametrize(
    ("table", "says"),
    [
        (tables("site", 3.0, adaptive_clip={"count_noise": 1.0}), "count_noise"),
        (tables("site-distributed", 1e6), "20 bits do not suffice"),
        (tables("site-local", 1e-9), "noise_multiplier must be"),
    ],
)
def test_a_promise_that_cannot_be_kept_is_refused_before_any_training(
    make_file: Callable[..., Path], tmp_path: Path, table: dict[str, Any], says: str
) -> None:
    with pytest.raises(SpecError, match=says) as refused:
        run(make_file(**table), tmp_path / "runs")
    assert refused.value.exit_code == 3
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("unit", UNITS)
def test_check_predicts_what_the_run_then_costs(
    make_file: Callable[..., Path], tmp_path: Path, unit: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = make_file(**tables(unit, 3.0))
    assert command.run(["check", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    made = run(path, tmp_path / "runs")
    predicted, spent = found["privacy"]["epsilon"], made.figures["privacy"]["epsilon"]
    if unit == "site-distributed":  # five sites answered, and only three are counted on
        assert spent < 0.9 * predicted
    else:
        assert spent == predicted
    assert found["privacy"]["unit"] == unit
    assert found["privacy"]["divisor"] == 5


def model_of(made: Any, federation: Federation) -> npt.NDArray[np.float64]:
    """Return the released model in its layout's order."""
    tensors = load_file(made.model)
    entries = [entry for entry in federation.trainer.layout.entries if entry.kind == "averaged"]
    return np.concatenate([tensors[entry.name].ravel().astype(np.float64) for entry in entries])
