"""Where canaries are planted: beside one site's records where records are the unit, at sites of their own where sites are.

=================  ===================================  =======================================  ============================================
unit               canaries                             at                                       seen by the adversary
=================  ===================================  =======================================  ============================================
record             records, k a person                  one site                                 that site's updates, in clear
record-distributed  records, k a person                 one site                                 the models: sums of all sites
site               sites of one canary record each      a federation of canaries alone           the models
site-local         the same                             the same                                 each site's own updates, in clear
site-distributed   the same                             the same                                 the models: sums of all sites
=================  ===================================  =======================================  ============================================

A canary record that is out is not there; a canary site that is out holds a blank, whose contribution is zero (the platform's relation compares with just that).

In input space, where records are the unit, a canary is a record of the federation's under a wrong label, and the model has no layer more.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from cloister.core.data import Split, TensorData
from cloister.core.errors import TaskError
from cloister.core.resolve import load_task
from cloister.core.task import Task
from cloister.privacy.audit.canaries import CanaryTask, planted
from cloister.privacy.audit.coins import Coins
from cloister.privacy.audit.in_run import Space
from cloister.simulation.joined import join
from cloister.simulation.sites import SimulatedSites

__all__ = ["AuditedSites", "Planting"]


@dataclass(frozen=True, kw_only=True, eq=False)
class Planting:
    """What is planted where.

    Attributes:
        coins: which canaries are in.
        space: whether canaries are gradients or inputs.
        norm: the length of a canary's gradient, in gradient space.
        site: the name of the site that holds canary records; ``None``: each canary is a site.
        copies: records of one canary.
    """

    coins: Coins
    space: Space
    norm: float
    site: str | None
    copies: int = 1

    @property
    def canaries(self) -> int:
        """How many."""
        return len(self.coins.included)


@dataclass(frozen=True)
class AuditedSites(SimulatedSites):
    """The sites of an audited run.

    Attributes:
        planting: what is planted where.
    """

    planting: Planting | None = None

    @property
    def _planting(self) -> Planting:
        if self.planting is None:
            raise ValueError("audited sites without a planting")
        return self.planting

    @cached_property
    def task(self) -> Task:
        """The task, with canaries."""
        plan, inner = self._planting, load_task(self.spec.task, self.base)
        return inner if plan.space == "input" else CanaryTask(inner, plan.canaries, plan.norm, listed=True)

    @cached_property
    def mislabelled(self) -> TensorData:
        """The canaries in input space: records of the federation, each under a wrong label."""
        plan, pool, classes = self._planting, self.roster.pooled_train, len(self.task.classes)
        if not classes:
            raise TaskError(
                "a record is mislabelled by its class, and the task is a regression",
                remedy="audit a classification under the same [privacy] table: the mechanism is the same code",
                code="audit-task",
            )
        draw = self.randomness.generator("audit-inputs")
        rows = torch.from_numpy(draw.integers(0, len(pool), plan.canaries))
        inputs, targets = pool.batch(rows)
        if not isinstance(inputs, torch.Tensor):
            raise TaskError(
                f"the records' inputs are a {type(inputs).__name__}, and canaries in input space are made for tensors",
                remedy="use --space gradient",
                code="audit-task",
            )
        wrong = torch.from_numpy(draw.integers(1, classes, plan.canaries))
        return TensorData(inputs, (targets + wrong) % classes)

    @cached_property
    def owners(self) -> dict[str, Split]:
        """The records by owner; where canaries are sites, they own one record each."""
        found, plan = super().owners, self._planting
        if plan.site is not None:
            return found
        first = next(iter(found.values()))
        empty = first.test.subset(np.zeros(0, np.int64))
        base = Split(first.train.subset(np.zeros(1, np.int64)), empty)
        width = len(str(plan.canaries))
        return {
            f"canary-{number:0{width}d}": self._only_canary(base, number if inside else plan.canaries)
            for number, inside in enumerate(plan.coins.included)
        }

    def _only_canary(self, base: Split, number: int) -> Split:
        held = planted(base, self._canary_task, torch.tensor([number]))
        return Split(held.train.subset(np.array([1])), held.test)

    def records(self, position: int) -> Split:
        """Return a site's records, with the canaries among them at the site that holds them."""
        split, plan = super().records(position), self._planting
        if plan.site is None or self.roster.name(position) != plan.site:
            return split
        inside = torch.from_numpy(np.flatnonzero(plan.coins.included)).repeat_interleave(plan.copies)
        if plan.space == "input":
            return Split(join([split.train, self.mislabelled.subset(inside.numpy())]), split.test)
        return planted(split, self._canary_task, inside)

    @property
    def _canary_task(self) -> CanaryTask:
        if not isinstance(self.task, CanaryTask):
            raise TypeError("an audited run's task has canaries")
        return self.task

    def columns(self) -> dict[str, list[int]]:
        """Return whose updates the canaries are in, and which those are."""
        plan = self._planting
        if plan.site is not None:
            return {plan.site: list(range(plan.canaries))}
        return {self.roster.name(position): [position] for position in range(len(self.roster))}

    def __reduce__(self) -> tuple[Callable[..., AuditedSites], tuple[Any, ...]]:
        """Leave what was built behind; the planting goes along."""
        return AuditedSites, (self.federation, self.base, self.ledgers, self.planting)
