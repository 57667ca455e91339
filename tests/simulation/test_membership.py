"""The membership audit: shadows that go through the run's own training, an audit that resumes, and what it finds."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from cloister.client.trainer import Trainer
from cloister.core.data import Split, TensorData
from cloister.core.evidence import Finding
from cloister.core.randomness import SeededRandomness
from cloister.core.resolve import build_model, load_task
from cloister.core.spec import Loaded, load_federation
from cloister.core.update import Layout
from cloister.server.audit.contract import broken_promises
from cloister.server.audit.subject import open_audit
from cloister.simulation.membership import shadows as shadows_module
from cloister.simulation.membership.checking import check_membership
from cloister.simulation.membership.one_by_one import _shadowed, train_one
from cloister.simulation.membership.side_by_side import Records, obstacle, train_side_by_side

SEED = SeededRandomness(5)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def federation(folder: Path, more: str = "", *, hidden: int = 8, rounds: int = 2) -> Path:
    path = folder / "federation.toml"
    path.write_text(
        f"""
[federation]
name = "members"
rounds = {rounds}
seed = 3
[task]
use = "digits"
model = {{ name = "mlp", hidden = [{hidden}] }}
[cohort]
sites = 3
min_sites = 3
partition = {{ by = "iid" }}
{more or "[training]" + chr(10) + "local_epochs = 1"}
"""
    )
    return path


def parts(loaded: Loaded) -> tuple[Any, Any, list[Records], np.ndarray]:
    task = load_task(loaded.spec.task, loaded.base)
    model = build_model(task, loaded.spec.federation.seed)
    split = task.data()
    assert isinstance(split, Split)
    x, y = split.train.batch(torch.arange(90))
    records = [Records(inputs=x[:50], targets=y[:50]), Records(inputs=x[50:], targets=y[50:])]
    members = np.random.default_rng(0).random((3, 90)) < 0.5
    return task, model, records, members


WHOLE = "[training]\nlocal_steps = {steps}\nbatch_size = 1000\noptimizer = {optimizer}\n{more}\n[aggregation]\n{aggregation}\n"


class TestSideBySide:
    @pytest.mark.parametrize(
        ("steps", "optimizer", "more", "aggregation"),
        [
            (1, '{ name = "sgd", lr = 0.5 }', "", ""),
            (3, '{ name = "sgd", lr = 0.3, momentum = 0.9 }', "l2 = 0.01\nproximal_mu = 0.1", "weighting = { records_cap = 22 }"),
            (2, '{ name = "adam", lr = 0.01 }', "gradient_clip = 0.2\nl1 = 0.001", 'optimizer = { name = "fedadam", lr = 0.05 }'),
        ],
    )  # fmt: skip
    def test_a_shadow_is_trained_as_the_sites_own_trainer_would(
        self, tmp_path: Path, steps: int, optimizer: str, more: str, aggregation: str
    ) -> None:
        from cloister.strategies.optimisers import optimiser_from

        text = WHOLE.format(steps=steps, optimizer=optimizer, more=more, aggregation=aggregation)
        loaded = load_federation(federation(tmp_path, text))
        task, model, records, members = parts(loaded)
        found = train_side_by_side(loaded.spec, task, model, records, members, randomness=SEED)
        layout = Layout.of(model)
        weights = loaded.spec.aggregation.weighting
        for shadow in range(3):
            fresh = build_model(task, loaded.spec.federation.seed)
            trainer = Trainer(loaded.spec, task, fresh, layout)
            vector = layout.read(build_model(task, loaded.spec.federation.seed))
            server = optimiser_from(loaded.spec.aggregation.optimizer)
            state = server.start(len(vector))
            for number in (1, 2):
                total, weight = np.zeros(len(vector)), 0.0
                for part, own in zip(records, (members[shadow, :50], members[shadow, 50:]), strict=True):
                    data = TensorData(part.inputs[own], part.targets[own])
                    change = trainer.train(
                        vector, data, site="x", round_number=number, randomness=SEED
                    ).change
                    share = 1.0 if weights == "uniform" else min(len(data), weights.records_cap)
                    total, weight = total + share * change, weight + share
                vector, state = server.step(vector, total / weight, state)
            made = torch.cat([value.flatten() for value in found[shadow].values()]).numpy()
            assert np.abs(made - vector).max() < 2e-5 * max(1.0, np.abs(vector).max())
        assert any((found[0][name] != found[1][name]).any() for name in found[0])

    def test_private_shadows_clip_every_record_and_carry_the_noise(self, tmp_path: Path) -> None:
        text = (
            "[training]\nlocal_steps = 1\nbatch_size = 20\noptimizer = { name = 'sgd', lr = 1.0 }\n[privacy]\nunit = 'record'\n"
            "noise_multiplier = 0.7\ndelta = 1e-5\nclip = 0.5\nsampling_rate = 1.0\n[aggregation]\nprotection = 'plain'\n"
        )
        loaded = load_federation(federation(tmp_path, text, rounds=1))
        task, model, records, _ = parts(loaded)
        only = [records[0]]
        members = np.zeros((200, 50), dtype=bool)
        members[:, :10] = True
        found = train_side_by_side(loaded.spec, task, model, only, members, randomness=SEED)
        start = dict(model.named_parameters())
        moved = torch.cat(
            [(torch.stack([one[name] for one in found]) - start[name].detach()).flatten(1) for name in start],
            dim=1,
        ).double()
        # Mean: the clipped gradients over B; deviation: σC/B in every number. 200 shadows, some thousand numbers.
        clipped = []
        for row in range(10):
            grads = torch.autograd.grad(
                task.loss(model(records[0].inputs[row : row + 1]), records[0].targets[row : row + 1]).sum(),
                list(model.parameters()),
            )
            flat = torch.cat([part.flatten() for part in grads])
            clipped.append(flat * min(1.0, 0.5 / float(flat.norm())))
        mean = -torch.stack(clipped).sum(0).double() / 20
        sd = 0.7 * 0.5 / 20
        error = moved.mean(0) - mean
        assert float(error.std()) == pytest.approx(sd / 200**0.5, rel=0.15)
        assert float(moved.std(0).mean()) == pytest.approx(sd, rel=0.03)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("[training]\nscaffold = true\noptimizer = { name = 'sgd', lr = 0.1 }", "SCAFFOLD"),
            ("[training]\nearly_stop = { patience = 1 }", "early stopping"),
            ("[aggregation]\nprotection = 'plain'\nrule = 'median'", "rule"),
            ("", ""),
        ],
    )
    def test_what_cannot_be_stacked_is_told(self, tmp_path: Path, text: str, why: str) -> None:
        loaded = load_federation(federation(tmp_path, text))
        task, model, records, _ = parts(loaded)
        found = obstacle(loaded.spec, task, model, records)
        assert (why in found) if why else found == ""


@pytest.mark.slow
class TestOneByOne:
    def test_a_shadow_of_a_robust_run_is_a_simulation_on_its_half(self, tmp_path: Path) -> None:
        text = "[training]\nlocal_epochs = 1\n[aggregation]\nprotection = 'plain'\nrule = 'median'\n"
        loaded = load_federation(federation(tmp_path, text))
        rng = np.random.default_rng(0)
        sizes = [len(split.train) + len(split.test) for split in _sites(loaded).values()]
        half = {place: rng.random(size) < 0.5 for place, size in enumerate(sizes)}
        one, same, other = (
            train_one(loaded, flags, seed=7) for flags in (half, half, {k: ~v for k, v in half.items()})
        )
        assert all(torch.equal(one[name], same[name]) for name in one)
        assert any(not torch.equal(one[name], other[name]) for name in one)


def test_shadows_are_summed_in_clear_where_they_can_be(tmp_path: Path) -> None:
    for text, protection in (
        ("[aggregation]\nprotection = 'masked'\n", "plain"),
        ("[aggregation]\nrule = 'median'\ngroup_size = 3\nbyzantine = 0\n", "masked"),
    ):
        loaded = load_federation(federation(tmp_path, text))
        assert loaded.spec.aggregation.protection == "masked"
        assert _shadowed(loaded, tmp_path, 1).spec.aggregation.protection == protection


def _sites(loaded: Loaded) -> dict[str, Any]:
    from cloister.simulation.records import site_records

    return site_records(loaded) or {}


class TestCheck:
    SMALL: ClassVar[dict[str, dict[str, Any]]] = {"membership": {"shadows": 4, "records": 300}}

    def test_it_keeps_the_contract(self, tmp_path: Path) -> None:
        subject = open_audit(federation(tmp_path), settings=self.SMALL)
        assert broken_promises("membership", check_membership, subject) == []

    def test_an_interrupted_audit_trains_only_what_is_missing(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shadows_module, "_STACKED", 2 * 650)  # two at a time: three chunks
        calls: list[int] = []
        real = train_side_by_side

        def counted(*given: Any, **named: Any) -> Any:
            calls.append(len(given[4]))
            if len(calls) == 2:
                raise KeyboardInterrupt
            return real(*given, **named)

        monkeypatch.setattr(shadows_module, "train_side_by_side", counted)
        subject = open_audit(federation(tmp_path), settings=self.SMALL)
        with pytest.raises(KeyboardInterrupt):
            check_membership(subject)
        found = check_membership(subject)
        assert calls == [2, 2, 2, 2]  # one kept, one interrupted, two after it
        calls.clear()
        assert check_membership(subject).figures["recipe"] == found.figures["recipe"]
        assert calls == []

    def test_only_a_sites_own_report_names_records_and_only_by_row(self, tmp_path: Path) -> None:
        path = federation(tmp_path)
        plain = check_membership(open_audit(path, settings=self.SMALL))
        assert plain.artefacts == ()
        assert '"row"' not in json.dumps(plain.as_dict()["figures"])
        told = {"membership": {**self.SMALL["membership"], "site": "site-002"}}
        subject = open_audit(path, settings=told)
        found = check_membership(subject)
        own = subject.folder / found.artefacts[0]
        assert stat.S_IMODE(own.stat().st_mode) == 0o600
        value = json.loads(own.read_text())
        assert value["site"] == "site-002"
        assert {"part", "row", "found_in"} == set(value["records"][0])

    def test_too_few_records_have_no_power(self, tmp_path: Path) -> None:
        found = check_membership(
            open_audit(federation(tmp_path), settings={"membership": {"shadows": 4, "records": 60}})
        )
        assert found.verdict == "no power"


OVERFITTED = """[training]
local_epochs = 20
optimizer = { name = "adam", lr = 0.003 }
[aggregation]
protection = "plain"
"""
PRIVATE = """[training]
local_steps = 10
batch_size = 20
optimizer = { name = "sgd", lr = 0.5 }
[privacy]
unit = "record"
epsilon = 2.0
delta = 1e-3
clip = 1.0
sampling_rate = 0.2
[aggregation]
protection = "plain"
"""


@pytest.mark.slow
class TestTargets:
    def test_an_overfitted_model_gives_members_away_and_a_private_one_does_not(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """24 shadows at 1% false alarms: LiRA finds at least 8% of an overfitted model's members, at most 2% with ε = 2."""
        results: dict[str, Finding] = {}
        for name, text in (("overfitted", OVERFITTED), ("epsilon 2", PRIVATE)):
            folder = tmp_path / name.replace(" ", "-")
            folder.mkdir()
            path = federation(folder, text, hidden=128, rounds=6)
            results[name] = check_membership(
                open_audit(path, settings={"membership": {"shadows": 24, "records": 600}})
            )
        rows = [
            (name, attack, one["rates"]["0.01"], one["auc"])
            for name, found in results.items()
            for attack, one in found.figures["recipe"]["attacks"].items()
        ]
        with capsys.disabled():
            print("\nmembers found at 1% false alarms, digits, MLP 128, 300 records a model, 24 shadows")
            for name, attack, rate, auc in rows:
                print(f"{name:10} {attack:13} {100 * rate['share']:5.1f}% ({100 * rate['low']:.1f} to {100 * rate['high']:.1f}%)  AUC {auc:.3f}")  # fmt: skip
        share = {(name, attack): rate["share"] for name, attack, rate, _ in rows}
        assert share["overfitted", "lira"] >= 0.08
        assert share["epsilon 2", "lira"] <= 0.02
        assert results["overfitted"].verdict == "fail"
        assert results["epsilon 2"].verdict == "pass"
