"""What a model must pass before it is released: ``[audit.require]`` of the run's own federation file, held against what was found.

Formal guarantees:

- Whatever was not measured, not found or not looked at is not met: a threshold fails closed.
- Without ``[audit.require]``, and for each check that it does not name: a check that failed is not met.
- ε is recomputed from the events; what the run states of itself is not believed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cloister.core.evidence import Finding
from cloister.core.spec import FederationSpec
from cloister.core.spec.auditing import Level, Require
from cloister.server.audit.budget.runs import read_run
from cloister.server.audit.record.accounting import charged_in
from cloister.server.audit.verdicts import Threshold
from cloister.server.events import read_events
from cloister.server.folding import Fold
from cloister.server.history import History

__all__ = ["Measures", "judged", "measures_of"]

_ADMITTED: Mapping[Level, frozenset[str]] = {
    "pass": frozenset({"pass"}),
    "warn": frozenset({"pass", "warn"}),
    "not-failed": frozenset({"pass", "warn", "no power"}),
    "any": frozenset({"pass", "warn", "no power", "fail"}),
}


@dataclass(frozen=True, kw_only=True)
class Measures:
    """The figures that thresholds are about; ``None``: not known.

    Attributes:
        epsilon: the most that a site spent in the run, recomputed.
        accuracy: on the pooled test records, else the mean of the sites.
        auroc: the same.
        worst_site_accuracy: the least of the sites'.
        where: which records the first two are about.
    """

    epsilon: float | None = None
    accuracy: float | None = None
    auroc: float | None = None
    worst_site_accuracy: float | None = None
    where: str = "not measured"


def measures_of(run: Path) -> Measures:
    """Return a run's figures, from its federation file and events alone.

    Raises:
        IntegrityError: the events cannot be read.
    """
    history = Fold.of(read_events(run / "events.jsonl")).history()
    charged = read_run(run)
    spent = [] if charged is None else [one.epsilon for one in charged_in(charged).values()]
    central, mean = history.series.get("central"), history.series.get("sites")
    series = central or mean
    last = {} if series is None else series.last.metrics
    return Measures(
        epsilon=max(spent, default=None),
        accuracy=last.get("accuracy"),
        auroc=last.get("auroc"),
        worst_site_accuracy=_worst(history),
        where="not measured" if series is None else "pooled test records" if central else "mean of the sites",
    )


def judged(spec: FederationSpec, measures: Measures, findings: Sequence[Finding]) -> list[Threshold]:
    """Hold what was found against what the federation file asks for; its own thresholds first.

    Args:
        spec: the run's own file.
        measures: the run's figures.
        findings: of the checks that were made.
    """
    require = spec.audit.require or Require.model_validate({})
    found = {one.name: one.verdict for one in findings}
    return [*_figures(require, measures), *_levels(require, found)]


def _figures(require: Require, measures: Measures) -> Iterator[Threshold]:
    if (most := require.epsilon_at_most) is not None:
        spent = measures.epsilon
        yield Threshold(
            name="epsilon_at_most",
            required=f"at most {most:g}",
            found="the run promises none" if spent is None else f"{spent:.4g}",
            met=spent is not None and math.isfinite(spent) and spent <= most,
        )
    for name, value, where in (
        ("accuracy_at_least", measures.accuracy, measures.where),
        ("auroc_at_least", measures.auroc, measures.where),
        ("worst_site_accuracy_at_least", measures.worst_site_accuracy, "the sites' own test records"),
    ):
        least = getattr(require, name)
        if least is not None:
            yield Threshold(
                name=name,
                required=f"at least {least:g}",
                found="not measured" if value is None else f"{value:.4g} ({where})",
                met=value is not None and math.isfinite(value) and value >= least,
            )


def _levels(require: Require, found: Mapping[str, str]) -> Iterator[Threshold]:
    asked = require.levels
    for name in [*asked, *(name for name in found if name not in asked)]:
        level, verdict = asked.get(name, "not-failed"), found.get(name)
        yield Threshold(
            name=name,
            required=_words(level),
            found=verdict or "not made",
            met=level == "any" or (verdict is not None and verdict in _ADMITTED[level]),
            asked=name in asked,
        )


def _words(level: Level) -> str:
    return {"pass": "pass", "warn": "pass or warn", "not-failed": "not failed", "any": "any verdict"}[level]


def _worst(history: History) -> float | None:
    of_sites = {name: series for name, series in history.series.items() if name.startswith("site:")}
    values = [series.last.metrics.get("accuracy") for series in of_sites.values()]
    known = [value for value in values if value is not None]
    return min(known) if known and len(known) == len(values) else None
