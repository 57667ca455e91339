"""Models of images: two small CNNs (ReLU, tanh), a ResNet with GroupNorm, and a depthwise-separable CNN with GroupNorm.

All of them keep their weights, and put their input, in channels-last order: with pooling before ReLU a
training step of the CNN then takes two thirds of the time (batch of 10, one CPU thread). Names and shapes in
``state_dict`` are the usual ones. None has batch norm, which mixes the records of a batch (no per-record
gradient) and leaks its running statistics.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cloister.core.models.records import Records, refuse
from cloister.core.spec.base import Table

__all__ = [
    "Cnn",
    "CnnOptions",
    "ResNet",
    "ResNetOptions",
    "Separable",
    "SeparableOptions",
    "TanhCnn",
    "TanhCnnOptions",
]

Width = Annotated[int, Field(ge=1)]
Widths = Annotated[tuple[Width, ...], Field(min_length=1)]


class CnnOptions(Table):
    """Options of `Cnn`."""

    channels: Widths = Field(
        default=(16, 32), strict=False, description="filters of each convolution; each halves the image"
    )
    kernel: Annotated[int, Field(ge=1, le=15)] = Field(
        default=5, description="side of the filters in pixels, odd"
    )
    hidden: Width = Field(default=64, description="units of the layer before the output")
    halve: Literal["pool", "stride"] = Field(
        default="pool",
        description="halve the image by max-pooling, or by convolutions of stride 2 (a quarter of the work)",
    )


class Cnn(nn.Module):
    """Convolutions, each halving the image by max-pooling or by its stride, then two linear layers.

    On (1, 28, 28) with 10 outputs the default has 114,314 parameters. Pooling comes before ReLU: the same
    function, since both keep the order of numbers, at a quarter of ReLU's work.
    """

    def __init__(self, options: CnnOptions, records: Records) -> None:
        super().__init__()
        channels, height, width = records.image("cnn")
        if options.kernel % 2 == 0:
            refuse(
                "cnn",
                records,
                f"kernel = {options.kernel} is even: the image would not keep its size",
                "give an odd kernel",
            )
        halvings = len(options.channels)
        self.strided = options.halve == "stride"
        for _ in range(halvings):  # a stride rounds up, a pool down
            height, width = ((side + self.strided) >> 1 for side in (height, width))
        if not height or not width:
            refuse(
                "cnn", records, f"{halvings} halvings leave no pixel", "give fewer channels, or larger images"
            )
        counts = (channels, *options.channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, options.kernel, stride=1 + self.strided, padding=options.kernel // 2)
            for a, b in pairwise(counts)
        )
        self.hidden = nn.Linear(counts[-1] * height * width, options.hidden)
        self.output = nn.Linear(options.hidden, records.outputs)
        _channels_last(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (n, outputs) scores of (n, channels, height, width) images."""
        x = inputs.contiguous(memory_format=torch.channels_last)
        for convolution in self.convolutions:
            x = _convolve(convolution, x)
            x = functional.relu(x if self.strided else functional.max_pool2d(x, 2))
        x = x.permute(0, 2, 3, 1).flatten(1)  # in channels-last order this is a view
        scores: Tensor = self.output(functional.relu(self.hidden(x)))
        return scores


class TanhCnnOptions(Table):
    """Options of `TanhCnn`."""

    channels: tuple[Width, Width] = Field(
        default=(16, 32), strict=False, description="filters of the 8x8 and of the 4x4 convolution"
    )
    hidden: Width = Field(default=32, description="units of the layer before the output")


