"""The Task seam: what is learned. A model, its data, a loss and metrics.

A task of your own is one class, here for two numbers a record and two classes::

    import torch
    from torch import nn
    from cloister.core import Split, Task, TensorData

    class Parity(Task):
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

Name it in a federation file as ``use = "parity.py:Parity"``; the other keys of ``[task]`` are the constructor's arguments,
checked against its annotations. An argument annotated ``Path`` is taken from the federation file's folder.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional

from cloister.core.data import Split

if TYPE_CHECKING:
    from cloister.core.tasks.columns import Column

__all__ = ["Bounds", "Task"]

#: What a model's input lies between: two numbers, or two tensors that broadcast to one record's input.
Bounds = tuple[float | Tensor, float | Tensor]


class Task(ABC):
    """What is learned.

    Attributes:
        kind: ``classification`` (the model returns (n, classes) scores) or ``regression`` ((n,) or (n, 1) values).
        classes: the classes' names, in the order of their numbers; empty for regression.
        allows_single_class: whether a site may train on records of one class only.
        bounds: the least and the greatest value of an input, as the model reads it: (0, 1) for unscaled pixels. What an
            adversary makes of a record stays within them. ``None``: nothing is known, and nothing bounds it but its norm.
        features: for records of named columns, the place of each numeric column among a record's (d,) inputs: what an adversary
            can change by a little. ``None``: an adversary can change every input.
        columns: for records of named columns, what each means, in the order of the inputs (`cloister.core.tasks.columns`);
            ``None``: records have none, or nobody declared them.
        statistic: whether the round's sum is an answer about the records and no step of a model: then it is released under noise
            and protection only (`cloister.core.tasks.statistics.bare_statistic`).
        places: the options that say where the data lie: at a real site these, and no others, come from the site's own
            ``site.toml``, and never from the federation file. ``None``: those annotated as nothing but paths.
        groups: names of columns by whose values a model's fairness is looked at, for example ``("age", "sex")``.
    """

    kind: Literal["classification", "regression"] = "classification"
    classes: tuple[str, ...] = ()
    allows_single_class: bool = True
    bounds: Bounds | None = None
    features: Mapping[str, int] | None = None
    columns: Mapping[str, Column] | None = None
    statistic: ClassVar[bool] = False
    places: ClassVar[tuple[str, ...] | None] = None
    groups: tuple[str, ...] = ()

    @abstractmethod
    def model(self) -> nn.Module:
        """Return a new model. Cloister seeds torch before it calls this, so plain initialisers are reproducible."""

    @abstractmethod
    def data(self) -> Split | Mapping[str, Split]:
        """Return the records: one `Split`, or one for each owner by name."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the (n,) loss of each record: cross-entropy, or squared error for regression."""
        if self.kind == "classification":
            return functional.cross_entropy(outputs, targets, reduction="none")
        return functional.mse_loss(outputs.reshape(-1), targets.reshape(-1), reduction="none")

    def describe(self) -> dict[str, Any]:
        """Return what a model card says of the task: a title, the data's source and licence, the intended use."""
        return {
            "title": type(self).__name__,
            "description": (type(self).__doc__ or "").strip().splitlines()[0] if type(self).__doc__ else "",
        }
