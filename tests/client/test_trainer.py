"""Local training: what a site's change is, and what must not influence it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.client.batches import epoch_batches, hold_out, step_batches
from cloister.client.passes import PlainPasses
from cloister.client.trainer import Trainer
from cloister.core import Layout, SeededRandomness, Split, Task, TensorData
from cloister.core.errors import DataError
from cloister.core.resolve import build_model
from cloister.core.spec import FederationSpec, parse_federation


class Points(Task):
    """Two classes of points; a model with dropout, an integer buffer and a frozen layer on demand."""

    classes = ("low", "high")

    def __init__(self, dropout: float = 0.0, records: int = 37) -> None:
        self.dropout = dropout
        self.records = records

    def model(self) -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Dropout(self.dropout), nn.Linear(8, 2))
        model.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        return model

    def data(self) -> Split:
        generator = torch.Generator().manual_seed(3)
        x = torch.randn(self.records, 3, generator=generator)
        y = (x[:, 0] + 0.3 * x[:, 1] > 0).long()
        return Split(TensorData(x, y), TensorData(x, y))


def spec(**training: Any) -> FederationSpec:
    tables = {"federation": {"name": "t", "rounds": 5}, "task": {"use": "points"}, "training": training}
    return parse_federation(tables, base=Path()).spec


def trainer(task: Task | None = None, **training: Any) -> tuple[Trainer, np.ndarray[Any, Any], TensorData]:
    task = task or Points()
    model = build_model(task, 0)
    layout = Layout.of(model)
    split = task.data()
    assert isinstance(split, Split)
    assert isinstance(split.train, TensorData)
    return Trainer(spec(**training), task, model, layout), layout.read(model), split.train


def train(
    made: tuple[Trainer, Any, TensorData],
    *,
    seed: int = 1,
    site: str = "a",
    round_number: int = 1,
    **more: Any,
) -> Any:
    engine, vector, data = made
    return engine.train(
        vector, data, site=site, round_number=round_number, randomness=SeededRandomness(seed), **more
    )


OPTIMISERS = {
    "sgd": ({"name": "sgd", "lr": 0.1}, lambda p: torch.optim.SGD(p, lr=0.1)),
    "momentum": (
        {"name": "sgd", "lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    ),
    "adam": (
        {"name": "adam", "lr": 0.01, "betas": [0.8, 0.95]},
        lambda p: torch.optim.Adam(p, lr=0.01, betas=(0.8, 0.95)),
    ),
    "adamw": (
        {"name": "adamw", "lr": 0.01, "weight_decay": 0.1},
        lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1),
    ),
    "rmsprop": (
        {"name": "rmsprop", "lr": 0.01, "momentum": 0.5},
        lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5, eps=1e-8),
    ),
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_local_training_equals_the_plain_torch_loop(name: str) -> None:
    table, make = OPTIMISERS[name]
    made = trainer(optimizer=table, batch_size=10, local_epochs=2)
    result = train(made)
    model = build_model(Points(), 0)
    optimiser = make(model.parameters())  # type: ignore[no-untyped-call]
    generator = SeededRandomness(1).generator("batches", 1, "a")
    data = made[2]
    for _ in range(2):
        order = torch.from_numpy(generator.permutation(37))
        for start in range(0, 37, 10):
            rows = order[start : start + 10]
            optimiser.zero_grad()
            functional.cross_entropy(model(data.inputs[rows]), data.targets[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    np.testing.assert_allclose(result.change, Layout.of(model).read(model) - made[1], rtol=0, atol=1e-6)
    assert result.steps == 8
    assert result.records == 37


def test_optimisers_all_answer_differently() -> None:
    changes = [train(trainer(optimizer=table, batch_size=10)).change for table, _ in OPTIMISERS.values()]
    for i, one in enumerate(changes):
        for other in changes[i + 1 :]:
            assert np.abs(one - other).max() > 1e-4


def penalised(extra: Any, **training: Any) -> None:
    """One full-batch step with the penalty in the gradient equals autograd on the penalised loss."""
    made = trainer(optimizer={"name": "sgd", "lr": 0.1}, batch_size=64, local_steps=2, **training)
    result = train(made)
    model = build_model(Points(), 0)
    start = [p.detach().clone() for p in model.parameters()]
    data = made[2]
    for _ in range(2):
        loss = functional.cross_entropy(model(data.inputs), data.targets) + extra(
            list(model.parameters()), start
        )
        model.zero_grad()
        loss.backward()
        with torch.no_grad():
            for p in model.parameters():
                assert p.grad is not None
                p.sub_(0.1 * p.grad)
    np.testing.assert_allclose(result.change, Layout.of(model).read(model) - made[1], rtol=0, atol=1e-6)


def test_l2_is_half_the_squared_norm_in_the_loss() -> None:
    penalised(lambda ps, _: 0.3 / 2 * sum((p**2).sum() for p in ps), l2=0.3)


def test_l1_is_the_absolute_sum_in_the_loss() -> None:
    penalised(lambda ps, _: 0.3 * sum(p.abs().sum() for p in ps), l1=0.3)


def test_proximal_term_is_half_mu_times_the_squared_distance_to_the_rounds_model() -> None:
    penalised(
        lambda ps, start: 0.5 * 2.0 * sum(((p - s) ** 2).sum() for p, s in zip(ps, start, strict=True)),
        proximal_mu=2.0,
    )


def test_scaffold_correction_is_added_to_every_gradient() -> None:
    made = trainer(optimizer={"name": "sgd", "lr": 0.1}, batch_size=64, local_steps=1)
    drift = np.linspace(-1, 1, made[0].layout.size).astype(np.float32)
    plain, pulled = train(made), train(made, drift=drift)
    np.testing.assert_allclose(pulled.change, plain.change - 0.1 * drift, rtol=0, atol=1e-6)


def test_gradient_clip_bounds_each_step() -> None:
    made = trainer(optimizer={"name": "sgd", "lr": 1.0}, batch_size=64, local_steps=1, gradient_clip=0.01)
    assert np.linalg.norm(train(made).change) == pytest.approx(0.01, rel=1e-3)


def test_class_weights_weigh_each_records_loss() -> None:
    made = trainer(
        optimizer={"name": "sgd", "lr": 0.1}, batch_size=64, local_steps=1, class_weights=[3.0, 1.0]
    )
    model = build_model(Points(), 0)
    losses = functional.cross_entropy(model(made[2].inputs), made[2].targets, reduction="none")
    (losses * torch.tensor([3.0, 1.0])[made[2].targets]).mean().backward()  # type: ignore[no-untyped-call]
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.grad is not None]).numpy()
    np.testing.assert_allclose(train(made).change, -0.1 * gradient, rtol=0, atol=1e-6)


def test_change_depends_on_seed_site_and_round_and_on_nothing_else() -> None:
    made = trainer(Points(dropout=0.5), batch_size=8)
    first = train(made).change
    torch.manual_seed(99)
    before = torch.random.get_rng_state()
    assert np.array_equal(train(made).change, first)
    assert torch.equal(torch.random.get_rng_state(), before), (
        "the process's own generator must be left as it was"
    )
    for other in (train(made, seed=2), train(made, site="b"), train(made, round_number=2)):
        assert not np.array_equal(other.change, first)


def test_a_tasks_numpy_and_python_randomness_is_the_sites_and_the_rounds_own() -> None:
    class Noisy(Points):
        def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
            return super().loss(outputs, targets) * (np.random.rand() + random.random())  # noqa: NPY002

    made = trainer(Noisy())
    first = train(made).change
    np.random.seed(5)  # noqa: NPY002
    random.seed(5)
    before = random.getstate()
    assert np.array_equal(train(made).change, first)
    assert random.getstate() == before
    assert not np.array_equal(train(made, round_number=2).change, first)


def test_one_site_leaves_nothing_in_the_module_for_the_next() -> None:
    made = trainer()
    model = made[0].model
    model.get_buffer("calls").fill_(7)
    train(made)
    assert int(model.get_buffer("calls")) == 0


def test_local_steps_take_exactly_as_many_batches() -> None:
    assert train(trainer(local_steps=11, batch_size=10)).steps == 11


def test_early_stop_keeps_the_model_with_the_best_validation_loss() -> None:
    task = Points()
    made = trainer(
        task,
        optimizer={"name": "sgd", "lr": 3.0},
        local_epochs=40,
        batch_size=4,
        early_stop={"patience": 2, "validation": 0.3},
    )
    result = train(made)
    full = 40 * int(np.ceil((37 - 11) / 4))
    assert result.steps < full
    engine, vector, data = made
    _, held = hold_out(37, 0.3, SeededRandomness(1).generator("validation", "a"))

    def validation_loss(change: Any) -> float:
        engine.load(vector + change)
        engine.model.eval()
        with torch.no_grad():
            x, y = data.inputs[held].to(engine.device), data.targets[held].to(engine.device)
            return float(functional.cross_entropy(engine.model(x), y))

    without = train(trainer(task, optimizer={"name": "sgd", "lr": 3.0}, local_epochs=40, batch_size=4))
    assert validation_loss(result.change) <= min(
        validation_loss(np.zeros_like(vector)), validation_loss(without.change)
    )


def test_training_that_diverges_is_refused_and_names_the_site() -> None:
    made = trainer(optimizer={"name": "sgd", "lr": 1e6, "weight_decay": 1e6}, local_steps=50)
    with pytest.raises(DataError, match="site 'a' left the model not finite") as refused:
        train(made)
    assert refused.value.code == "update-not-finite"


def test_site_without_a_record_is_refused() -> None:
    engine, vector, _ = trainer()
    empty = TensorData(torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64))
    with pytest.raises(DataError, match="no training record"):
        engine.train(vector, empty, site="a", round_number=1, randomness=SeededRandomness(1))


def test_epoch_batches_hold_every_row_once() -> None:
    rows = torch.cat(list(epoch_batches(23, 5, np.random.default_rng(0))))
    assert sorted(rows.tolist()) == list(range(23))
    assert rows.tolist() != list(range(23))


def test_step_batches_go_through_all_rows_before_any_comes_again() -> None:
    batches = list(step_batches(10, 4, 5, np.random.default_rng(0)))
    assert [len(b) for b in batches] == [4, 4, 2, 4, 4]
    assert sorted(torch.cat(batches[:3]).tolist()) == list(range(10))


def test_hold_out_leaves_at_least_one_record_on_each_side() -> None:
    for rows in (2, 3, 50):
        kept, held = hold_out(rows, 0.9, np.random.default_rng(0))
        assert len(kept) >= 1
        assert len(held) >= 1
        assert sorted(torch.cat([kept, held]).tolist()) == list(range(rows))


def test_gradient_step_is_a_seam() -> None:
    """A step of another kind (here one that leaves zero gradients) is all that a mechanism has to bring."""

    class Nothing:
        def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
            for parameter in model.parameters():
                parameter.grad = torch.zeros_like(parameter)
            return torch.zeros(())

    task = Points()
    model = build_model(task, 0)
    layout = Layout.of(model)
    split = task.data()
    result = Trainer(spec(), task, model, layout, PlainPasses(task, spec().training, Nothing())).train(
        layout.read(model), split.train, site="a", round_number=1, randomness=SeededRandomness(0)
    )
    assert not result.change.any()


class Named(Points):
    """The same points, by name."""

    def model(self) -> nn.Module:
        class ByName(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.inner = nn.Linear(3, 2)

            def forward(self, batch: dict[str, Tensor]) -> Tensor:
                found: Tensor = self.inner(batch["x"])
                return found

        return ByName()


class NamedData:
    def __init__(self, data: TensorData) -> None:
        self.inner, self.targets = data, data.targets

    def __len__(self) -> int:
        return len(self.inner)

    def batch(self, rows: Tensor) -> tuple[dict[str, Tensor], Tensor]:
        inputs, targets = self.inner.batch(rows)
        return {"x": inputs}, targets

    def subset(self, rows: Any) -> NamedData:
        chosen = torch.as_tensor(rows)
        return NamedData(TensorData(self.inner.inputs[chosen], self.targets[chosen]))


def test_inputs_by_name_can_be_held_out_for_early_stop() -> None:
    engine, vector, data = trainer(Named(), local_epochs=3, early_stop={"patience": 1})
    result = engine.train(vector, NamedData(data), site="a", round_number=1, randomness=SeededRandomness(1))
    assert np.isfinite(result.change).all()
    assert result.change.any()
