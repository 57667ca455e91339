"""The weight gradient of a 2-d convolution for each record, in the way that is fastest for its shape and memory format.

==================================  ==========================================================================================
convolution                         each record's gradient
==================================  ==========================================================================================
one group, up to 3 input channels   a copy of every window (Chellapilla et al. 2006, "im2col"), and one product a record
one group, channels last, rows      a copy of every row of windows, which lie one above the other: one product for each row of
that move by one pixel              the filter, over the same copy
any other                           a grouped convolution: a batch of n records is read as one image with n times the
                                    channels, whose weight gradient, which oneDNN has a fast kernel for, holds every record's
                                    own (as Rochette et al. 2019 do with the convolution itself)
==================================  ==========================================================================================

Opacus 1.6 unfolds the input, reads it by its strides (`unfold2d`), and gives wrong gradients, silently, for channels-last
inputs; this takes any memory format.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from opacus import GradSampleModule  # type: ignore[import-untyped]  # Opacus ships no types
from opacus.grad_sample import register_grad_sampler  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "AT_ONCE",
    "conv2d_grad_sampler",
    "pad_input",
    "registered_conv2d",
    "weight_gradients",
    "weight_sum",
]

#: Records of one grouped convolution: what 32 of them need stays in a core's cache (a CNN's second layer: half the time of 256).
AT_ONCE = 32

#: Up to so many input channels (grey or colour images) windows and a batched product take less than half the time.
_FEW_CHANNELS = 3

#: Numbers in the copies of windows that are made at once: more do not stay in a core's cache.
_COPIED = 2**19


def weight_gradients(layer: nn.Conv2d, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return each record's gradient of the weight.

    Args:
        layer: the convolution; any stride, dilation, groups and zero padding.
        inputs: (n, in, height, width) what went in.
        outputs: (n, out, height', width') gradient of what came out.

    Returns:
        (n, *layer.weight.shape), each record's dense in memory, in an order of dimensions of its own.
    """
    inputs, padding = pad_input(layer, inputs)
    if layer.groups == 1 and layer.in_channels <= _FEW_CHANNELS:
        return _by_windows(layer, inputs, outputs, padding)
    if layer.groups == 1 and layer.stride[0] == 1 and outputs.stride(1) == 1:
        return _by_rows(layer, inputs, outputs, padding)
    found = layer.weight.new_empty((len(inputs), *layer.weight.shape))
    # The values of the weight do not enter its own gradient: one number, expanded, stands for all.
    one = layer.weight.new_zeros(())
    for rows, x, dy in zip(*(torch.split(whole, AT_ONCE) for whole in (found, inputs, outputs)), strict=True):
        records = len(rows)
        weight = one.expand(records * layer.out_channels, *layer.weight.shape[1:])
        stacked, gradient = (part.contiguous().view(1, -1, *part.shape[2:]) for part in (x, dy))
        groups = records * layer.groups
        rows.copy_(_weight_gradient(layer, stacked, gradient, weight, padding, groups=groups).view_as(rows))
    return found


def _by_windows(layer: nn.Conv2d, inputs: Tensor, outputs: Tensor, padding: tuple[int, int]) -> Tensor:
    """Copy every filter position's window, and multiply: fast where a window is small, since all copies fit the cache."""
    height, width = padding
    padded = functional.pad(inputs, (width, width, height, height)).contiguous()
    record, channel, row, column = padded.stride()
    (down, right), (step_down, step_right) = layer.stride, layer.dilation
    rows, columns = outputs.shape[2:]
    windows = padded.as_strided(
        (len(inputs), layer.in_channels, *layer.kernel_size, rows, columns),
        (record, channel, row * step_down, column * step_right, row * down, column * right),
    )
    positions = outputs.permute(0, 2, 3, 1).flatten(1, 2)
    found = inputs.new_empty((len(inputs), layer.weight[0].numel(), layer.out_channels))
    for part, view, dy in zip(
        *(torch.split(whole, AT_ONCE) for whole in (found, windows, positions)), strict=True
    ):
        torch.bmm(view.reshape(len(part), -1, rows * columns), dy, out=part)
    return found.transpose(1, 2).view(len(inputs), *layer.weight.shape)


