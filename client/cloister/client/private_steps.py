"""A round of noisy steps, or a site's share of one: record-level differential privacy (DP-SGD).

Formal guarantees. `PrivateSteps` (``unit = "record"``): what a site releases in a round is `RecordPlan.steps` steps of `cloister.privacy.dpsgd.DpSgd` on Poisson batches, and
what an optimiser, penalties and pulls make of them, which read nothing else of the records. The number of steps, the chance to
join one, the clip, the noise and the divisor are public. The loss is not released.

`SharedStep` (``unit = "record-distributed"``): what a site makes in a round is the sum of the clipped gradients of one Poisson batch plus its share of
the noise, N(0, (σC)²/h) in every number of a trainable parameter; numbers of the model that are not trained are 0.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from cloister.client.adversarial import AdversarySource, adversary_source
from cloister.client.passes import Bench, Done, Work
from cloister.core.data import Data
from cloister.core.spec import FederationSpec
from cloister.core.task import Task
from cloister.privacy.adversarial import check_attack_for_dp
from cloister.privacy.audit.canaries import CanaryTask
from cloister.privacy.dpsgd import DpSgd, DpSgdSettings
from cloister.privacy.noise import cipher_generator, gaussian_source
from cloister.privacy.poisson import poisson_batches, poisson_rows
from cloister.privacy.record_plans import (
    DistributedRecordPlan,
    RecordPlan,
    distributed_record_plan,
    record_plan,
)
from cloister.privacy.refusals import check_on_records

__all__ = ["PrivateSteps", "RecordLoss", "SharedStep", "check_private", "private_steps"]


def private_steps(spec: FederationSpec, task: Task, model: nn.Module) -> Work:
    """Return the private work of a ``spec`` that hides records.

    Raises:
        TaskError: the model has a layer under which the guarantee does not hold.
        ValueError: it hides none.
    """
    loss = RecordLoss(task, spec.training.class_weights)
    if spec.privacy.unit == "record-distributed":
        return SharedStep(distributed_record_plan(spec), loss, model)
    plan = record_plan(spec)
    if plan is None:
        raise ValueError(f"unit = '{spec.privacy.unit}' hides no records")
    return PrivateSteps(plan, loss, model, adversary_source(spec.training, task, loss))


def check_private(
    spec: FederationSpec, task: Task, model: nn.Module, inputs: Tensor, targets: Tensor
) -> None:
    """Try on a few records what `private_steps` will do.

    Args:
        spec: hides records.
        task: the task.
        model: as it was built.
        inputs: (n, …) records.
        targets: (n,).

    Raises:
        TaskError: the guarantee does not hold for this model, this loss or this attack.
    """
    loss = RecordLoss(task, spec.training.class_weights)
    check_on_records(model.train(), loss, inputs, targets)
    adversaries = adversary_source(spec.training, task, loss)
    if adversaries is not None:
        check_attack_for_dp(adversaries.trial, model, inputs, targets)


class RecordLoss:
    """A task's loss of each record, times its class's public weight."""

    def __init__(self, task: Task, class_weights: tuple[float, ...] | None) -> None:
        self._task = task
        spare = task.first + task.count + 1 - len(class_weights or ()) if isinstance(task, CanaryTask) else 0
        self._weights = (
            None if class_weights is None else torch.tensor((*class_weights, *[1.0] * spare))
        )  # canaries, which are no class of the task, weigh 1

    def __call__(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return (n,) losses, one a record."""
        losses = self._task.loss(outputs, targets)
        return losses if self._weights is None else losses * self._weights.to(losses.device)[targets]


class PrivateSteps:
    """`Work` of a fixed number of noisy steps; an empty batch is a step of noise alone."""

    def __init__(
        self,
        plan: RecordPlan,
        loss: RecordLoss,
        model: nn.Module,
        adversaries: AdversarySource | None = None,
    ) -> None:
        self._plan = plan
        self._adversaries = adversaries
        self._engine = DpSgd(
            model,
            loss,
            DpSgdSettings(
                noise_multiplier=plan.noise_multiplier, clip=plan.clip, expected_batch=plan.expected_batch
            ),
        )

    def run(self, data: Data, bench: Bench) -> Done:
        """Do the round's work."""
        key = (bench.round_number, bench.site)
        noise = gaussian_source(bench.randomness, "noise", *key)
        coins = cipher_generator(bench.randomness, "poisson", *key)
        batches = poisson_batches(
            len(data), self._plan.sampling_rate, steps=self._plan.steps, generator=coins
        )
        adversary = None if self._adversaries is None else self._adversaries.of_round(bench)
        for rows in batches:
            self._engine.step_on(data, rows, noise, adversary)
            bench.correct()
            bench.optimiser.step()
        return Done(loss=None, steps=self._plan.steps)


class SharedStep:
    """`Work` of one site's part of one step that all sites take together; the model stays as it is."""

    def __init__(self, plan: DistributedRecordPlan, loss: RecordLoss, model: nn.Module) -> None:
        self._plan = plan
        self._engine = DpSgd(
            model,
            loss,
            DpSgdSettings(noise_multiplier=plan.share, clip=plan.clip, expected_batch=plan.expected_batch),
        )

    def run(self, data: Data, bench: Bench) -> Done:
        """Do the round's work."""
        key = (bench.round_number, bench.site)
        noise = gaussian_source(bench.randomness, "record-share", *key)
        coins = cipher_generator(bench.randomness, "poisson", *key)
        rows = poisson_rows(len(data), self._plan.sampling_rate, coins)
        noisy = self._engine.noisy_sum_on(data, rows, noise).numpy()
        made = np.zeros(bench.tensors.size)
        made[: len(noisy)] = noisy  # a layout begins with the trainable parameters, in the model's own order
        return Done(loss=None, steps=1, made=made)
