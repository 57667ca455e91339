"""What record-level privacy refuses, each with its reason; and that it accepts every model that ships."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from opacus import GradSampleModule  # type: ignore[import-untyped]
from opacus.layers import DPLSTM, DPMultiheadAttention  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional

from cloister.core.errors import TaskError
from cloister.core.models import build
from cloister.privacy.refusals import check_model_for_dp, check_on_records


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Small tensors on a busy machine: a second thread costs more than it gives."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


MODELS: dict[str, tuple[str | dict[str, Any], tuple[int, ...], int | None]] = {
    "logistic": ("logistic", (5,), None),
    "mlp": ({"name": "mlp", "dropout": 0.3}, (4,), None),
    "cnn": ("cnn", (1, 12, 12), None),
    "tanh-cnn": ("tanh-cnn", (1, 14, 14), None),
    "resnet": ("resnet", (3, 8, 8), None),
    "separable": ("separable", (3, 8, 8), None),
    "gru": ({"name": "gru", "padding": 0}, (6,), 11),
    "lstm": ({"name": "lstm", "layers": 2}, (6, 4), None),
    "transformer": ({"name": "transformer", "dropout": 0.1}, (6, 4), None),
    "transformer of tokens": ({"name": "transformer", "padding": 0}, (6,), 11),
}


def shipped(name: str) -> tuple[nn.Module, Tensor]:
    model, shape, vocabulary = MODELS[name]
    torch.manual_seed(0)
    inputs = torch.randn(3, *shape) if vocabulary is None else torch.randint(0, vocabulary, (3, *shape))
    return build(model, input_shape=shape, outputs=3, vocabulary=vocabulary).train(), inputs


def loss(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets, reduction="none")


TARGETS = torch.tensor([0, 2, 1])


class Own(nn.Module):
    """A parameter outside of any known layer."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(3))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Wide(nn.Linear):
    """A layer of a user's own, derived from a known one."""


