"""Adversarial training at a site: every batch is attacked, then trained on.

What the attack draws is keyed by round and site, like all that a site draws. The site's class counts, where CalFAT asks for
them, shift the scores while the site trains and are told to nobody.

FGSM with a random start can overfit to its one step: within a few hundred steps it resists that step and nothing else (Wong et al. 2020,
section 5.1). A canary therefore measures PGD's success on records that the site holds out, before and after each pass; the site then
refuses to send its update (code ``catastrophic-overfitting``), and the round goes on without it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from cloister.client.batches import epoch_batches
from cloister.client.devices import autocast
from cloister.client.passes import Bench, Done, GradientStep, PlainPasses, Work
from cloister.core.adversarial.attacks import Loss, attacking, pgd
from cloister.core.adversarial.objectives import Adversary, class_shift, trained_threat
from cloister.core.adversarial.threat import Threat
from cloister.core.data import Data, move
from cloister.core.errors import DataError
from cloister.core.spec import Adversarial, Training
from cloister.core.task import Task

__all__ = [
    "AdversarialPasses",
    "AdversarialStep",
    "AdversarySource",
    "Canary",
    "adversarial_passes",
    "adversary_source",
]

#: The canary: most records held out, least that a site must have, steps of its PGD, and how far it may fall.
_HELD, _LEAST, _STEPS, _FALL = 128, 20, 10, 0.2


def adversary_source(training: Training, task: Task, loss: Loss) -> AdversarySource | None:
    """Return what makes a round's adversary, or ``None`` where the file asks for no attack.

    Raises:
        TaskError: the task and the table do not go together.
    """
    table = training.adversarial
    if table is None:
        return None
    return AdversarySource(
        table=table, threat=trained_threat(table, task), loss=loss, classes=len(task.classes)
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class AdversarySource:
    """Makes the adversary of a site and round.

    Attributes:
        table: the ``[training.adversarial]`` table.
        threat: what may be done to a record, once ε has warmed up.
        loss: (outputs, targets) to (n,) losses.
        classes: how many.
    """

    table: Adversarial
    threat: Threat
    loss: Loss
    classes: int

    def of_round(self, bench: Bench, targets: Tensor | None = None) -> Adversary:
        """Return the adversary of a round, its randomness keyed by round and site.

        Args:
            bench: what the round is done with.
            targets: the site's (n,) training targets, where its class counts may be read.
        """
        generator = torch.Generator(bench.device)
        generator.manual_seed(bench.randomness.torch_seed("attack", bench.round_number, bench.site))
        calibrated = targets is not None and self.table.calibrated
        return Adversary(
            table=self.table,
            threat=self.threat.at(self.table.epsilon_in(bench.round_number)),
            loss=self.loss,
            generator=generator,
            shift=class_shift(targets, self.classes) if calibrated and targets is not None else None,
        )

    def trial(self, seed: int) -> Adversary:
        """Return an adversary to try the model with before anything is trained."""
        generator = torch.Generator().manual_seed(seed)
        return Adversary(table=self.table, threat=self.threat, loss=self.loss, generator=generator)


def adversarial_passes(task: Task, training: Training, device: torch.device) -> Work:
    """Return the passes of a site that trains against the adversary of ``training.adversarial``.

    Raises:
        TaskError: the task and the table do not go together.
    """
    weights = training.class_weights
    loss = _Weighted(task, None if weights is None else torch.tensor(weights, device=device))
    source = adversary_source(training, task, loss)
    if source is None:
        raise ValueError("training.adversarial is not set")
    return AdversarialPasses(task, training, device, source)


class _Weighted:
    def __init__(self, task: Task, weights: Tensor | None) -> None:
        self._task = task
        self._weights = weights

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        losses = self._task.loss(outputs, targets)
        return losses if self._weights is None else losses * self._weights[targets]


class AdversarialStep:
    """`GradientStep` on attacked records: the attack has no parameter's gradient, the step one backward pass."""

    def __init__(self, adversary: Adversary, training: Training, device: torch.device) -> None:
        self._adversary = adversary
        self._training = training
        self._device = device

    def __call__(self, model: nn.Module, inputs: Tensor, targets: Tensor) -> Tensor:
        """Leave the batch gradient in each parameter's ``.grad`` and return the mean loss a record (0-d, detached)."""
        attacked = self._adversary.perturb(model, inputs, targets)
        with autocast(self._training, self._device):
            loss = self._adversary.losses(model, inputs, attacked, targets).mean()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()


