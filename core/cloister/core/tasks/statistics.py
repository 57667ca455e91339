"""Counts of the records of another task, asked as if they were a model: what a record adds is a row of zeros and ones.

A federation that trains this task for one round under ``privacy.unit = "record-distributed"`` releases a noisy histogram: the model has one number
for each cell, a record's gradient has a one in one cell of each question and zeros elsewhere, and the noisy sum of the clipped
gradients is the noisy count of all cells (one step of `cloister.privacy.record_plans.DistributedRecordPlan`, without sampling). So a statistic needs no
protocol, no mechanism and no account of its own: it is masked, noised, charged and audited as a round of training is.

Formal guarantees:

- Every record adds exactly one to exactly one cell of each question, whatever stands in it: its gradient has the L2 norm √q for q questions.
- Cells are public: they follow from the task's schema (or its classes) and ``bins``, never from a record.
- `bare_statistic` names what would release a count without noise, or to somebody who may not see it; sites and server ask it before anything is computed.

==============================================  =====================================================
a record's value                                its cell
==============================================  =====================================================
a number                                        the bin of its public range; beyond the range, the first or last one
missing, where the schema has an indicator      the question's last cell, ``missing``
missing, where the schema drops the record      the record is no record of the task, and counts nowhere
a category outside of the schema's values       ``other``, where the schema has one; else the task refuses it
==============================================  =====================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from cloister.core.data import Data, Split, TensorData
from cloister.core.errors import TaskError
from cloister.core.spec.refusals import nearest
from cloister.core.spec.tables import FederationSpec
from cloister.core.task import Task
from cloister.core.tasks.columns import CategoricalColumn, Column, NumericColumn
from cloister.core.tasks.encoding import places

__all__ = ["TARGET", "Question", "Statistics", "bare_statistic"]

#: The name of the question that counts a classification's classes.
TARGET = "target"
MISSING = "missing"
#: Against a number that lies on the edge of two bins and was rounded to float32 below it.
_NUDGE = 1e-5


@dataclass(frozen=True, kw_only=True)
class Question:
    """What is counted of one column.

    Attributes:
        name: the column's name, or `TARGET`.
        labels: the cells' names; `MISSING` is the last one where values may be missing.
        edges: (bins + 1,) the edges of the bins of a numeric column, in its own unit; empty for categories.
        start: the place of its first cell among all cells.
    """

    name: str
    labels: tuple[str, ...]
    edges: tuple[float, ...] = ()
    start: int

    @property
    def stop(self) -> int:
        """The place after its last cell."""
        return self.start + len(self.labels)

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


class Statistics(Task):
    """Counts of another task's records, by column: histograms, categories, classes.

    Args:
        of: the task whose records are counted: a table like ``[task]`` itself.
        columns: what is asked: names of columns, and ``target`` for the classes.
        bins: into how many equal parts a numeric column's public range is cut.
    """

    kind = "regression"
    places = ()
    statistic = True

    def __init__(
        self,
        *,
        of: Task,
        columns: Annotated[list[str], Field(min_length=1, max_length=64)],
        bins: Annotated[int, Field(ge=2, le=1024)] = 32,
    ) -> None:
        self.of = of
        #: What is asked, in the order of the cells.
        self.questions = _questions(of, columns, bins)
        #: How many cells there are.
        self.size = self.questions[-1].stop
        self.notes = [
            "this run counts records under differential privacy: its 'model' is a table of noisy counts, shown by statistics.html"
        ]

    @property
    def norm(self) -> float:
        """The L2 norm of what one record adds: √q."""
        return math.sqrt(len(self.questions))

    def model(self) -> nn.Module:
        """Return a new model whose numbers are the counts, all 0."""
        made = nn.Linear(self.size, 1, bias=False)
        nn.init.zeros_(made.weight)
        return made

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return (n,) losses whose gradients are what each record adds."""
        return outputs.reshape(-1) - targets.reshape(-1)

    def data(self) -> dict[str, Split]:
        """Return what the records of each owner add, those kept for testing included.

        Raises:
            DataError: the other task's records cannot be read.
            TaskError: they are not what its schema says.
        """
        held = self.of.data()
        splits = held if isinstance(held, Mapping) else {"pooled": held}
        return {owner: self._counted(split) for owner, split in splits.items()}

    def describe(self) -> dict[str, Any]:
        """Return what a model card says of the task."""
        return {
            "title": "Counts of " + ", ".join(question.name for question in self.questions),
            "description": f"Noisy counts of the records of the task '{type(self.of).__name__}' in {self.size} public cells.",
            "source": "records of the participating sites",
            "licence": "as the sites' own data",
            "intended_use": "to know the data before training; the noise of each number is stated beside it",
            "questions": [question.as_dict() for question in self.questions],
        }

    def _counted(self, split: Split) -> Split:
        rows = [self._added(part) for part in (split.train, split.test) if len(part)]
        added = torch.cat(rows) if rows else torch.zeros(0, self.size)
        nothing = TensorData(torch.zeros(0, self.size), torch.zeros(0))
        return Split(TensorData(added, torch.zeros(len(added))), nothing)

    def _added(self, part: Data) -> Tensor:
        """Return (n, size) what each record adds."""
        inputs, targets = part.batch(torch.arange(len(part)))
        added = torch.zeros(len(part), self.size)
        columns = self.of.columns or {}
        where = places(columns)
        for question in self.questions:
            column = columns.get(question.name)
            cells = (
                targets.to(torch.int64)
                if column is None
                else _cells(column, inputs, where[question.name], question)
            )
            added[torch.arange(len(part)), question.start + cells] = 1.0
        return added


