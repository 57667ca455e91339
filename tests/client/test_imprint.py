"""Which weights copy records into an update: all planted ones are found, and none of Cloister's own models, new or trained, is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.client.gate.weights import check_architecture, check_weights, measuring_layers
from cloister.core.errors import PolicyError
from cloister.core.models import build, model_names
from cloister.core.models.registry import ModelChoice
from cloister.core.resolve import build_model, load_task, owners
from cloister.core.spec.tables import TaskTable
from cloister.core.update import Layout

Weights = npt.NDArray[np.float32]


def check(model: nn.Module, **more: Any) -> None:
    layout = Layout.of(model)
    limits = {"parallel_rows": 8, "norm_ratio": 1000.0, "generator": np.random.default_rng(1), **more}
    check_weights(layout, layout.read(model), measuring_layers(model), **limits)
    check_architecture(model, widest=16.0)


def code(model: nn.Module, **more: Any) -> str:
    try:
        check(model, **more)
    except PolicyError as error:
        return error.code
    return ""


def linear(weight: Any, bias: Any = None) -> nn.Module:
    weight = torch.as_tensor(np.array(weight), dtype=torch.float32)
    layer = nn.Linear(weight.shape[1], weight.shape[0])
    with torch.no_grad():
        layer.weight.copy_(weight)
        if bias is not None:
            layer.bias.copy_(torch.as_tensor(np.array(bias), dtype=torch.float32))
    return layer


def bins(count: int, inputs: int, generator: np.random.Generator) -> tuple[Weights, Weights]:
    """Robbing the Fed: every row the same measurement, scaled, each with a threshold of its own."""
    measured = generator.normal(size=inputs)
    scales = generator.uniform(0.5, 2.0, size=(count, 1))
    return (scales * measured).astype(np.float32), np.linspace(-2, 2, count).astype(np.float32)


def test_the_planted_layer_does_copy_records() -> None:
    """The attack itself: differences of neighbouring rows' gradients are the records, and the check refuses that model."""
    generator = np.random.default_rng(3)
    records = torch.as_tensor(generator.normal(size=(6, 20)), dtype=torch.float32)
    measured = torch.as_tensor(generator.normal(size=20), dtype=torch.float32)
    values = (records @ measured).sort().values
    cuts = torch.cat([values[:1] - 1, (values[1:] + values[:-1]) / 2, values[-1:] + 1])
    layer = linear(measured.repeat(len(cuts), 1).numpy(), -cuts.numpy())
    torch.relu(layer(records)).sum().backward()  # type: ignore[no-untyped-call]
    assert isinstance(layer, nn.Linear)
    assert layer.weight.grad is not None
    found = layer.weight.grad[:-1] - layer.weight.grad[1:]
    order = (records @ measured).argsort()
    torch.testing.assert_close(found, records[order])
    assert code(layer, parallel_rows=7) == "policy-imprint"


def test_rows_that_are_one_and_the_same_are_no_bins_and_without_a_bias_they_may_be() -> None:
    weight, cuts = bins(30, 20, np.random.default_rng(1))
    assert code(linear(weight, cuts)) == "policy-imprint"
    assert code(linear(weight, 0.3 * np.linalg.norm(weight, axis=1))) == "", "one bin, thirty times"
    bare = nn.Linear(20, 30, bias=False)
    with torch.no_grad():
        bare.weight.copy_(torch.as_tensor(weight))
    assert code(bare) == "policy-imprint"


@pytest.mark.parametrize("inputs", [2, 7, 8, 30, 784])
@pytest.mark.parametrize("rows", [8, 64])
def test_a_layer_of_bins_is_found_at_any_width(rows: int, inputs: int) -> None:
    assert code(linear(*bins(rows, inputs, np.random.default_rng(rows)))) == "policy-imprint"


def test_bins_among_honest_rows_in_any_layer_and_in_a_convolution() -> None:
    generator = np.random.default_rng(5)
    weight = generator.normal(size=(512, 64))
    bias = generator.normal(size=512)
    weight[100:110], bias[100:110] = bins(10, 64, generator)
    assert code(nn.Sequential(nn.Linear(5, 64), nn.ReLU(), linear(weight, bias))) == "policy-imprint"
    convolution = nn.Conv2d(3, 32, 3)
    with torch.no_grad():
        convolution.weight[:8] = convolution.weight[0] * torch.linspace(-1, 2, 8)[:, None, None, None]
    assert code(convolution) == "policy-imprint"


def test_a_share_of_one_in_64_of_a_large_layer_is_found_whatever_rows_are_drawn() -> None:
    generator = np.random.default_rng(7)
    weight = generator.normal(size=(4096, 16)).astype(np.float32)
    bias, planted = np.zeros(4096), generator.choice(4096, 64, replace=False)
    weight[planted], bias[planted] = bins(64, 16, generator)
    for seed in range(8):
        assert code(linear(weight, bias), generator=np.random.default_rng(seed)) == "policy-imprint"