class AdversarialPasses:
    """`Work`: the passes of `PlainPasses`, each batch attacked first; under ``fgsm-rs`` a canary watches them."""

    def __init__(self, task: Task, training: Training, device: torch.device, source: AdversarySource) -> None:
        self._task = task
        self._training = training
        self._device = device
        self._source = source

    def run(self, data: Data, bench: Bench) -> Done:
        """Do the round's work.

        Raises:
            DataError: the canary found that training overfits to one step of the attack, or has too few records to tell.
        """
        adversary = self._source.of_round(bench, data.targets)
        step = AdversarialStep(adversary, self._training, self._device)
        if adversary.table.method != "fgsm-rs":
            return PlainPasses(self._task, self._training, step).run(data, bench)
        return self._watched(data, bench, adversary, step)

    def _watched(self, data: Data, bench: Bench, adversary: Adversary, step: GradientStep) -> Done:
        kept, canary = hold_canary(data, bench, adversary)
        canary.look(bench.model)
        if self._training.local_steps is not None:
            done = PlainPasses(self._task, self._training, step).run(kept, bench)
            canary.look(bench.model)
            return done
        shuffles = bench.randomness.generator("batches", bench.round_number, bench.site)
        passes = PlainPasses(self._task, self._training, step)
        steps, done = 0, Done(loss=None, steps=0)
        for _ in range(self._training.epochs):
            done = passes.go(kept, bench, epoch_batches(len(kept), self._training.batch_size, shuffles))
            steps += done.steps
            canary.look(bench.model)
        return Done(loss=done.loss, steps=steps)


def hold_canary(data: Data, bench: Bench, adversary: Adversary) -> tuple[Data, Canary]:
    """Return a site's records without those that its canary takes (one in ten, at most 128), and the canary.

    Raises:
        DataError: fewer than 20 records.
    """
    if len(data) < _LEAST:
        raise DataError(
            f"site '{bench.site}' has fewer than {_LEAST} training records: its canary could not tell overfitting from chance",
            remedy="use training.adversarial.method = 'pgd' there",
            code="adversarial-canary",
        )
    # Keyed by the site alone: the same records are held out in every round, so none of them is ever trained on.
    order = bench.randomness.generator("canary", bench.site).permutation(len(data))
    held = np.sort(order[: min(_HELD, len(data) // 10)])
    kept = np.sort(order[len(held) :])
    inputs, targets = data.batch(torch.from_numpy(held))
    return data.subset(kept), Canary(
        inputs=move(inputs, bench.device),
        targets=targets.to(bench.device),
        adversary=adversary,
        site=bench.site,
    )


@dataclass(kw_only=True)
class Canary:
    """Records that nobody trains on, to tell robustness from resistance to one step.

    Attributes:
        inputs: (n, …) of the held records.
        targets: (n,).
        adversary: whose threat and loss are used.
        site: for the refusal.
        best: the best accuracy under PGD so far in this round; -1 before the first look.
    """

    inputs: Tensor
    targets: Tensor
    adversary: Adversary
    site: str
    best: float = -1.0

    def look(self, model: nn.Module) -> tuple[float, float]:
        """Return the accuracy under PGD (10 steps from a random start) and under the one step that is trained on.

        Raises:
            DataError: the first fell by more than 0.2 below its best in this round, and the second exceeds it by more than 0.2.
        """
        threat, loss = self.adversary.threat, self.adversary.loss
        start = threat.start(self.inputs, self.adversary.generator)
        found = pgd(
            model,
            loss,
            self.inputs,
            self.targets,
            threat,
            steps=_STEPS,
            step_size=2.5 * threat.epsilon / _STEPS,
            start=start,
        )
        robust = self._accuracy(model, found)
        one_step = self._accuracy(model, self.adversary.perturb(model, self.inputs, self.targets))
        if robust < self.best - _FALL and one_step > robust + _FALL:
            raise DataError(
                f"training at site '{self.site}' overfits to its one-step attack: accuracy under 10 steps fell by more than {_FALL}",
                remedy="use training.adversarial.method = 'pgd', or lower training.adversarial.step_size, the learning rate or local_epochs",
                code="catastrophic-overfitting",
            )
        self.best = max(self.best, robust)
        return robust, one_step

    def _accuracy(self, model: nn.Module, inputs: Tensor) -> float:
        with attacking(model), torch.no_grad():
            return float((model(inputs).argmax(1) == self.targets).float().mean())
