"""A task is tried on two records before any training, so that a mistake in it is found at once and not at every site."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cloister.core.data import Data
from cloister.core.errors import TaskError
from cloister.core.guarding import guarded
from cloister.core.resolve import build_model
from cloister.core.task import Task
from cloister.core.update import Layout

__all__ = ["try_task"]


def try_task(task: Task, model: nn.Module, data: Data) -> None:
    """Run the model, the loss and the gradient once on two records, and take the model's vector out and in again.

    ``model`` is left as it was: its values, its mode, and no gradient. The task's model is also built twice, since every site
    has to build the same fixed tensors.

    Raises:
        TaskError: the task raised; the model's output or the loss has the wrong shape, is not finite or has no gradient; the
            model cannot take its vector in; or two builds of it do not agree in their fixed tensors.
    """
    name = type(task).__name__
    rows = torch.arange(min(2, len(data)))

    def once() -> tuple[Any, Any]:
        inputs, targets = data.batch(rows)
        outputs = model(inputs)
        return outputs, task.loss(outputs, targets)

    with _as_it_was(model), torch.enable_grad():
        model.eval()
        outputs, losses = guarded(name, "its model or loss", once)
        _check(task, outputs, losses, len(rows))
        guarded(name, "the gradient of its loss", losses.mean().backward)
        _try_vector(name, model)
    _build_twice(task)


def _check(task: Task, outputs: Any, losses: Any, count: int) -> None:
    name = type(task).__name__
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
    if not losses.requires_grad:
        raise TaskError(
            f"{name}.loss() has no gradient: nothing would be learned",
            remedy="remove detach(), item() or torch.no_grad() from the model and the loss",
            code="task-loss",
        )


def _try_vector(name: str, model: nn.Module) -> None:
    layout = Layout.of(model)
    vector = layout.read(model)
    try:
        layout.write(model, vector)
    except RuntimeError as error:
        raise TaskError(
            f"the model of {name} cannot be set: torch refuses to write into one of its tensors",
            remedy="give each tensor memory of its own, for example with .clone() after .expand()",
            code="task-model",
        ) from error


def _build_twice(task: Task) -> None:
    first, second = (Layout.of(build_model(task, 0)).digest for _ in range(2))
    if first != second:
        raise TaskError(
            f"{type(task).__name__}.model() makes another model each time: its frozen parameters or whole-number buffers differ",
            remedy="draw them with torch (which Cloister seeds) or from a fixed seed, not with numpy or random",
            code="task-model",
        )


@contextmanager
def _as_it_was(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    kept = [(tensor, tensor.detach().clone()) for tensor in (*model.parameters(), *model.buffers())]
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        model.eval()
        for module in training:
            module.training = True
        with torch.no_grad():
            for tensor, before in kept:
                if not torch.equal(tensor, before):
                    tensor.copy_(before)
