"""The evaluation of a model against an adversary: what each part of it finds, and when it says that its figures cannot be trusted."""

from __future__ import annotations

import importlib.util
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional
from typer.testing import CliRunner

from cloister.core import command
from cloister.core.adversarial.attacks import pgd
from cloister.core.adversarial.threat import Threat
from cloister.core.errors import DataError, IntegrityError, SpecError, UsageError
from cloister.core.resolve import build_model
from cloister.core.spec import load_federation
from cloister.core.tasks.digits import Digits
from cloister.server.robustness.alarms import Observed, alarms
from cloister.server.robustness.corruptions import CORRUPTIONS, corrupt
from cloister.server.robustness.evaluation import Settings, evaluate
from cloister.server.robustness.measures import calibration
from cloister.server.robustness.page import render_page
from cloister.server.robustness.smoothing import certify, lower_bound
from cloister.server.robustness.subject import Subject, draw_sample, open_subject
from cloister.server.robustness.suite import Bout, flat_share

AUTOATTACK = importlib.util.find_spec("pyautoattack") is not None
needs_autoattack = pytest.mark.skipif(not AUTOATTACK, reason="needs cloister[robustness]")

FILE = """
[federation]
name = "trial"
rounds = 1
[task]
use = "digits"
model = { name = "mlp", hidden = [64] }
[cohort]
sites = 4
partition = { by = "iid" }
"""


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def trained(adversarial: bool) -> dict[str, Tensor]:
    """Train the digits' MLP for a few seconds, plainly or by PGD."""
    torch.manual_seed(0)
    task = Digits(model={"name": "mlp", "hidden": [64]})
    model = build_model(task, 0)
    data = task.data().train
    x, y = data.batch(torch.arange(len(data)))
    threat = Threat(norm="linf", epsilon=0.1, low=0.0, high=1.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=5e-3)
    for _ in range(30):
        for rows in torch.split(torch.randperm(len(x)), 128):
            own, wanted = x[rows], y[rows]
            if adversarial:
                start = threat.start(own, None)
                own = pgd(model, task.loss, own, wanted, threat, steps=5, step_size=0.04, start=start)
            optimiser.zero_grad()
            task.loss(model(own), wanted).mean().backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def tensors() -> dict[str, dict[str, Tensor]]:
    plain = trained(adversarial=False)
    # Scores times 1000: the softmax saturates in float32, and cross-entropy has no gradient left. No score changes place.
    masked = {name: value * 1000 if name.startswith("output") else value for name, value in plain.items()}
    return {"plain": plain, "masked": masked, "honest": trained(adversarial=True)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, tensors: dict[str, dict[str, Tensor]]) -> Path:
    folder = tmp_path_factory.mktemp("models")
    (folder / "federation.toml").write_text(FILE)
    for name, held in tensors.items():
        save_file(held, folder / f"{name}.safetensors")
    return folder


def quick(**other: Any) -> Settings:
    cheap: dict[str, Any] = {
        "records": 200,
        "steps": 15,
        "restarts": 1,
        "queries": 300,
        "severity": 0,
        "norm": "linf",
        "epsilon": 0.1,
    }
    return Settings(**(cheap | other))


def raised(found: dict[str, Any]) -> set[str]:
    return {alarm["name"] for alarm in found["alarms"] if alarm["raised"]}


@needs_autoattack
class TestMasking:
    @pytest.mark.slow
    def test_a_model_with_scores_times_1000_raises_the_alarm(self, folder: Path) -> None:
        found = evaluate(open_subject(folder / "masked.safetensors"), quick())
        assert {"zero-gradient", "weak-pgd"} <= raised(found)
        assert any("alarm" in reason for reason in found["unreliable"])
        # PGD on cross-entropy is fooled, the attacks on the margin are not.
        assert found["attacks"]["pgd-20"]["accuracy"] - found["attacks"]["apgd-t"]["accuracy"] > 0.15

    @pytest.mark.slow
    def test_an_adversarially_trained_model_raises_none(self, folder: Path) -> None:
        found = evaluate(open_subject(folder / "honest.safetensors"), quick())
        assert raised(found) == set()
        assert found["unreliable"] == []
        assert found["robust_accuracy"]["accuracy"] > 0.6

    def test_the_same_holds_without_autoattack(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            "cloister.server.robustness.suite.obstacle_to_ensemble", lambda *_: "it is not installed"
        )
        masked = evaluate(open_subject(folder / "masked.safetensors"), quick())
        honest = evaluate(open_subject(folder / "honest.safetensors"), quick())
        assert {"zero-gradient", "weak-pgd"} <= raised(masked)
        assert raised(honest) == set()
        assert honest["unreliable"] == ["AutoAttack was not run: it is not installed"]
        assert honest["autoattack"] is None