class Tied(nn.Module):
    """Two layers, one parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.scores = nn.Embedding(7, 5), nn.Linear(5, 7, bias=False)
        self.scores.weight = self.words.weight

    def forward(self, x: Tensor) -> Any:
        return self.scores(self.words(x).mean(1))


def frozen_throughout() -> nn.Module:
    return nn.Linear(2, 2).requires_grad_(False)


# name: (model, code, a part of the message, a part of the remedy)
REFUSED: dict[str, tuple[Callable[[], nn.Module], str, str, str]] = {
    "batch norm": (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), "dp-batch-norm", "layer '1'", "GroupNorm"),
    "batch norm, nothing to train": (lambda: nn.Sequential(nn.Linear(3, 3), nn.BatchNorm2d(3, affine=False)), "dp-batch-norm", "layer '1'", "GroupNorm"),
    "batch norm over processes": (lambda: nn.SyncBatchNorm(3), "dp-batch-norm", "batch norm", "GroupNorm"),
    "running statistics": (lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2, affine=True, track_running_stats=True)), "dp-running-statistics", "layer '1'", "track_running_stats=False"),
    "LSTM": (lambda: nn.LSTM(3, 4), "dp-layer", "LSTM", "opacus.layers.DPLSTM"),
    "RNN": (lambda: nn.RNN(3, 4), "dp-layer", "RNN", "opacus.layers.DPRNN"),
    "GRU cell": (lambda: nn.GRUCell(3, 4), "dp-layer", "GRUCell", "grad_sampler"),
    "attention": (lambda: nn.MultiheadAttention(4, 2), "dp-layer", "MultiheadAttention", "scaled_dot_product_attention"),
    "Transformer": (lambda: nn.TransformerEncoderLayer(4, 2), "dp-layer", "layer 'self_attn'", "scaled_dot_product_attention"),
    "parameter of one's own": (lambda: nn.Sequential(nn.Linear(3, 3), Own()), "dp-layer", "layer '1' (Own)", "grad_sampler"),
    "derived layer": (lambda: Wide(3, 3), "dp-layer", "Wide", "grad_sampler"),
    "transposed convolution": (lambda: nn.ConvTranspose2d(3, 3, 2), "dp-layer", "ConvTranspose2d", "grad_sampler"),
    "max_norm": (lambda: nn.Embedding(5, 3, max_norm=1.0), "dp-layer", "max_norm", "leave both out"),
    "scale_grad_by_freq": (lambda: nn.Embedding(5, 3, scale_grad_by_freq=True), "dp-layer", "scale_grad_by_freq", "leave both out"),
    "bags": (lambda: nn.EmbeddingBag(5, 3), "dp-batch-first", "EmbeddingBag", "nn.Embedding"),
    "bias of a sequence": (lambda: DPMultiheadAttention(4, 2, add_bias_kv=True), "dp-batch-first", "SequenceBias", "nn.Linear"),
    "circular padding": (lambda: nn.Conv2d(1, 2, 3, padding=1, padding_mode="circular"), "dp-layer", "padding_mode = 'circular'", "nn.functional.pad"),
    "half precision": (lambda: nn.Linear(2, 2).bfloat16(), "dp-dtype", "bfloat16", "float32"),
    "nothing to train": (frozen_throughout, "task-model", "no trainable parameter", "require a gradient"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("method", ["auto", "bookkeeping", "hooks"])
def test_a_model_without_per_record_gradients_is_refused_with_reason_and_remedy(
    name: str, method: Any
) -> None:
    make, code, message, remedy = REFUSED[name]
    with pytest.raises(TaskError) as refused:
        check_model_for_dp(make(), method)
    assert refused.value.code == code
    assert message in refused.value.message
    assert remedy in refused.value.remedy


@pytest.mark.parametrize("name", MODELS)
def test_every_shipped_model_is_accepted_and_gets_book_keeping(name: str) -> None:
    model, _ = shipped(name)
    assert check_model_for_dp(model) == "bookkeeping"
    assert check_model_for_dp(model, "hooks") == "hooks"


def test_shared_weights_fall_back_to_hooks_and_are_refused_where_book_keeping_is_demanded() -> None:
    assert check_model_for_dp(Tied()) == "hooks"
    with pytest.raises(TaskError, match=r"'scores.weight' and 'words.weight' are one parameter"):
        check_model_for_dp(Tied(), "bookkeeping")


def test_hooks_refuse_a_layer_with_buffers_beside_its_parameters(monkeypatch: pytest.MonkeyPatch) -> None:
    class Buffered(Mine):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("constant", torch.ones(3))

    monkeypatch.setitem(GradSampleModule.GRAD_SAMPLERS, Buffered, lambda *_: {})
    assert check_model_for_dp(Buffered()) == "bookkeeping"
    with pytest.raises(TaskError, match="parameters and buffers"):
        check_model_for_dp(Buffered(), "hooks")


def test_a_layer_that_is_called_twice_keeps_book_keeping() -> None:
    layer = nn.Linear(3, 3)
    assert check_model_for_dp(nn.Sequential(layer, nn.Tanh(), layer)) == "bookkeeping"


def test_frozen_layers_are_fine_whatever_their_kind() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(1, 2, 2), nn.Flatten(), nn.Linear(8, 2))
    model[0].requires_grad_(False)
    assert check_model_for_dp(model) == "bookkeeping"


def test_opacus_recurrent_layers_are_fine_on_their_own() -> None:
    assert check_model_for_dp(DPLSTM(3, 4, batch_first=True)) == "bookkeeping"


@pytest.mark.parametrize("method", ["bookkeeping", "hooks"])
@pytest.mark.parametrize("name", MODELS)
def test_every_shipped_model_keeps_records_apart_when_it_is_run(name: str, method: Any) -> None:
    model, inputs = shipped(name)
    state = torch.random.get_rng_state()
    check_on_records(model, loss, inputs, TARGETS, method)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())


class Centred(nn.Module):
    """Takes the batch's mean from every record."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        return self.layer(x - x.mean(0))


class Functional(nn.Module):
    """Uses its layer's weight behind the layer's back."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(4, 3), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return functional.linear(self.second(self.first(x)), self.second.weight)


class Transposed(nn.Module):
    """Puts positions first; with as many positions as records no shape gives it away."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.out = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Any:
        steps = x[:, None, :] * torch.linspace(1, 2, 3)[:, None]
        return self.out(torch.tanh(self.layer(steps.transpose(0, 1)).transpose(0, 1)).mean(1))