def test_rows_that_were_turned_a_little_and_thresholds_within_the_rows_are_found() -> None:
    generator = np.random.default_rng(9)
    weight, cuts = bins(16, 100, generator)
    noise = generator.normal(size=weight.shape)
    noise *= (
        0.05 * np.linalg.norm(weight, axis=1, keepdims=True) / np.linalg.norm(noise, axis=1, keepdims=True)
    )
    assert code(linear(weight + noise, 5 * cuts)) == "policy-imprint"
    weight, cuts = bins(32, 100, generator)
    weight[:, 0] = 40 * cuts  # an input that is always 1
    assert code(linear(weight)) == "policy-imprint"


def test_a_row_that_outweighs_all_others_is_found_by_weight_or_bias() -> None:
    honest = np.random.default_rng(1).normal(size=(10, 20))
    long = honest.copy()
    long[3] *= 5000
    assert code(linear(long)) == "policy-weights"
    bias = np.zeros(10)
    bias[2] = 1e6
    assert code(linear(honest, bias)) == "policy-weights"
    long[3] = honest[3] * 100
    assert code(linear(long)) == ""


def test_a_layer_far_wider_than_what_it_reads_is_refused() -> None:
    assert code(nn.Linear(64, 1025)) == "policy-model"
    assert code(nn.Linear(65, 1025)) == ""
    assert code(nn.Linear(4, 1024)) == ""


@pytest.mark.parametrize(
    "model",
    [
        nn.Linear(1, 500),
        linear(np.zeros((50, 20))),
        linear(np.ones((7, 20))),
        nn.Embedding(1000, 4),
        nn.Sequential(nn.Embedding(100, 8, _weight=torch.ones(100, 8)), nn.Linear(8, 4)),
        nn.Linear(2, 500),
        nn.Linear(3, 1000),
        nn.GRU(3, 64),
    ],
    ids=[
        "one input",
        "zeros",
        "seven rows",
        "embedding",
        "equal embeddings",
        "two inputs",
        "three inputs",
        "gru",
    ],
)
def test_what_is_left_out_is_no_reason_to_refuse(model: nn.Module) -> None:
    check_weights(
        Layout.of(model),
        Layout.of(model).read(model),
        measuring_layers(model),
        parallel_rows=8,
        norm_ratio=1000.0,
        generator=np.random.default_rng(1),
    )


SHAPES: dict[str, dict[str, Any]] = {
    "gru": {"input_shape": (20, 3)},
    "lstm": {"input_shape": (20,), "vocabulary": 100},
    "transformer": {"input_shape": (20,), "vocabulary": 100},
    "logistic": {"input_shape": (15,)},
    "linear": {"input_shape": (15,)},
    "mlp": {"input_shape": (15,)},
}


@pytest.mark.parametrize("name", model_names())
def test_no_model_of_cloister_is_refused_as_it_is_built(name: str) -> None:
    for seed in range(5):
        torch.manual_seed(seed)
        check(build(name, outputs=10, **SHAPES.get(name, {"input_shape": (1, 28, 28)})))


TRAINED: list[tuple[str, ModelChoice, str, int]] = [
    ("heart", "logistic", "sgd", 300),
    ("heart", {"name": "mlp", "hidden": [64, 64]}, "adam", 300),
    ("heart", {"name": "mlp", "hidden": [128]}, "decay", 1000),
    ("digits", {"name": "mlp", "hidden": [256]}, "adam", 150),
    ("digits", {"name": "mlp", "hidden": [256]}, "decay", 500),
    ("digits", "cnn", "adam", 60),
    ("digits", "separable", "decay", 60),
]


@pytest.mark.slow
@pytest.mark.parametrize(("use", "model", "optimizer", "steps"), TRAINED)
def test_no_model_is_refused_after_training(use: str, model: ModelChoice, optimizer: str, steps: int) -> None:
    """With strong weight decay too, under which rows die and others become one."""
    net, inputs, targets = trained(use, model)
    optimizers: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "sgd": lambda: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9),
        "adam": lambda: torch.optim.Adam(net.parameters(), lr=3e-3),
        "decay": lambda: torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=0.02),
    }
    made = optimizers[optimizer]()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        start = float(functional.cross_entropy(net(inputs), targets))
    for step in range(steps):
        rows = torch.randint(len(targets), (64,), generator=generator)
        loss = functional.cross_entropy(net(inputs[rows]), targets[rows])
        made.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        made.step()
        if step % 30 == 0:
            check(net)
    check(net)
    with torch.no_grad():
        assert float(functional.cross_entropy(net(inputs), targets)) < 0.75 * start, (
            "the fixture must learn something"
        )


def trained(use: str, model: ModelChoice) -> tuple[nn.Module, Tensor, Tensor]:
    from pathlib import Path

    task = load_task(TaskTable.model_validate({"use": use, "model": model}), Path())
    split = next(iter(owners(task).values()))
    inputs, targets = split.train.batch(torch.arange(len(split.train)))
    return build_model(task, 1), inputs, targets