class TestAlarms:
    GOOD = Observed(
        white=0.80,
        black=0.80,
        transfer=0.9,
        fgsm=0.87,
        pgd20=0.84,
        strong=0.81,
        huge=0.0,
        chance=0.1,
        flat=0.0,
    )

    @pytest.mark.parametrize(
        ("change", "name"),
        [
            ({"black": 0.7}, "black-box"),
            ({"transfer": 0.7}, "black-box"),
            ({"fgsm": 0.8}, "one-step"),
            ({"huge": 0.2}, "huge-epsilon"),
            ({"flat": 0.2}, "zero-gradient"),
            ({"strong": 0.6}, "weak-pgd"),
        ],
    )
    def test_each_sign_raises_its_own_alarm_only(self, change: dict[str, float], name: str) -> None:
        assert [alarm.name for alarm in alarms(self.GOOD) if alarm.raised] == []
        seen = Observed(**(vars(self.GOOD) | change))
        assert [alarm.name for alarm in alarms(seen) if alarm.raised] == [name]

    def test_what_was_not_looked_for_is_neither_raised_nor_cleared(self) -> None:
        assert {alarm.raised for alarm in alarms(Observed())} == {None}

    def test_a_loss_that_is_not_finite_or_flat_is_counted(self) -> None:
        class Broken(nn.Module):
            def forward(self, x: Tensor) -> Tensor:
                scores = x @ torch.eye(3)
                scores[1] = math.inf
                return torch.cat([scores[:2], 0 * scores[2:]])

        assert flat_share(Broken(), torch.rand(4, 3), torch.zeros(4, dtype=torch.int64)) == pytest.approx(
            3 / 4
        )


