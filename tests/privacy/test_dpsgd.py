"""A step of DP-SGD: what it releases, and what one record can do to it.

The noise of two steps with the same seed is the same, so their difference shows the clipped sums bare.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional

from cloister.core.data import LazyData, TensorData
from cloister.core.errors import SpecError, TaskError
from cloister.core.models import build
from cloister.core.randomness import SeededRandomness
from cloister.privacy.dpsgd import DpSgd, DpSgdSettings, StepReport
from cloister.privacy.noise import GaussianSource, cipher_generator, gaussian_source
from cloister.privacy.poisson import poisson_batches

CLIP, SIGMA, BATCH = 2.0, 1.3, 20.0


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on a busy machine: a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


def settings(**other: Any) -> DpSgdSettings:
    return DpSgdSettings(**{"noise_multiplier": SIGMA, "clip": CLIP, "expected_batch": BATCH} | other)


def source(key: int = 0) -> GaussianSource:
    return gaussian_source(SeededRandomness(7), "noise", key)


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Dropout(dropout), nn.Linear(16, 3)).train()


def points(count: int = 30) -> TensorData:
    generator = torch.Generator().manual_seed(count)
    return TensorData(
        torch.randn(count, 6, generator=generator), torch.randint(0, 3, (count,), generator=generator)
    )


def gradient(engine: DpSgd) -> Tensor:
    return torch.cat([p.grad.reshape(-1) for p in engine.model.parameters() if p.grad is not None]).double()


def released(
    data: TensorData,
    rows: Tensor | None = None,
    *,
    model: nn.Module | None = None,
    key: int = 0,
    **other: Any,
) -> Tensor:
    """The gradient that one step releases."""
    engine = DpSgd(model or network(), loss, settings(**other))
    engine.step_on(data, torch.arange(len(data)) if rows is None else rows, source(key))
    return gradient(engine)


def clipped_sum(data: TensorData, **other: Any) -> Tensor:
    """What a step adds to its noise, times B."""
    return (released(data, **other) - released(data, torch.arange(0), **other)) * BATCH


NONE = torch.zeros(0, dtype=torch.int64)


def test_a_step_releases_the_clipped_sum_plus_noise_over_b() -> None:
    """Oracle: the loop over records, and the same stream of noise by hand."""
    data, model = points(), network()
    total: list[Tensor] = [torch.zeros_like(p) for p in model.parameters()]
    scales = []
    for x, y in zip(data.inputs, data.targets, strict=True):
        grads = torch.autograd.grad(loss(model(x[None]), y[None]).sum(), list(model.parameters()))
        scales.append(min(1.0, CLIP / float(torch.cat([g.reshape(-1) for g in grads]).norm())))
        total = [t + g * scales[-1] for t, g in zip(total, grads, strict=True)]
    assert min(scales) < 1
    assert max(scales) == 1
    flat = torch.cat([t.reshape(-1) for t in total]).double()
    draws = source().perturb(torch.zeros(len(flat)), std=1.0)
    torch.testing.assert_close(released(data), (flat + SIGMA * CLIP * draws) / BATCH, rtol=0, atol=2e-6)


@pytest.mark.parametrize("method", ["bookkeeping", "hooks"])
def test_noise_of_a_step_has_deviation_sigma_c_over_b_and_no_other(method: Any) -> None:
    """KS at p > 1e-3 with a fixed seed; a third less or half more is refused at p < 1e-12."""
    model = nn.Linear(300, 100)
    found = released(points(), NONE, model=model, method=method).numpy()
    std = SIGMA * CLIP / BATCH
    assert stats.kstest(found, stats.norm(scale=std).cdf).pvalue > 1e-3
    assert abs((found**2).mean() / std**2 - 1) < 3.29 * math.sqrt(2 / len(found))
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(found, stats.norm(scale=std * wrong).cdf).pvalue < 1e-12


def test_an_empty_batch_is_noise_only_and_counts() -> None:
    engine = DpSgd(network(), loss, settings())
    report = engine.step_on(points(), NONE, source())
    assert report == StepReport(loss=0.0, records=0, dropped=0)
    assert engine.released == 1
    draws = source().perturb(torch.zeros(len(gradient(engine))), std=1.0)
    torch.testing.assert_close(gradient(engine), draws * SIGMA * CLIP / BATCH, rtol=1e-6, atol=0)
    engine.step([], source())  # the same without any physical batch
    torch.testing.assert_close(gradient(engine), draws * SIGMA * CLIP / BATCH, rtol=1e-6, atol=0)


def test_every_trainable_parameter_gets_noise_also_one_that_no_record_uses() -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle, self.frozen = nn.Linear(6, 3), nn.Linear(6, 3), nn.Linear(2, 2)
            self.frozen.requires_grad_(False)

        def forward(self, x: Tensor) -> Any:
            return self.used(x)

    model = Idle()
    released(points(), model=model)
    assert model.idle.weight.grad is not None
    assert model.idle.weight.grad.all()
    assert model.frozen.weight.grad is None


@pytest.mark.parametrize("method", ["bookkeeping", "hooks"])
@pytest.mark.parametrize("physical", [1, 7, 29, 1000])
def test_physical_batches_do_not_change_what_is_released(physical: int, method: Any) -> None:
    data = points()
    torch.testing.assert_close(
        released(data, physical_batch=physical, method=method),
        released(data, physical_batch=30),
        rtol=0,
        atol=1e-7,
    )


@given(
    size=st.sampled_from([1e-30, 1e-3, 1.0, 1e3, 1e9, 1e15, 1e25, 1e38, math.inf, math.nan]),
    row=st.integers(0, 29),
    seed=st.integers(0, 1000),
)
def test_one_record_moves_the_gradient_by_at_most_c_over_b_however_large_it_is(
    size: float, row: int, seed: int
) -> None:
    data = points()
    spike = torch.randn(6, generator=torch.Generator().manual_seed(seed)) * size
    inputs = data.inputs.clone()
    inputs[row] = spike
    others = torch.tensor([r for r in range(30) if r != row])
    moved = released(TensorData(inputs, data.targets)) - released(data, others)
    assert float(moved.norm()) <= CLIP / BATCH * (1 + 1e-4)


def test_one_record_moves_a_plain_sgd_step_by_at_most_the_rate_times_c_over_b() -> None:
    data, rate, ends = points(), 0.7, []
    spiked = TensorData(
        torch.cat([data.inputs, torch.full((1, 6), 1e6)]), torch.cat([data.targets, torch.tensor([1])])
    )
    for records in (data, spiked):
        engine = DpSgd(network(), loss, settings())
        optimiser = torch.optim.SGD(engine.model.parameters(), lr=rate)
        engine.step_on(records, torch.arange(len(records)), source())
        optimiser.step()
        ends.append(torch.cat([p.detach().reshape(-1) for p in engine.model.parameters()]).double())
    moved = float((ends[1] - ends[0]).norm())
    assert 0.9 * rate * CLIP / BATCH < moved <= rate * CLIP / BATCH * (1 + 1e-4)


@pytest.mark.parametrize("method", ["bookkeeping", "hooks"])
@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_a_record_that_is_not_finite_contributes_nothing(bad: float, method: Any) -> None:
    data = points()
    data.inputs[4] = bad
    others = torch.tensor([row for row in range(30) if row != 4])
    engine = DpSgd(network(), loss, settings(method=method))
    report = engine.step_on(data, torch.arange(30), source())
    torch.testing.assert_close(gradient(engine), released(data, others), rtol=0, atol=1e-7)
    assert report.dropped == 1
    assert math.isfinite(report.loss)


def test_divisor_and_noise_do_not_depend_on_the_number_of_records() -> None:
    few, many = points(10), points(500)
    assert torch.equal(released(few, NONE), released(many, NONE))
    # The same ten records, by themselves and among others that are not drawn.
    inputs, targets = torch.cat([few.inputs, many.inputs]), torch.cat([few.targets, many.targets])
    assert torch.equal(released(few), released(TensorData(inputs, targets), torch.arange(10)))
    # Twice the records make twice the sum: nothing divides by how many there are.
    doubled = TensorData(few.inputs.repeat(2, 1), few.targets.repeat(2))
    torch.testing.assert_close(clipped_sum(doubled), 2 * clipped_sum(few), rtol=1e-4, atol=1e-5)


def test_clip_scales_signal_and_noise_alike_and_the_divisor_both() -> None:
    """One C for both: the fault of schedulers that move only one of the two."""
    data = points()
    for factor in (0.01, 0.1):  # so small that every record is clipped
        small = released(data, clip=0.01 * factor)
        torch.testing.assert_close(released(data, clip=0.01), small / factor, rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(
        released(data, expected_batch=BATCH / 4), 4 * released(data), rtol=1e-5, atol=0
    )


def test_settings_state_sensitivity_and_noise() -> None:
    assert settings().sensitivity == CLIP
    assert settings().noise_std == SIGMA * CLIP


def test_a_seed_gives_the_same_gradient_to_the_bit_and_another_key_another() -> None:
    data = points()
    assert torch.equal(released(data), released(data))
    assert not torch.isclose(released(data), released(data, key=1)).any()


def test_two_steps_with_one_source_have_independent_noise() -> None:
    engine, noise = DpSgd(nn.Linear(100, 100), loss, settings()), source()
    found = []
    for _ in range(2):
        engine.step_on(points(), NONE, noise)
        found.append(gradient(engine).numpy())
    assert abs(np.corrcoef(found)[0, 1]) < 3.29 / math.sqrt(len(found[0]))
    assert engine.released == 2


def test_a_step_replaces_the_gradient_of_the_step_before() -> None:
    engine = DpSgd(network(), loss, settings())
    for _ in range(2):
        engine.step_on(points(), torch.arange(30), source())
    assert torch.equal(gradient(engine), released(points()))


def test_gradients_have_the_memory_order_of_their_parameters() -> None:
    torch.manual_seed(0)
    engine = DpSgd(build("cnn", input_shape=(1, 28, 28), outputs=10), loss, settings())
    engine.step_on(TensorData(torch.randn(3, 1, 28, 28), torch.arange(3)), torch.arange(3), source())
    for parameter in engine.model.parameters():
        assert parameter.grad is not None
        assert parameter.grad.stride() == parameter.stride()
        assert parameter.grad.dtype == torch.float32


def test_items_that_are_read_one_by_one_give_the_same_as_records_in_memory() -> None:
    data = points()
    pairs: Any = [(x, int(y)) for x, y in zip(data.inputs, data.targets, strict=True)]
    lazy = LazyData(pairs, data.targets)
    for rows in (torch.tensor([3, 8, 20]), NONE):
        engine = DpSgd(network(), loss, settings(physical_batch=2))
        engine.step_on(lazy, rows, source())
        torch.testing.assert_close(gradient(engine), released(data, rows), rtol=0, atol=1e-7)


def test_an_error_in_the_loss_releases_nothing() -> None:
    def failing(outputs: Tensor, targets: Tensor) -> Tensor:
        raise ArithmeticError(f"no loss of {len(outputs)} and {len(targets)}")

    engine = DpSgd(network(), failing, settings())
    with pytest.raises(ArithmeticError):
        engine.step_on(points(), torch.arange(30), source())
    assert engine.released == 0
    assert all(p.grad is None for p in engine.model.parameters())


def test_a_gradient_that_was_not_clipped_never_stays_behind() -> None:
    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Any:
            return self.c(functional.linear(functional.linear(x, self.a.weight), self.b.weight))

    engine = DpSgd(Sly(), loss, settings())
    with pytest.raises(TaskError, match="outside of its layer"):
        engine.step_on(points(), torch.arange(30), source())
    assert all(p.grad is None for p in engine.model.parameters())


def test_a_buffer_or_parameter_that_the_forward_pass_changes_stops_the_step() -> None:
    class Holding(nn.Module):
        def __init__(self, held: Tensor) -> None:
            super().__init__()
            self.register_buffer("held", held)

    class Counting(nn.Module):
        seen: Tensor
        calls: Tensor

        def __init__(self, kind: str) -> None:
            super().__init__()
            self.layer, self.kind = nn.Linear(6, 3), kind
            self.part, self.other = Holding(torch.zeros(6)), nn.Linear(6, 6)
            self.register_buffer("seen", torch.zeros(6))
            self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

        def forward(self, x: Tensor) -> Any:
            self.calls += 1
            if self.kind == "in place":
                self.seen.mul_(0.9).add_(x.detach().mean(0))
            if self.kind == "replaced":
                self.seen = x.detach().mean(0)
            if self.kind == "another module":
                self.part = Holding(x.detach().mean(0))
            if self.kind == "one more module":
                self.more = Holding(x.detach().mean(0))
            if self.kind == "another layer":
                self.other = nn.Linear(6, 6)
            if self.kind == "a weight":
                with torch.no_grad():
                    self.other.bias.copy_(x.mean(0))
            return self.layer(self.other(x))

    released(points(), model=Counting("only counted"))  # whole numbers are never sent
    for kind, what in (
        ("in place", "buffer 'seen'"),
        ("replaced", "buffer 'seen'"),
        ("another module", "buffer 'part.held'"),
        ("one more module", "buffer 'more.held'"),
        ("another layer", "parameter 'other.weight'"),
        ("a weight", "parameter 'other.bias'"),
    ):
        engine = DpSgd(Counting(kind), loss, settings())
        with pytest.raises(TaskError, match=what) as refused:
            engine.step_on(points(), torch.arange(30), source())
        assert refused.value.code == "dp-running-statistics"
        assert engine.released == 0
        assert all(p.grad is None for p in engine.model.parameters())


@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan, 1e-13, 1e13])
@pytest.mark.parametrize("key", ["noise_multiplier", "clip", "expected_batch", "physical_batch"])
def test_a_setting_that_gives_no_guarantee_is_refused_and_named(key: str, value: float) -> None:
    with pytest.raises(SpecError, match=f"{key} = ") as refused:
        settings(**{key: value})
    assert refused.value.code == "privacy-setting"


def test_private_training_learns() -> None:
    """The whole loop as a site runs it: public q, T and B; momentum on noisy gradients."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(600, 6, generator=generator)
    data = TensorData(x, (x[:, 0] - x[:, 1] > 0).long())
    engine = DpSgd(network(), loss, settings(clip=1.0, noise_multiplier=1.0, expected_batch=60.0))
    optimiser = torch.optim.SGD(engine.model.parameters(), lr=0.3, momentum=0.9)
    randomness = SeededRandomness(1)
    noise = gaussian_source(randomness, "noise", 1, "site")
    for rows in poisson_batches(
        600, 0.1, steps=60, generator=cipher_generator(randomness, "poisson", 1, "site")
    ):
        engine.step_on(data, rows, noise)
        optimiser.step()
    assert engine.released == 60
    with torch.no_grad():
        assert float((engine.model(x).argmax(1) == data.targets).double().mean()) > 0.9
