"""What an adversary may do to a record: move its inputs by at most ε in one norm, within bounds, some inputs only.

Formal guarantee of `Threat.project`, for any x' and a record x within the bounds: the result x'' has ‖x'' - x‖ ≤ ε (up to rounding),
lies within the bounds, and is x wherever the adversary cannot change anything. Each record is projected by itself.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from cloister.core.errors import SpecError, TaskError
from cloister.core.guarding import guarded
from cloister.core.spec.refusals import nearest
from cloister.core.task import Task

__all__ = ["Norm", "Threat", "threat_of"]

Norm = Literal["linf", "l2"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Threat:
    """What an adversary may do to a record.

    Attributes:
        norm: how a perturbation is measured.
        epsilon: ε, its largest norm, in the units of the model's input.
        low: the least value of an input, as a number or a tensor that broadcasts to a record's input; ``None``: no bound.
        high: the greatest value; given together with ``low``.
        free: the places, among a record's (d,) inputs, that the adversary can change; ``None``: all, of inputs of any shape.

    Raises:
        SpecError: ε is not a positive finite number, or one bound is given without the other.
    """

    norm: Norm
    epsilon: float
    low: float | Tensor | None = None
    high: float | Tensor | None = None
    free: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise SpecError(
                f"epsilon = {self.epsilon} is no size of a perturbation",
                remedy="give a positive number, in the units of the model's input",
                code="adversarial-epsilon",
            )
        if (self.low is None) != (self.high is None):
            raise SpecError(
                "a threat with one bound only",
                remedy="give low and high, or neither",
                code="adversarial-bounds",
            )

    def at(self, epsilon: float) -> Threat:
        """Return the same threat with another ε."""
        return Threat(norm=self.norm, epsilon=epsilon, low=self.low, high=self.high, free=self.free)

    def project(self, moved: Tensor, records: Tensor) -> Tensor:
        """Return the point near ``moved`` that the adversary may reach from ``records``; both (n, …).

        For linf it is the nearest one. For l2 the perturbation is scaled to ε and then cut off at the bounds, which shortens it
        further: within the ball and the bounds, though not always the nearest point (Croce and Hein 2020 do the same).
        """
        return self.projection(records)(moved)

    def projection(self, records: Tensor) -> Callable[[Tensor], Tensor]:
        """Return what `project` does near ``records`` (n, …), for many points: in linf the box is worked out once."""
        mask = self.mask(records)
        if self.norm == "linf":
            low, high = self._bounded(records - self.epsilon), self._bounded(records + self.epsilon)
            if mask is not None:
                kept = self._bounded(records.clone())
                low, high = (torch.where(mask.bool(), side, kept) for side in (low, high))
            return lambda moved: torch.clamp(moved, low, high)

        def project(moved: Tensor) -> Tensor:
            change = moved - records if mask is None else (moved - records) * mask
            length = _per_record(change)
            return self._bounded(records + change * (self.epsilon / length.clamp(min=self.epsilon)))

        return project

    def start(self, records: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return a random point for each of ``records`` (n, …): uniform in the ball, then projected."""
        noise = torch.empty_like(records)
        if self.norm == "linf":
            noise.uniform_(-self.epsilon, self.epsilon, generator=generator)
            return self.project(records + noise, records)
        noise.normal_(generator=generator)
        mask = self.mask(records)
        if mask is not None:
            noise = noise * mask
        radius = torch.empty(len(records), device=records.device, dtype=records.dtype)
        free = records[0].numel() if self.free is None else len(self.free)
        radius.uniform_(generator=generator).pow_(1 / free).mul_(self.epsilon)
        unit = noise / _per_record(noise).clamp(min=1e-12)
        return self.project(records + unit * radius.view(-1, *[1] * (records.dim() - 1)), records)

    def ascend(self, point: Tensor, gradient: Tensor, size: float) -> Tensor:
        """Return ``point`` (n, …) after a steepest step of length ``size`` up ``gradient``, not yet projected.

        Where the gradient of a record is 0 it stays. In linf every input moves by ``size``; in l2 the record moves by it.
        """
        if self.norm == "linf":
            return point.add(gradient.sign_(), alpha=size)
        mask = self.mask(gradient)
        if mask is not None:
            gradient = gradient * mask
        return point + gradient * (size / _per_record(gradient).clamp(min=1e-30))

    def mask(self, records: Tensor) -> Tensor | None:
        """Return (d,) 1 where an input of ``records`` (n, d) can be changed, 0 elsewhere; ``None``: everywhere.

        Raises:
            TaskError: some inputs only can be changed, and the records are not (n, d) or lack one of them.
        """
        if self.free is None:
            return None
        if records.dim() != 2 or max(self.free) >= records.shape[1]:
            raise TaskError(
                f"the task names columns, and its records have the shape {tuple(records.shape[1:])}",
                remedy="give (n, d) inputs and the columns' places among them in `features`",
                code="adversarial-features",
            )
        mask = records.new_zeros(records.shape[1])
        mask[list(self.free)] = 1.0
        return mask

    def size_of(self, moved: Tensor, records: Tensor) -> Tensor:
        """Return (n,) the norm of each record's perturbation."""
        change = (moved - records).flatten(1)
        return change.abs().amax(1) if self.norm == "linf" else torch.linalg.vector_norm(change, dim=1)

    def _bounded(self, point: Tensor) -> Tensor:
        low, high = self.low, self.high
        if low is None or high is None:
            return point
        if isinstance(low, Tensor) or isinstance(high, Tensor):
            return torch.maximum(torch.minimum(point, _tensor(high, point)), _tensor(low, point))
        return point.clamp_(low, high)