class TestEvaluation:
    @pytest.mark.slow
    def test_the_same_seed_gives_the_same_figures_and_torchs_generator_is_left_alone(
        self, folder: Path
    ) -> None:
        settings = quick(records=60, sigma=0.1, certified=3, severity=2)
        torch.manual_seed(5)
        before = torch.random.get_rng_state()
        found = [evaluate(open_subject(folder / "honest.safetensors"), settings) for _ in range(2)]
        assert torch.equal(before, torch.random.get_rng_state())
        for one in found:
            one.pop("seconds")
            for attack in one["attacks"].values():
                attack.pop("seconds")
        assert found[0] == found[1]

    def test_every_site_and_the_worst_are_told(self, folder: Path) -> None:
        found = evaluate(open_subject(folder / "honest.safetensors"), quick(attacks=("pgd",), sweep=False))
        assert list(found["sites"]) == ["site-001", "site-002", "site-003", "site-004"]
        assert sum(one["records"] for one in found["sites"].values()) == 200
        mean = sum(one["robust"] * one["records"] for one in found["sites"].values()) / 200
        assert mean == pytest.approx(found["robust_accuracy"]["accuracy"])
        assert found["sites"][found["worst_site"]]["robust"] == min(
            one["robust"] for one in found["sites"].values()
        )

    def test_the_sweep_falls_to_chance_and_an_attack_never_helps(self, folder: Path) -> None:
        found = evaluate(open_subject(folder / "plain.safetensors"), quick(attacks=("fgsm", "pgd")))
        values = [found["accuracy"]["accuracy"], *(point["accuracy"] for point in found["sweep"])]
        assert all(later <= earlier + 0.02 for earlier, later in pairwise(values))
        assert values[-1] <= 0.1
        assert found["sweep"][-1]["anything"]
        assert all(one["accuracy"] <= found["accuracy"]["accuracy"] for one in found["attacks"].values())

    def test_a_transfer_attack_is_made_on_the_other_model(self, folder: Path) -> None:
        one, other = (open_subject(folder / f"{name}.safetensors") for name in ("honest", "plain"))
        settings = quick(attacks=("pgd",), sweep=False)
        transfer = evaluate(one, settings, source=other)["transfer"]
        itself = evaluate(one, settings, source=one)["transfer"]
        assert transfer["sha256"] == other.sha256
        assert itself["accuracy"] < transfer["accuracy"] <= evaluate(one, settings)["accuracy"]["accuracy"]

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"records": 50}, "50 records"),
            ({"attacks": ("fgsm", "pgd", "random-search")}, "margin"),
            ({"attacks": ("pgd-20", "pgd-margin")}, "black-box"),
        ],
    )
    def test_a_weak_evaluation_says_so(self, folder: Path, settings: dict[str, Any], reason: str) -> None:
        given = {
            "attacks": ("pgd-20", "pgd-margin", "random-search"),
            "sweep": False,
            "queries": 20,
        } | settings
        found = evaluate(open_subject(folder / "honest.safetensors"), quick(**given))
        assert any(reason in text for text in found["unreliable"])

    def test_an_interval_is_clopper_and_pearsons(self, folder: Path) -> None:
        found = evaluate(open_subject(folder / "honest.safetensors"), quick(attacks=("fgsm",), sweep=False))[
            "accuracy"
        ]
        exact = stats.binomtest(round(found["accuracy"] * 200), 200).proportion_ci(method="exact")
        assert found["interval"] == pytest.approx([exact.low, exact.high])

    def test_calibration_error_is_torchmetrics(self, folder: Path) -> None:
        from torchmetrics.functional.classification import multiclass_calibration_error

        subject = open_subject(folder / "plain.safetensors")
        sample = draw_sample(subject, 300, 0)
        threat = Threat(norm="linf", epsilon=0.1, low=0.0, high=1.0)
        bout = Bout(
            model=subject.model,
            inputs=sample.inputs,
            targets=sample.targets,
            threat=threat,
            classes=10,
            seed=0,
        )
        expected = multiclass_calibration_error(
            subject.model(sample.inputs).softmax(1), sample.targets, 10, n_bins=15
        )
        assert calibration(bout)["ece"] == pytest.approx(float(expected), abs=1e-5)

    def test_an_unknown_attack_is_refused(self, folder: Path) -> None:
        with pytest.raises(UsageError, match="no attack 'pdg'"):
            evaluate(open_subject(folder / "plain.safetensors"), quick(attacks=("pdg",)))

    def test_columns_only_are_attacked_by_what_can_spare_the_others(self, tmp_path: Path) -> None:
        (tmp_path / "f.toml").write_text('[federation]\nname = "heart"\nrounds = 1\n[task]\nuse = "heart"\n')
        loaded = load_federation(tmp_path / "f.toml")
        from cloister.core.tasks.heart import Heart

        save_file(build_model(Heart(), loaded.spec.federation.seed).state_dict(), tmp_path / "m.safetensors")
        subject = open_subject(tmp_path / "m.safetensors", tmp_path / "f.toml")
        found = evaluate(subject, quick(features=("age", "chol"), sweep=False, queries=30))
        assert found["features"] == ["age", "chol"]
        assert set(found["attacks"]) == {"fgsm", "pgd-20", "pgd", "pgd-margin", "random-search"}
        assert set(found["sites"]) == {"cleveland", "hungarian", "switzerland", "long-beach-va"}
        with pytest.raises(UsageError, match="some columns only"):
            evaluate(subject, quick(attacks=("square",)))


