"""A task is tried on two records before any training, so that a mistake in it is found at once and not at every site."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cloister.core.data import Data
from cloister.core.errors import TaskError
from cloister.core.resolve import guarded
from cloister.core.task import Task

__all__ = ["try_task"]


def try_task(task: Task, model: nn.Module, data: Data) -> None:
    """Run the model and the loss once on two records.

    Raises:
        TaskError: the task raised, or the model's output or the loss has the wrong shape or is not finite.
    """
    name = type(task).__name__
    rows = torch.arange(min(2, len(data)))
    training = model.training

    def once() -> tuple[Any, Any]:
        inputs, targets = data.batch(rows)
        outputs = model(inputs)
        return outputs, task.loss(outputs, targets)

    model.eval()
    with torch.inference_mode():
        outputs, losses = guarded(name, "its model or loss", once)
    model.train(training)
    count = len(rows)
    wanted = [(count, len(task.classes))] if task.kind == "classification" else [(count,), (count, 1)]
    if not isinstance(outputs, Tensor) or tuple(outputs.shape) not in wanted:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise TaskError(
            f"{name}: the model returned {shape} for {count} records, expected {' or '.join(map(str, wanted))}",
            remedy="return one score a class (classification) or one value a record (regression)",
            code="task-model",
        )
    if not isinstance(losses, Tensor) or tuple(losses.shape) != (count,):
        shape = tuple(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
        raise TaskError(
            f"{name}.loss() returned {shape} for {count} records, expected ({count},)",
            remedy="return the loss of each record, for example with reduction='none'",
            code="task-loss",
        )
    if not bool(torch.isfinite(losses).all()):
        raise TaskError(
            f"{name}.loss() is not finite on the first records",
            remedy="check the inputs' scale and the loss",
            code="task-loss",
        )
