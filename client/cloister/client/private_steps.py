"""A round of noisy steps: record-level differential privacy at a site (DP-SGD).

Formal guarantee: what a site releases in a round is `RecordPlan.steps` steps of `cloister.privacy.dpsgd.DpSgd` on Poisson batches, and
what an optimiser, penalties and pulls make of them, which read nothing else of the records. The number of steps, the chance to
join one, the clip, the noise and the divisor are public. The loss is not released.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cloister.client.adversarial import AdversarySource, adversary_source
from cloister.client.passes import Bench, Done, Work
from cloister.core.data import Data
from cloister.core.spec import FederationSpec
from cloister.core.task import Task
from cloister.privacy.dpsgd import DpSgd, DpSgdSettings
from cloister.privacy.noise import cipher_generator, gaussian_source
from cloister.privacy.plan import RecordPlan, record_plan
from cloister.privacy.poisson import poisson_batches

__all__ = ["PrivateSteps", "RecordLoss", "private_steps"]


def private_steps(spec: FederationSpec, task: Task, model: nn.Module) -> Work | None:
    """Return the private work that ``spec`` asks for, or ``None`` where it promises nothing.

    Raises:
        TaskError: the model has a layer under which the guarantee does not hold.
    """
    plan = record_plan(spec)
    if plan is None:
        return None
    loss = RecordLoss(task, spec.training.class_weights)
    return PrivateSteps(plan, loss, model, adversary_source(spec.training, task, loss))


class RecordLoss:
    """A task's loss of each record, times its class's public weight."""

    def __init__(self, task: Task, class_weights: tuple[float, ...] | None) -> None:
        self._task = task
        self._weights = None if class_weights is None else torch.tensor(class_weights)

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