class TestSubject:
    @pytest.mark.parametrize("name", ["model.pt", "model.pth", "model.bin", "model.PKL"])
    def test_what_would_be_unpickled_is_refused_by_name(
        self, folder: Path, tmp_path: Path, name: str
    ) -> None:
        (tmp_path / name).write_bytes(b"cos\nsystem\n(S'touch /tmp/x'\ntR.")
        with pytest.raises(IntegrityError) as caught:
            open_subject(tmp_path / name, folder / "federation.toml")
        assert caught.value.code == "model-unsafe"

    def test_a_file_that_is_none_is_refused(self, folder: Path, tmp_path: Path) -> None:
        (tmp_path / "m.safetensors").write_bytes(b"\x80\x04nonsense")
        with pytest.raises(IntegrityError, match="not a safetensors file"):
            open_subject(tmp_path / "m.safetensors", folder / "federation.toml")
        with pytest.raises(UsageError, match="no model"):
            open_subject(tmp_path / "absent.safetensors", folder / "federation.toml")
        with pytest.raises(UsageError, match="made for") as caught:
            open_subject(tmp_path / "m.safetensors")
        assert "--task" in caught.value.remedy

    @pytest.mark.parametrize("damage", ["missing", "unknown", "shape", "nan"])
    def test_a_model_of_another_task_is_refused(
        self, folder: Path, tmp_path: Path, tensors: dict[str, dict[str, Tensor]], damage: str
    ) -> None:
        held = {name: value.clone() for name, value in tensors["plain"].items()}
        if damage == "missing":
            held.pop("output.bias")
        elif damage == "unknown":
            held["other"] = torch.zeros(1)
        elif damage == "shape":
            held["output.bias"] = torch.zeros(9)
        else:
            held["output.bias"][0] = math.nan
        save_file(held, tmp_path / "m.safetensors")
        with pytest.raises(IntegrityError) as caught:
            open_subject(tmp_path / "m.safetensors", folder / "federation.toml")
        assert caught.value.code == "model-layout"

    def test_the_sample_is_drawn_over_all_sites_by_the_seed(self, folder: Path) -> None:
        subject = open_subject(folder / "plain.safetensors")
        first, again, other = (draw_sample(subject, 50, seed) for seed in (1, 1, 2))
        assert torch.equal(first.inputs, again.inputs)
        assert not torch.equal(first.inputs, other.inputs)
        assert set(first.site.tolist()) == {0, 1, 2, 3}
        assert len(draw_sample(subject, 10**6, 1).targets) == sum(
            len(data) for data in subject.sites.values()
        )

    def test_inputs_that_cannot_be_moved_are_refused(self, folder: Path) -> None:
        subject = open_subject(folder / "plain.safetensors")
        data = subject.sites["site-001"]

        class Tokens:
            targets = data.targets

            def __len__(self) -> int:
                return len(data)

            def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
                x, y = data.batch(rows)
                return x.long(), y

            def subset(self, rows: Any) -> Any:
                return self

        changed = Subject(**(vars(subject) | {"sites": {"a": Tokens()}}))
        with pytest.raises(DataError, match="cannot be moved"):
            draw_sample(changed, 5, 0)


class TestCorruptions:
    @pytest.mark.parametrize("name", list(CORRUPTIONS))
    @pytest.mark.parametrize("shape", [(3, 1, 8, 8), (2, 3, 28, 20)])
    def test_each_is_seeded_keeps_the_range_and_grows_with_its_severity(
        self, name: str, shape: tuple[int, ...]
    ) -> None:
        images = torch.rand(shape, generator=torch.Generator().manual_seed(1))
        images = functional.avg_pool2d(images, 3, 1, 1)
        found = [corrupt(name, images, severity=severity, seed=3) for severity in range(1, 6)]
        for one in found:
            assert one.shape == images.shape
            assert one.min() >= 0
            assert one.max() <= 1
        assert torch.equal(found[2], corrupt(name, images, severity=3, seed=3))
        distance = [float((one - images).norm()) for one in found]
        assert 0 < distance[0] < distance[-1]

    def test_there_are_fifteen_and_another_seed_gives_other_noise(self) -> None:
        images = torch.full((2, 1, 8, 8), 0.5)
        assert len(CORRUPTIONS) == 15
        one, other = (corrupt("gaussian_noise", images, severity=3, seed=seed) for seed in (1, 2))
        assert not torch.equal(one, other)

    @pytest.mark.parametrize(("name", "severity"), [("gausian", 3), ("fog", 0), ("fog", 6)])
    def test_what_is_none_is_refused(self, name: str, severity: int) -> None:
        with pytest.raises(SpecError, match="no corruption"):
            corrupt(name, torch.rand(1, 1, 8, 8), severity=severity, seed=0)


