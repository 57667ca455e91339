"""Adversarial training at a site: what it is seeded by, what it costs, and when it stops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from cloister.client.adversarial import Canary, hold_canary
from cloister.client.trainer import Trainer
from cloister.core import Layout, SeededRandomness, Split, Task, TensorData
from cloister.core.adversarial.attacks import pgd
from cloister.core.adversarial.objectives import Adversary
from cloister.core.adversarial.threat import Threat
from cloister.core.errors import DataError
from cloister.core.resolve import build_model
from cloister.core.spec import Adversarial, parse_federation


class Squares(Task):
    """Two classes of points in the unit square."""

    classes = ("low", "high")
    bounds = (0.0, 1.0)

    def __init__(self, records: int = 80) -> None:
        self.records = records

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 2))

    def data(self) -> Split:
        x = torch.rand(self.records, 4, generator=torch.Generator().manual_seed(3))
        y = (x[:, 0] > 0.5).long()
        return Split(TensorData(x, y), TensorData(x, y))


def trainer(
    task: Task | None = None, *, epochs: int = 1, **adversarial: Any
) -> tuple[Trainer, Any, TensorData]:
    task = task or Squares()
    tables = {
        "federation": {"name": "t", "rounds": 5},
        "task": {"use": "squares"},
        "training": {
            "local_epochs": epochs,
            "batch_size": 16,
            "optimizer": {"lr": 0.5},
            "adversarial": {"method": "pgd", "epsilon": 0.1} | adversarial,
        },
    }
    model = build_model(task, 0)
    layout = Layout.of(model)
    split = task.data()
    assert isinstance(split, Split)
    assert isinstance(split.train, TensorData)
    return (
        Trainer(parse_federation(tables, base=Path()).spec, task, model, layout),
        layout.read(model),
        split.train,
    )


def change(made: tuple[Trainer, Any, TensorData], *, seed: int = 1, site: str = "a", number: int = 1) -> Any:
    one, start, data = made
    return one.train(start, data, site=site, round_number=number, randomness=SeededRandomness(seed)).change


@pytest.mark.parametrize("method", ["pgd", "trades", "fgsm-rs"])
def test_a_sites_change_is_a_function_of_seed_round_and_site(method: str) -> None:
    made = trainer(method=method)
    first = change(made)
    change(made, site="b")
    assert np.array_equal(first, change(made))
    assert np.array_equal(first, change(trainer(method=method)))
    for other in ({"seed": 2}, {"site": "b"}, {"number": 2}):
        assert not np.array_equal(first, change(made, **other))


@pytest.mark.slow
def test_training_against_an_adversary_makes_the_model_robust() -> None:
    threat = Threat(norm="linf", epsilon=0.1, low=0.0, high=1.0)
    left = []
    for epsilon in (1e-6, 0.1):
        one, start, data = trainer(epochs=60, epsilon=epsilon)
        one.load(
            start + one.train(start, data, site="a", round_number=1, randomness=SeededRandomness(1)).change
        )
        x, y = data.batch(torch.arange(len(data)))
        found = pgd(one.model, one.task.loss, x, y, threat, steps=20, step_size=0.02)
        left.append(one.task.loss(one.model(found), y).mean().item())
    assert left[1] < left[0]


def test_the_random_start_and_the_warm_up_reach_the_attack() -> None:
    plain = change(trainer(steps=1))
    assert not np.array_equal(plain, change(trainer(steps=1, random_start=False)))
    warm = trainer(steps=1, warmup=3)
    assert not np.array_equal(change(warm, number=4), change(warm, number=1))
    assert np.array_equal(change(warm, number=4), change(trainer(steps=1), number=4))


def test_calibration_changes_the_training_of_a_skewed_site_and_not_that_of_an_even_one() -> None:
    assert not np.array_equal(change(trainer()), change(trainer(calibrated=True)))

    class Even(Squares):
        def data(self) -> Split:
            one = super().data().train
            assert isinstance(one, TensorData)
            y = torch.arange(len(one)) % 2
            return Split(TensorData(one.inputs, y), TensorData(one.inputs, y))

    # A constant added to all scores changes no probability.
    assert np.allclose(change(trainer(Even())), change(trainer(Even(), calibrated=True)), atol=1e-5)


def adversary(**other: Any) -> Adversary:
    return Adversary(
        table=Adversarial.model_validate({"method": "fgsm-rs", "epsilon": 0.1} | other),
        threat=Threat(norm="linf", epsilon=0.1, low=0.0, high=1.0),
        loss=Squares().loss,
        generator=torch.Generator().manual_seed(1),
    )


class OneStepOnly(nn.Module):
    """Right on a record and on the one step from it, wrong on whatever ten steps find: catastrophic overfitting, made by hand."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.weight = nn.Parameter(torch.ones(()))
        self.robust, self.one_step = 1.0, 1.0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        if torch.is_grad_enabled():
            return torch.stack([x.sum(1) * self.weight, -x.sum(1)], 1)
        # `Canary.look` asks without a gradient twice: for PGD's records, then for the one step's.
        share = self.robust if self.asked % 2 == 0 else self.one_step
        self.asked += 1
        wrong = torch.arange(len(x)) >= round(share * len(x))
        return torch.stack([1.0 - wrong.float(), wrong.float()], 1)

    asked = 0


def canary() -> Canary:
    return Canary(
        inputs=torch.rand(50, 4), targets=torch.zeros(50, dtype=torch.int64), adversary=adversary(), site="a"
    )


class TestCanary:
    def test_it_refuses_when_pgd_accuracy_collapses_and_one_step_accuracy_stays(self) -> None:
        model, one = OneStepOnly(), canary()
        assert one.look(model) == (1.0, 1.0)
        model.robust = 0.1
        with pytest.raises(DataError, match="overfits to its one-step attack") as caught:
            one.look(model)
        assert caught.value.code == "catastrophic-overfitting"

    @pytest.mark.parametrize(("robust", "one_step"), [(0.85, 1.0), (0.1, 0.2)])
    def test_a_small_fall_or_a_fall_of_both_does_not_stop_a_site(
        self, robust: float, one_step: float
    ) -> None:
        model, one = OneStepOnly(), canary()
        one.look(model)
        model.robust, model.one_step = robust, one_step
        assert one.look(model) == pytest.approx((robust, one_step), abs=0.02)

    def test_a_training_that_collapses_is_not_sent(self, monkeypatch: pytest.MonkeyPatch) -> None:
        looks = iter([0.9, 0.9, 0.3, 0.9])  # before: PGD, one step; after: PGD, one step
        monkeypatch.setattr(Canary, "_accuracy", lambda *_: next(looks))
        with pytest.raises(DataError, match="one-step attack"):
            change(trainer(method="fgsm-rs"))

    def test_its_records_are_the_same_in_every_round_and_never_trained_on(self) -> None:
        data = Squares().data().train
        bench: Any = type(
            "Bench", (), {"site": "a", "device": torch.device("cpu"), "randomness": SeededRandomness(1)}
        )()
        kept, first = hold_canary(data, bench, adversary())
        _, second = hold_canary(data, bench, adversary())
        assert torch.equal(first.inputs, second.inputs)
        assert (len(kept), len(first.inputs)) == (72, 8)
        trained, _ = kept.batch(torch.arange(len(kept)))
        assert not (trained[:, None] == first.inputs[None]).all(2).any()

    def test_a_site_with_too_few_records_is_refused(self) -> None:
        with pytest.raises(DataError, match="canary"):
            change(trainer(Squares(19), method="fgsm-rs"))
