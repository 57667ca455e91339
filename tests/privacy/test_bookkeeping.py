"""Per-record clipping by book-keeping and by hooks against one record at a time through plain autograd."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from opacus import GradSampleModule  # type: ignore[import-untyped]
from opacus.layers import DPGRU, DPLSTM, DPRNN  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional

from cloister.core.errors import TaskError
from cloister.core.models import build
from cloister.privacy.bookkeeping import BookKeeping, obstacle
from cloister.privacy.gradients import convolution
from cloister.privacy.gradients.convolution import registered_conv2d, weight_gradients
from cloister.privacy.gradients.hooks import HookGradients

METHODS: dict[str, Any] = {"bookkeeping": BookKeeping, "hooks": HookGradients}
# torch says once in a process that it pads unevenly
even_filters = pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths:UserWarning")
both = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on a busy machine: a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Last(nn.Module):
    """The last step of a recurrent layer."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(x)[0][:, -1]


class Twice(nn.Module):
    """A layer that is called twice: its weights serve two places."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Any:
        return self.layer(torch.tanh(self.layer(x)))


class Tied(nn.Module):
    """Two layers, one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(7, 5)
        self.scores = nn.Linear(5, 7, bias=False)
        self.scores.weight = self.words.weight

    def forward(self, x: Tensor) -> Any:
        return self.scores(torch.tanh(self.words(x)).mean(1))


class InPlace(nn.Module):
    """Activations that overwrite a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 5, 3)

    def forward(self, x: Tensor) -> Any:
        return functional.relu(self.second(functional.relu(self.first(x), inplace=True)), inplace=True)


class ChannelsLast(nn.Module):
    """A convolution whose input lies in memory as the shipped models' does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(4, 5, 3)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x.contiguous(memory_format=torch.channels_last))


def frozen_weight() -> nn.Module:
    layer = nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Conv1d(1, 2, 1), nn.Linear(4, 3))
    layer[0].weight.requires_grad_(False)
    layer[3].bias.requires_grad_(False)
    return nn.Sequential(nn.Unflatten(1, (1, 5)), layer)