class TestSmoothing:
    def test_the_radius_of_a_linear_model_is_below_the_true_distance_and_near_it(self) -> None:
        # The smoothed linear classifier is the linear classifier: the distance to its border is the radius that no certificate exceeds.
        model = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        records = torch.tensor([[0.3, 5.0], [-0.2, 1.0], [0.45, 0.0]])
        found = certify(model, records, classes=2, sigma=0.3, seed=1, samples=4000)
        assert found.predicted.tolist() == [0, 1, 0]
        distance = records[:, 0].abs()
        assert (found.radius <= distance).all()
        assert (found.radius >= 0.75 * distance).all()

    def test_a_coin_is_certified_no_more_often_than_alpha(self) -> None:
        model = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            model.weight.copy_(torch.tensor([[1.0, 0.0], [-1.0, 0.0]]))
        found = certify(model, torch.zeros(500, 2), classes=2, sigma=1.0, seed=1, samples=200, alpha=0.05)
        abstained = found.predicted == -1
        # One-sided by its nature: 5%, plus 4 standard deviations.
        assert float((~abstained).double().mean()) < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 500)
        assert not found.radius[abstained].any()

    @pytest.mark.parametrize(("successes", "trials"), [(0, 10), (7, 10), (10, 10), (990, 1000)])
    def test_the_bound_is_clopper_and_pearsons(self, successes: int, trials: int) -> None:
        exact = stats.binomtest(successes, trials, alternative="greater").proportion_ci(0.999, method="exact")
        assert lower_bound(successes, trials, 0.001) == pytest.approx(exact.low)

    def test_the_bound_is_above_the_truth_no_more_often_than_alpha(self) -> None:
        rng = np.random.default_rng(1)
        above = np.mean([lower_bound(int(k), 200, 0.05) > 0.8 for k in rng.binomial(200, 0.8, size=2000)])
        # At most 5%, plus 4 standard deviations; and not never: the bound is tight.
        assert 0.02 < above < 0.05 + 4 * math.sqrt(0.05 * 0.95 / 2000)

    @pytest.mark.parametrize("sigma", [0.0, -1.0, math.nan, math.inf])
    def test_no_noise_is_refused(self, sigma: float) -> None:
        with pytest.raises(SpecError, match="certifies nothing"):
            certify(nn.Linear(2, 2), torch.zeros(1, 2), classes=2, sigma=sigma, seed=1)


class TestCommand:
    def run(self, *arguments: str) -> Any:
        return CliRunner().invoke(command.app, ["audit", "robustness", *arguments])

    def test_it_writes_a_page_and_json_and_prints_one_object(self, folder: Path, tmp_path: Path) -> None:
        done = self.run(
            str(folder / "honest.safetensors"), "--task", str(folder / "federation.toml"), "--epsilon", "0.1",
            "--images", "60", "--attacks", "fgsm,pgd-20,pgd-margin,random-search", "--queries", "20", "--steps", "5",
            "--sigma", "0.1", "--certified", "2", "--out", str(tmp_path / "out"), "--json",
        )  # fmt: skip
        assert done.exit_code == 0
        found = json.loads(done.stdout)
        assert found["records"] == 60
        written = json.loads((tmp_path / "out" / "robustness.json").read_text())
        assert written["robust_accuracy"] == found["robust_accuracy"]
        assert set(written["corruptions"]["accuracy"]) == set(CORRUPTIONS)
        page = (tmp_path / "out" / "robustness.html").read_text()
        assert page.count("<svg") == 3
        for outside in ("http://", "https://", "<script", "<link", "src="):
            assert outside not in page

    def test_a_model_below_its_threshold_ends_with_8(self, folder: Path) -> None:
        done = self.run(
            str(folder / "plain.safetensors"), "--epsilon", "0.3", "--attacks", "pgd", "--images", "40",
            "--severity", "0", "--no-sweep", "--least", "0.9", "--json",
        )  # fmt: skip
        assert done.exit_code == 8

    def test_an_unknown_attack_is_refused_before_anything_is_read(self, tmp_path: Path) -> None:
        done = self.run(str(tmp_path / "absent"), "--epsilon", "0.1", "--attacks", "pgd20", "--json")
        assert done.exit_code == 2

    def test_names_from_a_file_are_escaped(self, folder: Path) -> None:
        found = evaluate(
            open_subject(folder / "honest.safetensors"), quick(records=30, attacks=("fgsm",), sweep=False)
        )
        found["federation"] = "<b>x</b>"
        found["sites"]["<i>"] = found["sites"].pop("site-001")
        found["worst_site"] = "<i>"
        page = render_page(found)
        assert "<b>x" not in page
        assert "<i>" not in page

    @pytest.mark.slow
    def test_torchvision_is_not_imported(self, folder: Path) -> None:
        code = (
            "import sys\nfrom pathlib import Path\n"
            "from cloister.server.robustness.evaluation import Settings, evaluate\n"
            "from cloister.server.robustness.subject import open_subject\n"
            f"evaluate(open_subject(Path({str(folder / 'honest.safetensors')!r})), Settings(norm='linf', epsilon=0.1, records=5, queries=5, steps=2))\n"
            "sys.exit('torchvision' in sys.modules)\n"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
