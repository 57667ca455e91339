"""Canaries in gradient space: records whose gradient is one number in a direction that no other record has.

The model gets one layer more, a weight for each canary, that is not connected to its inputs. A canary's loss is that weight times a constant, so its gradient is a multiple
of a unit vector (a Dirac), far longer than the clip. It goes the way of every record's gradient: through the batch's draw, the per-record gradients, clip,
sum, noise, optimiser, rounding and masks. No part of that way is told which records are canaries. Under DP-SGD a Dirac is the worst record there is: it moves
the sum by all of C, where nothing else does.

A record is known to be a canary by its target: canary i has the class K + i, where the task has the classes 0 to K - 1. The last one, i = m, is a blank: its
gradient is 0. A regression has no classes, and is refused.

Nothing of a model that is measured or released knows of them: in evaluation it gives the task's own scores, and `released` takes the layer away.

What an audit with them cannot find: faults that touch only gradients of real layers (a wrong norm in one of them). Canaries in input space are for those.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cloister.core.data import Data, Rows, Split
from cloister.core.errors import TaskError
from cloister.core.spec import FederationSpec
from cloister.core.task import Task
from cloister.core.update import Layout

__all__ = [
    "LAYER",
    "LENGTH",
    "CanaryModel",
    "CanaryTask",
    "PlantedData",
    "bare",
    "place_in",
    "planted",
    "released",
    "with_canaries",
]

#: The name of the layer's weight in the model.
LAYER = "canaries.weight"
#: How many times the clip a canary's gradient (or update) is long.
LENGTH = 10.0


class CanaryModel(nn.Module):
    """A task's model, and beside it a weight for each canary and for the blank.

    Returns (n, classes + canaries + 1): the model's scores, then the weights, the same in each row; in evaluation the scores alone, unless ``listed``.
    """

    def __init__(self, inner: nn.Module, canaries: int, *, listed: bool = False) -> None:
        super().__init__()
        self.inner = inner
        self._listed = listed
        self.canaries = nn.Linear(1, canaries + 1, bias=False)
        nn.init.zeros_(self.canaries.weight)

    def forward(self, inputs: Any) -> Tensor:
        """Return the scores and, in every row, the weights."""
        scores: Tensor = self.inner(inputs)
        if not (self.training or self._listed):
            return scores
        return torch.cat([scores, self.canaries(scores.new_ones(len(scores), 1))], dim=1)


class CanaryTask(Task):
    """A task with canaries.

    Args:
        inner: the task.
        canaries: m.
        norm: the length of a canary's gradient: far above the clip, so that a clip that is missing shows.
        listed: whether canaries are among the task's classes: where sites' own records are canaries, and nothing is measured.

    Raises:
        TaskError: the task is a regression.
    """

    def __init__(self, inner: Task, canaries: int, norm: float, *, listed: bool = False) -> None:
        if inner.kind != "classification":
            raise TaskError(
                "a canary is known by its class, and the task is a regression",
                remedy="audit a classification under the same [privacy] table: the mechanism is the same code",
                code="audit-task",
            )
        self.inner, self.count, self._norm, self.listed = inner, canaries, norm, listed
        names = (*(f"canary {number}" for number in range(canaries)), "blank canary") if listed else ()
        self.classes = (*inner.classes, *names)
        self.allows_single_class = listed or inner.allows_single_class
        self.bounds = inner.bounds
        self.features = inner.features
        self.notes = list(getattr(inner, "notes", ()))

    @property
    def first(self) -> int:
        """The class of the first canary."""
        return len(self.inner.classes)

    def model(self) -> nn.Module:
        """Return the task's model with the canaries' layer."""
        return CanaryModel(self.inner.model(), self.count, listed=self.listed)

    def data(self) -> Split | Mapping[str, Split]:
        """Return the task's records; no canary is among them yet."""
        return self.inner.data()

    def describe(self) -> dict[str, Any]:
        """Return what the task says of itself."""
        return self.inner.describe()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return (n,) losses: the task's for a record, weight times norm for a canary, 0 for a blank."""
        planted = targets >= self.first
        if outputs.shape[1] == self.first:  # in evaluation
            return self.inner.loss(outputs, targets.clamp(max=self.first - 1)) * ~planted
        own = self.inner.loss(outputs[:, : self.first], targets.clamp(max=self.first - 1))
        weight = outputs.gather(1, targets.clamp(min=self.first)[:, None]).squeeze(1)
        blank = targets == self.first + self.count
        return torch.where(planted, self._norm * weight * ~blank, own)


