"""Models of sequences: GRU, LSTM and a small Transformer encoder, over tokens or over steps of numbers.

Every one of them gives each record its own gradient under Opacus: the recurrent ones are Opacus's own layers,
since it refuses ``nn.GRU`` and ``nn.LSTM``; attention is written with plain linear layers, since it refuses
``nn.MultiheadAttention``.

``padding`` names the token that fills short sequences on the right. A recurrent model then answers from the
last real step, the Transformer attends to and averages over real steps only; so an answer does not depend on
how far a record was filled.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cloister.core.models.records import Records, refuse
from cloister.core.spec.base import Table

__all__ = ["Recurrent", "RecurrentOptions", "Transformer", "TransformerOptions"]

Width = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]
Padding = Annotated[int, Field(ge=0)]


class RecurrentOptions(Table):
    """Options of `Recurrent`."""

    embedding: Width = Field(default=32, description="numbers a token is turned into (tokens only)")
    hidden: Width = Field(default=64, description="units of each layer")
    layers: Width = Field(default=1, description="layers on top of each other")
    padding: Padding | None = Field(
        default=None, description="the token that fills short sequences on the right (tokens only)"
    )


class Recurrent(nn.Module):
    """A GRU or an LSTM; its last real step goes through a linear layer."""

    def __init__(self, cell: Literal["gru", "lstm"], options: RecurrentOptions, records: Records) -> None:
        super().__init__()
        from opacus.layers import DPGRU, DPLSTM  # type: ignore[import-untyped]  # Opacus ships no types

        _, features = records.sequence(cell)
        self.padding = _padding(cell, options.padding, records)
        self.embedding = _embedding(records, options.embedding)
        layer = DPGRU if cell == "gru" else DPLSTM
        self.recurrent = layer(
            features or options.embedding, options.hidden, num_layers=options.layers, batch_first=True
        )
        self.output = nn.Linear(options.hidden, records.outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (n, outputs) scores of (n, length) int64 tokens or (n, length, features) numbers."""
        steps, _ = self.recurrent(self.embedding(inputs))
        if self.padding is None:
            last = steps[:, -1]
        else:
            position = ((inputs != self.padding) * torch.arange(inputs.shape[1], device=inputs.device)).amax(
                1
            )
            last = steps.gather(1, position[:, None, None].expand(-1, 1, steps.shape[2])).squeeze(1)
        scores: Tensor = self.output(last)
        return scores


class TransformerOptions(Table):
    """Options of `Transformer`."""

    width: Width = Field(default=32, description="numbers a step is turned into; even")
    heads: Width = Field(default=4, description="attention heads; divides `width`")
    layers: Width = Field(default=2, description="encoder layers")
    feedforward: Width = Field(default=64, description="units of the layer between two encoder layers")
    dropout: Rate = Field(default=0.0, description="share of units left out in training")
    padding: Padding | None = Field(
        default=None, description="the token that fills short sequences on the right (tokens only)"
    )


class Transformer(nn.Module):
    """A Transformer encoder (Vaswani et al. 2017) with the norm first (Xiong et al. 2020).

    The mean of the steps is scored. Positions are the fixed sines of Vaswani et al., section 3.5: no
    parameter, so no noise is spent on them.
    """

    positions: Tensor

    def __init__(self, options: TransformerOptions, records: Records) -> None:
        super().__init__()
        length, features = records.sequence("transformer")
        if options.width % options.heads:
            refuse(
                "transformer",
                records,
                f"heads = {options.heads} does not divide width = {options.width}",
                "choose heads that divide width",
            )
        if options.width % 2:
            refuse(
                "transformer",
                records,
                f"width = {options.width} is odd: positions are pairs of sine and cosine",
                "choose an even width",
            )
        self.padding = _padding("transformer", options.padding, records)
        self.embedding = (
            _embedding(records, options.width) if features is None else nn.Linear(features, options.width)
        )
        self.register_buffer("positions", _sines(length, options.width), persistent=False)
        self.layers = nn.ModuleList(_EncoderLayer(options) for _ in range(options.layers))
        self.norm = nn.LayerNorm(options.width)
        self.output = nn.Linear(options.width, records.outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (n, outputs) scores of (n, length) int64 tokens or (n, length, features) numbers."""
        x = self.embedding(inputs) + self.positions[: inputs.shape[1]]
        if self.padding is None:
            for layer in self.layers:
                x = layer(x, None)
            pooled = self.norm(x).mean(1)
        else:
            real = inputs != self.padding
            real[:, 0] |= ~real.any(1)  # a record of nothing but padding is read as one step of padding
            for layer in self.layers:
                x = layer(x, real)
            weights = real.unsqueeze(2).to(x.dtype)
            pooled = (self.norm(x) * weights).sum(1) / weights.sum(1)
        scores: Tensor = self.output(pooled)
        return scores


class _EncoderLayer(nn.Module):
    def __init__(self, options: TransformerOptions) -> None:
        super().__init__()
        width = options.width
        self.heads, self.dropout = options.heads, options.dropout
        self.attention_norm = nn.LayerNorm(width)
        self.query, self.key, self.value = (
            nn.Linear(width, width),
            nn.Linear(width, width),
            nn.Linear(width, width),
        )
        self.mix = nn.Linear(width, width)
        self.feedforward_norm = nn.LayerNorm(width)
        self.expand = nn.Linear(width, options.feedforward)
        self.contract = nn.Linear(options.feedforward, width)

    def forward(self, x: Tensor, real: Tensor | None) -> Tensor:
        """Return (n, length, width) steps; ``real`` (n, length) says which steps may be attended to."""
        x = x + functional.dropout(self._attend(self.attention_norm(x), real), self.dropout, self.training)
        inner = functional.gelu(self.expand(self.feedforward_norm(x)))
        return x + functional.dropout(self.contract(inner), self.dropout, self.training)

    def _attend(self, x: Tensor, real: Tensor | None) -> Tensor:
        n, length, width = x.shape
        query, key, value = (
            part(x).view(n, length, self.heads, width // self.heads).transpose(1, 2)
            for part in (self.query, self.key, self.value)
        )
        mask = None if real is None else real[:, None, None, :]
        mixed: Tensor = self.mix(
            functional.scaled_dot_product_attention(query, key, value, attn_mask=mask)
            .transpose(1, 2)
            .reshape(n, length, width)
        )
        return mixed


def _embedding(records: Records, width: int) -> nn.Module:
    return nn.Identity() if records.vocabulary is None else nn.Embedding(records.vocabulary, width)


def _padding(model: str, padding: int | None, records: Records) -> int | None:
    if padding is not None and (records.vocabulary is None or padding >= records.vocabulary):
        refuse(
            model,
            records,
            f"padding = {padding} is not a token of a vocabulary of {records.vocabulary or 0}",
            "name the token that fills short sequences",
        )
    return padding


def _sines(length: int, width: int) -> Tensor:
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(length).unsqueeze(1) * rates
    return torch.stack((angles.sin(), angles.cos()), dim=2).flatten(1)
