"""A question about the records of a federation, as a federation file of its own.

The file asks the same sites over the same task; what it changes is what is computed and what it costs:

===================  ==========================================================================================
table                in a question
===================  ==========================================================================================
task                 ``statistics``, of the task of the file that it is made from
privacy              ``record-distributed``, without sampling; the clip is the norm of what a record adds
training             one step of rate 1: the model is the sum itself; ``batch_size`` is ``most_records``
aggregation          the protection stays; ``masked`` in place of ``plain``
federation           one round
===================  ==========================================================================================
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cloister.core.errors import SpecError, UsageError
from cloister.core.finding import STATISTICS
from cloister.core.resolve import load_task, owners
from cloister.core.spec import Loaded, parse_federation
from cloister.core.spec.tables import LEAST_PROTECTED, TaskTable
from cloister.core.tasks.statistics import TARGET

__all__ = ["DELTA", "question"]

#: δ where neither the file nor the caller states one.
DELTA = 1e-6
#: Longest name of a federation.
_NAME = 64


def question(
    loaded: Loaded,
    *,
    columns: Sequence[str],
    epsilon: float,
    delta: float | None = None,
    bins: int = 32,
    most_records: int = 100_000,
) -> Loaded:
    """Return the federation that answers a question about the records of ``loaded``.

    Args:
        loaded: the federation whose records are asked about.
        columns: what is counted; empty: every column of the task's public schema, and its classes.
        epsilon: ε of the answer, for each record (or person).
        delta: δ; the file's, or `DELTA`, unless given.
        bins: into how many equal parts the public range of a numeric column is cut.
        most_records: a public number that no site's records exceed; where one does, a count may come out wrong, and as private as before.

    Raises:
        SpecError: the task has no public schema, lacks a column, or the promise cannot be kept.
        UsageError: the file is a question already.
    """
    effective, spec = loaded.effective(), loaded.spec
    if spec.task.use == STATISTICS:
        raise UsageError(
            "this file is a question already", remedy=f"run it with: cloister simulate {loaded.base}/…"
        )
    task = load_task(spec.task, loaded.base)
    asked = list(columns) or [*(task.columns or {}), *([TARGET] if task.kind == "classification" else [])]
    if not task.columns and set(asked) != {TARGET}:
        raise SpecError(
            f"the task '{spec.task.use}' has no public schema: there are no columns to count",
            remedy="ask for 'target' alone, or declare a schema",
            code="statistic-schema",
        )
    sites = spec.cohort.sites or len(owners(task))
    cohort = {
        **effective["cohort"],
        "per_round": "all",
        "sites": sites,
        "min_sites": max(spec.cohort.min_sites, LEAST_PROTECTED),
    }
    privacy: dict[str, Any] = {
        "unit": "record-distributed",
        "epsilon": float(epsilon),
        "delta": delta or spec.privacy.delta or DELTA,
        "clip": math.sqrt(len(asked)),
        "sampling_rate": 1.0,
    }
    for key in ("colluders", "max_records_per_person"):
        value = getattr(spec.privacy, key)
        if value is not None:
            privacy[key] = value
    protection = effective["aggregation"]["protection"]
    document = {
        "federation": {
            "name": f"{spec.federation.name[: _NAME - len(STATISTICS) - 1]}-{STATISTICS}",
            "rounds": 1,
            "seed": spec.federation.seed,
        },
        "task": {"use": STATISTICS, "of": _plain(spec.task), "columns": asked, "bins": bins},
        "cohort": cohort,
        "training": {"local_steps": 1, "batch_size": most_records, "optimizer": {"name": "sgd", "lr": 1.0}},
        "aggregation": {"protection": "masked" if protection == "plain" else protection},
        "privacy": privacy,
        "evaluation": {"central": False, "sites": False},
        "audit": effective["audit"],
    }
    return parse_federation(document, base=Path(loaded.base))


def _plain(task: TaskTable) -> dict[str, Any]:
    return task.model_dump(mode="json")
