"""Rounds under protection, over real Flower messages: the sum is right, whoever is lost, and nothing else comes of it.

Every protection runs the same tests: a real grid, the real apps on both sides, real masks and real ciphertexts.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict
from flwr.clientapp import ClientApp

from cloister.client.app import make_client_app as real_app
from cloister.core import protocol
from cloister.core.errors import PeersMissing, SpecError
from cloister.core.spec import load_federation, parse_federation, read_document
from cloister.privacy.protection import predict
from cloister.simulation import engines
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import RunResult, resume, simulate
from joint import needs_openfhe

pytestmark = pytest.mark.usefixtures("undrawn")

MakeFile = Callable[..., Path]

JOINT = pytest.param("threshold-bfv", marks=[needs_openfhe, pytest.mark.slow])
PROTECTIONS = ("masked", "bfv", "ckks", JOINT)
COHORT: dict[str, Any] = {"sites": 5, "partition": {"by": "dirichlet", "alpha": 1.0}, "per_round": "all"}
#: By less than this a number of the mean is moved by rounding: one unit of the coarsest protection (26 bits, reach 4, 5 sites).
UNIT = 4.0 / (2**25 / 5 - 2)


def run(path: Path, out: Path, *overrides: str, workers: int = 0) -> RunResult:
    return simulate(load_federation(path, list(overrides)), out=out, engine=LocalEngine(workers))


def model(made: RunResult) -> np.ndarray[Any, Any]:
    from safetensors.numpy import load_file

    tensors = load_file(made.model)
    return np.concatenate([tensors[name].ravel() for name in sorted(tensors)])


def events(folder: Path, kind: str) -> list[dict[str, Any]]:
    lines = (folder / "events.jsonl").read_text().splitlines()
    return [event for event in map(json.loads, lines) if event["kind"] == kind]


class Losing:
    """Has sites fail at steps of their first sessions: ``lost`` maps a site's position to (kind of sum, step)."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, lost: dict[int, tuple[str, str]]) -> None:
        self.lost = lost
        self.asked: list[tuple[int, str]] = []
        monkeypatch.setattr(engines, "make_client_app", self.app)

    def app(self, *args: Any, **options: Any) -> ClientApp:
        honest, app = real_app(*args, **options), ClientApp()
        kinds: dict[int, str] = {}

        def through(message: Message, context: Context) -> Message:
            position = int(context.node_config["partition-id"])
            said = message.content.config_records.get(protocol.SECURE, ConfigRecord())
            step = str(said.get(protocol.STEP, ""))
            if step == protocol.ADVERT:
                kinds[position] = json.loads(said["manifest"])["kind"]  # type: ignore[arg-type]
            if step == protocol.HOLD:
                kinds[position] = str(said["kind"])
            if step == protocol.ADD:
                kinds[position] = message.metadata.message_type.split(".")[0]
            self.asked.append((position, step))
            if self.lost.get(position) == (kinds.get(position), step):
                raise RuntimeError("this site is gone")
            return honest(message, context)

        app.train()(through)
        app.evaluate()(through)
        app.query()(through)
        app.query("secure")(through)
        return app


@pytest.mark.parametrize("protection", PROTECTIONS)
def test_the_model_is_that_of_a_run_in_clear_to_the_rounding(
    make_file: MakeFile, tmp_path: Path, protection: str
) -> None:
    path = make_file(federation={"rounds": 1}, cohort=COHORT)
    clear = model(run(path, tmp_path, "aggregation.protection=plain"))
    hidden = model(run(path, tmp_path, f"aggregation.protection={protection}"))
    assert np.abs(hidden - clear).max() <= UNIT + 1e-6  # float32 of the model
    assert not np.array_equal(hidden, clear), "rounding leaves a trace: the sum went through integers"


