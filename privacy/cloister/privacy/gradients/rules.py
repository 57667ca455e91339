"""How each kind of layer gives the norm of a record's gradient, and the clipped sum, from its inputs and output gradients.

For a layer y = W·x a record's gradient is Σ_t dy_t x_tᵀ over its positions t. Its norm needs either that matrix itself (``direct``)
or only the two T × T matrices of inner products (``ghost``: Goodfellow 2015; Li et al. 2022); the sum over clipped records
is one more product (Bu et al. 2023, "Differentially private optimization on large model at small cost", section 3). The cheaper
of the two is chosen layer by layer from public shapes, as in mixed ghost clipping (Bu et al. 2022).

A layer that is called several times in one pass (a recurrent cell) has the positions of all calls: one gradient, one norm.

Rounding. ``direct`` takes the norm of the very numbers that it adds. In ``ghost`` large terms of one record may cancel, so that
a norm in float32 would be wrong by any factor: it is taken in float64, and what rounding can add to the sum is added to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from opacus import GradSampleModule  # type: ignore[import-untyped]  # Opacus ships no types
from opacus.layers.dp_multihead_attention import SequenceBias  # type: ignore[import-untyped]
from opacus.layers.dp_rnn import RNNLinear  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional

from cloister.privacy.gradients.clipping import Factors, squared_norms
from cloister.privacy.gradients.convolution import AT_ONCE, pad_input, weight_gradients, weight_sum

__all__ = ["Call", "LayerGradients", "Rule", "own_parameters", "rule_for"]

#: One call of a layer in a forward pass: its inputs, each (n, …), and the gradient of its output (n, …).
Call = tuple[tuple[Tensor, ...], Tensor]

#: Roundings of relative size 2⁻²⁴ that may pile up in one entry of the sum of a record's terms.
_ROUNDINGS = 64


@dataclass(frozen=True, eq=False)
class LayerGradients:
    """A layer's per-record gradients, not necessarily as matrices.

    Attributes:
        squared: (n,) squared norm of each record's gradient of the layer's trainable parameters.
        weigh: gives the factor-weighted sum over records, by parameter.
    """

    squared: Tensor
    weigh: Callable[[Factors], list[tuple[Tensor, Tensor]]]


class Rule(Protocol):
    """One kind of layer.

    Attributes:
        leaves_gradients: whether autograd still computes the batch gradient of the weights, which is thrown away.
    """

    leaves_gradients: bool

    def forward(self, layer: Any, *inputs: Tensor) -> Tensor:
        """Return the layer's output; its weights are constants to autograd, so no batch gradient is computed for them."""
        ...

    def gradients(self, layer: Any, calls: Sequence[Call]) -> LayerGradients:
        """Return the gradients of all calls (at least one) together."""
        ...


