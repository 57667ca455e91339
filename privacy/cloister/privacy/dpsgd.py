"""DP-SGD: a step's gradient with noise, left in ``.grad`` for any optimiser (Abadi et al. 2016, algorithm 1).

Formal guarantee of `DpSgd.step`. For one record's contribution g_i (the gradient of its loss over all trainable parameters)
the gradient that a step releases is

    (Σ_{i in the batch} min(1, C/‖g_i‖)·g_i + N(0, (σC)²·I)) / B

- Sensitivity. Replacing a record by one that contributes nothing (zero-out: ``NeighboringRelation.REPLACE_SPECIAL``) moves the sum by
  at most C, so the gradient by at most C/B and a plain SGD step by at most lr·C/B, however large the record's gradient is.
- Mechanism. With a Poisson batch of public probability q one step is ``PoissonSampledDpEvent(q, GaussianDpEvent(σ))``; `DpSgd.released`
  counts them. σ, C, B and q are public: none depends on how many records there are, or on the batch that was drawn.
- `DpSgd.noisy_sum` releases the sum with its noise before the division and before any rounding, for who adds several up.
- Noise is drawn once a logical step, for every trainable parameter, whether or not a record used it; how the step is cut
  into physical batches changes memory only.
- With an `Objective` the loss of a record is of what an attack made of it: as long as the attack makes it from that record, the model
  and randomness of its own (`cloister.core.adversarial.attacks` does; `cloister.privacy.adversarial` measures it), g_i depends on record
  i alone, and the sensitivity is the same C. Clean and attacked part stand in one loss: one clipped gradient a record.
- What an optimiser does with ``.grad`` (momentum, Adam, L2, FedProx, averaging) is post-processing as long as it reads nothing else
  of the data.

=====================================  =========================================================
case                                   what happens
=====================================  =========================================================
empty batch                            noise only; a release like any other
inf or NaN in a record's gradient      the record contributes 0; others are as without it
‖g_i‖, or a factor of it, above 1.8e19  its square overflows: the record contributes 0
‖g_i‖ = 0                              contributes 0
σ or C is 0, negative, inf or NaN      refused
a pass changes a parameter or a buffer  refused: it would leave without noise
an error in model or loss              nothing is released, ``.grad`` is ``None``
=====================================  =========================================================

Not covered: losses, batch sizes and counts of dropped records, which `StepReport` holds and a site must keep to itself;
time; and floating point, as in `cloister.privacy.noise`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import reduce
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from cloister.core.data import Data
from cloister.core.errors import SpecError
from cloister.privacy.noise import GaussianSource
from cloister.privacy.refusals import Method, Unchanged, record_gradients

__all__ = ["DpSgd", "DpSgdSettings", "Objective", "StepReport"]


class Objective(Protocol):
    """What a record's loss is, where it takes more than one look at the model: an attack first, then one loss a record."""

    def perturb(self, model: nn.Module, inputs: Any, targets: Tensor) -> Any:
        """Return what the attack makes of the inputs: each record's own, from that record, the model and fresh randomness alone.

        It is called with all hooks off and may ask the model for gradients by its inputs.
        """
        ...

    def losses(self, model: nn.Module, inputs: Any, attacked: Any, targets: Tensor) -> Tensor:
        """Return the (n,) losses, each a function of its record, what the attack made of it, and the model."""
        ...


@dataclass(frozen=True, kw_only=True)
class DpSgdSettings:
    """What a step of DP-SGD is, all of it public.

    σ is what ε depends on (with q and the number of steps); C and B scale the gradient and its noise alike; the last two
    change memory and time only.

    Attributes:
        noise_multiplier: σ, the noise's standard deviation over the sensitivity; dimensionless.
        clip: C, the largest L2 norm of a record's gradient; from 1e-12 to 1e12.
        expected_batch: B, what the noisy sum is divided by: a public number such as q times a public number of records.
        physical_batch: records that go through the model at once.
        method: how per-record gradients are had.
    """

    noise_multiplier: float
    clip: float
    expected_batch: float
    physical_batch: int = 256
    method: Method = "auto"

    def __post_init__(self) -> None:
        for key, low, high in (
            ("noise_multiplier", 1e-12, 1e12),
            ("clip", 1e-12, 1e12),
            ("expected_batch", 1e-12, 1e12),
            ("physical_batch", 1, 1e12),
        ):
            value = getattr(self, key)
            if not (math.isfinite(value) and low <= value <= high):
                raise SpecError(
                    f"{key} = {value} is not a number from {low:g} to {high:g}",
                    remedy=f"give a positive {key}; without noise and clipping use privacy.unit = 'none'",
                    code="privacy-setting",
                )

    @property
    def sensitivity(self) -> float:
        """How far one record moves the sum, in L2, under zero-out: C."""
        return self.clip

    @property
    def noise_std(self) -> float:
        """Standard deviation of the noise on each number of the sum: σ·C."""
        return self.noise_multiplier * self.clip


@dataclass(frozen=True, kw_only=True)
class StepReport:
    """What a step saw. Private data without noise: it stays at the site.

    Attributes:
        loss: mean of the finite losses; 0 where there is none.
        records: records in the batch.
        dropped: records that contributed 0 because their gradient was not finite.
    """

    loss: float
    records: int
    dropped: int


