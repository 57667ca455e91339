"""A task of one's own, in one file: whether the sum of two numbers is more than one."""

import torch
from torch import nn

from cloister.core import Split, Task, TensorData


class Parity(Task):
    """Two numbers a record, two classes."""

    kind = "classification"
    classes = ("even", "odd")

    def __init__(self, records: int = 200) -> None:
        self.records = records

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 2))

    def data(self) -> Split:
        x = torch.rand(self.records, 2, generator=torch.Generator().manual_seed(1))
        y = (x.sum(1) > 1).long()
        cut = self.records * 2 // 3
        return Split(TensorData(x[:cut], y[:cut]), TensorData(x[cut:], y[cut:]))
