"""What adversarial training minimises, one loss a record: PGD-AT, TRADES, FGSM with a random start, each with CalFAT's calibration.

=========  =====================================================================================================================
method     loss of a record (x, y), f being the model and x' what the attack makes of x
=========  =====================================================================================================================
pgd        L(f(x'), y), where x' climbs L(f(·), y)                                        (Madry et al. 2018, eq. 2.1)
fgsm-rs    the same; x' is one step from a uniform start                                  (Wong et al. 2020, algorithm 3)
trades     L(f(x), y) + β KL(f(x) ‖ f(x')), where x' climbs the penalty from x + N(0, 0.001²)  (Zhang et al. 2019, eq. 5)
=========  =====================================================================================================================

With ``shift`` every f(·) stands for f(·) + log π, π being the site's own class shares (Chen et al. 2022, CalFAT, eq. 6), in the attack
and in the loss. `losses` gives every record a loss of its own, clean and attacked part together: one gradient a record.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.core.adversarial.attacks import Loss, check_inputs, pgd
from cloister.core.adversarial.threat import Threat, threat_of
from cloister.core.errors import TaskError
from cloister.core.spec import Adversarial
from cloister.core.task import Task

__all__ = ["Adversary", "class_shift", "trained_threat"]

_TRADES_START = 0.001
_TRADES_BETA = 6.0


def class_shift(targets: Tensor, classes: int) -> Tensor:
    """Return (classes,) the log of each class's share of ``targets`` (n,).

    One record of each class is added to the counts, so that a class that the site lacks has a finite logarithm. The result says
    how often the site holds each class: it must not leave it.
    """
    counts = torch.bincount(targets, minlength=classes).to(torch.float32) + 1
    return (counts / counts.sum()).log()


def trained_threat(table: Adversarial, task: Task) -> Threat:
    """Return the threat that a site trains against.

    Raises:
        TaskError: the task and the table do not go together.
    """
    if task.kind != "classification" and (table.method != "pgd" or table.calibrated):
        what = "calibrated" if table.method == "pgd" else f"method = '{table.method}'"
        raise TaskError(
            f"training.adversarial: {what} needs classes, and the task is a regression",
            remedy="use method = 'pgd' without calibrated",
            code="adversarial-kind",
        )
    return threat_of(task, norm=table.norm, epsilon=table.epsilon, features=table.features)


@dataclass(frozen=True, kw_only=True, eq=False)
class Adversary:
    """Attacks a batch's records, and says what is to be minimised on them.

    Attributes:
        table: the ``[training.adversarial]`` table.
        threat: what may be done to a record, with the round's ε.
        loss: (outputs, targets) to (n,) losses.
        generator: where random starts come from, on the records' device.
        shift: (classes,) added to the scores, or ``None``.
    """

    table: Adversarial
    threat: Threat
    loss: Loss
    generator: torch.Generator | None
    shift: Tensor | None = None

    def perturb(self, model: nn.Module, inputs: object, targets: Tensor) -> Tensor:
        """Return what the attack makes of ``inputs`` (n, …); the model is left as it was, its hooks must be off.

        Raises:
            TaskError: the inputs cannot be moved by a little, or per-record gradients are being recorded.
        """
        records = check_inputs(inputs)
        if not len(records):
            return records
        loss, start = self._climbed(model, records), None
        if self.table.random_start and self.table.method == "trades":
            noise = torch.empty_like(records).normal_(0, _TRADES_START, generator=self.generator)
            start = self.threat.project(records + noise, records)
        elif self.table.random_start:
            start = self.threat.start(records, self.generator)
        return pgd(
            model,
            loss,
            records,
            targets,
            self.threat,
            steps=self.table.attack_steps,
            step_size=self.table.attack_step_size(self.threat.epsilon),
            start=start,
        )

    def losses(self, model: nn.Module, inputs: Tensor, attacked: Tensor, targets: Tensor) -> Tensor:
        """Return the (n,) losses of records: one number a record, whatever parts it has."""
        if self.table.method != "trades":
            return self.loss(self._calibrated(model(attacked)), targets)
        clean = self._calibrated(model(inputs))
        penalty = _divergence(self._calibrated(model(attacked)), clean)
        return self.loss(clean, targets) + (self.table.beta or _TRADES_BETA) * penalty

    def _climbed(self, model: nn.Module, records: Tensor) -> Loss:
        if self.table.method != "trades":
            return lambda outputs, targets: self.loss(self._calibrated(outputs), targets)
        training = [layer for layer in model.modules() if layer.training]
        model.eval()
        try:
            with torch.no_grad():
                clean = self._calibrated(model(records))
        finally:
            for layer in training:
                layer.training = True
        return lambda outputs, _: _divergence(self._calibrated(outputs), clean)

    def _calibrated(self, outputs: Tensor) -> Tensor:
        return outputs if self.shift is None else outputs + self.shift.to(outputs.device)


def _divergence(attacked: Tensor, clean: Tensor) -> Tensor:
    """Return (n,) KL(softmax(clean) ‖ softmax(attacked)) of scores (n, classes)."""
    parts = functional.kl_div(
        functional.log_softmax(attacked, 1),
        functional.log_softmax(clean, 1),
        reduction="none",
        log_target=True,
    )
    return parts.sum(1)
