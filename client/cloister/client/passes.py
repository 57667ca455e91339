"""How a site goes through its records in one round.

The seam between the trainer and a mechanism: `Work` takes the records and an optimiser and leaves the model trained.
`PlainPasses` makes shuffled passes; differential privacy (`cloister.client.private_steps`) has the same shape.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloister.client.batches import epoch_batches, hold_out, step_batches
from cloister.client.devices import autocast
from cloister.client.optimisers import LocalOptimiser
from cloister.core.data import Data, move
from cloister.core.randomness import Randomness
from cloister.core.spec import Training
from cloister.core.task import Task
from cloister.core.update import Tensors

__all__ = ["Bench", "Done", "GradientStep", "PlainPasses", "PlainStep", "Work"]


@dataclass(frozen=True, kw_only=True)
class Bench:
    """What the work of one round is done with.

    Attributes:
        model: in training mode, holding the round's model.
        tensors: its averaged tensors as a flat vector.
        device: where it lies.
        optimiser: as new.
        correct: corrects the gradients in place, before each step of the optimiser.
        randomness: where shuffles, coins and noise come from.
        site: the site's name.
        round_number: from 1.
    """

    model: nn.Module
    tensors: Tensors
    device: torch.device
    optimiser: LocalOptimiser
    correct: Callable[[], None]
    randomness: Randomness
    site: str
    round_number: int


@dataclass(frozen=True, kw_only=True)
class Done:
    """What was done.

    Attributes:
        loss: the mean loss a record over the last pass; ``None``: not for others to see.
        steps: steps taken.
        made: (size,) float64, what the site made where that is no change of the model; ``None``: the model was changed.
    """

    loss: float | None
    steps: int
    made: npt.NDArray[np.float64] | None = None


class Work(Protocol):
    """Trains the model of a bench on a site's records."""

    def run(self, data: Data, bench: Bench) -> Done:
        """Do the round's work."""
        ...


class GradientStep(Protocol):
    """Turns one batch into gradients."""

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Leave the batch gradient in each parameter's ``.grad`` and return the mean loss a record (0-d, detached)."""
        ...


class PlainStep:
    """The mean gradient of a batch: no clipping of records, no noise."""

    def __init__(self, task: Task, training: Training, device: torch.device) -> None:
        self._task = task
        self._training = training
        self._device = device
        weights = training.class_weights
        self._class_weights = None if weights is None else torch.tensor(weights, device=device)

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Leave the batch gradient in each parameter's ``.grad`` and return the mean loss a record (0-d, detached)."""
        with autocast(self._training, self._device):
            losses = self._task.loss(model(inputs), targets)
        loss = losses.mean()
        weights = self._class_weights
        objective = loss if weights is None else (losses * weights[targets]).mean()
        objective.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


class PlainPasses:
    """Shuffled passes over the records, or a number of steps; a site's own validation records may end them early."""

    def __init__(self, task: Task, training: Training, step: GradientStep) -> None:
        self._task = task
        self._training = training
        self._step = step

    def run(self, data: Data, bench: Bench) -> Done:
        """Do the round's work."""
        training = self._training
        shuffles = bench.randomness.generator("batches", bench.round_number, bench.site)
        if training.early_stop is not None and len(data) > 1:
            return self._until_no_better(data, bench, shuffles)
        if training.local_steps is not None:
            return self.go(
                data, bench, step_batches(len(data), training.batch_size, training.local_steps, shuffles)
            )
        loss, steps = None, 0
        for _ in range(training.epochs):
            done = self.go(data, bench, epoch_batches(len(data), training.batch_size, shuffles))
            loss, steps = done.loss, steps + done.steps
        return Done(loss=loss, steps=steps)

    def _until_no_better(self, data: Data, bench: Bench, shuffles: np.random.Generator) -> Done:
        """Passes until the validation loss did not fall for ``patience`` of them; the best model stays."""
        stop = self._training.early_stop
        if stop is None:
            raise ValueError("early_stop is not set")
        coins = bench.randomness.generator("validation", bench.site)
        kept, held = (part.numpy() for part in hold_out(len(data), stop.validation, coins))
        part, validation = data.subset(kept), data.subset(held)
        best, best_loss, waited, steps, loss = bench.tensors.read(), float("inf"), 0, 0, None
        for _ in range(self._training.epochs):
            done = self.go(part, bench, epoch_batches(len(part), self._training.batch_size, shuffles))
            loss, steps = done.loss, steps + done.steps
            measured = self._mean_loss(validation, bench)
            if measured < best_loss:
                best, best_loss, waited = bench.tensors.read(), measured, 0
                continue
            waited += 1
            if waited >= stop.patience:
                break
        bench.tensors.write(best)
        return Done(loss=loss, steps=steps)

    def go(self, data: Data, bench: Bench, batches: Iterator[Tensor]) -> Done:
        """Take a step on each batch of rows, in their order."""
        total, seen, steps = torch.zeros((), dtype=torch.float64, device=bench.device), 0, 0
        for rows in batches:
            inputs, targets = data.batch(rows)
            if bench.device.type != "cpu":
                inputs, targets = move(inputs, bench.device), targets.to(bench.device)
            bench.optimiser.zero_grad()
            loss = self._step(bench.model, inputs, targets)
            bench.correct()
            bench.optimiser.step()
            total += loss * len(rows)
            seen += len(rows)
            steps += 1
        return Done(loss=float(total) / max(seen, 1), steps=steps)

    def _mean_loss(self, data: Data, bench: Bench) -> float:
        bench.model.eval()
        total = 0.0
        with torch.inference_mode():
            for rows in torch.split(torch.arange(len(data)), 1024):
                inputs, targets = data.batch(rows)
                outputs = bench.model(move(inputs, bench.device))
                total += float(self._task.loss(outputs, targets.to(bench.device)).sum())
        bench.model.train()
        return total / len(data)
