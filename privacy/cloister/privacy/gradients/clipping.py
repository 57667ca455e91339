"""From squared norms to clip factors: what makes a record's contribution no longer than C."""

from __future__ import annotations

import math
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from cloister.core.errors import TaskError

__all__ = ["Clipped", "Factors", "RecordGradients", "Sums", "check_losses", "clip_factors", "squared_norms"]

#: The clipped sum so far, for each trainable parameter in its shape.
Sums = MutableMapping[Tensor, Tensor]

#: A norm is computed to about 1e-6; a record is scaled to this much below C, so that rounding cannot lift it above C.
_SLACK = 2.0**-17


@dataclass(frozen=True, eq=False)
class Factors:
    """What each record's gradient is multiplied with.

    Attributes:
        factors: (n,) in [0, 1]; 0 for a record whose gradient is not finite.
        dropped: (n,) True for those records, or ``None`` where there is none (so the usual case costs nothing).
    """

    factors: Tensor
    dropped: Tensor | None

    def weigh(self, rows: Tensor) -> Tensor:
        """Return ``rows`` (n, …) times the factors; a dropped record's row is 0 even where it held inf or NaN."""
        return self.clean(rows * self.factors.view(-1, *[1] * (rows.dim() - 1)).to(rows.dtype))

    def clean(self, rows: Tensor) -> Tensor:
        """Return ``rows`` (n, …) with 0 in every dropped record's row, since 0 · inf is NaN."""
        if self.dropped is None:
            return rows
        return rows.masked_fill(self.dropped.view(-1, *[1] * (rows.dim() - 1)), 0)

    def sum(self, rows: Tensor) -> Tensor:
        """Return the factor-weighted sum of ``rows`` (n, *shape), in shape ``shape``; rows are read as they lie, not copied."""
        order = _memory_order(rows)
        lying = rows.permute(0, *order)
        flat = self.clean(lying.reshape(len(rows), -1))
        total = torch.mv(flat.t(), self.factors.to(rows.dtype)).view(lying.shape[1:])
        return total.permute([order.index(dim) for dim in range(1, rows.dim())])


@dataclass(frozen=True, kw_only=True, eq=False)
class Clipped:
    """What one physical batch was. Private data: it stays at the site.

    Attributes:
        losses: (n,) each record's loss, detached.
        norms: (n,) each record's gradient norm before clipping; not finite where the record was dropped.
        dropped: how many records contributed 0 because their gradient was not finite.
    """

    losses: Tensor
    norms: Tensor
    dropped: int


class RecordGradients(Protocol):
    """One way to per-record gradients of one model."""

    def add_clipped(self, run: Callable[[], Tensor], *, records: int, clip: float, into: Sums) -> Clipped:
        """Add the sum over records of min(1, C/‖g_i‖)·g_i to ``into``.

        Args:
            run: one forward pass; returns the (n,) losses.
            records: n, the number of records that ``run`` reads (at least 1).
            clip: C, the largest L2 norm of a record's contribution over all parameters of ``into`` together.
            into: what is added to, by parameter; the parameters' ``.grad`` is left ``None``.

        Raises:
            TaskError: the losses are not one a record, or the model is used in a way that hides a record's gradient.
        """
        ...


def squared_norms(rows: Tensor) -> Tensor:
    """Return (n,) squared norms of rows (n, …), read as they lie, to about 1e-6 of each however long the rows are.

    `torch.linalg.vector_norm` adds up in float32, one number after the other: it finds the norm of 600,000 equal numbers too small by 2e-4, and a
    record that is scaled by that moves the sum by more than C. Sums of products are added pairwise.
    """
    flat = rows.permute(0, *_memory_order(rows)).reshape(len(rows), -1)
    squared: Tensor = torch.linalg.vecdot(flat, flat)
    return squared


def _memory_order(rows: Tensor) -> list[int]:
    """Return the dimensions of a row (n, …), those whose neighbours lie far apart in memory first."""
    return sorted(range(1, rows.dim()), key=rows.stride, reverse=True)


def clip_factors(squared: Tensor, clip: float) -> Factors:
    """Return min(1, C/‖g‖) for squared norms.

    ============================  =====================================================
    squared norm                  factor
    ============================  =====================================================
    0                             1 (the gradient is 0)
    at most C²                    1
    above C²                      C/‖g‖, less 8 parts in a million
    inf, NaN                      0, and the row is dropped
    above 1.8e19² (overflows)     0, and the row is dropped
    ============================  =====================================================

    Args:
        squared: (n,) squared L2 norms.
        clip: C.
    """
    bound = clip * (1 - _SLACK)
    factors = (bound / squared.sqrt()).clamp(max=1.0)
    if math.isfinite(float(squared.sum())):  # then so is each
        return Factors(factors, None)
    finite = squared.isfinite()
    return Factors(torch.where(finite, factors, torch.zeros_like(factors)), ~finite)


def check_losses(losses: Tensor, records: int) -> None:
    """Refuse losses that are not one number a record.

    Raises:
        TaskError: another shape than (records,), or losses that do not depend on a trainable parameter.
    """
    if losses.shape != (records,):
        raise TaskError(
            f"the task's loss has shape {tuple(losses.shape)} for {records} records",
            remedy="return one loss a record, shape (n,): reduction='none'",
            code="dp-loss-shape",
        )
    if not losses.requires_grad:
        raise TaskError(
            "the task's loss does not depend on any trainable parameter of the model",
            remedy="compute the loss from the model's outputs, without detach() or no_grad()",
            code="dp-loss-constant",
        )
