"""Logistic (or linear) regression and the multilayer perceptron. They flatten inputs of any shape."""

from __future__ import annotations

from itertools import pairwise
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from cloister.core.models.records import Records
from cloister.core.spec.base import Table

__all__ = ["Logistic", "LogisticOptions", "Mlp", "MlpOptions"]

Width = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(ge=0, lt=1)]


class LogisticOptions(Table):
    """Logistic regression has no option."""


class Logistic(nn.Module):
    """One linear layer: logistic regression under cross-entropy, linear regression under squared error."""

    def __init__(self, options: LogisticOptions, records: Records) -> None:  # noqa: ARG002 - every model takes its options
        super().__init__()
        self.output = nn.Linear(records.numbers("logistic"), records.outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (n, outputs) scores of (n, …) inputs."""
        scores: Tensor = self.output(inputs.flatten(1))
        return scores


class MlpOptions(Table):
    """Options of `Mlp`."""

    hidden: tuple[Width, ...] = Field(default=(64,), strict=False, description="units of each hidden layer")
    dropout: Rate = Field(default=0.0, description="share of hidden units left out in training")


class Mlp(nn.Module):
    """Linear layers with ReLU between them."""

    def __init__(self, options: MlpOptions, records: Records) -> None:
        super().__init__()
        widths = (records.numbers("mlp"), *options.hidden)
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in pairwise(widths))
        self.output = nn.Linear(widths[-1], records.outputs)
        self.dropout = options.dropout

    def forward(self, inputs: Tensor) -> Tensor:
        """Return (n, outputs) scores of (n, …) inputs."""
        x = inputs.flatten(1)
        for layer in self.hidden:
            x = functional.relu(layer(x))
            if self.dropout:
                x = functional.dropout(x, self.dropout, self.training)
        scores: Tensor = self.output(x)
        return scores
