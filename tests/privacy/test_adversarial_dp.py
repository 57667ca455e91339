"""Adversarial training under DP-SGD: one clipped gradient a record, of what the attack made of that record alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.core.adversarial.attacks import pgd
from cloister.core.adversarial.objectives import Adversary
from cloister.core.adversarial.threat import Threat
from cloister.core.errors import TaskError
from cloister.core.models import build
from cloister.core.randomness import SeededRandomness
from cloister.core.spec import Adversarial
from cloister.privacy.adversarial import check_attack_for_dp
from cloister.privacy.dpsgd import DpSgd, DpSgdSettings
from cloister.privacy.gradients import rules
from cloister.privacy.gradients.hooks import _Hooks
from cloister.privacy.noise import GaussianSource, gaussian_source
from cloister.privacy.refusals import Method

CLIP, BATCH = 0.5, 6.0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def losses(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def cnn() -> nn.Module:
    torch.manual_seed(0)
    model = {"name": "cnn", "channels": [4, 8], "hidden": 16}
    return build(model, input_shape=(1, 8, 8), outputs=4).train()


def images(count: int = 6) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(4)
    return torch.rand((count, 1, 8, 8), generator=generator), torch.randint(
        0, 4, (count,), generator=generator
    )


def adversary(seed: int = 0, method: str = "pgd", norm: str = "linf", **other: Any) -> Adversary:
    table = Adversarial.model_validate({"method": method, "norm": norm, "epsilon": 0.2, "steps": 3} | other)
    return Adversary(
        table=table,
        threat=Threat(norm=table.norm, epsilon=0.2, low=0.0, high=1.0),
        loss=losses,
        generator=torch.Generator().manual_seed(seed),
    )


def source() -> GaussianSource:
    return gaussian_source(SeededRandomness(7), "noise")


def engine(model: nn.Module, method: Method, physical: int = 256) -> DpSgd:
    # The noise is so small that the sum shows: σ·C = 5e-11.
    settings = DpSgdSettings(
        noise_multiplier=1e-10, clip=CLIP, expected_batch=BATCH, method=method, physical_batch=physical
    )
    return DpSgd(model, losses, settings)


def flat(model: nn.Module) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).double()


@pytest.mark.parametrize("method", ["bookkeeping", "hooks"])
@pytest.mark.parametrize("attack", [{"method": "pgd"}, {"method": "trades"}, {"method": "pgd", "norm": "l2"}])
@pytest.mark.parametrize("ghost", [False, True])
def test_the_step_is_the_loop_of_one_clipped_gradient_a_record(
    method: Method, attack: dict[str, Any], ghost: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rules, "_cheaper_as_ghost", lambda *_: ghost)
    model, (x, y) = cnn(), images()
    engine(model, method).step([(x, y)], source(), adversary(**attack))
    found = flat(model)
    # The oracle: the same attack, then each record by itself through autograd, its gradient clipped by hand.
    objective = adversary(**attack)
    moved = objective.perturb(model, x, y)
    parameters = list(model.parameters())
    total = torch.zeros_like(found)
    clipped = 0
    for i in range(len(y)):
        one = slice(i, i + 1)
        (loss,) = objective.losses(model, x[one], moved[one], y[one])
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, parameters)]).double()
        clipped += bool(gradient.norm() > CLIP)
        total += gradient * min(1.0, CLIP / float(gradient.norm()))
    assert clipped > 0
    assert torch.allclose(found, total / BATCH, rtol=1e-3, atol=2e-5)
    clean = engine(model, method)
    clean.step([(x, y)], source())
    assert not torch.allclose(found, flat(model), rtol=1e-2, atol=1e-3)


@pytest.mark.parametrize("attack", ["pgd", "trades"])
def test_a_record_moves_the_sum_by_at_most_the_clip(attack: str) -> None:
    model, (x, y) = cnn(), images()
    made = []
    for rows in ([0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4]):
        # No random start: then what the others become is the same to the bit, and the difference is the record's own.
        objective = adversary(method=attack, random_start=attack == "trades")
        engine(model, "auto").step([(x[rows], y[rows])], source(), objective)
        made.append(flat(model))
    assert 0 < float((made[0] - made[1]).norm()) * BATCH <= CLIP * (1 + 1e-4)


def test_how_the_batch_is_cut_changes_nothing() -> None:
    model, (x, y) = cnn(), images()
    sums = []
    for physical in (6, 2):
        one = engine(model, "auto", physical)
        from cloister.core.data import TensorData

        one.step_on(TensorData(x, y), torch.arange(6), source(), adversary(random_start=False))
        sums.append(flat(model))
    assert torch.allclose(sums[0], sums[1], atol=1e-6)


def test_an_empty_batch_is_noise_alone() -> None:
    model = cnn()
    engine(model, "auto").step([], source(), adversary())
    assert float(flat(model).norm()) < 1e-6


@pytest.mark.parametrize("method", ["bookkeeping", "hooks"])
def test_an_attack_with_the_hooks_left_on_is_refused(method: Method) -> None:
    model, (x, y) = cnn(), images()

    class Late(Adversary):
        """An attack within the pass in which gradients are recorded."""

        def losses(self, model: nn.Module, inputs: Tensor, attacked: Tensor, targets: Tensor) -> Tensor:
            return super().losses(model, inputs, self.perturb(model, inputs, targets), targets)

    late = Late(**vars(adversary()))
    with pytest.raises(TaskError, match="gradients of its records are recorded") as caught:
        engine(model, method).step([(x, y)], source(), late)
    assert caught.value.code == "attack-hooks"
    assert all(parameter.grad is None for parameter in model.parameters())


def test_opacus_own_hooks_are_recognised() -> None:
    model, (x, y) = cnn(), images()
    hooks = _Hooks(model)
    try:
        with pytest.raises(TaskError, match="recorded"):
            pgd(model, losses, x, y, Threat(norm="linf", epsilon=0.1), steps=1, step_size=0.1)
    finally:
        hooks.cleanup()


class Changed:
    """Our adversary, with one method replaced."""

    def __init__(self, seed: int, perturb: Callable[..., Tensor]) -> None:
        self._adversary, self._perturb = adversary(seed), perturb

    def perturb(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        return self._perturb(self, model, inputs, targets)

    def losses(self, model: nn.Module, inputs: Tensor, attacked: Tensor, targets: Tensor) -> Tensor:
        return self._adversary.losses(model, inputs, attacked, targets)


def shared(self: Changed, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    moved = self._adversary.perturb(model, inputs, targets)
    return inputs + (moved - inputs).mean(0)


def free(self: Changed, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """Shafahi et al. (2019): the perturbation of one batch is where the next one's begins."""
    start = getattr(self, "kept", torch.zeros_like(inputs))
    point = pgd(
        model,
        losses,
        inputs,
        targets,
        Threat(norm="linf", epsilon=0.2),
        steps=1,
        step_size=0.05,
        start=inputs + start,
    )
    vars(self)["kept"] = point - inputs
    return point


def careless(self: Changed, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
    """An attack by ``backward()``: a gradient of all records is left in the parameters."""
    losses(model(inputs), targets).mean().backward()  # type: ignore[no-untyped-call]
    return inputs


class TestTheAttackIsMeasured:
    @pytest.mark.parametrize(
        ("perturb", "code"),
        [(shared, "dp-attack-mixed"), (free, "dp-attack-mixed"), (careless, "dp-attack-gradient")],
    )
    def test_shared_free_and_careless_attacks_are_refused(
        self, perturb: Callable[..., Tensor], code: str
    ) -> None:
        x, y = images(3)
        with pytest.raises(TaskError) as caught:
            check_attack_for_dp(lambda seed: Changed(seed, perturb), cnn(), x, y)
        assert caught.value.code == code

    @pytest.mark.parametrize("attack", ["pgd", "trades"])
    def test_our_own_attacks_pass(self, attack: str) -> None:
        x, y = images(3)
        check_attack_for_dp(lambda seed: adversary(seed, method=attack), cnn(), x, y)

    def test_batch_norm_is_refused(self) -> None:
        x, y = images(3)
        model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(72, 4))
        with pytest.raises(TaskError, match="batch norm"):
            check_attack_for_dp(adversary, model, x, y)