def _by_rows(layer: nn.Conv2d, inputs: Tensor, outputs: Tensor, padding: tuple[int, int]) -> Tensor:
    """Copy the windows of one filter row, and multiply once for each: what a filter row sees is what the one above it sees, further down.

    In channels-last order the part of a window that one filter row sees lies in one piece.
    """
    height, width = padding
    padded = functional.pad(inputs.permute(0, 2, 3, 1), (0, 0, width, width, height, height)).contiguous()
    record, row, column, _ = padded.stride()
    (tall, wide), channels, columns = layer.kernel_size, layer.in_channels, outputs.shape[3]
    windows = padded.as_strided(
        (len(inputs), padded.shape[1], columns, wide, channels),
        (record, row, column * layer.stride[1], column * layer.dilation[1], 1),
    )
    positions = outputs.permute(0, 2, 3, 1).flatten(1, 2)
    found = inputs.new_empty((len(inputs), tall, wide * channels, layer.out_channels))
    at_once = max(1, _COPIED // windows[0].numel())
    for part, view, dy in zip(
        *(torch.split(whole, at_once) for whole in (found, windows, positions)), strict=True
    ):
        seen = view.reshape(len(part), -1, wide * channels).transpose(1, 2)
        for turn in range(tall):
            first = turn * layer.dilation[0] * columns
            torch.bmm(seen[:, :, first : first + dy.shape[1]], dy, out=part[:, turn])
    return found.view(len(inputs), tall, wide, channels, layer.out_channels).permute(0, 4, 3, 1, 2)


def weight_sum(layer: nn.Conv2d, inputs: Tensor, outputs: Tensor) -> Tensor:
    """Return the gradient of the weight summed over records; arguments as `weight_gradients`."""
    inputs, padding = pad_input(layer, inputs)
    return _weight_gradient(layer, inputs, outputs, layer.weight.detach(), padding, groups=layer.groups)


def pad_input(layer: nn.Conv2d, inputs: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Return the inputs and the padding that is left to do: for ``padding="same"`` of even filters it is uneven, and done here."""
    padding = layer.padding
    if isinstance(padding, str):
        if padding == "valid":
            return inputs, (0, 0)
        # torch pads the larger half behind (nn/modules/conv.py, _reversed_padding_repeated_twice).
        totals = [d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True)]
        height, width = totals
        return functional.pad(inputs, (width // 2, width - width // 2, height // 2, height - height // 2)), (
            0,
            0,
        )
    return inputs, (padding[0], padding[1])


def _weight_gradient(
    layer: nn.Conv2d,
    inputs: Tensor,
    outputs: Tensor,
    weight: Tensor,
    padding: tuple[int, int],
    *,
    groups: int,
) -> Tensor:
    found: Tensor = torch.ops.aten.convolution_backward(
        outputs,
        inputs,
        weight,
        None,
        layer.stride,
        padding,
        layer.dilation,
        False,
        [0, 0],
        groups,
        [False, True, False],
    )[1]
    return found


def conv2d_grad_sampler(
    layer: nn.Conv2d, activations: Sequence[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Return each record's gradient of weight and bias: the signature of an Opacus grad sampler.

    Args:
        layer: the convolution.
        activations: its one input (n, in, height, width).
        backprops: (n, out, height', width') gradient of its output.
    """
    found: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        found[layer.weight] = (
            weight_gradients(layer, activations[0], backprops)
            if len(backprops)
            else layer.weight.new_zeros((1, *layer.weight.shape))
        )
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = (
            backprops.sum((2, 3)) if len(backprops) else layer.bias.new_zeros((1, *layer.bias.shape))
        )
    return found


class _Registered:
    """How many registrations are open, and what Opacus had before the first: workers may share a process."""

    lock = threading.Lock()
    open = 0
    before: Any = None


@contextmanager
def registered_conv2d() -> Iterator[None]:
    """Let Opacus use `conv2d_grad_sampler` for ``nn.Conv2d`` inside the block, and what it used before after it.

    Guarantee: after the last of any nested or concurrent blocks ends, also by an exception, Opacus' registry is as it was.
    """
    with _Registered.lock:
        if not _Registered.open:
            _Registered.before = GradSampleModule.GRAD_SAMPLERS[nn.Conv2d]
            register_grad_sampler(nn.Conv2d)(conv2d_grad_sampler)
        _Registered.open += 1
    try:
        yield
    finally:
        with _Registered.lock:
            _Registered.open -= 1
            if not _Registered.open:
                register_grad_sampler(nn.Conv2d)(_Registered.before)
                _Registered.before = None