def threat_of(task: Task, *, norm: Norm, epsilon: float, features: Sequence[str] | None = None) -> Threat:
    """Return the threat to a task's records: within its bounds, and for named columns on its numeric ones only.

    Args:
        task: its ``bounds`` and ``features`` are read.
        norm: how a perturbation is measured.
        epsilon: its largest norm.
        features: the numeric columns that an adversary can change; all of them without it.

    Raises:
        TaskError: the task's bounds are not two, or not in order; ``features`` names no numeric column of it, or the task has
            no named columns, or no numeric one.
    """
    name = type(task).__name__
    bounds, places = guarded(name, "its bounds or features", lambda: (task.bounds, task.features))
    low, high = _checked_bounds(name, bounds)
    free = None
    if places is None:
        if features is not None:
            raise TaskError(
                f"features = {list(features)}, and the records of {name} have no named columns",
                remedy="remove features: an adversary can then change every input",
                code="adversarial-features",
            )
    else:
        chosen = list(places) if features is None else list(features)
        for one in chosen:
            if one not in places:
                raise TaskError(
                    f"features: {name} has no numeric column '{one}'{nearest(one, places)}",
                    remedy="name numeric columns: a category cannot be changed by a little",
                    code="adversarial-features",
                )
        if not chosen:
            raise TaskError(
                f"{name} has no numeric column: there is nothing that an adversary can change by a little",
                remedy="remove the attack, or declare a column numeric",
                code="adversarial-features",
            )
        free = tuple(sorted(places[one] for one in chosen))
    return Threat(norm=norm, epsilon=epsilon, low=low, high=high, free=free)


def _checked_bounds(name: str, bounds: object) -> tuple[float | Tensor | None, float | Tensor | None]:
    if bounds is None:
        return None, None
    if not isinstance(bounds, tuple) or len(bounds) != 2:
        raise _bad_bounds(name, "are not a pair")
    low, high = bounds
    if not all(isinstance(end, int | float | Tensor) for end in (low, high)):
        raise _bad_bounds(name, "are neither numbers nor tensors")
    ends = torch.as_tensor(low, dtype=torch.float64), torch.as_tensor(high, dtype=torch.float64)
    if not (ends[0].isfinite().all() and ends[1].isfinite().all() and bool((ends[0] < ends[1]).all())):
        raise _bad_bounds(name, "are not finite, or the lower is not below the upper")
    return low, high


def _bad_bounds(name: str, what: str) -> TaskError:
    return TaskError(
        f"the bounds of {name} {what}",
        remedy="give (low, high): two numbers, or two tensors that broadcast to one record's input; or None",
        code="adversarial-bounds",
    )


def _per_record(rows: Tensor) -> Tensor:
    """Return the L2 norm of each row, as (n, 1, …) to go with (n, …)."""
    length: Tensor = torch.linalg.vector_norm(rows.flatten(1), dim=1)
    return length.view(-1, *[1] * (rows.dim() - 1))


def _tensor(end: float | Tensor, like: Tensor) -> Tensor:
    return torch.as_tensor(end, dtype=like.dtype, device=like.device)