class Remembering(nn.Module):
    """Keeps a statistic of what it saw."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 3)
        self.register_buffer("seen", torch.zeros(4))

    def forward(self, x: Tensor) -> Any:
        self.seen += x.detach().sum(0)
        return self.layer(x)


def whole(outputs: Tensor, targets: Tensor) -> Tensor:
    return functional.cross_entropy(outputs, targets)


def shared(outputs: Tensor, targets: Tensor) -> Tensor:
    return loss(outputs, targets) / len(targets)


def contrasted(outputs: Tensor, targets: Tensor) -> Tensor:
    return loss(outputs - outputs.mean(0), targets)


MIXED: dict[str, tuple[Callable[[], nn.Module], Callable[[Tensor, Tensor], Tensor], str]] = {
    "model centres its batch": (Centred, loss, "dp-records-mixed"),
    "loss compares records": (lambda: nn.Linear(4, 3), contrasted, "dp-records-mixed"),
    "loss is divided by their number": (lambda: nn.Linear(4, 3), shared, "dp-records-mixed"),
    "loss is one number": (lambda: nn.Linear(4, 3), whole, "dp-loss-shape"),
    "positions come first": (Transposed, loss, "dp-gradient"),
    "statistics are kept": (Remembering, loss, "dp-running-statistics"),
}


@pytest.mark.parametrize("method", ["bookkeeping", "hooks"])
@pytest.mark.parametrize("name", MIXED)
def test_what_mixes_records_is_found_by_running_it(name: str, method: Any) -> None:
    make, losses, code = MIXED[name]
    torch.manual_seed(0)
    with pytest.raises(TaskError) as refused:
        check_on_records(make().train(), losses, torch.randn(3, 4), TARGETS, method)
    assert refused.value.code == code


@pytest.mark.parametrize(
    ("method", "code"), [("bookkeeping", "dp-weight-outside-layer"), ("hooks", "dp-gradient")]
)
def test_a_weight_used_outside_of_its_layer_is_found_by_running_it(method: Any, code: str) -> None:
    torch.manual_seed(0)
    with pytest.raises(TaskError) as refused:
        check_on_records(Functional().train(), loss, torch.randn(3, 4), TARGETS, method)
    assert refused.value.code == code


class Mine(nn.Module):
    """A layer of a user's own with a sampler of the user's own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.linspace(0.5, 1, 12).view(3, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight.t()


@pytest.mark.parametrize(
    ("method", "sign"), [("bookkeeping", 1), ("hooks", 1), ("bookkeeping", -1), ("hooks", -1)]
)
def test_a_sampler_of_ones_own_is_used_if_it_gives_the_gradient(
    method: Any, sign: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sampler(layer: Mine, activations: list[Tensor], backprops: Tensor) -> dict[Tensor, Tensor]:
        return {layer.weight: sign * torch.einsum("ni,nj->nij", backprops, activations[0])}

    monkeypatch.setitem(GradSampleModule.GRAD_SAMPLERS, Mine, sampler)
    torch.manual_seed(0)
    if sign == 1:
        check_on_records(Mine().train(), loss, torch.randn(3, 4), TARGETS, method)
        return
    with pytest.raises(TaskError) as refused:
        check_on_records(Mine().train(), loss, torch.randn(3, 4), TARGETS, method)
    assert refused.value.code == "dp-gradient"


def test_inputs_may_be_nested() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 3), nn.Linear(2, 3)

        def forward(self, inputs: dict[str, tuple[Tensor, Tensor]]) -> Any:
            x, y = inputs["pair"]
            return self.a(x) + self.b(y)

    check_on_records(Two().train(), loss, {"pair": (torch.randn(3, 4), torch.randn(3, 2))}, TARGETS)


def test_one_record_cannot_show_that_records_are_kept_apart() -> None:
    with pytest.raises(TaskError, match="cannot show"):
        check_on_records(nn.Linear(4, 3), loss, torch.randn(1, 4), TARGETS[:1])
