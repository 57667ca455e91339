"""Canaries in the real pipeline: what they are, where they go, and that an audit finds a planted fault."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from cloister.core.command import run as cloister
from cloister.core.data import TensorData
from cloister.core.errors import IntegrityError, SpecError, TaskError, UsageError
from cloister.core.resolve import load_task
from cloister.core.spec import Loaded, load_federation, parse_federation
from cloister.core.tasks.digits import Digits
from cloister.core.update import Layout
from cloister.privacy.audit import power
from cloister.privacy.audit.canaries import LAYER, CanaryTask, PlantedData
from cloister.privacy.ledger import verify
from cloister.privacy.noise import GaussianSource
from cloister.privacy.plan import plan_from
from cloister.simulation.engines import LocalEngine
from cloister.simulation.privacy_audit.auditing import Audit, Found, sealed_and_opened
from cloister.simulation.privacy_audit.planning import designed

pytestmark = pytest.mark.usefixtures("undrawn")

FILE = """
[federation]
name = "digits"
rounds = 2
seed = 3
[task]
use = "digits"
model = { name = "mlp", hidden = [4] }
[cohort]
sites = 2
partition = { by = "iid" }
[training]
local_steps = 2
batch_size = 700
optimizer = { name = "adam", lr = 0.01 }
schedule = { name = "cosine" }
[privacy]
unit = "record"
epsilon = 4.0
delta = 1e-5
clip = 1.0
sampling_rate = 1.0
[evaluation]
every = 1
"""


def loaded(tmp_path: Path, *settings: str, drop: str = "") -> Loaded:
    path = tmp_path / "federation.toml"
    path.write_text("\n".join(line for line in FILE.splitlines() if not drop or not line.startswith(drop)))
    return load_federation(path, settings)


def audited(file: Loaded, tmp_path: Path, canaries: int = 1000, **options: Any) -> Found:
    design = designed(file, canaries=canaries, **options)
    return Audit(design=design).run(out=tmp_path / "runs", engine=LocalEngine(0))


@pytest.fixture(autouse=True)
def quick_power(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute power from fewer simulated audits: `tests/privacy/test_audit_judging.py` tests it in full."""
    for name, value in (("_RUNS", 40), ("_HALVINGS", 5), ("_MEDIAN", 5)):
        monkeypatch.setattr(power, name, value)


