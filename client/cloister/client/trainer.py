"""One site's share of one round: from the round's model to the change it made of it.

`Trainer.train` runs passes or steps of local optimisation. How a batch becomes a gradient is a `GradientStep`: plain here;
differentially private and adversarial steps have the same shape and plug in without a change to the trainer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from cloister.client.batches import epoch_batches, hold_out, step_batches
from cloister.client.corrections import gradient_corrections
from cloister.client.devices import autocast, choose_device
from cloister.client.optimisers import begin_round, make_optimiser
from cloister.client.schedule import learning_rate_factor
from cloister.core.data import Data
from cloister.core.errors import DataError
from cloister.core.randomness import Randomness
from cloister.core.spec import FederationSpec, Training
from cloister.core.task import Task
from cloister.core.update import Layout, Vector

__all__ = ["GradientStep", "LocalResult", "PlainStep", "Trainer"]


@dataclass(frozen=True, kw_only=True)
class LocalResult:
    """What local training made.

    Attributes:
        change: (size,) float32, trained model minus the round's model.
        loss: mean loss a record over the last pass (or over all steps).
        records: training records of the site.
        steps: optimiser steps taken.
        learning_rate: the round's learning rate.
    """

    change: Vector
    loss: float
    records: int
    steps: int
    learning_rate: float


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
        objective = loss if self._class_weights is None else (losses * self._class_weights[targets]).mean()
        objective.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


class Trainer:
    """Trains one model for one site after another; the module is built once and re-used.

    Args:
        spec: the federation.
        task: what is learned.
        model: a module with ``layout``; its averaged tensors are overwritten at every call.
        layout: what lies where.
        gradient_step: how a batch becomes a gradient; plain when left out.
    """

    def __init__(
        self,
        spec: FederationSpec,
        task: Task,
        model: nn.Module,
        layout: Layout,
        gradient_step: GradientStep | None = None,
    ) -> None:
        self._spec = spec
        self._training = spec.training
        self.task = task
        self.layout = layout
        self.device = choose_device(spec.training)
        self.model = model.to(self.device)
        self._step = gradient_step or PlainStep(task, spec.training, self.device)
        fixed = {entry.name for entry in layout.entries if entry.kind == "fixed"}
        self._fixed = {
            name: tensor.clone() for name, tensor in self.model.state_dict().items() if name in fixed
        }
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._optimiser = make_optimiser(spec.training.optimizer, self._parameters)

    def load(self, vector: Vector) -> None:
        """Put the round's model into the module, its fixed tensors as they were built."""
        self.layout.write(self.model, vector)
        if self._fixed:
            self.model.load_state_dict(self._fixed, strict=False)

    def train(
        self,
        vector: Vector,
        data: Data,
        *,
        site: str,
        round_number: int,
        randomness: Randomness,
        drift: Vector | None = None,
    ) -> LocalResult:
        """Train on one site's records.

        Args:
            vector: (size,) the round's model.
            data: the site's training records.
            site: the site's name; with the round it keys all randomness.
            round_number: from 1; the schedule's clock.
            randomness: where shuffles and dropout come from.
            drift: (size,) SCAFFOLD's correction, added to every gradient.

        Raises:
            DataError: no record, or training left the model not finite.
        """
        if len(data) == 0:
            raise DataError(
                f"site '{site}' has no training record",
                remedy="give it data, or leave it out",
                code="data-empty",
            )
        self.load(vector)
        self.model.train()
        factor = learning_rate_factor(self._training.schedule, round_number, self._spec.federation.rounds)
        rate = self._training.optimizer.lr * factor
        begin_round(self._optimiser, rate)
        correct = gradient_corrections(self._training, self.model, self.layout, start=vector, drift=drift)
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            self._seed_layers(randomness.torch_seed("layers", round_number, site))
            shuffles = randomness.generator("batches", round_number, site)
            if self._training.early_stop is not None and len(data) > 1:
                split = randomness.generator("validation", site)
                loss, steps = self._until_no_better(data, correct, shuffles, split)
            else:
                loss, steps = self._passes(data, correct, shuffles)
        change = self.layout.read(self.model) - vector
        if not np.isfinite(change).all():
            raise DataError(
                f"training at site '{site}' left the model not finite",
                remedy="lower training.optimizer.lr, or set training.gradient_clip",
                code="update-not-finite",
            )
        return LocalResult(change=change, loss=loss, records=len(data), steps=steps, learning_rate=rate)

    def _passes(
        self, data: Data, correct: Callable[[], None], shuffles: np.random.Generator
    ) -> tuple[float, int]:
        size = self._training.batch_size
        if self._training.local_steps is not None:
            return self._run(
                data, step_batches(len(data), size, self._training.local_steps, shuffles), correct
            )
        loss, steps = 0.0, 0
        for _ in range(self._training.epochs):
            loss, taken = self._run(data, epoch_batches(len(data), size, shuffles), correct)
            steps += taken
        return loss, steps

    def _until_no_better(
        self,
        data: Data,
        correct: Callable[[], None],
        shuffles: np.random.Generator,
        split: np.random.Generator,
    ) -> tuple[float, int]:
        """Passes until the validation loss did not fall for ``patience`` of them; the best model stays."""
        stop = self._training.early_stop
        if stop is None:
            raise ValueError("early_stop is not set")
        kept, held = (part.numpy() for part in hold_out(len(data), stop.validation, split))
        part, validation = data.subset(kept), data.subset(held)
        best, best_loss, waited, steps, loss = self.layout.read(self.model), float("inf"), 0, 0, 0.0
        for _ in range(self._training.epochs):
            loss, taken = self._run(
                part, epoch_batches(len(part), self._training.batch_size, shuffles), correct
            )
            steps += taken
            measured = self._mean_loss(validation)
            if measured < best_loss:
                best, best_loss, waited = self.layout.read(self.model), measured, 0
                continue
            waited += 1
            if waited >= stop.patience:
                break
        self.layout.write(self.model, best)
        return loss, steps

    def _run(self, data: Data, batches: Iterator[Tensor], correct: Callable[[], None]) -> tuple[float, int]:
        total, seen, steps = torch.zeros((), dtype=torch.float64, device=self.device), 0, 0
        for rows in batches:
            inputs, targets = data.batch(rows)
            if self.device.type != "cpu":
                inputs, targets = inputs.to(self.device), targets.to(self.device)
            self._optimiser.zero_grad(set_to_none=True)
            loss = self._step(self.model, inputs, targets)
            correct()
            self._optimiser.step()
            total += loss * len(rows)
            seen += len(rows)
            steps += 1
        return float(total) / max(seen, 1), steps

    def _seed_layers(self, seed: int) -> None:
        """Seed what dropout draws from; ``torch.manual_seed`` would also queue a seed for every absent device, each time."""
        torch.default_generator.manual_seed(seed)
        if self.device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif self.device.type == "mps":
            torch.mps.manual_seed(seed)

    def _mean_loss(self, data: Data) -> float:
        self.model.eval()
        total = 0.0
        with torch.inference_mode():
            for rows in torch.split(torch.arange(len(data)), 1024):
                inputs, targets = data.batch(rows)
                total += float(
                    self.task.loss(self.model(inputs.to(self.device)), targets.to(self.device)).sum()
                )
        self.model.train()
        return total / len(data)
