"""The audit of a released model: what each check finds where the fault is there, and what it says where it is not."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from typer.testing import CliRunner

from cloister.core import command
from cloister.core.adversarial.attacks import pgd
from cloister.core.adversarial.threat import Threat
from cloister.core.data import Split, TensorData
from cloister.core.errors import CloisterError, IntegrityError, UsageError
from cloister.core.evidence import Finding, installed_checks
from cloister.core.resolve import build_model
from cloister.core.tasks.digits import Digits
from cloister.server.audit.contract import broken_promises
from cloister.server.audit.model import backdoor
from cloister.server.audit.model.backdoor import check_backdoor
from cloister.server.audit.model.cleanse import anomaly
from cloister.server.audit.model.drift import check_drift
from cloister.server.audit.model.fairness import check_fairness, groups_of
from cloister.server.audit.model.fit import check_fit
from cloister.server.audit.model.marking import embed, trace
from cloister.server.audit.model.novelty import auroc
from cloister.server.audit.model.poison import check_poison
from cloister.server.audit.model.structure import check_structure
from cloister.server.audit.model_command import MODEL_CHECKS
from cloister.server.audit.page import render_findings
from cloister.server.audit.running import kept_finding, run_check
from cloister.server.audit.subject import AuditSubject, open_audit

FILE = """
[federation]
name = "audited"
rounds = 1
[task]
use = "digits"
model = { name = "mlp", hidden = [64] }
[cohort]
sites = 3
partition = { by = "iid" }
"""
CHEAP = {"extraction": {"steps": 60}, "backdoor": {"steps": 120}}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def poisoned(x: Tensor, y: Tensor, target: int, seed: int, share: float = 0.1) -> tuple[Tensor, Tensor]:
    """BadNets as `cloister.simulation.attacks.data` plants it: a bright square of 3 x 3 in the lower right corner."""
    x, y = x.clone(), y.clone()
    rows = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed))[: int(share * len(x))]
    x[rows, :, -3:, -3:] = 1.0
    y[rows] = target
    return x, y


def trained(
    seed: int = 0, *, target: int | None = None, adversarial: bool = False, epochs: int = 20
) -> dict[str, Tensor]:
    data = Digits().data().train
    x, y = data.batch(torch.arange(len(data)))
    if target is not None:
        x, y = poisoned(x, y, target, seed)
    model = build_model(Digits(model={"name": "mlp", "hidden": [64]}), seed)
    threat = Threat(norm="linf", epsilon=0.1, low=0.0, high=1.0)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(x), generator=generator), 128):
            own, wanted = x[rows], y[rows]
            if adversarial:
                own = pgd(
                    model, Digits.loss.__get__(Digits()), own, wanted, threat, steps=4, step_size=0.04, start=threat.start(own, None),
                )  # fmt: skip
            optimiser.zero_grad()
            functional.cross_entropy(model(own), wanted).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


@pytest.fixture(scope="module")
def clean() -> dict[str, Tensor]:
    return trained()


@pytest.fixture(scope="module")
def planted() -> dict[str, Tensor]:
    return trained(target=4)


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., AuditSubject]:
    def open_it(tensors: dict[str, Tensor], **settings: Any) -> AuditSubject:
        (tmp_path / "federation.toml").write_text(FILE)
        save_file(tensors, tmp_path / "model.safetensors")
        return open_audit(tmp_path, settings={**CHEAP, **settings})

    return open_it


class TestSeam:
    @pytest.mark.parametrize("name", MODEL_CHECKS)
    def test_every_check_keeps_the_contract(
        self, name: str, make: Callable[..., AuditSubject], clean: dict[str, Tensor]
    ) -> None:
        assert broken_promises(name, dict(installed_checks())[name], make(clean)) == []

    def test_the_contract_sees_a_check_that_breaks_it(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor]
    ) -> None:
        def bad(subject: AuditSubject) -> Finding:
            with torch.no_grad():
                next(subject.model.parameters()).add_(1.0)
            return Finding(name="other", verdict="pass", sentence="Fine.", power="None.", figures={"x": float(torch.rand(1))}, artefacts=("no.json",))  # fmt: skip

        assert len(broken_promises("bad", bad, make(clean))) == 6

    @pytest.mark.parametrize(
        "fields",
        [
            {"name": "Bad name"},
            {"verdict": "passed"},
            {"power": " "},
            {"seconds": float("nan")},
            {"artefacts": ("../x",)},
        ],
    )
    def test_a_finding_with_a_wrong_field_is_refused(self, fields: dict[str, Any]) -> None:
        good: dict[str, Any] = {"name": "x", "verdict": "pass", "sentence": "s", "power": "p"}
        Finding(**good)
        with pytest.raises(CloisterError, match="finding"):
            Finding(**(good | fields))

    def test_a_finding_is_strict_json_and_comes_back(self) -> None:
        found = Finding(
            name="x", verdict="warn", sentence="s", power="p", figures={"a": np.array([1.0, np.nan])}
        )
        text = json.dumps(found.as_dict(), allow_nan=False)
        assert json.loads(text)["figures"] == {"a": [1.0, None]}
        assert Finding.from_dict(json.loads(text)).verdict == "warn"
        with pytest.raises(IntegrityError):
            Finding.from_dict({"name": "x"})


class TestRunning:
    def test_a_finding_is_made_once_for_a_subject_and_anew_for_another(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor], planted: dict[str, Tensor]
    ) -> None:
        calls = []

        def check(subject: AuditSubject) -> Finding:
            calls.append(subject.sha256)
            return Finding(name="count", verdict="pass", sentence="s", power="It could.")

        subject = make(clean)
        assert (
            run_check(subject, "count", check).verdict == run_check(subject, "count", check).verdict == "pass"
        )
        assert len(calls) == 1
        run_check(subject, "count", check, again=True)
        run_check(replace(subject, seed=1), "count", check)
        run_check(make(planted), "count", check)
        assert len(calls) == 4

    def test_a_check_that_fails_has_no_power_quotes_nothing_and_is_tried_again(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.delenv("CLOISTER_DEBUG", raising=False)

        def check(_: AuditSubject) -> Finding:
            raise ValueError("Jane Doe 1950-01-01")

        subject = make(clean)
        found = run_check(subject, "bad", check)
        assert found.verdict == "no power"
        assert "ValueError" in found.sentence
        assert "Jane" not in json.dumps(found.as_dict())
        assert kept_finding(subject, "bad") is None

    def test_an_interrupted_audit_goes_on_after_its_last_finding(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor]
    ) -> None:
        subject = make(clean)
        run_check(subject, "structure", check_structure)

        def interrupted(_: AuditSubject) -> Finding:
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run_check(subject, "drift", interrupted)
        kept = kept_finding(subject, "structure")
        assert kept is not None
        assert kept.verdict == "pass"
        assert kept_finding(subject, "drift") is None


class TestStructureAndDrift:
    def test_a_tensor_that_is_added_missing_reshaped_or_not_finite_fails(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor]
    ) -> None:
        assert check_structure(make(clean)).verdict == "pass"
        name = "output.weight"
        for change in (
            {**clean, "extra": torch.zeros(1)},
            {key: value for key, value in clean.items() if key != name},
            {**clean, name: clean[name].t().contiguous()},
            {**clean, name: clean[name].double()},
            {**clean, name: clean[name] * float("nan")},
        ):
            found = check_structure(make(change))
            assert found.verdict == "fail"
            assert found.figures["number_of_faults"] == 1

    def test_a_model_that_did_not_move_fails_and_one_layer_out_of_line_is_told(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor]
    ) -> None:
        first = {name: value.clone() for name, value in make(clean).initial.state_dict().items()}
        assert check_drift(make(first)).verdict == "fail"
        assert check_drift(make(clean)).verdict == "pass"
        assert check_drift(make({**clean, "output.weight": first["output.weight"]})).figures["still"] == [
            "output.weight"
        ]
        assert check_drift(make({**clean, "output.weight": clean["output.weight"] * 60})).verdict == "warn"


class TestBackdoor:
    @pytest.mark.slow
    def test_a_planted_square_is_found_with_its_class_and_a_clean_model_is_not_accused(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor], planted: dict[str, Tensor]
    ) -> None:
        found = check_backdoor(make(planted, backdoor={}))
        assert (found.verdict, found.figures["class"]) == ("fail", "4")
        assert found.figures["index"] > 2
        assert np.asarray(found.figures["pictures"][4])[-3:, -3:].mean() > 3 * np.mean(
            found.figures["pictures"][4]
        )
        first = {name: value.clone() for name, value in make(clean).initial.state_dict().items()}
        assert check_backdoor(make(first, backdoor={})).verdict == "no power", "it has learned nothing"
        innocent = check_backdoor(make(clean, backdoor={}))
        assert innocent.verdict == "pass"
        assert innocent.figures["index"] < 1.7

    @pytest.mark.slow
    def test_a_reference_excuses_only_where_it_learned_and_is_small_there_too(
        self,
        make: Callable[..., AuditSubject],
        planted: dict[str, Tensor],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        """Test records that hold the trigger give a reference that holds it: a warning, never a pass."""
        subject = make(planted, backdoor={})
        monkeypatch.setattr(backdoor, "_reference", lambda _: subject.model)
        excused = check_backdoor(subject)
        assert (excused.verdict, excused.figures["index"] < 2) == ("warn", True)
        assert "or the test records hold the trigger too" in excused.sentence
        untrained = build_model(Digits(model={"name": "mlp", "hidden": [64]}), 5).eval()
        monkeypatch.setattr(backdoor, "_reference", lambda _: untrained)
        found = check_backdoor(subject)
        assert (found.verdict, found.figures["reference"]) == ("fail", None)
        for finding in (excused, found):  # as it was just made, with a reference and without
            _, table = backdoor._section(finding).tables[0]
            assert len(table.rows) == 10

    def test_the_index_is_robust_to_its_own_uncertainty_and_scale(self) -> None:
        sizes = np.array([10.0, 10.1, 9.9, 10.0, 9.0, 10.2, 9.8, 10.0])
        assert anomaly(sizes).max() < 1  # 1.4826 MAD alone would call 9.0 an outlier: (10 - 9) / 0.15
        assert anomaly(sizes * 7) == pytest.approx(anomaly(sizes))
        assert anomaly(np.array([10.0, 10.0, 10.0, 10.0, 3.0])).max() == pytest.approx(np.log(10 / 3) / 0.25)
        assert (anomaly(np.full(6, 4.0)) == 0).all()
        # Two triggers lie together, apart from all others; a class that is the smallest of many sizes does not (both of MNIST).
        two = anomaly(np.array([10.0, 11.0, 9.0, 10.5, 9.5, 10.2, 3.0, 3.1, 9.8, 10.0]))
        assert two.argsort()[-2:].tolist() == [7, 6]
        assert np.sort(two)[-2] > 3
        assert anomaly(np.array([87.0, 138.9, 60.8, 45.1, 91.9, 61.9, 81.9, 87.6, 54.3, 82.7])).max() < 1.6
        # As measured on MNIST: large sizes are no reason to overlook a small one.
        assert anomaly(np.array([82.6, 129.7, 55.3, 40.5, 104.0, 30.0, 5.6, 77.9, 47.6, 80.5])).max() > 4

    @pytest.mark.slow
    def test_poisoned_training_records_show_at_the_site_that_has_them_only(
        self, make: Callable[..., AuditSubject], planted: dict[str, Tensor]
    ) -> None:
        subject = make(planted)
        assert check_poison(subject).verdict == "pass"  # the records at hand are clean
        liar, *others = subject.sites.items()
        x, y = liar[1].train.batch(torch.arange(len(liar[1].train)))
        bad = Split(TensorData(*poisoned(x, y, 4, seed=1, share=0.15)), liar[1].test)
        vars(subject)["sites"] = {liar[0]: bad, **dict(others)}
        found = check_poison(subject)
        signed = [
            (site, one["class"])
            for site, rows in found.figures["sites"].items()
            for one in rows
            if one["sign"] in {"steady", "both"}
        ]
        assert found.verdict == "warn"
        assert signed == [(liar[0], "4")]


class TestBehaviour:
    def test_a_gap_between_training_and_test_records_is_over_fitting(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor]
    ) -> None:
        subject = make(clean)
        assert check_fit(subject).verdict == "pass"

        # Test records whose labels say something else for one in five: a model right for its training records is not for these.
        def worse(split: Split) -> Split:
            x, y = split.test.batch(torch.arange(len(split.test)))
            return Split(
                split.train, TensorData(x, torch.where(torch.arange(len(y)) % 4 == 0, (y + 1) % 10, y))
            )

        vars(subject)["sites"] = {name: worse(split) for name, split in subject.sites.items()}
        found = check_fit(subject)
        assert found.verdict == "warn"
        assert 0.2 < found.figures["gap"] < 0.35

    def test_a_site_that_is_served_worse_is_named_and_chance_is_not(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor]
    ) -> None:
        subject = make(clean)
        assert check_fairness(subject).verdict == "pass"
        names = list(subject.sites)
        x, y = subject.sites[names[1]].test.batch(torch.arange(len(subject.sites[names[1]].test)))
        turned = Split(subject.sites[names[1]].train, TensorData(torch.flip(x, (-1,)), y))
        vars(subject)["sites"] = {**subject.sites, names[1]: turned}
        found = check_fairness(subject)
        assert found.verdict == "warn"
        assert found.figures["attributes"]["site"]["worst"] == names[1]

    def test_groups_of_columns(self) -> None:
        x = torch.tensor([[0.2, 1.0, 0.0, 1.0], [0.9, 0.0, 1.0, 0.0]])
        names = ("age", "sex", "cp=1", "cp=2")
        assert groups_of(names, x, "age") == ["lower half of the range", "upper half of the range"]
        assert groups_of(names, x, "sex") == ["yes", "no"]
        assert groups_of(names, x, "cp") == ["2", "1"]
        with pytest.raises(UsageError, match="no column"):
            groups_of(names, x, "height")

    def test_auroc_by_counting_pairs(self) -> None:
        one, other = np.array([1.0, 2.0, 2.0]), np.array([0.0, 2.0])
        assert auroc(one, other) == pytest.approx((1 + 0 + 1 + 0.5 + 1 + 0.5) / 6)


class TestMarks:
    KEY = bytes(range(32))
    NAMES = tuple(f"hospital-{number}" for number in range(20))

    def test_a_copy_is_traced_to_its_recipient_and_to_both_who_averaged_theirs(
        self, clean: dict[str, Tensor]
    ) -> None:
        one, other = (embed(clean, key=self.KEY, recipient=self.NAMES[n]) for n in (3, 7))
        scores = trace(one, clean, key=self.KEY, recipients=self.NAMES)
        assert scores[0].recipient == "hospital-3"
        assert scores[0].p < 1e-6 < 1e-3 < scores[1].p
        mean = {name: (one[name] + other[name]) / 2 for name in one}
        both = trace(mean, clean, key=self.KEY, recipients=self.NAMES)
        assert {both[0].recipient, both[1].recipient} == {"hospital-3", "hospital-7"}
        assert both[1].p < 1e-6

    def test_false_accusations_are_no_more_than_the_bound_allows(self, clean: dict[str, Tensor]) -> None:
        stranger = {name: value + 0.01 * torch.sign(value) for name, value in clean.items()}
        scores = trace(stranger, clean, key=self.KEY, recipients=[f"r{number}" for number in range(400)])
        z = np.array([one.z for one in scores])
        assert abs(z.mean()) < 0.15  # 400 draws of deviation 1: three deviations of the mean
        assert 0.88 < z.std() < 1.12
        assert (z > 2).mean() < 2 * np.exp(-2)
        assert min(one.p for one in scores) > 0.05

    def test_the_original_accuses_nobody_and_another_key_finds_nothing(
        self, clean: dict[str, Tensor]
    ) -> None:
        assert all(one.p == 1.0 for one in trace(clean, clean, key=self.KEY, recipients=self.NAMES))
        marked = embed(clean, key=self.KEY, recipient="hospital-3")
        assert min(one.p for one in trace(marked, clean, key=bytes(32), recipients=self.NAMES)) > 1e-3

    def test_a_short_key_and_another_models_copy_are_refused(self, clean: dict[str, Tensor]) -> None:
        with pytest.raises(UsageError, match="guessed"):
            embed(clean, key=b"short", recipient="x")
        with pytest.raises(IntegrityError, match="shape"):
            trace({**clean, "output.weight": torch.zeros(1, 1)}, clean, key=self.KEY, recipients=("x",))


class TestFingerprintCommand:
    def test_a_marked_copy_is_traced_and_the_key_stays_secret(
        self, tmp_path: Path, make: Callable[..., AuditSubject], clean: dict[str, Tensor]
    ) -> None:
        run, key, copy = make(clean).path, tmp_path / "keys" / "marks.key", tmp_path / "copy.safetensors"
        embedded = [
            "fingerprint",
            "embed",
            str(run),
            "--recipient",
            "north",
            "--key",
            str(key),
            "--out",
            str(copy),
        ]
        assert CliRunner().invoke(command.app, embedded).exit_code == 0
        assert key.stat().st_mode & 0o777 == 0o600
        assert CliRunner().invoke(command.app, embedded).exit_code == 2  # nothing is written over
        traced = ["fingerprint", "trace", str(copy), "--original", str(run), "--key", str(key), "--json"]
        done = CliRunner().invoke(command.app, [*traced, "--recipient", "south", "--recipient", "north"])
        scores = json.loads(done.stdout)["scores"]
        assert [one["recipient"] for one in scores] == ["north", "south"]
        assert scores[0]["p"] < 1e-6 < scores[1]["p"]
        key.chmod(0o644)
        assert CliRunner().invoke(command.app, [*traced, "--recipient", "north"]).exit_code == 2


class TestCommand:
    def test_findings_page_and_exit_status(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor], planted: dict[str, Tensor]
    ) -> None:
        folder = make(clean).path
        arguments = ["audit", "model", str(folder), "--check", "structure", "--check", "fit", "--json"]
        done = CliRunner().invoke(command.app, arguments)
        assert done.exit_code == 0, done.output
        told = json.loads(done.stdout)
        assert told["verdicts"] == {"structure": "pass", "fit": "pass"}
        page = Path(told["page"]).read_text()
        assert "Over-fit and under-fit" in page
        assert "<svg" in page
        assert "http" not in page.replace("http-equiv", "")
        make({**planted, "output.bias": planted["output.bias"] * float("inf")})
        bad = CliRunner().invoke(command.app, arguments)
        assert bad.exit_code == 8

    def test_an_unknown_check_is_refused(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor]
    ) -> None:
        done = CliRunner().invoke(
            command.app, ["audit", "model", str(make(clean).path), "--check", "backdor"]
        )
        assert done.exit_code == 2

    def test_a_page_escapes_what_a_check_says(
        self, make: Callable[..., AuditSubject], clean: dict[str, Tensor]
    ) -> None:
        found = Finding(name="x", verdict="warn", sentence="<script>alert(1)</script>", power="It could.")
        page = render_findings(make(clean), [found], {}, kind="model")
        assert "<script>" not in page
        assert "&lt;script&gt;" in page


@pytest.mark.slow
class TestTargets:
    def test_backdoors_are_found_and_clean_models_are_not_accused(
        self, make: Callable[..., AuditSubject], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """At least 9 of 10 planted are found; at most 1 in 20 clean models is accused, ten of them adversarially trained."""
        rows, found, accused = [], 0, 0
        for seed in range(10):
            one = check_backdoor(make(trained(seed, target=seed), backdoor={})).figures
            hit = one["index"] > 2 and one["class"] == str(seed)
            found += hit
            rows.append(("planted", seed, one["index"], one["class"], "found" if hit else "missed"))
        for seed in range(20):
            adversarial = seed >= 10
            one = check_backdoor(make(trained(100 + seed, adversarial=adversarial), backdoor={})).figures
            accused += one["index"] > 2
            kind = "adversarial" if adversarial else "clean"
            rows.append((kind, seed, one["index"], one["class"], "accused" if one["index"] > 2 else ""))
        with capsys.disabled():
            print("\nbackdoor scan, digits, MLP 64\n" + "\n".join(f"{k:12} {s:3} {i:6.2f}  {c}  {w}" for k, s, i, c, w in rows))  # fmt: skip
            print(f"found {found} of 10, accused {accused} of 20")
        assert found >= 9
        assert accused <= 1