class PlantedData:
    """A site's records, and canaries after them.

    Args:
        records: the site's own. A canary has the form of one of them and none of its values (0, and 1 where inputs are whole numbers): a number that overflows on the
            way would drop the canaries with it from the sum, and so tell of the record that they had it from.
        targets: (k,) of the canaries.
    """

    def __init__(self, records: Data, targets: Tensor) -> None:
        self._records = records
        self.targets = torch.cat([records.targets, targets.to(records.targets.dtype)])

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Tensor) -> tuple[Any, Tensor]:
        """Return the inputs and targets of ``rows`` ((k,) int64), in that order."""
        inputs, _ = self._records.batch(rows % len(self._records))
        return _blanked(inputs, rows >= len(self._records)), self.targets.index_select(0, rows)

    def subset(self, rows: Rows) -> Data:
        """Return these rows as data of their own."""
        return _Subset(self, torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)))


class _Subset:
    def __init__(self, whole: Data, rows: Tensor) -> None:
        self._whole, self._rows = whole, rows
        self.targets = whole.targets.index_select(0, rows).clone()

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Tensor) -> tuple[Any, Tensor]:
        return self._whole.batch(self._rows.index_select(0, rows))

    def subset(self, rows: Rows) -> Data:
        picked = torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))
        return _Subset(self._whole, self._rows.index_select(0, picked))


def _blanked(inputs: Any, made: Tensor) -> Any:
    """Return a batch's inputs without anything of the rows that ``made`` ((k,) bool) names."""
    if isinstance(inputs, Tensor):
        rows = made.to(inputs.device).view(-1, *[1] * (inputs.dim() - 1))
        return torch.where(rows, torch.full_like(inputs, 0 if inputs.is_floating_point() else 1), inputs)
    if isinstance(inputs, Mapping):
        return {name: _blanked(part, made) for name, part in inputs.items()}
    if isinstance(inputs, tuple | list):
        return type(inputs)(_blanked(part, made) for part in inputs)
    raise TaskError(
        f"inputs of type {type(inputs).__name__} cannot be made up for canaries",
        remedy="let the task's records have tensors, or tuples or mappings of them, as inputs",
        code="audit-task",
    )


def planted(split: Split, task: CanaryTask, canaries: Tensor) -> Split:
    """Return a site's records with canaries ((k,) int64, numbers from 0, m for a blank) among those that it trains on."""
    return Split(PlantedData(split.train, canaries + task.first), split.test)


def with_canaries(task: Task, spec: FederationSpec) -> Task:
    """Return the task that a run under ``spec`` trains: with canaries, where ``audit.canaries`` asks for them.

    Raises:
        TaskError: (audit-task) the task is a regression.
    """
    count = spec.audit.canaries
    return task if count is None else CanaryTask(task, count, LENGTH * (spec.privacy.clip or 1.0))


def bare(task: Task) -> Task:
    """Return a task without its canaries."""
    return task.inner if isinstance(task, CanaryTask) else task


def released(model: nn.Module) -> nn.Module:
    """Return the part of a model that is released: all but the canaries' layer, which no record uses."""
    return model.inner if isinstance(model, CanaryModel) else model


def place_in(layout: Layout) -> int:
    """Return where the canaries' weights begin in the vector of a model with canaries.

    Raises:
        ValueError: it has none.
    """
    start = 0
    for entry in layout.entries:
        if entry.name == LAYER:
            return start
        start += entry.size if entry.kind == "averaged" else 0
    raise ValueError("the model has no canaries")