@pytest.fixture
def half_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plant the fault in the one place where noise is drawn."""
    drawn = GaussianSource.perturb
    monkeypatch.setattr(
        GaussianSource, "perturb", lambda self, total, *, std: drawn(self, total, std=std / 2)
    )


# ------------------------------------------------------------------ canaries


def test_a_canarys_gradient_is_a_number_in_a_direction_of_its_own() -> None:
    task = CanaryTask(Digits(model={"name": "mlp", "hidden": [4]}), canaries=5, norm=30.0, listed=False)
    torch.manual_seed(0)
    model = task.model()
    inputs = torch.rand(4, 1, 8, 8)
    targets = torch.tensor([3, 10 + 0, 10 + 4, 10 + 5])  # a record, canaries 0 and 4, the blank
    losses = task.loss(model(inputs), targets)
    names = [name for name, _ in model.named_parameters()]
    rows = [torch.autograd.grad(loss, list(model.parameters()), retain_graph=True) for loss in losses]
    own = names.index(LAYER)
    found = torch.stack([row[own].reshape(-1) for row in rows])
    expected = torch.zeros(4, 6)
    expected[1, 0] = expected[2, 4] = 30.0
    assert torch.equal(found, expected)
    for row in rows[1:]:
        assert all(not gradient.any() for place, gradient in enumerate(row) if place != own)
    inner = model.get_submodule("inner")
    plain = task.inner.loss(inner(inputs), targets.clamp(max=9))
    assert losses[0] == plain[0]
    with pytest.raises(TaskError, match="regression"):
        CanaryTask(replaced_kind(), 5, 30.0)


def replaced_kind() -> Digits:
    task = Digits()
    task.kind = "regression"
    return task


def test_canaries_come_after_the_records_and_can_be_taken_in_any_order() -> None:
    records = TensorData(torch.arange(6.0).reshape(3, 2), torch.tensor([0, 1, 0]))
    data = PlantedData(records, torch.tensor([12, 11]))
    inputs, targets = data.batch(torch.tensor([4, 0, 3]))
    assert targets.tolist() == [11, 0, 12]
    assert inputs[1].tolist() == [0.0, 1.0]
    part = data.subset(np.array([3, 1])).subset(np.array([1, 0]))
    assert part.targets.tolist() == [1, 12]
    assert part.batch(torch.tensor([1]))[1].tolist() == [12]
    assert len(part) == 2


# ------------------------------------------------------------------ the design


def test_what_epsilon_depends_on_is_kept_and_the_optimiser_is_not(tmp_path: Path) -> None:
    file = loaded(tmp_path)
    design = designed(file, canaries=100)
    spec = design.loaded.spec
    assert plan_from(spec, 1) == plan_from(file.spec, 1)
    assert (spec.training.optimizer.name, spec.training.schedule.name) == ("sgd", "constant")
    assert (spec.aggregation.protection, spec.cohort.per_round, spec.federation.name) == (
        "plain",
        "all",
        "digits-audit",
    )
    kept = designed(file, canaries=100, keep_optimizer=True)
    assert kept.loaded.spec.training.optimizer == file.spec.training.optimizer
    assert not kept.plain
    with pytest.raises(SpecError, match="no claim"):
        designed(
            parse_federation(
                {"federation": {"name": "x", "rounds": 1}, "task": {"use": "digits"}}, base=tmp_path
            ),
            canaries=9,
        )
    with pytest.raises(UsageError, match="input space"):
        designed(loaded(tmp_path, "privacy.unit=site", drop="sampling"), canaries=9, space="input")
    with pytest.raises(UsageError, match="promises nothing"):
        designed(loaded(tmp_path, "privacy.unit=site", drop="sampling"), canaries=9, sees="update")
    with pytest.raises(UsageError, match="no site 'nowhere'"):
        Audit(design=design, site="nowhere").run(out=tmp_path / "runs", engine=LocalEngine(0))
    with pytest.raises(UsageError, match="confidence"):
        Audit(design=design, confidence=0.4)


# ------------------------------------------------------------------ audits


def test_an_honest_run_is_consistent_and_says_what_could_have_been_found(tmp_path: Path) -> None:
    found = audited(loaded(tmp_path), tmp_path)
    judgement = found.judgement
    assert judgement.verdict == "consistent", judgement.reason
    assert 2.5 < judgement.lower_bound < 4.0
    assert judgement.decided_by == "location"
    assert judgement.claim.epsilon == pytest.approx(4.0, rel=1e-2)
    assert "would have been refuted in 90%" in judgement.reason


def test_half_the_noise_is_refuted(tmp_path: Path, half_noise: None) -> None:
    judgement = audited(loaded(tmp_path), tmp_path).judgement
    assert judgement.verdict == "refuted", judgement.reason
    assert judgement.lower_bound > 6


@pytest.mark.slow
def test_without_power_the_verdict_says_so(tmp_path: Path) -> None:
    judgement = audited(loaded(tmp_path, "privacy.epsilon=1.0"), tmp_path).judgement
    assert judgement.verdict == "no power", judgement.reason


def test_the_adversary_sees_the_sum_of_its_updates_and_nothing_else_moves_a_canary(tmp_path: Path) -> None:
    """With one site the models tell what its updates tell; and a canary that is in moves by one clip a step."""
    one = ("cohort.sites=1", "cohort.min_sites=1", "privacy.epsilon=4.0")
    updates = audited(loaded(tmp_path, *one), tmp_path, 200)
    models = audited(loaded(tmp_path, *one), tmp_path, 200, sees="model")
    assert np.array_equal(updates.scores.included, models.scores.included)
    assert np.allclose(updates.scores.values, models.scores.values, rtol=1e-3, atol=1e-6)
    spec = updates.design.loaded.spec
    plan = plan_from(spec, 1)
    assert plan is not None
    unit = spec.training.optimizer.lr / spec.training.batch_size  # of one clip in the model
    inside = updates.scores.values[updates.scores.included].mean() / unit
    outside = updates.scores.values[~updates.scores.included].mean() / unit
    error = 4 * plan.noise_multiplier * 2 * 2 / np.sqrt(200)  # four deviations of the difference of two means
    assert abs(inside - outside - 4) < error
    assert updates.scores.values.std() / unit > plan.noise_multiplier


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "options", "sees"),
    [
        (("privacy.unit=record-distributed", "training.local_steps=1", "cohort.sites=3", 'training.optimizer={name="sgd", lr=0.1}'), {}, "model"),
        (("privacy.max_records_per_person=3", "privacy.sampling_rate=0.5"), {}, "update"),
        ((), {"space": "input"}, "model"),
        ((), {"keep_optimizer": True}, "update"),
    ],
    ids=["record-distributed", "persons", "input", "own optimiser"],
)  # fmt: skip
def test_every_kind_of_audit_of_records_ends_with_a_verdict(
    tmp_path: Path, settings: tuple[str, ...], options: dict[str, Any], sees: str
) -> None:
    found = audited(loaded(tmp_path, *settings), tmp_path, 200, **options)
    assert found.design.sees == sees
    assert found.judgement.verdict == "no power", "200 canaries are few, and these are not the strongest"
    if options:
        assert not any(one.power for one, _ in found.judgement.bounds)
    if options.get("space") == "input":
        assert [bound is None for _, bound in found.judgement.bounds] == [False, False, True, True, True]
        assert LAYER not in load_file(found.run.model)


@pytest.mark.slow
@pytest.mark.parametrize("unit", ["site", "site-local", "site-distributed"])
def test_where_sites_are_the_unit_each_canary_is_a_site(tmp_path: Path, unit: str) -> None:
    file = loaded(
        tmp_path, f"privacy.unit={unit}", "privacy.epsilon=8.0", "federation.rounds=1", drop="sampling"
    )
    found = audited(file, tmp_path, 60)
    assert found.site is None
    assert found.design.loaded.spec.cohort.sites == 60
    inside = found.scores.values[found.scores.included]
    outside = found.scores.values[~found.scores.included]
    assert inside.mean() - outside.mean() > 3 * np.hypot(inside.std(), outside.std()) / np.sqrt(30)
    assert found.judgement.verdict in ("no power", "consistent")


# ------------------------------------------------------------------ seals


def test_coins_are_sealed_before_the_first_round_and_opened_after_the_last(tmp_path: Path) -> None:
    found = audited(loaded(tmp_path), tmp_path, 64)
    path = found.run.run / "events.jsonl"
    events = [json.loads(line) for line in path.read_text().splitlines()]
    kinds = [event["kind"] if event["kind"] != "audit" else event["verdict"] for event in events]
    assert kinds.index("sealed") < kinds.index("site") < kinds.index("opened")
    sealed = events[kinds.index("sealed")]
    assert sealed["estimators"][0]["reach"] >= 0
    assert {"opening", "coins", "salt"}.isdisjoint(sealed)
    seal, coins = sealed_and_opened(path)
    assert (seal, coins.included.tolist()) == (found.seal, found.scores.included.tolist())

    def rewritten(change: Callable[[list[dict[str, Any]]], object]) -> Path:
        other = [json.loads(line) for line in path.read_text().splitlines()]
        change(other)
        made = tmp_path / "other.jsonl"
        made.write_text("".join(json.dumps(event) + "\n" for event in other))
        return made

    def flipped(other: list[dict[str, Any]]) -> None:
        opening = other[kinds.index("opened")]["opening"]
        opening["coins"] = ("0" if opening["coins"][0] != "0" else "1") + opening["coins"][1:]

    for change in (
        flipped,
        lambda other: other.pop(kinds.index("sealed")),
        lambda other: other.append(other.pop(kinds.index("sealed"))),
        lambda other: other.pop(kinds.index("opened")),
    ):
        with pytest.raises(IntegrityError) as refused:
            sealed_and_opened(rewritten(change))
        assert refused.value.code == "audit-coins"


def test_a_model_with_canaries_is_the_tasks_with_one_layer_more(tmp_path: Path) -> None:
    task = load_task(loaded(tmp_path).spec.task, tmp_path)
    plain, planted = Layout.of(task.model()), Layout.of(CanaryTask(task, 7, 1.0).model())
    assert planted.size == plain.size + 8


# ------------------------------------------------------------------ the command


def test_the_command_ends_with_8_on_a_refutation_and_charges_the_ledger(
    tmp_path: Path, half_noise: None, capfd: pytest.CaptureFixture[str]
) -> None:
    loaded(tmp_path)
    out = tmp_path / "out"
    arguments = ["audit", "privacy", str(tmp_path / "federation.toml"), "--out", str(out)]
    assert cloister([*arguments, "--ledgers", str(tmp_path / "ledgers"), "--json"]) == 8
    told = json.loads(capfd.readouterr().out)
    assert (told["verdict"], told["error"]["code"]) == ("refuted", "privacy-refuted")
    (folder,) = out.iterdir()
    data = json.loads((folder / "audit-privacy.json").read_text())
    assert len(data["scores"]) == len(data["coins"]) == 1000
    page = (folder / "audit-privacy.html").read_text()
    assert "Do not release the model" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert (folder / "audit-privacy.json").stat().st_mode & 0o77 == 0
    last = json.loads((folder / "events.jsonl").read_text().splitlines()[-1])
    assert (last["kind"], last["verdict"]) == ("audit", "refuted")
    for ledger in (tmp_path / "ledgers").glob("*/*.sqlite"):
        assert verify(ledger).entries > 4


def test_the_command_tells_a_person(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    loaded(tmp_path)
    arguments = ["audit", "privacy", str(tmp_path / "federation.toml"), "--out", str(tmp_path / "out")]
    assert cloister([*arguments, "--canaries", "100"]) == 0
    told = capfd.readouterr().out
    assert "verdict: no power: nothing follows" in told
    assert "→  " in told
    assert cloister([*arguments, "--space", "nowhere"]) == 2