# name: (what is tested, shape of a record's input, size of the vocabulary or None)
LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int | None]] = {
    "linear": (lambda: nn.Linear(5, 4), (5,), None),
    "linear without bias": (lambda: nn.Linear(5, 4, bias=False), (5,), None),
    "linear over many positions": (lambda: nn.Linear(3, 2), (6, 3), None),
    "linear over few positions": (lambda: nn.Linear(32, 24), (2, 32), None),
    "linear over a grid": (lambda: nn.Linear(3, 2), (4, 2, 3), None),
    "convolution": (lambda: nn.Conv2d(5, 4, 3), (5, 6, 7), None),
    "convolution of colours": (lambda: nn.Conv2d(3, 4, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(2, 1)), (3, 7, 8), None),
    "convolution with stride and dilation": (lambda: nn.Conv2d(4, 6, 3, stride=2, dilation=2, padding=3), (4, 9, 8), None),
    "convolution in groups": (lambda: nn.Conv2d(6, 4, 3, groups=2, padding=1), (6, 5, 5), None),
    "convolution by depth": (lambda: nn.Conv2d(6, 6, 3, groups=6, stride=2, padding=1, bias=False), (6, 7, 7), None),
    "convolution that keeps its size, even filter": (lambda: nn.Conv2d(4, 4, (4, 3), padding="same", dilation=(1, 2)), (4, 7, 7), None),
    "convolution of grey that keeps its size": (lambda: nn.Conv2d(1, 4, 4, padding="same"), (1, 7, 7), None),
    "convolution without padding": (lambda: nn.Conv2d(4, 3, 2, padding="valid"), (4, 4, 4), None),
    "convolution of 1x1": (lambda: nn.Conv2d(4, 3, 1), (4, 5, 5), None),
    "convolution of 1x1 with padding": (lambda: nn.Conv2d(4, 3, 1, padding=1), (4, 5, 5), None),
    "convolution of 1x1 with stride": (lambda: nn.Conv2d(4, 3, 1, stride=2), (4, 5, 5), None),
    "convolution with many channels": (lambda: nn.Conv2d(40, 36, 3, padding=1, stride=2), (40, 4, 4), None),
    "convolution of channels-last images": (ChannelsLast, (4, 6, 7), None),
    "group norm": (lambda: nn.GroupNorm(2, 4), (4, 5, 6), None),
    "group norm of vectors": (lambda: nn.GroupNorm(2, 6), (6,), None),
    "layer norm": (lambda: nn.LayerNorm(4), (5, 4), None),
    "layer norm over two dimensions": (lambda: nn.LayerNorm((3, 4)), (2, 3, 4), None),
    "layer norm without bias": (lambda: nn.LayerNorm(4, bias=False), (4,), None),
    "embedding": (lambda: nn.Embedding(7, 3), (6,), 7),
    "embedding with padding": (lambda: nn.Sequential(nn.Embedding(7, 3, padding_idx=2), nn.Linear(3, 2)), (6,), 7),
    "LSTM": (lambda: Last(DPLSTM(3, 4, num_layers=2, batch_first=True)), (5, 3), None),
    "GRU": (lambda: Last(DPGRU(3, 4, batch_first=True, bidirectional=True)), (5, 3), None),
    "RNN": (lambda: Last(DPRNN(3, 4, batch_first=True)), (5, 3), None),
    "convolution in 1-d": (lambda: nn.Conv1d(3, 4, 3, padding=1, stride=2), (3, 8), None),
    "convolution in 3-d": (lambda: nn.Conv3d(2, 3, 2), (2, 4, 4, 3), None),
    "instance norm": (lambda: nn.InstanceNorm2d(3, affine=True), (3, 4, 4), None),
    "RMS norm": (lambda: nn.RMSNorm(4), (3, 4), None),
    "linear called twice": (lambda: Twice(nn.Linear(4, 4)), (4,), None),
    "convolution called twice": (lambda: Twice(nn.Conv2d(4, 4, 3, padding=1)), (4, 5, 5), None),
    "group norm called twice": (lambda: Twice(nn.GroupNorm(2, 4)), (4, 3, 3), None),
    "layer norm called twice": (lambda: Twice(nn.LayerNorm(4)), (2, 4), None),
    "convolution in 1-d called twice": (lambda: Twice(nn.Conv1d(3, 3, 3, padding=1)), (3, 6), None),
    "partly frozen": (frozen_weight, (5,), None),
    "in-place activations": (InPlace, (3, 7, 7), None),
}  # fmt: skip
# Opacus' own samplers do not take these: a layer norm needs its bias, a padding token gets a gradient, outputs stay as they are.
HOOKS_CANNOT = {"layer norm without bias", "embedding with padding", "in-place activations"}

MODELS: dict[str, tuple[str | dict[str, Any], tuple[int, ...], int, int | None]] = {
    "logistic": ("logistic", (5,), 3, None),
    "mlp": ({"name": "mlp", "hidden": [7, 5]}, (4,), 1, None),
    "cnn": ("cnn", (1, 28, 28), 10, None),
    "cnn of colours": ({"name": "cnn", "channels": [4, 6, 8], "kernel": 3, "hidden": 5}, (3, 9, 12), 4, None),
    "tanh cnn": ("tanh-cnn", (1, 28, 28), 10, None),
    "tanh cnn of colours": ({"name": "tanh-cnn", "channels": [4, 6], "hidden": 5}, (3, 14, 18), 4, None),
    "resnet": ("resnet", (3, 8, 8), 4, None),
    "separable": ("separable", (3, 8, 8), 4, None),
    "gru": ({"name": "gru", "layers": 2, "hidden": 5, "padding": 0}, (6,), 3, 11),
    "lstm": ("lstm", (6, 4), 3, None),
    "transformer of tokens": ({"name": "transformer", "padding": 0, "heads": 2}, (6,), 3, 11),
    "transformer": ("transformer", (6, 4), 3, None),
}


