"""A task in one file of a user's own: a multilayer perceptron of about five million parameters on small synthetic records.

It makes a large update cheap to compute, for ``server_memory.py``.
"""

from __future__ import annotations

import torch
from torch import nn

from cloister.core import Split, Task, TensorData


class WideMlp(Task):
    """Which half of the unit square a point's shadow falls on: 64 numbers a record, two classes."""

    kind = "classification"
    classes = ("lower", "upper")

    def __init__(self, records: int = 256, width: int = 2200) -> None:
        self.records, self.width = records, width

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, self.width),
            nn.ReLU(),
            nn.Linear(self.width, self.width),
            nn.ReLU(),
            nn.Linear(self.width, 2),
        )

    def data(self) -> Split:
        x = torch.rand(self.records, 64, generator=torch.Generator().manual_seed(1))
        y = (x.mean(1) > 0.5).long()
        cut = self.records * 3 // 4
        return Split(TensorData(x[:cut], y[:cut]), TensorData(x[cut:], y[cut:]))