class DpSgd:
    """Turns batches into private gradients of one model.

    Args:
        model: its trainable parameters get a ``.grad`` in every step.
        loss: (outputs, targets) to (n,) losses, one a record, such as ``task.loss``.
        settings: σ, C, B.

    Attributes:
        released: steps whose noise was drawn: what the ledger is charged.

    Raises:
        TaskError: `cloister.privacy.refusals.check_model_for_dp` refuses the model.
    """

    def __init__(
        self, model: nn.Module, loss: Callable[[Tensor, Tensor], Tensor], settings: DpSgdSettings
    ) -> None:
        self.model = model
        self.settings = settings
        self.released = 0
        self._loss = loss
        self._gradients = record_gradients(model, settings.method)
        self._parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._sizes = [parameter.numel() for parameter in self._parameters]
        self._dtype = reduce(torch.promote_types, [parameter.dtype for parameter in self._parameters])

    def step(
        self,
        batches: Iterable[tuple[Any, Tensor]],
        noise: GaussianSource,
        objective: Objective | None = None,
    ) -> StepReport:
        """Release one private gradient: it replaces ``.grad`` of every trainable parameter.

        Args:
            batches: the physical batches (inputs, targets) of one logical batch, on the model's device; empty ones, or none,
                are fine.
            noise: the source of this step's noise; each step reads on in it.
            objective: what a record's loss is, in place of the ``loss`` of the model's outputs.

        Raises:
            TaskError: losses that are not one a record, or a model that hides a record's gradient or changes a buffer.
        """
        noisy, report = self.noisy_sum(batches, noise, objective)
        mean = torch.empty(noisy.shape, dtype=self._dtype)
        torch.div(noisy, self.settings.expected_batch, out=mean)  # in float64; rounded once
        for parameter, part in self._parts(mean.to(self._parameters[0].device)):
            alike = (part.dtype, part.stride()) == (parameter.dtype, parameter.stride())
            parameter.grad = part if alike else torch.empty_like(parameter).copy_(part)
        return report

    def step_on(
        self, data: Data, rows: Tensor, noise: GaussianSource, objective: Objective | None = None
    ) -> StepReport:
        """Release one private gradient of ``rows`` ((k,) int64, k may be 0) of a site's records: see `step`.

        Records are read one physical batch at a time and moved to the model's device.
        """
        return self.step(self._physical(data, rows), noise, objective)

    def noisy_sum(
        self,
        batches: Iterable[tuple[Any, Tensor]],
        noise: GaussianSource,
        objective: Objective | None = None,
    ) -> tuple[Tensor, StepReport]:
        """Release Σ min(1, C/‖g_i‖)·g_i + N(0, (σC)²·I), and leave every trainable parameter's ``.grad`` as ``None``.

        Args:
            batches: as for `step`, like ``noise`` and the errors.
            noise: see there.
            objective: see there.

        Returns:
            (p,) float64 on the CPU, over the trainable parameters in the model's own order; and what the step saw.
        """
        total = torch.zeros(sum(self._sizes), dtype=self._dtype, device=self._parameters[0].device)
        try:
            report = self._accumulate(batches, dict(self._parts(total)), objective)
        finally:
            for parameter in self.model.parameters():
                parameter.grad = None  # a batch gradient may lie there, neither clipped nor noisy
        self.released += 1  # before the first draw: noise that was drawn is charged, whatever comes after
        return noise.perturb(total, std=self.settings.noise_std), report

    def noisy_sum_on(self, data: Data, rows: Tensor, noise: GaussianSource) -> Tensor:
        """Release the noisy sum of ``rows`` of a site's records: see `noisy_sum` and `step_on`."""
        return self.noisy_sum(self._physical(data, rows), noise)[0]

    def _parts(self, flat: Tensor) -> Iterator[tuple[nn.Parameter, Tensor]]:
        """Give each trainable parameter and its stretch of ``flat``, in its shape: views."""
        for parameter, part in zip(self._parameters, torch.split(flat, self._sizes), strict=True):
            yield parameter, part.view(parameter.shape)

    def _accumulate(
        self,
        batches: Iterable[tuple[Any, Tensor]],
        sums: dict[Tensor, Tensor],
        objective: Objective | None,
    ) -> StepReport:
        unchanged = Unchanged(self.model)
        total, finite, records, dropped = 0.0, 0, 0, 0
        for inputs, targets in batches:
            if not len(targets):
                continue
            clipped = self._gradients.add_clipped(
                self._forward(inputs, targets, objective),
                records=len(targets),
                clip=self.settings.clip,
                into=sums,
            )
            unchanged.check()
            seen = clipped.losses
            if not math.isfinite(loss := float(seen.sum())):
                seen = seen[seen.isfinite()]
                loss = float(seen.sum())
            total += loss
            finite += len(seen)
            records += len(targets)
            dropped += clipped.dropped
        return StepReport(loss=total / max(finite, 1), records=records, dropped=dropped)

    def _forward(self, inputs: Any, targets: Tensor, objective: Objective | None) -> Callable[[], Tensor]:
        if objective is None:
            return lambda: self._loss(self.model(inputs), targets)
        attacked = objective.perturb(
            self.model, inputs, targets
        )  # before the pass in which gradients are recorded
        return lambda: objective.losses(self.model, inputs, attacked, targets)

    def _physical(self, data: Data, rows: Tensor) -> Iterator[tuple[Any, Tensor]]:
        device = self._parameters[0].device
        if not len(rows):
            return
        for part in torch.split(rows, self.settings.physical_batch):
            inputs, targets = data.batch(part)
            if device.type != "cpu":
                inputs, targets = _move(inputs, device), targets.to(device)
            yield inputs, targets


def _move(inputs: Any, device: torch.device) -> Any:
    if isinstance(inputs, Tensor):
        return inputs.to(device)
    if isinstance(inputs, dict):
        return {key: _move(part, device) for key, part in inputs.items()}
    return type(inputs)(_move(part, device) for part in inputs)