class TanhCnn(nn.Module):
    """The CNN of Papernot et al. (2021), *Tempered sigmoid activations for deep learning with differential privacy*, table 1.

    An 8x8 and a 4x4 convolution, each of stride 2 and followed by max-pooling of stride 1, then two linear layers, with tanh between
    them: bounded activations keep gradients near the clip, so less of a record's gradient is cut off than with ReLU. On
    (1, 28, 28) with 10 outputs the default has 26,010 parameters. Pooling comes before tanh: the same function at fewer tanh.
    """

    def __init__(self, options: TanhCnnOptions, records: Records) -> None:
        super().__init__()
        channels, height, width = records.image("tanh-cnn")
        if min(height, width) < 14:
            refuse(
                "tanh-cnn",
                records,
                "its filters and pools leave no pixel",
                "use images of at least 14 pixels a side",
            )
        first, second = options.channels
        self.first = nn.Conv2d(channels, first, 8, stride=2, padding=3)
        self.second = nn.Conv2d(first, second, 4, stride=2)
        height, width = ((side // 2 - 5) // 2 for side in (height, width))
        self.hidden = nn.Linear(second * height * width, options.hidden)
        self.output = nn.Linear(options.hidden, records.outputs)
        _channels_last(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (n, outputs) scores of (n, channels, height, width) images."""
        x = inputs.contiguous(memory_format=torch.channels_last)
        for convolution in (self.first, self.second):
            x = torch.tanh(functional.max_pool2d(_convolve(convolution, x), 2, stride=1))
        x = x.permute(0, 2, 3, 1).flatten(1)  # in channels-last order this is a view
        scores: Tensor = self.output(torch.tanh(self.hidden(x)))
        return scores


class ResNetOptions(Table):
    """Options of `ResNet`."""

    depth: Literal[8, 14, 20] = Field(
        default=8, description="layers with weights: 6n + 2 for n blocks a stage"
    )
    width: Width = Field(
        default=16,
        description="channels of the first stage; the second has twice, the third four times as many",
    )
    groups: Width = Field(default=8, description="groups of GroupNorm; it divides `width`")


class ResNet(nn.Module):
    """A residual network for small images (He et al. 2016, section 4.2).

    GroupNorm (Wu and He 2018) stands in for batch norm. A shortcut that changes the shape is a 1x1
    convolution.
    """

    def __init__(self, options: ResNetOptions, records: Records) -> None:
        super().__init__()
        channels, height, width = records.image("resnet")
        if options.width % options.groups:
            refuse(
                "resnet",
                records,
                f"groups = {options.groups} does not divide width = {options.width}",
                "choose groups that divide width",
            )
        if min(height, width) < 4:
            refuse("resnet", records, "it halves the image twice", "use images of at least 4 pixels a side")
        self.stem = nn.Conv2d(channels, options.width, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(options.groups, options.width)
        blocks, before = [], options.width
        for stage in range(3):
            after = options.width << stage
            for number in range((options.depth - 2) // 6):
                blocks.append(
                    _Residual(before, after, stride=2 if stage and not number else 1, groups=options.groups)
                )
                before = after
        self.blocks = nn.ModuleList(blocks)
        self.output = nn.Linear(before, records.outputs)
        _channels_last(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (n, outputs) scores of (n, channels, height, width) images."""
        x = functional.relu(
            self.norm(_convolve(self.stem, inputs.contiguous(memory_format=torch.channels_last)))
        )
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.output(x.mean((2, 3)))
        return scores


class _Residual(nn.Module):
    def __init__(self, before: int, after: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(before, after, 3, stride=stride, padding=1, bias=False)
        self.first_norm = nn.GroupNorm(groups, after)
        self.second = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.second_norm = nn.GroupNorm(groups, after)
        self.shortcut = (
            nn.Conv2d(before, after, 1, stride=stride, bias=False) if before != after else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        inner = functional.relu(self.first_norm(_convolve(self.first, x)))
        return functional.relu(self.second_norm(_convolve(self.second, inner)) + _convolve(self.shortcut, x))


class SeparableOptions(Table):
    """Options of `Separable`."""

    channels: Widths = Field(
        default=(32, 64, 128),
        strict=False,
        description="channels after the stem and after each block; each block halves the image",
    )
    groups: Width = Field(default=8, description="groups of GroupNorm; it divides every number of channels")


class Separable(nn.Module):
    """A depthwise-separable CNN (Howard et al. 2017, MobileNets) with GroupNorm.

    It has few parameters, so a given ε costs it less noise in all.
    """

    def __init__(self, options: SeparableOptions, records: Records) -> None:
        super().__init__()
        channels, height, width = records.image("separable")
        if math.gcd(*options.channels) % options.groups:
            refuse(
                "separable",
                records,
                f"groups = {options.groups} does not divide channels = {options.channels}",
                "choose groups that divide all of them",
            )
        if min(height, width) < 3:
            refuse("separable", records, "its filters have 3 pixels a side", "use larger images")
        first = options.channels[0]
        self.stem = nn.Conv2d(channels, first, 3, padding=1, bias=False)
        self.norm = nn.GroupNorm(options.groups, first)
        self.blocks = nn.ModuleList(
            _DepthwisePointwise(a, b, groups=options.groups) for a, b in pairwise(options.channels)
        )
        self.output = nn.Linear(options.channels[-1], records.outputs)
        _channels_last(self)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (n, outputs) scores of (n, channels, height, width) images."""
        x = functional.relu(
            self.norm(_convolve(self.stem, inputs.contiguous(memory_format=torch.channels_last)))
        )
        for block in self.blocks:
            x = block(x)
        scores: Tensor = self.output(x.mean((2, 3)))
        return scores


class _DepthwisePointwise(nn.Module):
    def __init__(self, before: int, after: int, *, groups: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(before, before, 3, stride=2, padding=1, groups=before, bias=False)
        self.depthwise_norm = nn.GroupNorm(groups, before)
        self.pointwise = nn.Conv2d(before, after, 1, bias=False)
        self.pointwise_norm = nn.GroupNorm(groups, after)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.relu(self.depthwise_norm(_convolve(self.depthwise, x)))
        return functional.relu(self.pointwise_norm(_convolve(self.pointwise, x)))


def _channels_last(model: nn.Module) -> None:
    model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs leave this keyword out


def _convolve(layer: nn.Module, x: Tensor) -> Tensor:
    # A hook may read the layer's input by its strides: Opacus 1.6 (utils/tensor_utils.py, unfold2d) does, and
    # gives wrong per-record gradients, silently, unless the input is contiguous.
    result: Tensor = layer(x.contiguous() if layer._forward_hooks else x)  # noqa: SLF001 - torch has no public name for it
    return result
