"""Threats, attacks and objectives: what an adversary may do to a record, and that it does no more."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from cloister.core import Split, Task
from cloister.core.adversarial.attacks import attacking, check_inputs, fgsm, pgd, pgd_restarts
from cloister.core.adversarial.objectives import Adversary, class_shift, trained_threat
from cloister.core.adversarial.threat import Threat, threat_of
from cloister.core.errors import CloisterError, SpecError, TaskError
from cloister.core.spec import Adversarial, parse_federation
from cloister.core.tasks.digits import Digits
from cloister.core.tasks.heart import Heart
from cloister.core.tasks.images import Images
from cloister.core.tasks.pixels import pixel_bounds

HERE = Path()
IMAGE = (1, 6, 6)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def network(inputs: int = 36, classes: int = 4) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(
        nn.Flatten(), nn.Linear(inputs, 24), nn.Tanh(), nn.Dropout(0.3), nn.Linear(24, classes)
    )


def images(count: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count)
    return (
        torch.rand((count, *IMAGE), generator=generator),
        torch.randint(0, 4, (count,), generator=generator),
    )


def threat(norm: Any = "linf", epsilon: float = 0.1, **other: Any) -> Threat:
    return Threat(norm=norm, epsilon=epsilon, **({"low": 0.0, "high": 1.0} | other))


def table(method: str = "pgd", **other: Any) -> Adversarial:
    return Adversarial.model_validate({"method": method, "epsilon": 0.1} | other)


class TestThreat:
    @given(
        st.sampled_from(["linf", "l2"]),
        st.floats(1e-3, 2),
        st.integers(0, 50),
        st.booleans(),
    )
    def test_a_projection_lies_within_the_ball_and_the_bounds(
        self, norm: Any, epsilon: float, seed: int, bounded: bool
    ) -> None:
        torch.manual_seed(seed)
        records = torch.rand(5, *IMAGE)
        one = threat(norm, epsilon) if bounded else threat(norm, epsilon, low=None, high=None)
        found = one.project(records + 3 * torch.randn(records.shape), records)
        assert float(one.size_of(found, records).max()) <= epsilon + 2e-6  # float32 rounds inputs of size 1
        if bounded:
            assert float(found.min()) >= 0
            assert float(found.max()) <= 1

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_what_cannot_be_changed_stays_to_the_bit(self, norm: Any) -> None:
        records = torch.rand(6, 5)
        one = threat(norm, 0.5, free=(1, 3))
        generator = torch.Generator().manual_seed(1)
        found = one.start(records, generator)
        for _ in range(5):
            found = one.project(one.ascend(found, torch.randn(6, 5), 0.3), records)
        assert torch.equal(found[:, [0, 2, 4]], records[:, [0, 2, 4]])
        assert not torch.equal(found[:, [1, 3]], records[:, [1, 3]])

    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_a_random_start_is_uniform_in_the_ball(self, norm: Any) -> None:
        # Two-sided, fixed seed: the share of starts within half the radius (of its volume, l2) is 1/2 up to 4 standard deviations.
        records = torch.full((4000, 2), 0.5)
        one = threat(norm, 0.2, low=None, high=None)
        sizes = one.size_of(one.start(records, torch.Generator().manual_seed(5)), records)
        inner = 0.2 * math.sqrt(0.5)
        assert abs(float((sizes < inner).double().mean()) - 0.5) < 4 * 0.5 / math.sqrt(4000)

    def test_bounds_may_differ_by_channel(self) -> None:
        low, high = pixel_bounds((0.5, 0.1), (0.25, 0.5))
        one = Threat(norm="linf", epsilon=9.0, low=low, high=high)
        found = one.project(torch.full((1, 2, 2, 2), 9.0), torch.zeros(1, 2, 2, 2))
        assert torch.allclose(found[0, :, 0, 0], torch.tensor([2.0, 1.8]))

    @pytest.mark.parametrize("epsilon", [0.0, -1.0, math.inf, math.nan])
    def test_an_epsilon_that_is_no_size_is_refused(self, epsilon: float) -> None:
        with pytest.raises(SpecError, match="epsilon"):
            threat(epsilon=epsilon)

    def test_one_bound_alone_is_refused(self) -> None:
        with pytest.raises(SpecError, match="one bound"):
            threat(low=None)


class TestThreatOfATask:
    def test_digits_and_images_give_their_bounds(self, tmp_path: Path) -> None:
        assert (
            threat_of(Digits(), norm="linf", epsilon=0.1).low,
            threat_of(Digits(), norm="linf", epsilon=0.1).high,
        ) == (0.0, 1.0)
        task = Images(data=tmp_path / "x.npz", classes=3, size=8, channels=1, mean=0.5, std=0.25)
        assert task.bounds == (-2.0, 2.0)

    def test_of_a_table_numeric_columns_only_can_be_changed(self) -> None:
        task = Heart()
        one = threat_of(task, norm="linf", epsilon=0.1)
        assert task.features is not None
        assert set(task.features) == {"age", "chol", "oldpeak", "thalach", "trestbps"}
        assert one.free == tuple(sorted(task.features.values()))
        split = task.data()["cleveland"]
        x, y = split.train.batch(torch.arange(20))
        model = task.model()
        found = fgsm(model, losses, x, y, one)
        kept = [place for place in range(x.shape[1]) if place not in (one.free or ())]
        assert torch.equal(found[:, kept], x[:, kept])
        assert not torch.equal(found, x)

    def test_named_features_are_the_ones_that_move(self) -> None:
        task = Heart()
        one = threat_of(task, norm="linf", epsilon=0.1, features=("chol",))
        assert task.features is not None
        assert one.free == (task.features["chol"],)

    @pytest.mark.parametrize("name", ["sex", "chool"])
    def test_a_column_that_is_not_numeric_is_refused(self, name: str) -> None:
        with pytest.raises(TaskError, match=f"no numeric column '{name}'") as caught:
            threat_of(Heart(), norm="linf", epsilon=0.1, features=(name,))
        assert caught.value.code == "adversarial-features"

    def test_features_of_a_task_without_columns_are_refused(self) -> None:
        with pytest.raises(TaskError, match="no named columns"):
            threat_of(Digits(), norm="linf", epsilon=0.1, features=("age",))

    @pytest.mark.parametrize("bounds", [(1.0, 0.0), (0.0, math.inf), (0.0,), "01"])
    def test_bounds_that_are_none_are_refused(self, bounds: Any) -> None:
        class Odd(Digits):
            pass

        Odd.bounds = bounds
        with pytest.raises(TaskError, match="bounds of Odd"):
            threat_of(Odd(), norm="linf", epsilon=0.1)


class TestAttacks:
    @pytest.mark.parametrize("norm", ["linf", "l2"])
    def test_pgd_raises_the_loss_and_stays_within_the_threat(self, norm: Any) -> None:
        model, (x, y), one = network().eval(), images(), threat(norm, 0.3)
        found = pgd(model, losses, x, y, one, steps=10, step_size=0.08)
        assert (losses(model(found), y) > losses(model(x), y)).all()
        assert float(one.size_of(found, x).max()) <= 0.3 * (1 + 1e-5)
        assert float(found.min()) >= 0
        assert float(found.max()) <= 1

    def test_pgd_is_the_textbook_loop(self) -> None:
        model, (x, y) = network().eval(), images()
        point = x.clone()
        for _ in range(4):
            point.requires_grad_()
            (slope,) = torch.autograd.grad(functional.cross_entropy(model(point), y), point)
            point = (x + (point.detach() + 0.04 * slope.sign() - x).clamp(-0.1, 0.1)).clamp(0, 1)
        found = pgd(model, losses, x, y, threat(), steps=4, step_size=0.04)
        assert torch.allclose(found, point, atol=1e-6)

    def test_fgsm_is_one_step_of_epsilon(self) -> None:
        model, (x, y) = network().eval(), images()
        one = threat(low=None, high=None)
        assert torch.allclose((fgsm(model, losses, x, y, one) - x).abs(), torch.tensor(0.1), atol=1e-6)

    def test_what_a_record_becomes_depends_on_that_record_alone(self) -> None:
        model, (x, y), one = network(), images(), threat("l2", 0.5)
        together = pgd(model, losses, x, y, one, steps=5, step_size=0.2)
        alone = torch.cat(
            [
                pgd(model, losses, x[i : i + 1], y[i : i + 1], one, steps=5, step_size=0.2)
                for i in range(len(x))
            ]
        )
        assert torch.allclose(together, alone, atol=1e-5)

    def test_the_model_is_left_as_it_was(self) -> None:
        model, (x, y) = network().train(), images()
        list(model.parameters())[1].requires_grad_(False)
        losses(model(x), y).mean().backward()  # type: ignore[no-untyped-call]
        before = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        pgd(model, losses, x, y, threat(), steps=3, step_size=0.05)
        assert all(layer.training for layer in model.modules())
        assert [p.requires_grad for p in model.parameters()] == [True, False, True, True]
        for kept, parameter in zip(before, model.parameters(), strict=True):
            assert (kept is None and parameter.grad is None) or torch.equal(kept, parameter.grad)  # type: ignore[arg-type]

    def test_parameters_are_frozen_and_dropout_is_off_while_attacking(self) -> None:
        model, (x, y) = network().train(), images()
        seen: list[tuple[bool, bool]] = []

        def watch(outputs: Tensor, targets: Tensor) -> Tensor:
            seen.append((any(p.requires_grad for p in model.parameters()), model.training))
            return losses(outputs, targets)

        pgd(model, watch, x, y, threat(), steps=2, step_size=0.05)
        assert seen == [(False, False)] * 2

    def test_the_model_is_thawed_after_an_error(self) -> None:
        model = network().train()
        with pytest.raises(ZeroDivisionError), attacking(model):
            raise ZeroDivisionError
        assert all(p.requires_grad for p in model.parameters())
        assert model.training

    def test_restarts_break_no_fewer_than_one_start(self) -> None:
        model, (x, y), one = network().eval(), images(60), threat(epsilon=0.12)
        y = model(x).argmax(1)
        broken = []
        for restarts in (1, 5):
            found = pgd_restarts(
                model, losses, x, y, one, steps=3, step_size=0.05, restarts=restarts,
                generator=torch.Generator().manual_seed(3), still=lambda outputs, wanted: outputs.argmax(1) == wanted,
            )  # fmt: skip
            broken.append(model(found).argmax(1) != y)
        assert (broken[1] | ~broken[0]).all()
        assert float(one.size_of(found, x).max()) <= 0.12 * (1 + 1e-5)

    @pytest.mark.parametrize(
        "inputs", [torch.zeros(3, 4, dtype=torch.int64), torch.zeros(3), {"x": torch.zeros(3, 4)}, ["a"]]
    )
    def test_inputs_that_cannot_be_moved_by_a_little_are_refused(self, inputs: Any) -> None:
        with pytest.raises(TaskError, match="cannot be moved") as caught:
            check_inputs(inputs)
        assert caught.value.code == "adversarial-inputs"

    def test_no_record_is_no_attack(self) -> None:
        x, y = images()
        assert len(pgd(network(), losses, x[:0], y[:0], threat(), steps=3, step_size=0.1)) == 0


class TestObjectives:
    def adversary(self, method: str = "pgd", shift: Tensor | None = None, **other: Any) -> Adversary:
        return Adversary(
            table=table(method, **other),
            threat=threat(),
            loss=losses,
            generator=torch.Generator().manual_seed(2),
            shift=shift,
        )

    def test_trades_is_the_clean_loss_plus_beta_times_the_divergence(self) -> None:
        model, (x, y) = network().eval(), images()
        moved = (x + 0.05).clamp(0, 1)
        clean, attacked = model(x).softmax(1), model(moved).softmax(1)
        expected = -clean.gather(1, y[:, None])[:, 0].log() + 2.5 * (clean * (clean / attacked).log()).sum(1)
        found = self.adversary("trades", beta=2.5).losses(model, x, moved, y)
        assert torch.allclose(found, expected, atol=1e-5)

    @pytest.mark.parametrize("method", ["pgd", "trades", "fgsm-rs"])
    def test_each_method_stays_within_epsilon_and_moves_every_record(self, method: str) -> None:
        model, (x, y) = network().train(), images()
        found = self.adversary(method).perturb(model, x, y)
        sizes = threat().size_of(found, x)
        assert float(sizes.max()) <= 0.1 + 1e-6
        assert float(sizes.min()) > 0.01
        assert model.training

    def test_trades_attack_raises_the_divergence(self) -> None:
        model, (x, y) = network().eval(), images()
        adversary = self.adversary("trades")
        found = adversary.perturb(model, x, y)
        start = x + 0.001 * torch.randn(x.shape, generator=torch.Generator().manual_seed(2))
        penalty = [adversary.losses(model, x, moved, y).sum() for moved in (start, found)]
        assert penalty[1] > penalty[0] + 1e-3

    def test_the_same_seed_gives_the_same_attack_and_another_seed_another(self) -> None:
        model, (x, y) = network().eval(), images()
        first, second = (self.adversary(steps=1, step_size=0.01).perturb(model, x, y) for _ in range(2))
        other = Adversary(
            table=table(steps=1, step_size=0.01),
            threat=threat(),
            loss=losses,
            generator=torch.Generator().manual_seed(3),
        )
        assert torch.equal(first, second)
        assert not torch.equal(first, other.perturb(model, x, y))

    def test_calibration_adds_the_log_of_the_class_shares(self) -> None:
        model, (x, y) = network().eval(), images()
        shift = class_shift(torch.tensor([0, 0, 0, 1]), 4)
        assert torch.allclose(shift.exp(), torch.tensor([4, 2, 1, 1]) / 8)
        found = self.adversary(shift=shift).losses(model, x, x, y)
        # Chen et al. (2022), eq. 6: -log(π_y exp f_y / Σ π_k exp f_k).
        weighed = shift.exp() * model(x).exp()
        assert torch.allclose(found, -(weighed.gather(1, y[:, None])[:, 0] / weighed.sum(1)).log(), atol=1e-5)

    def test_a_regression_can_be_attacked_by_pgd_only(self) -> None:
        class Line(Task):
            kind = "regression"

            def model(self) -> nn.Module:
                return nn.Linear(2, 1)

            def data(self) -> Split:
                raise NotImplementedError

        assert trained_threat(table(), Line()).low is None
        for other in (table("trades"), table("fgsm-rs"), table(calibrated=True)):
            with pytest.raises(TaskError, match="regression"):
                trained_threat(other, Line())


class TestTheTable:
    def spec(self, *overrides: str, **privacy: Any) -> Any:
        document: dict[str, Any] = {
            "federation": {"name": "t", "rounds": 3},
            "task": {"use": "digits"},
            "training": {"local_steps": 2, "adversarial": {"method": "pgd", "epsilon": 0.1}},
        }
        if privacy:
            document["privacy"] = {"epsilon": 8.0, "delta": 1e-5, "clip": 1.0, "sampling_rate": 0.1} | privacy
        return parse_federation(document, base=HERE, overrides=list(overrides)).spec

    def refusal(self, *overrides: str, **privacy: Any) -> str:
        with pytest.raises(SpecError) as caught:
            self.spec(*overrides, **privacy)
        return caught.value.message

    def test_defaults_are_the_papers(self) -> None:
        one = table(epsilon=0.3)
        assert one.attack_steps == 7
        assert one.attack_step_size(0.3) == pytest.approx(2.5 * 0.3 / 7)
        assert table("trades").attack_steps == 10
        assert table("fgsm-rs", epsilon=0.3).attack_step_size(0.3) == pytest.approx(0.375)

    def test_epsilon_warms_up_and_given_steps_with_it(self) -> None:
        one = table(epsilon=0.3, warmup=2, step_size=0.06)
        assert [one.epsilon_in(r) for r in (1, 2, 3, 9)] == pytest.approx([0.1, 0.2, 0.3, 0.3])
        assert one.attack_step_size(one.epsilon_in(1)) == pytest.approx(0.02)

    @pytest.mark.parametrize("method", ["free", "universal"])
    def test_free_and_shared_perturbations_are_refused_with_the_reason(self, method: str) -> None:
        assert "depend" in self.refusal(f"training.adversarial.method={method}")

    @pytest.mark.parametrize(
        ("overrides", "what"),
        [
            (["training.adversarial.beta=3"], "beta"),
            (["training.adversarial.method='fgsm-rs'", "training.adversarial.steps=3"], "one step"),
            (
                ["training.adversarial.method='fgsm-rs'", "training.adversarial.random_start=false"],
                "random_start",
            ),
            (["training.adversarial.epsilon=0"], "epsilon"),
            (["training.adversarial.norm='l1'"], "norm"),
            (["training.adversarial.features=['a','a']"], "twice"),
        ],
    )
    def test_what_does_not_go_together_is_refused(self, overrides: list[str], what: str) -> None:
        assert what in self.refusal(*overrides)

    def test_early_stop_is_refused(self) -> None:
        with pytest.raises(CloisterError, match="early_stop"):
            parse_federation(
                {
                    "federation": {"name": "t", "rounds": 3},
                    "task": {"use": "digits"},
                    "training": {"early_stop": {}, "adversarial": {"method": "pgd", "epsilon": 0.1}},
                },
                base=HERE,
            )

    def test_under_record_privacy_class_counts_and_the_canary_are_refused(self) -> None:
        assert self.spec(unit="record").training.adversarial is not None
        assert "class counts" in self.refusal("training.adversarial.calibrated=true", unit="record")
        assert "canary" in self.refusal("training.adversarial.method='fgsm-rs'", unit="record")