def own_parameters(layer: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of ``layer`` that no layer inside it has, by name.

    Opacus' recurrent layers register those of their cells a second time, under the names that torch's layers have.
    """
    inside = {
        id(parameter)
        for part in layer.modules()
        if part is not layer
        for parameter in vars(part)["_parameters"].values()
    }
    return {
        name: parameter
        for name, parameter in vars(layer)["_parameters"].items()
        if parameter is not None and id(parameter) not in inside
    }


def rule_for(layer: nn.Module) -> Rule | None:
    """Return the rule for a layer with parameters of its own, or ``None`` where only Opacus' hooks can be asked."""
    kind = type(layer)
    if kind in _RULES:
        return _RULES[kind]
    if kind in GradSampleModule.GRAD_SAMPLERS and kind not in _NOT_BATCH_FIRST:
        return _OPACUS
    return None


class _Linear:
    leaves_gradients = False

    def forward(self, layer: nn.Linear, *inputs: Tensor) -> Tensor:
        return functional.linear(inputs[0], layer.weight.detach(), _constant(layer.bias))

    def gradients(self, layer: nn.Linear, calls: Sequence[Call]) -> LayerGradients:
        if len(calls) == 1 and calls[0][1].dim() == 2:
            ((x,), dy) = calls[0]
            return _rows(layer, x, dy)
        x = torch.cat([one.reshape(len(one), -1, one.shape[-1]) for (one,), _ in calls], 1)
        dy = torch.cat([one.reshape(len(one), -1, one.shape[-1]) for _, one in calls], 1)
        return _positions(layer, x, dy)


def _rows(layer: nn.Linear, x: Tensor, dy: Tensor) -> LayerGradients:
    """One position: ‖dy xᵀ‖² = ‖dy‖²·‖x‖², which cannot cancel."""
    weight, bias = _trainable(layer.weight), _trainable(layer.bias)
    length = torch.zeros_like(x[:, 0]) if weight is None else squared_norms(x)
    squared = squared_norms(dy) * (length + (bias is not None))

    def weigh(factors: Factors) -> list[tuple[Tensor, Tensor]]:
        scaled = factors.weigh(dy)
        found = [] if weight is None else [(weight, scaled.t() @ factors.clean(x))]
        return found if bias is None else [*found, (bias, scaled.sum(0))]

    return LayerGradients(squared, weigh)


def _positions(layer: nn.Linear | nn.Conv2d, x: Tensor, dy: Tensor) -> LayerGradients:
    """Return the gradients for inputs (n, T, d) and output gradients (n, T, o)."""
    weight, bias = _trainable(layer.weight), _trainable(layer.bias)
    parts = [] if bias is None else [_materialised(bias, dy.sum(1))]
    if weight is not None:
        positions, width, height = x.shape[1], x.shape[2], dy.shape[2]
        if _cheaper_as_ghost(x, positions, width, height):

            def total(factors: Factors) -> Tensor:
                scaled = factors.weigh(dy).reshape(-1, height)
                return (scaled.t() @ factors.clean(x).reshape(-1, width)).view(weight.shape)

            parts.append(LayerGradients(_ghost(x, dy), lambda factors: [(weight, total(factors))]))
        else:
            rows = torch.bmm(dy.transpose(1, 2), x)
            parts.append(_materialised(weight, rows.view(-1, *weight.shape)))
    return _together(parts)


def _cheaper_as_ghost(x: Tensor, positions: int, width: int, height: int) -> bool:
    """Compare T²(d + o) operations in float64 with T·d·o, and do without a big matrix a record where that costs little."""
    if x.device.type == "mps":  # it has no float64
        return False
    factor = 4 if width * height < 2**16 else 1
    return factor * positions * (width + height) < width * height


def _ghost(x: Tensor, dy: Tensor) -> Tensor:
    """Return (n,) upper bounds, tight to about 1e-5, of ‖Σ_t dy_t x_tᵀ‖² from the inner products of positions."""
    x64, dy64 = x.double(), dy.double()
    products = torch.bmm(x64, x64.transpose(1, 2)) * torch.bmm(dy64, dy64.transpose(1, 2))
    squared = products.sum((1, 2)).clamp(min=0)
    size = (torch.linalg.vector_norm(x64, dim=2) * torch.linalg.vector_norm(dy64, dim=2)).sum(1)
    rounding = _ROUNDINGS / 2 * torch.finfo(x.dtype).eps * size
    bound: Tensor = (squared.sqrt() + rounding).square().to(x.dtype)
    return bound


class _Conv2d:
    leaves_gradients = False

    def forward(self, layer: nn.Conv2d, *inputs: Tensor) -> Tensor:
        output: Tensor = functional.conv2d(
            inputs[0],
            layer.weight.detach(),
            _constant(layer.bias),
            layer.stride,
            layer.padding,
            layer.dilation,
            layer.groups,
        )
        return output

    def gradients(self, layer: nn.Conv2d, calls: Sequence[Call]) -> LayerGradients:
        if len(calls) == 1 and layer.groups == 1 and layer.weight.requires_grad:
            ((x,), dy) = calls[0]
            positions, height, width = dy.shape[2] * dy.shape[3], dy.shape[1], layer.weight[0].numel()
            if (
                width == layer.in_channels
                and layer.stride == (1, 1)
                and layer.padding in ((0, 0), "same", "valid")
            ):
                return _positions(
                    layer, x.permute(0, 2, 3, 1).flatten(1, 2), dy.permute(0, 2, 3, 1).flatten(1, 2)
                )
            if _cheaper_as_ghost(x, positions, width, height):
                return self._ghost(layer, x, dy)
        parts = []
        if layer.weight.requires_grad:
            parts.append(
                _materialised(layer.weight, _add([weight_gradients(layer, x, dy) for (x,), dy in calls]))
            )
        if (bias := _trainable(layer.bias)) is not None:
            parts.append(_materialised(bias, _add([dy.sum((2, 3)) for _, dy in calls])))
        return _together(parts)

    @staticmethod
    def _ghost(layer: nn.Conv2d, x: Tensor, dy: Tensor) -> LayerGradients:
        padded, padding = pad_input(layer, x)
        windows = functional.unfold(
            padded, layer.kernel_size, layer.dilation, padding, layer.stride
        ).transpose(1, 2)
        squared = _ghost(windows, dy.permute(0, 2, 3, 1).flatten(1, 2))

        def weigh(factors: Factors) -> list[tuple[Tensor, Tensor]]:
            return [(layer.weight, weight_sum(layer, factors.clean(x), factors.weigh(dy)))]

        parts = [LayerGradients(squared, weigh)]
        if (bias := _trainable(layer.bias)) is not None:
            parts.append(_materialised(bias, dy.sum((2, 3))))
        return _together(parts)


class _GroupNorm:
    leaves_gradients = False

    def forward(self, layer: nn.GroupNorm, *inputs: Tensor) -> Tensor:
        return functional.group_norm(
            inputs[0], layer.num_groups, _constant(layer.weight), _constant(layer.bias), layer.eps
        )

    def gradients(self, layer: nn.GroupNorm, calls: Sequence[Call]) -> LayerGradients:
        parts, over = [], tuple(range(2, calls[0][1].dim()))
        if (weight := _trainable(layer.weight)) is not None:

            def rows(x: Tensor, dy: Tensor) -> Tensor:
                normal = functional.group_norm(x, layer.num_groups, eps=layer.eps).mul_(dy)
                return normal.sum(over) if over else normal

            parts.append(_materialised(weight, _add([_in_parts(rows, x, dy) for (x,), dy in calls])))
        if (bias := _trainable(layer.bias)) is not None:
            parts.append(_materialised(bias, _add([dy.sum(over) if over else dy for _, dy in calls])))
        return _together(parts)


class _LayerNorm:
    leaves_gradients = False

    def forward(self, layer: nn.LayerNorm, *inputs: Tensor) -> Tensor:
        return functional.layer_norm(
            inputs[0], layer.normalized_shape, _constant(layer.weight), _constant(layer.bias), layer.eps
        )

    def gradients(self, layer: nn.LayerNorm, calls: Sequence[Call]) -> LayerGradients:
        parts, shape = [], layer.normalized_shape

        def over_positions(rows: Tensor) -> Tensor:
            return rows.reshape(len(rows), -1, *shape).sum(1)

        if (weight := _trainable(layer.weight)) is not None:

            def rows(x: Tensor, dy: Tensor) -> Tensor:
                return over_positions(functional.layer_norm(x, shape, eps=layer.eps).mul_(dy))

            parts.append(_materialised(weight, _add([_in_parts(rows, x, dy) for (x,), dy in calls])))
        if (bias := _trainable(layer.bias)) is not None:
            parts.append(_materialised(bias, _add([over_positions(dy) for _, dy in calls])))
        return _together(parts)


class _Embedding:
    leaves_gradients = False

    def forward(self, layer: nn.Embedding, *inputs: Tensor) -> Tensor:
        return functional.embedding(inputs[0], layer.weight.detach(), layer.padding_idx)

    def gradients(self, layer: nn.Embedding, calls: Sequence[Call]) -> LayerGradients:
        """A record's gradient has one row for each token that it holds: those rows are all that is kept."""
        tokens = torch.cat([one.reshape(len(one), -1) for (one,), _ in calls], 1)
        rows = torch.cat([one.reshape(len(one), -1, one.shape[-1]) for _, one in calls], 1)
        # The padding token's row gets no gradient (torch.nn.Embedding); Opacus 1.6 gives it one.
        if layer.padding_idx is not None:
            rows = rows.masked_fill((tokens == layer.padding_idx).unsqueeze(2), 0)
        records, words = len(tokens), layer.num_embeddings
        owner = torch.arange(records, device=tokens.device).unsqueeze(1)
        kept, place = torch.unique(owner * words + tokens, return_inverse=True)
        sums = rows.new_zeros(len(kept), rows.shape[-1]).index_add_(0, place.reshape(-1), rows.flatten(0, 1))
        record, token = kept // words, kept % words
        found = squared_norms(sums)
        exact = found if found.device.type == "mps" else found.double()  # a record may have many tokens
        squared = exact.new_zeros(records).index_add_(0, record, exact).to(rows.dtype)

        def weigh(factors: Factors) -> list[tuple[Tensor, Tensor]]:
            each = Factors(
                factors.factors[record], None if factors.dropped is None else factors.dropped[record]
            )
            return [(layer.weight, torch.zeros_like(layer.weight).index_add_(0, token, each.weigh(sums)))]

        return LayerGradients(squared, weigh)


class _OpacusSampler:
    """Any other kind that Opacus has a grad sampler for: the records' gradients as they are."""

    leaves_gradients = True

    def forward(self, layer: nn.Module, *inputs: Tensor) -> Tensor:
        result: Tensor = type(layer).forward(layer, *inputs)
        return result

    def gradients(self, layer: nn.Module, calls: Sequence[Call]) -> LayerGradients:
        sampler = GradSampleModule.GRAD_SAMPLERS[type(layer)]
        found: dict[Tensor, Tensor] = {}
        for inputs, dy in calls:
            # Opacus reads inputs by their strides: see `convolution`.
            for parameter, rows in sampler(layer, [x.contiguous() for x in inputs], dy.contiguous()).items():
                found[parameter] = found[parameter] + rows if parameter in found else rows
        return _together(
            [_materialised(parameter, rows) for parameter, rows in found.items() if parameter.requires_grad]
        )


def _constant(parameter: Tensor | None) -> Tensor | None:
    return None if parameter is None else parameter.detach()


def _trainable(parameter: Tensor | None) -> Tensor | None:
    return parameter if parameter is not None and parameter.requires_grad else None


def _in_parts(rows: Callable[[Tensor, Tensor], Tensor], x: Tensor, dy: Tensor) -> Tensor:
    """Return ``rows(x, dy)``, a few records at a time: what is between then stays in the cache (a norm: a quarter of the time)."""
    return torch.cat(
        [rows(a, b) for a, b in zip(torch.split(x, AT_ONCE), torch.split(dy, AT_ONCE), strict=True)]
    )


def _add(parts: Sequence[Tensor]) -> Tensor:
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total


def _materialised(parameter: Tensor, rows: Tensor) -> LayerGradients:
    return LayerGradients(squared_norms(rows), lambda factors: [(parameter, factors.sum(rows))])


def _together(parts: Sequence[LayerGradients]) -> LayerGradients:
    squared = _add([part.squared for part in parts])
    return LayerGradients(squared, lambda factors: [pair for part in parts for pair in part.weigh(factors)])


_OPACUS = _OpacusSampler()
_RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _Linear(),
    RNNLinear: _Linear(),
    nn.Conv2d: _Conv2d(),
    nn.GroupNorm: _GroupNorm(),
    nn.LayerNorm: _LayerNorm(),
    nn.Embedding: _Embedding(),
}
#: Their inputs do not begin with the batch: left to Opacus' hooks.
_NOT_BATCH_FIRST = {nn.EmbeddingBag, SequenceBias}