def layer_case(name: str, count: int = 6, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    make, shape, vocabulary = LAYERS[name]
    torch.manual_seed(1)
    return make().to(dtype).train(), records(shape, vocabulary, count, dtype)


def model_case(name: str, count: int = 4, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, Tensor]:
    model, shape, outputs, vocabulary = MODELS[name]
    torch.manual_seed(1)
    made = build(model, input_shape=shape, outputs=outputs, vocabulary=vocabulary)
    return made.to(dtype).train(), records(shape, vocabulary, count, dtype)


def records(shape: tuple[int, ...], vocabulary: int | None, count: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(count)
    if vocabulary is not None:
        return torch.randint(0, vocabulary, (count, *shape), generator=generator)
    scale = torch.logspace(-1, 1, count).view(
        -1, *[1] * len(shape)
    )  # so that some are clipped and some are not
    return (torch.randn(count, *shape, generator=generator) * scale).to(dtype)


def losses(outputs: Tensor) -> Tensor:
    """A loss that weighs every output differently."""
    flat = outputs.flatten(1)
    return (flat * torch.linspace(1, 2, flat.shape[1], dtype=flat.dtype)).square().sum(1)


def alone(model: nn.Module, x: Tensor) -> list[list[Tensor]]:
    """Each record's gradients by plain autograd, one record at a time."""
    net = copy.deepcopy(model)
    parameters = [p for p in net.parameters() if p.requires_grad]
    return [list(torch.autograd.grad(losses(net(row)).sum(), parameters)) for row in torch.split(x, 1)]


def norm(gradients: list[Tensor]) -> Any:
    return torch.cat([g.reshape(-1) for g in gradients]).norm()


def clipped(method: Any, model: nn.Module, x: Tensor, clip: float) -> tuple[list[Tensor], Any]:
    sums = {p: torch.zeros_like(p) for p in model.parameters() if p.requires_grad}
    report = method(model).add_clipped(lambda: losses(model(x)), records=len(x), clip=clip, into=sums)
    return list(sums.values()), report


def agree_with_the_loop(method: Any, model: nn.Module, x: Tensor) -> None:
    each = alone(model, x)
    norms = torch.stack([norm(one) for one in each])
    clip = float((norms.min() * norms.max()).sqrt())
    assert (norms > clip).any()
    assert (norms < clip).any()
    found, report = clipped(method, model, x, clip)
    torch.testing.assert_close(report.norms, norms, rtol=1e-7, atol=1e-10)
    torch.testing.assert_close(report.losses, losses(model(x)).detach())
    assert report.dropped == 0
    for total, parts in zip(found, zip(*each, strict=True), strict=True):
        expected = torch.stack(
            [part * min(1.0, clip / n) for part, n in zip(parts, norms.tolist(), strict=True)]
        ).sum(0)
        torch.testing.assert_close(total, expected, rtol=2e-5, atol=2e-5 * float(expected.norm()) + 1e-12)


@even_filters
@pytest.mark.parametrize(
    ("name", "method"),
    [
        (name, method)
        for method in METHODS
        for name in LAYERS
        if method == "bookkeeping" or name not in HOOKS_CANNOT
    ],
)
def test_every_layer_clips_each_record_as_the_loop_over_records_does(name: str, method: str) -> None:
    agree_with_the_loop(METHODS[method], *layer_case(name))


@both
@pytest.mark.parametrize("name", MODELS)
def test_every_shipped_model_clips_each_record_as_the_loop_over_records_does(name: str, method: str) -> None:
    model, x = model_case(name)
    assert obstacle(model) is None
    agree_with_the_loop(METHODS[method], model, x)


def test_a_layer_called_with_a_keyword_is_seen_as_well() -> None:
    class ByName(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Any:
            return self.layer(input=x)

    torch.manual_seed(0)
    agree_with_the_loop(BookKeeping, ByName().double(), records((4,), None, 5, torch.float64))


def test_weights_that_two_layers_share_are_left_to_hooks_which_clip_their_sum() -> None:
    torch.manual_seed(0)
    model, x = Tied().double(), torch.randint(0, 7, (6, 5))
    assert "one parameter" in str(obstacle(model))
    with pytest.raises(TaskError, match="one parameter") as refused:
        BookKeeping(model)
    assert refused.value.code == "dp-bookkeeping"
    agree_with_the_loop(HookGradients, model, x)


def test_book_keeping_agrees_with_opacus_hooks_to_float32_rounding() -> None:
    model, x = model_case("cnn", count=32, dtype=torch.float32)
    ours, _ = clipped(BookKeeping, model, x, 1e9)
    # Opacus' own samplers throughout, on a copy in the memory order that they can read.
    wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
    with pytest.warns(UserWarning, match="Full backward hook"):
        losses(wrapped(x)).sum().backward()  # type: ignore[no-untyped-call]
    theirs = [p.grad_sample.sum(0) for p in wrapped.parameters()]
    for mine, other in zip(ours, theirs, strict=True):
        assert float((mine - other).norm() / other.norm()) < 2e-7  # float32 rounds to 6e-8


CONVOLUTIONS: dict[str, dict[str, Any]] = {
    "plain": {"kernel_size": 3, "padding": 1},
    "oblong, unlike by its sides": {"kernel_size": (2, 4), "padding": (0, 3), "dilation": (2, 1), "stride": (1, 2)},
    "dilated sideways": {"kernel_size": (3, 2), "padding": 2, "dilation": (1, 3)},
    "keeps its size, even filter": {"kernel_size": (4, 2), "padding": "same"},
    "strided": {"kernel_size": 3, "padding": 1, "stride": 2},
    "strided downwards": {"kernel_size": 3, "stride": (2, 1), "dilation": (1, 2)},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 4},
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    ("name", "channels"), [(name, count) for name in CONVOLUTIONS for count in (1, 3, 16) if name != "grouped" or count == 16]
)  # fmt: skip
def test_convolution_sampler_takes_any_shape_and_memory_order(
    name: str, channels: int, layout: torch.memory_format, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = CONVOLUTIONS[name]
    monkeypatch.setattr(convolution, "_COPIED", 6000)  # a few records at once
    torch.manual_seed(0)
    layer = nn.Conv2d(channels, 8, **settings).double()
    x = torch.randn(40, channels, 7, 6, dtype=torch.float64).contiguous(memory_format=layout)
    dy = torch.randn_like(layer(x)).contiguous(memory_format=layout)
    found = weight_gradients(layer, x, dy)
    assert found.shape == (40, *layer.weight.shape)
    for row in (0, 31, 32, 39):  # either side of a part
        (expected,) = torch.autograd.grad((layer(x[row : row + 1]) * dy[row]).sum(), [layer.weight])
        torch.testing.assert_close(found[row], expected, rtol=1e-10, atol=1e-12)


@even_filters
@both
@pytest.mark.parametrize("bad", [float("inf"), float("nan"), 1e30])
@pytest.mark.parametrize("name", ["linear", "linear over few positions", "convolution", "convolution with many channels",
                                  "convolution of grey that keeps its size", "group norm", "layer norm", "LSTM", "convolution in 1-d"])  # fmt: skip
def test_a_record_whose_gradient_is_not_finite_adds_nothing_and_changes_no_other(
    name: str, bad: float, method: str
) -> None:
    model, x = layer_case(name, dtype=torch.float32)
    clip = 0.5
    without, _ = clipped(METHODS[method], model, torch.cat([x[:2], x[3:]]), clip)
    x[2] = bad
    if bad == 1e30 and name in {"group norm", "layer norm", "LSTM"}:
        x[2] = float("-inf")  # these bring any finite input back to size
    found, report = clipped(METHODS[method], model, x, clip)
    assert report.dropped == 1
    for with_it, expected in zip(found, without, strict=True):
        torch.testing.assert_close(with_it, expected, rtol=1e-5, atol=1e-6)


@both
def test_a_token_with_an_infinite_embedding_adds_nothing_and_changes_no_other(method: str) -> None:
    model, _ = layer_case("embedding", dtype=torch.float32)
    x = torch.tensor([[1, 2, 3], [4, 4, 1], [5, 6, 0]])
    without, _ = clipped(METHODS[method], model, x[[0, 2]], 0.5)
    with torch.no_grad():
        model.weight[4] = float("inf")  # type: ignore[operator]
    found, report = clipped(METHODS[method], model, x, 0.5)
    assert report.dropped == 1
    torch.testing.assert_close(found, without)


@given(
    scale=st.floats(-18, 18),
    twist=st.sampled_from([0.0, 1e-7, 1e-4, 1e-2, 1.0]),
    name=st.sampled_from(["linear", "linear over few positions", "linear over many positions", "convolution with many channels", "convolution", "LSTM"]),
    seed=st.integers(0, 10**6),
)  # fmt: skip
def test_no_record_adds_more_than_the_clipping_bound(
    scale: float, twist: float, name: str, seed: int
) -> None:
    model, x = layer_case(name, count=1, dtype=torch.float32)
    x = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed)) * 10**scale
    if x.dim() == 3:  # two positions whose gradients nearly cancel
        x[:, 1] = -x[:, 0] * (1 + twist)
    found, _ = clipped(BookKeeping, model, x, 0.1)
    assert float(norm([f.double() for f in found])) <= 0.1 * (1 + 1e-6)


@both
@pytest.mark.parametrize("value", [0.3, 0.7])
def test_a_long_gradient_of_equal_numbers_is_cut_to_the_bound_too(value: float, method: str) -> None:
    """Added up one by one in float32, the squares of 1.2 million equal numbers come out too small by far more than rounding."""
    layer = nn.Conv2d(256, 512, 3, bias=False)
    found, _ = clipped(METHODS[method], layer, torch.full((1, 256, 26, 26), value), 1.0)
    assert 1 - 1e-4 <= float(norm([f.double() for f in found])) <= 1 + 1e-6


def test_terms_that_cancel_do_not_hide_a_records_norm() -> None:
    """Where float32 inner products of positions (Opacus' ghost norm) see nothing, the record is clipped all the same."""
    layer = nn.Linear(64, 64, bias=False)
    torch.manual_seed(0)
    big = torch.randn(1, 64) * 1e4
    x = torch.stack([big, -big + 0.5 * torch.randn(1, 64)], 1)
    dy = torch.randn(1, 1, 64).expand(1, 2, 64).contiguous()
    true = float((dy[0].t() @ x[0]).norm())
    naive = float((torch.bmm(dy, dy.transpose(1, 2)) * torch.bmm(x, x.transpose(1, 2))).sum())
    assert naive != pytest.approx(true**2, rel=0.5), "the example must be one where float32 fails"
    sums: Any = {layer.weight: torch.zeros_like(layer.weight)}
    BookKeeping(layer).add_clipped(lambda: (layer(x) * dy).sum((1, 2)), records=1, clip=1.0, into=sums)
    added = float(sums[layer.weight].norm())
    assert 0.5 < added <= 1.0


@both
def test_nothing_is_left_on_the_model_also_after_an_error(method: str) -> None:
    model, x = model_case("cnn", dtype=torch.float32)
    before = {name: set(vars(layer)) for name, layer in model.named_modules()}

    def hooks() -> int:
        return sum(len(layer._forward_hooks) + len(layer._backward_hooks) for layer in model.modules())

    def raising() -> Tensor:
        model(x)
        raise ArithmeticError("the loss failed")

    clipped(METHODS[method], model, x, 1.0)
    with pytest.raises(ArithmeticError):
        METHODS[method](model).add_clipped(
            raising, records=len(x), clip=1.0, into={p: torch.zeros_like(p) for p in model.parameters()}
        )
    assert {name: set(vars(layer)) for name, layer in model.named_modules()} == before
    assert hooks() == 0
    for parameter in model.parameters():
        assert parameter.grad is None
        assert not hasattr(parameter, "grad_sample")
    clipped(METHODS[method], model, x, 1.0)  # and it still works


def test_a_weight_used_outside_of_its_layer_is_refused() -> None:
    layer = nn.Linear(3, 3)

    class Sly(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = layer

        def forward(self, x: Tensor) -> Any:
            return functional.linear(self.layer(x), self.layer.weight)

    with pytest.raises(TaskError, match=r"'layer.weight' is used outside of its layer") as refused:
        clipped(BookKeeping, Sly(), torch.randn(4, 3), 1.0)
    assert refused.value.code == "dp-weight-outside-layer"
    assert layer.weight.grad is None


def test_inputs_whose_first_dimension_is_not_the_record_are_refused() -> None:
    class Transposed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            return self.layer(x.transpose(0, 1)).transpose(0, 1)

    for method in METHODS.values():
        with pytest.raises(TaskError) as refused:
            clipped(method, Transposed(), torch.randn(4, 5, 3), 1.0)
        assert refused.value.code == "dp-batch-first"


@both
def test_a_loss_that_is_not_one_a_record_is_refused(method: str) -> None:
    model = nn.Linear(3, 2)
    x = torch.randn(4, 3)
    into: Any = {p: torch.zeros_like(p) for p in model.parameters()}
    with pytest.raises(TaskError, match=r"shape \(\) for 4 records"):
        METHODS[method](model).add_clipped(lambda: model(x).mean(), records=4, clip=1.0, into=into)
    with pytest.raises(TaskError, match="does not depend on any trainable parameter"):
        METHODS[method](model).add_clipped(lambda: x.sum(1), records=4, clip=1.0, into=into)


def test_a_layers_input_that_is_overwritten_is_refused_and_not_read_wrongly() -> None:
    class Overwritten(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            x = self.first(x)
            y = self.second(x)
            x.zero_()
            return y

    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        clipped(BookKeeping, Overwritten(), torch.randn(4, 3), 1.0)


@both
def test_a_layer_that_no_record_used_adds_nothing(method: str) -> None:
    class Idle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.idle = nn.Linear(3, 3), nn.Linear(3, 3)

        def forward(self, x: Tensor) -> Any:
            with torch.no_grad():
                self.idle(x)
            return self.used(x)

    found, _ = clipped(METHODS[method], Idle(), torch.randn(4, 3), 1.0)
    assert [bool(f.any()) for f in found] == [True, True, False, False]


def test_registering_with_opacus_ends_with_the_block_however_it_ends() -> None:
    before = GradSampleModule.GRAD_SAMPLERS[nn.Conv2d]
    with registered_conv2d():
        with registered_conv2d():
            assert GradSampleModule.GRAD_SAMPLERS[nn.Conv2d] is not before
        assert GradSampleModule.GRAD_SAMPLERS[nn.Conv2d] is not before
    assert GradSampleModule.GRAD_SAMPLERS[nn.Conv2d] is before
    with pytest.raises(ArithmeticError), registered_conv2d():
        raise ArithmeticError
    assert GradSampleModule.GRAD_SAMPLERS[nn.Conv2d] is before

    first_in, second_in, first_out = threading.Event(), threading.Event(), threading.Event()

    def first() -> None:
        with registered_conv2d():
            first_in.set()
            second_in.wait(5)
        first_out.set()

    def second() -> None:
        first_in.wait(5)
        with registered_conv2d():
            second_in.set()
            first_out.wait(5)
            still.append(GradSampleModule.GRAD_SAMPLERS[nn.Conv2d] is not before)

    still: list[bool] = []
    threads = [threading.Thread(target=first), threading.Thread(target=second)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert still == [True]
    assert GradSampleModule.GRAD_SAMPLERS[nn.Conv2d] is before


@pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning")
def test_opacus_with_our_sampler_gives_the_loops_gradients_for_channels_last_inputs() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(4, 5, 3), nn.Flatten()).double()
    x = torch.randn(6, 4, 5, 5, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    with registered_conv2d():
        wrapped = GradSampleModule(copy.deepcopy(model), loss_reduction="sum")
        losses(wrapped(x)).sum().backward()  # type: ignore[no-untyped-call]
    for found, parts in zip(wrapped.parameters(), zip(*alone(model, x), strict=True), strict=True):
        torch.testing.assert_close(found.grad_sample, torch.stack(parts))
