"""One site's share of one round: from the round's model to the change it made of it.

How the site goes through its records is a `cloister.client.passes.Work`: shuffled passes, or the noisy steps of differential
privacy. The trainer does what is the same for all: load, seed, schedule, take the difference, check it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from cloister.client.adversarial import adversarial_passes
from cloister.client.corrections import gradient_corrections
from cloister.client.devices import choose_device
from cloister.client.optimisers import make_optimiser
from cloister.client.passes import Bench, PlainPasses, PlainStep, Work
from cloister.client.seeding import seeded
from cloister.core.data import Data
from cloister.core.errors import DataError
from cloister.core.randomness import Randomness
from cloister.core.schedule import learning_rate
from cloister.core.spec import FederationSpec
from cloister.core.task import Task
from cloister.core.update import Layout, Vector

__all__ = ["LocalResult", "Trainer"]


@dataclass(frozen=True, kw_only=True)
class LocalResult:
    """What local training made.

    Attributes:
        change: (size,) float32, trained model minus the round's model; or float64, what the work made in place of it.
        loss: mean loss a record over the last pass (or over all steps); ``None`` in a private run.
        records: training records of the site.
        steps: optimiser steps taken.
        learning_rate: the round's learning rate.
    """

    change: npt.NDArray[Any]
    loss: float | None
    records: int
    steps: int
    learning_rate: float


class Trainer:
    """Trains one model for one site after another; the module is built once and re-used.

    Args:
        spec: the federation.
        task: what is learned.
        model: a module with ``layout``; its averaged tensors are overwritten at every call.
        layout: what lies where.
        work: how a site goes through its records; what ``spec`` asks for when left out.

    Raises:
        SpecError: ``spec`` promises differential privacy that this model cannot keep.
    """

    def __init__(
        self, spec: FederationSpec, task: Task, model: nn.Module, layout: Layout, work: Work | None = None
    ) -> None:
        self._spec = spec
        self._training = spec.training
        self.task = task
        self.layout = layout
        self.device = choose_device(spec.training)
        self.model = model.to(self.device)
        self._tensors = layout.of_model(self.model)
        self._work = work or self._asked()
        fixed = {entry.name for entry in layout.entries if entry.kind == "fixed"}
        self._fixed = {
            name: tensor.clone() for name, tensor in self.model.state_dict().items() if name in fixed
        }
        self._optimiser = make_optimiser(
            spec.training.optimizer, [p for p in self.model.parameters() if p.requires_grad]
        )

    def load(self, vector: Vector) -> None:
        """Put the round's model into the module, its fixed tensors as they were built."""
        self._tensors.write(vector)
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
        rate = learning_rate(self._spec, round_number)
        self._optimiser.begin_round(rate)
        bench = Bench(
            model=self.model,
            tensors=self._tensors,
            device=self.device,
            optimiser=self._optimiser,
            correct=gradient_corrections(self._training, self.model, self.layout, start=vector, drift=drift),
            randomness=randomness,
            site=site,
            round_number=round_number,
        )
        with seeded(randomness, self.device, round_number, site):
            done = self._work.run(data, bench)
        change: npt.NDArray[Any] = self._tensors.read() - vector if done.made is None else done.made
        if not np.isfinite(change).all():
            raise DataError(
                f"training at site '{site}' left the model not finite",
                remedy="lower training.optimizer.lr, or set training.gradient_clip",
                code="update-not-finite",
            )
        return LocalResult(
            change=change, loss=done.loss, records=len(data), steps=done.steps, learning_rate=rate
        )

    def nothing(self, data: Data, *, private: bool) -> LocalResult:
        """Return the result of a training that came to nothing: a change of zeros.

        Args:
            data: the site's training records.
            private: whether losses are withheld.
        """
        change = np.zeros(self.layout.size, dtype=np.float32)
        loss = None if private else 0.0
        return LocalResult(change=change, loss=loss, records=len(data), steps=1, learning_rate=1.0)

    def _asked(self) -> Work:
        """Return the work that the federation file asks for."""
        if not self._spec.privacy.hides_records:
            return self._plain()
        # It brings Opacus, which takes two seconds to load.
        from cloister.client.private_steps import private_steps

        return private_steps(self._spec, self.task, self.model)

    def _plain(self) -> Work:
        if self._training.adversarial is not None:
            return adversarial_passes(self.task, self._training, self.device)
        return PlainPasses(self.task, self._training, PlainStep(self.task, self._training, self.device))
