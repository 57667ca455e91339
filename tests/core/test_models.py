"""Models: their shapes, their fitness for differential privacy, and what they refuse."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from opacus import GradSampleModule  # type: ignore[import-untyped]
from opacus.validators import ModuleValidator  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _BatchNorm

from cloister.core import Layout
from cloister.core.errors import TaskError
from cloister.core.models import build, model_names, read_model

# (model, one record's shape, outputs, vocabulary)
CASES: list[tuple[str | dict[str, Any], tuple[int, ...], int, int | None]] = [
    ("logistic", (5,), 3, None),
    ("mlp", (2, 3), 3, None),
    ({"name": "mlp", "hidden": [7, 5]}, (4,), 1, None),
    ("cnn", (1, 28, 28), 10, None),
    ({"name": "cnn", "channels": [4, 6, 8], "kernel": 3, "hidden": 5}, (3, 9, 12), 4, None),
    ("tanh-cnn", (1, 28, 28), 10, None),
    ({"name": "tanh-cnn", "channels": [4, 6], "hidden": 5}, (3, 14, 18), 4, None),
    ("resnet", (3, 8, 8), 4, None),
    ({"name": "resnet", "depth": 14, "width": 8, "groups": 4}, (1, 8, 8), 3, None),
    ("separable", (3, 8, 8), 4, None),
    ("gru", (6,), 3, 11),
    ({"name": "gru", "layers": 2, "hidden": 5, "padding": 0}, (6,), 3, 11),
    ("lstm", (6, 4), 3, None),
    ({"name": "lstm", "padding": 3}, (6,), 1, 11),
    ("transformer", (6,), 3, 11),
    ({"name": "transformer", "padding": 0, "heads": 2}, (6,), 3, 11),
    ("transformer", (6, 4), 3, None),
]
IDS = [
    f"{model if isinstance(model, str) else model['name']}{list(shape)}-{number}"
    for number, (model, shape, _, _) in enumerate(CASES)
]
every_model = pytest.mark.parametrize(("model", "shape", "outputs", "vocabulary"), CASES, ids=IDS)
# torch says that the first layer's input needs no gradient, which Opacus knows.
opacus_hooks = pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on a busy machine: a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def make(
    model: str | dict[str, Any],
    shape: tuple[int, ...],
    outputs: int,
    vocabulary: int | None = None,
    seed: int = 0,
) -> nn.Module:
    torch.manual_seed(seed)
    return build(model, input_shape=shape, outputs=outputs, vocabulary=vocabulary)


def records(shape: tuple[int, ...], vocabulary: int | None, count: int = 5) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    if vocabulary is not None:
        return torch.randint(0, vocabulary, (count, *shape), generator=generator)
    return torch.randn(count, *shape, generator=generator)


def losses(outputs: Tensor) -> Tensor:
    """A loss that depends on every output, also on a single one."""
    return (outputs * torch.linspace(1, 2, outputs.shape[1])).square().sum(1)


@every_model
def test_a_model_gives_one_row_of_finite_scores_a_record(
    model: Any, shape: Any, outputs: int, vocabulary: int | None
) -> None:
    scores = make(model, shape, outputs, vocabulary)(records(shape, vocabulary))
    assert scores.shape == (5, outputs)
    assert scores.isfinite().all()


@every_model
def test_no_model_mixes_records(model: Any, shape: Any, outputs: int, vocabulary: int | None) -> None:
    net, x = make(model, shape, outputs, vocabulary), records(shape, vocabulary)
    together, alone = net(x), torch.cat([net(row) for row in torch.split(x, 1)])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    assert not any(isinstance(module, _BatchNorm) for module in net.modules())


@every_model
def test_opacus_accepts_every_model(model: Any, shape: Any, outputs: int, vocabulary: int | None) -> None:
    ModuleValidator.validate(make(model, shape, outputs, vocabulary), strict=True)


@opacus_hooks
@every_model
def test_opacus_gives_each_record_the_gradient_it_has_alone(
    model: Any, shape: Any, outputs: int, vocabulary: int | None
) -> None:
    net, x = make(model, shape, outputs, vocabulary), records(shape, vocabulary)
    wrapped = GradSampleModule(copy.deepcopy(net), loss_reduction="sum")
    losses(wrapped(x)).sum().backward()  # type: ignore[no-untyped-call]
    found = {name: parameter.grad_sample for name, parameter in wrapped._module.named_parameters()}
    for row in range(len(x)):
        net.zero_grad()
        losses(net(x[row : row + 1])).sum().backward()  # type: ignore[no-untyped-call]
        for name, parameter in net.named_parameters():
            assert parameter.grad is not None
            torch.testing.assert_close(found[name][row], parameter.grad, rtol=1e-3, atol=1e-5)


@every_model
def test_the_same_seed_builds_the_same_model_and_another_seed_another(
    model: Any, shape: Any, outputs: int, vocabulary: int | None
) -> None:
    first, again, other = (make(model, shape, outputs, vocabulary, seed) for seed in (1, 1, 2))
    layout = Layout.of(first)
    assert layout.digest == Layout.of(again).digest == Layout.of(other).digest
    assert (layout.read(first) == layout.read(again)).all()
    assert (layout.read(first) != layout.read(other)).any()


@every_model
def test_a_model_written_from_its_flat_vector_is_the_same_function(
    model: Any, shape: Any, outputs: int, vocabulary: int | None
) -> None:
    first, second = (make(model, shape, outputs, vocabulary, seed) for seed in (1, 2))
    layout, x = Layout.of(first), records(shape, vocabulary)
    layout.write(second, layout.read(first))
    assert torch.equal(first(x), second(x))


def test_the_default_cnn_on_mnist_has_114314_parameters() -> None:
    net = make("cnn", (1, 28, 28), 10)
    assert sum(parameter.numel() for parameter in net.parameters()) == 114_314
    assert [tuple(value.shape) for value in net.state_dict().values()] == [
        (16, 1, 5, 5), (16,), (32, 16, 5, 5), (32,), (64, 1568), (64,), (10, 64), (10,),
    ]  # fmt: skip


def test_the_cnn_is_convolution_relu_pool_whatever_order_it_computes_in() -> None:
    net, x = make("cnn", (2, 12, 8), 3), records((2, 12, 8), None)
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    y = x
    for layer in ("convolutions.0", "convolutions.1"):
        y = functional.max_pool2d(
            functional.relu(
                functional.conv2d(y, state[f"{layer}.weight"], state[f"{layer}.bias"], padding=2)
            ),
            2,
        )
    y = y.permute(0, 2, 3, 1).reshape(5, -1)
    y = functional.relu(functional.linear(y, state["hidden.weight"], state["hidden.bias"]))
    torch.testing.assert_close(net(x), functional.linear(y, state["output.weight"], state["output.bias"]))


def test_the_tanh_cnn_is_the_published_network_whatever_order_it_computes_in() -> None:
    net, x = make("tanh-cnn", (1, 28, 28), 10), records((1, 28, 28), None)
    assert sum(parameter.numel() for parameter in net.parameters()) == 26_010
    state = {name: value.contiguous() for name, value in net.state_dict().items()}
    y = functional.conv2d(x, state["first.weight"], state["first.bias"], stride=2, padding=3)
    y = functional.max_pool2d(torch.tanh(y), 2, stride=1)
    y = functional.conv2d(y, state["second.weight"], state["second.bias"], stride=2)
    y = functional.max_pool2d(torch.tanh(y), 2, stride=1)
    assert y.shape == (5, 32, 4, 4)
    y = y.permute(0, 2, 3, 1).reshape(5, -1)
    y = torch.tanh(functional.linear(y, state["hidden.weight"], state["hidden.bias"]))
    torch.testing.assert_close(net(x), functional.linear(y, state["output.weight"], state["output.bias"]))


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("side", [14, 15, 17, 32])
def test_the_tanh_cnn_takes_images_of_14_pixels_and_more(channels: int, side: int) -> None:
    x = torch.zeros(2, channels, side, side + 3)
    assert make("tanh-cnn", (channels, side, side + 3), 2)(x).shape == (2, 2)


@pytest.mark.parametrize("model", ["cnn", "tanh-cnn", "resnet", "separable"])
def test_image_models_compute_in_channels_last_order_by_themselves(model: str) -> None:
    net = make(model, (3, 16, 16), 4)
    seen: list[bool] = []
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            assert module.weight.is_contiguous(memory_format=torch.channels_last)
            module.forward = _spied(module, seen)  # type: ignore[method-assign]
    net(records((3, 16, 16), None).contiguous())
    assert seen
    assert all(seen)


def _spied(module: nn.Conv2d, seen: list[bool]) -> Any:
    plain = type(module).forward

    def forward(x: Tensor) -> Tensor:
        seen.append(x.is_contiguous(memory_format=torch.channels_last))
        return plain(module, x)

    return forward


@settings(max_examples=12)
@given(
    channels=st.integers(1, 3), height=st.integers(4, 12), width=st.integers(4, 12), count=st.integers(1, 2)
)
def test_image_models_take_any_size_that_is_large_enough(
    channels: int, height: int, width: int, count: int
) -> None:
    x = torch.zeros(count, channels, height, width)
    for model in (
        "cnn",
        {"name": "resnet", "width": 4, "groups": 2},
        {"name": "separable", "channels": [4, 8], "groups": 2},
    ):
        assert make(model, (channels, height, width), 2)(x).shape == (count, 2)


@pytest.mark.parametrize("name", ["gru", "lstm", "transformer"])
def test_padding_does_not_change_an_answer(name: str) -> None:
    net = make({"name": name, "padding": 0}, (8,), 3, 9)
    short = torch.tensor([[3, 1, 4, 1, 5]])
    filled = torch.cat([short, torch.zeros(1, 3, dtype=torch.int64)], dim=1)
    torch.testing.assert_close(net(short), net(filled))
    without = make(name, (8,), 3, 9)
    assert not torch.allclose(without(short), without(filled))
    assert net(torch.zeros(2, 8, dtype=torch.int64)).isfinite().all()


@pytest.mark.parametrize("name", ["gru", "lstm", "transformer"])
def test_the_order_of_a_sequence_matters(name: str) -> None:
    net = make(name, (5,), 3, 9)
    assert not torch.allclose(
        net(torch.tensor([[1, 2, 3, 4, 5]])), net(torch.tensor([[5, 4, 3, 2, 1]])), atol=1e-4
    )


@pytest.mark.parametrize("model", [{"name": "mlp", "dropout": 0.9}, {"name": "transformer", "dropout": 0.9}])
def test_dropout_acts_in_training_only(model: dict[str, Any]) -> None:
    shape = (6, 4) if model["name"] == "transformer" else (6,)
    net, x = make(model, shape, 3), records(shape, None)
    assert not torch.equal(net(x), net(x))
    net.eval()
    assert torch.equal(net(x), net(x))


def test_linear_is_another_name_for_logistic() -> None:
    assert read_model("linear") == read_model("logistic")
    assert "linear" in model_names()


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        ("resnett", "model-unknown", "did you mean 'resnet'?"),
        ("forest", "model-unknown", "there is no model 'forest'"),
        ({"hidden": [3]}, "model-unknown", "has no 'name'"),
        ({"name": "mlp", "hiden": [3]}, "model-option", "did you mean 'hidden'?"),
        ({"name": "mlp", "hidden": "64"}, "model-option", "hidden"),
        ({"name": "mlp", "hidden": [0]}, "model-option", "hidden"),
        ({"name": "cnn", "channels": []}, "model-option", "channels"),
        ({"name": "tanh-cnn", "channels": [16]}, "model-option", "channels"),
        ({"name": "resnet", "depth": 9}, "model-option", "depth"),
        ({"name": "logistic", "hidden": [3]}, "model-option", "hidden"),
    ],
)
def test_an_unknown_name_or_option_is_refused_with_the_nearest_known_one(
    model: Any, code: str, said: str
) -> None:
    with pytest.raises(TaskError) as caught:
        read_model(model)
    assert caught.value.code == code
    assert said in caught.value.message
    assert caught.value.remedy


@pytest.mark.parametrize(
    ("model", "shape", "outputs", "vocabulary", "said"),
    [
        ("cnn", (13,), 2, None, "it reads images"),
        ("cnn", (1, 3, 28), 2, None, "2 halvings leave no pixel"),
        ({"name": "cnn", "kernel": 4}, (1, 8, 8), 2, None, "kernel = 4 is even"),
        ("tanh-cnn", (1, 13, 28), 2, None, "leave no pixel"),
        ("resnet", (1, 3, 9), 2, None, "halves the image twice"),
        ({"name": "resnet", "groups": 5}, (1, 8, 8), 2, None, "groups = 5 does not divide width = 16"),
        ({"name": "separable", "channels": [16, 20]}, (1, 8, 8), 2, None, "groups = 8 does not divide"),
        ("separable", (1, 2, 8), 2, None, "3 pixels a side"),
        ("mlp", (5,), 2, 100, "it reads numbers, not tokens"),
        ("gru", (5,), 2, None, "it reads sequences"),
        ("transformer", (1, 8, 8), 2, None, "it reads sequences"),
        ({"name": "lstm", "padding": 11}, (5,), 2, 11, "padding = 11 is not a token"),
        ({"name": "transformer", "padding": 0}, (5, 3), 2, None, "padding = 0 is not a token"),
        ({"name": "transformer", "heads": 5}, (5, 3), 2, None, "heads = 5 does not divide width = 32"),
        ({"name": "transformer", "width": 9, "heads": 3}, (5, 3), 2, None, "width = 9 is odd"),
        ("mlp", (), 2, None, "shape ()"),
        ("mlp", (4, 0), 2, None, "shape (4, 0)"),
        ("mlp", (4,), 0, None, "0 outputs"),
        ("gru", (4,), 2, 0, "vocabulary of 0"),
    ],
)
def test_a_model_refuses_records_that_it_cannot_take(
    model: Any, shape: Any, outputs: int, vocabulary: int | None, said: str
) -> None:
    with pytest.raises(TaskError) as caught:
        build(model, input_shape=shape, outputs=outputs, vocabulary=vocabulary)
    assert caught.value.code == "model-shape"
    assert said in caught.value.message
    assert caught.value.remedy