def bare_statistic(spec: FederationSpec, task: Task) -> str:
    """Return why ``spec`` must not compute ``task``; empty: it may, or the task is no statistic.

    Args:
        spec: the federation.
        task: what it trains.
    """
    if not task.statistic:
        return ""
    privacy, rate = spec.privacy, spec.training.optimizer.lr
    wrong = {
        "privacy.unit must be 'record-distributed': counts leave with every site's share of the noise, or not at all": privacy.unit
        != "record-distributed",
        "aggregation.protection must not be 'plain': one site's share alone hides little": spec.aggregation.protection
        == "plain",
        "federation.rounds must be 1: one sum answers": spec.federation.rounds != 1,
        "privacy.sampling_rate must be 1: every record counts": privacy.sampling_rate != 1,
        "cohort.per_round must be 'all': a site that is not asked is not counted": spec.cohort.per_round
        != "all",
        "training.optimizer.lr, aggregation.optimizer.lr must be 1, the optimizer 'fedavg': the model is the sum itself": (
            rate != 1 or spec.aggregation.optimizer.lr != 1 or spec.aggregation.optimizer.name != "fedavg"
        ),
    }
    reasons = [reason for reason, holds in wrong.items() if holds]
    return (
        "a statistic was asked in a way that it is not answered in: " + "; ".join(reasons) if reasons else ""
    )


def _questions(of: Task, names: list[str], bins: int) -> tuple[Question, ...]:
    columns = of.columns or {}
    known = [*columns, *([TARGET] if of.kind == "classification" and TARGET not in columns else [])]
    found: list[Question] = []
    for name in names:
        start = found[-1].stop if found else 0
        if name not in known:
            raise TaskError(
                f"the task '{type(of).__name__}' has no column '{name}' to count{nearest(name, known)}",
                remedy="ask for columns of its public schema, or 'target'",
                code="task-option",
            )
        if names.count(name) > 1:
            raise TaskError(f"'{name}' is asked for twice", remedy="ask for it once", code="task-option")
        column = columns.get(name)
        found.append(
            Question(name=name, labels=of.classes, start=start)
            if column is None
            else _question(name, column, bins, start)
        )
    return tuple(found)


def _question(name: str, column: Column, bins: int, start: int) -> Question:
    missing = (MISSING,) if column.missing == "indicator" else ()
    if isinstance(column, NumericColumn):
        width = (column.high - column.low) / bins
        edges = (*(column.low + width * number for number in range(bins)), column.high)
        labels = tuple(f"{edges[number]:g} to {edges[number + 1]:g}" for number in range(bins))
        return Question(name=name, labels=labels + missing, edges=edges, start=start)
    if isinstance(column, CategoricalColumn):
        return Question(
            name=name, labels=(*column.values, *(("other",) if column.other else ()), *missing), start=start
        )
    return Question(name=name, labels=("no", "yes", *missing), start=start)


def _cells(column: Column, inputs: Tensor, place: int, question: Question) -> Tensor:
    """Return (n,) the cell of each record, from 0 within the question."""
    missing = column.missing == "indicator"
    values = len(question.labels) - missing
    if isinstance(column, NumericColumn):
        share = inputs[:, place] if column.scale == "unit" else (inputs[:, place] + 1) / 2
        cells = torch.floor(share.double() * values + _NUDGE).to(torch.int64).clamp(0, values - 1)
        absent = place + 1
    elif isinstance(column, CategoricalColumn):
        cells, absent = inputs[:, place : place + values].argmax(1), place + values
    else:
        cells, absent = (inputs[:, place] > 0.5).to(torch.int64), place + 1
    if not missing:
        return cells
    return torch.where(inputs[:, absent] > 0.5, torch.tensor(values), cells)