@pytest.mark.slow
@pytest.mark.parametrize("protection", PROTECTIONS)
def test_weights_losses_and_metrics_are_sums_too(
    make_file: MakeFile, tmp_path: Path, protection: str
) -> None:
    path = make_file(federation={"rounds": 1}, cohort=COHORT, aggregation={"weighting": {"records_cap": 30}})
    clear = run(path, tmp_path, "aggregation.protection=plain")
    hidden = run(path, tmp_path, f"aggregation.protection={protection}")
    assert np.abs(model(hidden) - model(clear)).max() <= 2 * UNIT + 1e-6
    (round_clear,), (round_hidden,) = events(clear.run, "round"), events(hidden.run, "round")
    assert round_hidden["loss"] == pytest.approx(round_clear["loss"], abs=1e-5)
    assert round_hidden["cut"] == 0
    of_sites = [
        next(event for event in events(made.run, "evaluation") if event["where"] == "sites")
        for made in (clear, hidden)
    ]
    assert of_sites[0]["records"] == of_sites[1]["records"]
    assert set(of_sites[0]["metrics"]) - set(of_sites[1]["metrics"]) == {"auroc"}
    for name, value in of_sites[1]["metrics"].items():
        assert value == pytest.approx(of_sites[0]["metrics"][name], abs=0.02)  # of nearly the same model
    assert np.sum(of_sites[1]["confusion"]) == of_sites[1]["records"]
    assert not [event for event in events(hidden.run, "evaluation") if event["where"].startswith("site:")]
    assert all(event["loss"] is None for event in events(hidden.run, "site"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "tables",
    [
        {"training": {"scaffold": True}},
        {
            "privacy": {
                "unit": "site",
                "noise_multiplier": 0.5,
                "delta": 1e-3,
                "clip": 0.2,
                "adaptive_clip": {},
            }
        },
        {"privacy": {"unit": "site-local", "noise_multiplier": 0.5, "delta": 1e-3, "clip": 0.2}},
    ],
    ids=["scaffold", "adaptive-clip", "site-local"],
)
def test_what_goes_with_updates_is_in_the_sum_as_well(
    make_file: MakeFile, tmp_path: Path, tables: dict[str, Any]
) -> None:
    path = make_file(federation={"rounds": 2}, cohort=COHORT, **tables)
    clear = model(run(path, tmp_path, "aggregation.protection=plain"))
    hidden = model(run(path, tmp_path))
    assert np.abs(hidden - clear).max() <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize(
    "tables",
    [
        {"privacy": {"unit": "site-distributed", "noise_multiplier": 1.0, "delta": 1e-3, "clip": 0.2}},
        {
            "training": {"local_steps": 1},
            "privacy": {
                "unit": "record-distributed",
                "noise_multiplier": 1.0,
                "delta": 1e-3,
                "clip": 0.2,
                "sampling_rate": 0.2,
            },
        },
    ],
    ids=["site-distributed", "record-distributed"],
)
def test_noise_shares_go_under_masks_unchanged_to_the_bit(
    make_file: MakeFile, tmp_path: Path, tables: dict[str, Any]
) -> None:
    path = make_file(federation={"rounds": 2}, cohort=COHORT, **tables)
    clear = model(run(path, tmp_path, "aggregation.protection=plain", "cohort.min_sites=3"))
    assert np.array_equal(clear, model(run(path, tmp_path)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("protection", "step"),
    [
        *(("masked", step) for step in ("advert", "share", "add", "confirm", "reveal")),
        *(("bfv", step) for step in ("add", "seal")),
        *(
            pytest.param("threshold-bfv", step, marks=needs_openfhe)
            for step in ("hold", "show", "add", "seal")
        ),
    ],
)
def test_a_site_that_is_lost_at_any_step_is_in_the_sum_or_not_and_the_sum_is_right(
    make_file: MakeFile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    protection: str,
    step: str,
) -> None:
    path = make_file(federation={"rounds": 1}, cohort=COHORT, evaluation={"sites": False})
    inside = step in ("confirm", "reveal")
    clear = _without(monkeypatch, path, tmp_path, None if inside else 1)
    watched = Losing(monkeypatch, {1: ("train", step)})
    hidden = run(path, tmp_path, f"aggregation.protection={protection}")
    (event,) = events(hidden.run, "round")
    assert event["answered"] == (5 if inside else 4)
    assert (1, step) in watched.asked
    assert np.abs(model(hidden) - clear).max() <= UNIT + 1e-6
    # What an error says goes nowhere; Flower's code for it is all that is told.
    assert "this site is gone" not in (hidden.run / "events.jsonl").read_text()


def _without(
    monkeypatch: pytest.MonkeyPatch, path: Path, out: Path, position: int | None
) -> np.ndarray[Any, Any]:
    """Return the model of a run in clear in which one site never answers."""

    def app(*args: Any, **options: Any) -> ClientApp:
        honest, made = real_app(*args, **options), ClientApp()

        def through(message: Message, context: Context) -> Message:
            if int(context.node_config["partition-id"]) == position:
                raise RuntimeError("this site is gone")
            return honest(message, context)

        made.train()(through)
        return made

    monkeypatch.setattr(engines, "make_client_app", app)
    return model(run(path, out, "aggregation.protection=plain"))


@pytest.mark.slow
@pytest.mark.parametrize("protection", ["bfv", JOINT])
def test_the_bytes_of_ciphertexts_are_those_that_were_predicted(
    make_file: MakeFile, tmp_path: Path, protection: str
) -> None:
    path = make_file(federation={"rounds": 1}, cohort=COHORT, evaluation={"sites": False})
    made = run(path, tmp_path, f"aggregation.protection={protection}")
    spec = load_federation(path, [f"aggregation.protection={protection}"]).spec
    found = predict(spec, model(made).size, classes=2, cohort=5)
    (event,) = events(made.run, "round")
    assert event["bytes_up"] == pytest.approx(5 * found["up"], rel=0.02)
    if protection != "bfv":  # of the authority's key nothing is predicted
        assert event["bytes_down"] == pytest.approx(5 * found["down"], rel=0.02)


@pytest.mark.slow
@needs_openfhe
def test_a_site_that_is_lost_before_a_joint_key_opens_the_sum_costs_that_round_its_sum_and_no_other(
    make_file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_file(federation={"rounds": 2}, cohort=COHORT, evaluation={"sites": False})
    watched = Losing(monkeypatch, {1: ("train", protocol.OPEN)})
    with pytest.raises(PeersMissing, match="holds a share of the session's key and did not help"):
        run(path, tmp_path, "aggregation.protection=threshold-bfv")
    assert watched.asked.count((1, protocol.OPEN)) >= 1
    (folder,) = tmp_path.glob("rings-*")
    assert not events(folder, "round")
    watched.lost.clear()
    made = resume(folder, engine=LocalEngine(0))
    assert [event["answered"] for event in events(made.run, "round")] == [5, 5]


@pytest.mark.parametrize("protection", ["masked", "bfv", JOINT])
def test_below_the_threshold_nothing_is_opened_and_nobody_reveals(
    make_file: MakeFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, protection: str
) -> None:
    path = make_file(federation={"rounds": 1}, cohort={**COHORT, "min_sites": 4})
    watched = Losing(monkeypatch, dict.fromkeys((0, 3), ("train", protocol.ADD)))
    with pytest.raises(PeersMissing, match="round 1 stayed below min_sites = 4"):
        run(path, tmp_path, f"aggregation.protection={protection}")
    opening = (protocol.CONFIRM, protocol.REVEAL, protocol.OPEN)
    assert not [step for _, step in watched.asked if step in opening]
    (folder,) = tmp_path.glob("rings-*")
    assert not events(folder, "round")
    assert any("no sum was unmasked" in event["text"] for event in events(folder, "warning"))


@pytest.mark.slow
def test_masked_rounds_do_not_depend_on_the_workers_and_resume_to_the_same_bits(
    make_file: MakeFile, tmp_path: Path
) -> None:
    path = make_file(federation={"rounds": 3}, cohort={**COHORT, "per_round": 4})
    whole = run(path, tmp_path)
    assert np.array_equal(model(whole), model(run(path, tmp_path, workers=2)))
    broken = tmp_path / "broken"
    with pytest.MonkeyPatch.context() as patch:
        Losing(patch, {})
        from cloister.server.coordinator import Coordinator

        real = Coordinator._round

        def stop(self: Any, number: int, state: Any) -> Any:
            if number == 3:
                raise KeyboardInterrupt
            return real(self, number, state)

        patch.setattr(Coordinator, "_round", stop)
        with pytest.raises(KeyboardInterrupt):
            run(path, broken)
    (folder,) = broken.iterdir()
    assert np.array_equal(model(resume(folder, engine=LocalEngine(0))), model(whole))


def test_updates_beyond_the_reach_are_cut_and_the_run_says_so(make_file: MakeFile, tmp_path: Path) -> None:
    path = make_file(federation={"rounds": 1}, cohort=COHORT)
    made = run(path, tmp_path, "aggregation.reach=0.001")
    assert events(made.run, "round")[0]["cut"] == 5
    assert any("aggregation.reach" in event["text"] for event in events(made.run, "warning"))


@pytest.mark.parametrize(
    ("overrides", "says"),
    [
        (("cohort.min_sites=2",), "would reveal smaller ones"),
        (("aggregation.rule=median", "aggregation.protection=masked"), "compares single updates"),
        (("aggregation.protection=bfv", "cohort.sites=200000", "cohort.min_sites=3"), "leave each site"),
    ],
)
def test_what_would_leak_or_cannot_be_summed_is_refused_before_training(
    make_file: MakeFile, tmp_path: Path, overrides: tuple[str, ...], says: str
) -> None:
    path = make_file(cohort={**COHORT, "partition": {"by": "iid", "per_site": 10}})
    with pytest.raises(SpecError, match=says):
        run(path, tmp_path, *overrides)
    assert not list(tmp_path.glob("rings-*"))


def test_two_owners_cannot_hide_from_each_other_and_go_in_clear_unless_asked(
    make_file: MakeFile, tmp_path: Path
) -> None:
    document = read_document(make_file())
    loaded = parse_federation({**document, "cohort": {}}, base=tmp_path)
    assert loaded.spec.aggregation.protection == "masked"
    two = loaded.settled(2).spec
    assert (two.aggregation.protection, two.cohort.min_sites) == ("plain", 1)
    assert loaded.settled(3) is loaded
    asked = load_federation(make_file(aggregation={"protection": "masked"}, cohort=COHORT))
    assert asked.settled(2) is asked


class Site:
    """The real ClientApp of one site of a protected federation, asked directly: the server is the test."""

    def __init__(self, path: Path, *overrides: str) -> None:
        from cloister.simulation.live_array import LiveArray
        from cloister.simulation.sites import SimulatedSites

        loaded = load_federation(path, list(overrides))
        self.sites = SimulatedSites(json.dumps(loaded.effective()), loaded.base)
        self.app = real_app(self.sites, make_array=LiveArray)
        self.context = Context(
            run_id=1, node_id=1, node_config={"partition-id": 0}, state=RecordDict(), run_config={}
        )
        self.layout = self.sites.bench.trainer.layout
        self.start = self.layout.read(self.sites.bench.trainer.model)

    def ask(self, kind: str, **secure: Any) -> Message:
        from flwr.app import ArrayRecord
        from flwr.supercore.task_identity import TaskIdentity

        from cloister.simulation.live_array import LiveArray

        TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 9
        job: dict[str, Any] = {
            "protocol": protocol.PROTOCOL,
            "run": "r",
            "round": 1,
            "federation": self.sites.federation,
            "layout": self.layout.digest,
        }
        record = ArrayRecord()
        record[protocol.VECTOR] = LiveArray(self.start)
        content = RecordDict({protocol.JOB: ConfigRecord(job), protocol.MODEL: record})
        if secure:
            content[protocol.SECURE] = ConfigRecord(secure)
        message = Message(content, 1, kind)
        message.metadata.__dict__["_message_id"] = "m"
        TaskIdentity.node_id = 1
        reply: Message = self.app(message, self.context)
        return reply


def refusal(reply: Message) -> str:
    return str(reply.content.config_records[protocol.REFUSAL]["code"])


@pytest.mark.parametrize("protection", ["masked", "bfv", "threshold-bfv"])
@pytest.mark.parametrize("kind", ["train", "evaluate"])
def test_a_server_that_asks_for_an_update_or_a_metric_in_clear_gets_a_refusal(
    make_file: MakeFile, protection: str, kind: str
) -> None:
    site = Site(make_file(cohort=COHORT), f"aggregation.protection={protection}")
    reply = site.ask(kind)
    assert set(reply.content) == {protocol.REFUSAL}
    assert refusal(reply) == "session-none"


def test_a_site_refuses_steps_out_of_order_and_a_manifest_that_nobody_signed(make_file: MakeFile) -> None:
    site = Site(make_file(cohort=COHORT))
    for step in (protocol.SHARE, protocol.CONFIRM, protocol.REVEAL, protocol.SEAL, "nonsense"):
        assert refusal(site.ask(protocol.SECURE_QUERY, **{protocol.STEP: step})) == "session-none"
    for step in (protocol.HOLD, protocol.SHOW, protocol.OPEN):  # of another protection
        assert refusal(site.ask(protocol.SECURE_QUERY, **{protocol.STEP: step})) == "session-step"
    forged = {"manifest": b"{}", "signature": bytes(64), "certificate": b"0"}
    assert (
        refusal(site.ask(protocol.SECURE_QUERY, **{protocol.STEP: protocol.ADVERT}, **forged)) == "identity"
    )
