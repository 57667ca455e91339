"""``sweep.json``: the figures of a sweep for machines. Its names are a contract: a key may be added, one that stands stays.

A figure is read from the point's own ``report.json`` and events, so that a sweep that was broken off and resumed has the figures of
an unbroken one, but for its times.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from cloister.core.errors import IntegrityError
from cloister.privacy.plan import plan_from
from cloister.server.report.words import headline
from cloister.simulation.sweep.composing import MOST_SITES, Charged, asked_rounds, composed
from cloister.simulation.sweep.folder import SweepFolder
from cloister.simulation.sweep.grid import Point
from cloister.simulation.sweep.plots import lead_of

__all__ = ["COMPOSES", "Finished", "finished", "sweep_figures"]

#: What must be said wherever a sweep over private data is shown.
COMPOSES = (
    "Choosing the best point of a sweep by what it scored on private data is itself a release: the costs of all points "
    "compose, and each site has paid for all of them, not only for the point that is kept."
)


@dataclass(frozen=True, kw_only=True)
class Finished:
    """A run that is done.

    Attributes:
        figures: its entry in ``sweep.json``.
        asked: in how many rounds each site was asked to train, by name.
    """

    figures: dict[str, Any]
    asked: Mapping[str, int]


def finished(folder: SweepFolder, point: Point, run: Path) -> Finished | None:
    """Read a run that is done; return ``None`` of one that is not.

    Raises:
        IntegrityError: the report there is of another federation file, or a file cannot be read.
    """
    path = run / "report.json"
    try:
        report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        done, digest = report["status"] == "done", report["digest"]
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError):
        raise _refused(f"'{path}' is not a run's report") from None
    if digest != point.loaded.digest():
        raise _refused(f"'{path}' is the report of another federation file")
    if not done or not (run / "model.safetensors").is_file():
        return None
    asked = asked_rounds(run)
    return Finished(figures=_point(run.relative_to(folder.path), report, point, asked), asked=asked)


def sweep_figures(
    folder: SweepFolder,
    found: Mapping[str, Finished],
    *,
    compose: bool = True,
    stopped: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, Any]:
    """Return what the finished points have come to: ``metric``, ``values``, ``composed`` and ``points`` by name.

    Args:
        folder: the sweep.
        found: the finished points by name.
        compose: whether to compute ``composed``, which may take seconds.
        stopped: why points came to a stop, by name, where the sweep goes on without them.

    Raises:
        SpecError: no bound covers the points together.
    """
    points = {name: one.figures for name, one in found.items()}
    metric = next((one["headline"] for one in points.values() if one["headline"]), None) or "loss"
    private = any(point.loaded.spec.privacy.unit != "none" for point in folder.points)
    charged = [
        Charged(
            spec=point.loaded.spec,
            asked=found[point.name].asked,
            size=found[point.name].figures["parameters"],
        )
        for point in folder.points
        if point.name in found
    ]
    return {
        "done": len(points) + len(stopped) == len(folder.points),
        **({"stopped": dict(stopped)} if stopped else {}),
        "metric": metric,
        "values": _values(folder.points, points, metric),
        "composed": composed(charged) if compose else [],
        "without_privacy": [
            point.name for point in folder.points if private and point.loaded.spec.privacy.unit == "none"
        ],
        "composes": COMPOSES if private else None,
        "points": points,
    }


def _point(run: Path, report: Mapping[str, Any], point: Point, asked: Mapping[str, int]) -> dict[str, Any]:
    measured, where = report["metrics"]["central"], "central"
    if measured is None:
        measured, where = report["metrics"]["sites_mean"], "sites"
    last = dict(measured["last"]) if measured else {}
    own = {key: last.pop(key, None) for key in ("round", "loss", "records", "confusion")}
    plan = plan_from(point.loaded.spec, int(report.get("parameters") or 1))
    private = report["privacy"]
    return {
        "done": True,
        "run": run.as_posix(),
        "report": (run / "report.html").as_posix(),
        "where": where if measured else None,
        "headline": headline(list(last)),
        "metrics": last,
        "parameters": int(report.get("parameters") or 1),
        "loss": own["loss"],
        "records": own["records"],
        "privacy": {
            "unit": private["unit"],
            "epsilon": private["epsilon"],
            "allowed": point.loaded.spec.privacy.epsilon,
            "delta": private["delta"],
            "noise_multiplier": plan.noise_multiplier if plan else None,
        },
        "asked": {"most": max(asked.values(), default=0), "sites": dict(sorted(asked.items()))}
        if len(asked) <= MOST_SITES
        else {"most": max(asked.values()), "sites": None},
        "rounds": report["rounds"],
        "seconds": report["time"]["seconds"],
    }


def _values(points: Sequence[Point], found: Mapping[str, Any], metric: str) -> list[dict[str, Any]]:
    """What each point of the grid scored over its seeds, in the grid's order."""
    groups: dict[tuple[bool, str], list[Point]] = {}
    for point in points:
        groups.setdefault((point.reference, json.dumps(dict(point.values), sort_keys=True)), []).append(point)
    return [
        {
            "values": dict(group[0].values),
            "reference": reference,
            "points": [point.name for point in group],
            metric: _spread([lead_of(found[one.name], metric) for one in group if one.name in found]),
            "loss": _spread([found[one.name]["loss"] for one in group if one.name in found]),
            "epsilon": _spread([found[one.name]["privacy"]["epsilon"] for one in group if one.name in found]),
        }
        for (reference, _), group in groups.items()
    ]


def _spread(values: Sequence[float | None]) -> dict[str, Any] | None:
    known = [value for value in values if value is not None]
    if not known:
        return None
    return {
        "n": len(known),
        "mean": statistics.fmean(known),
        "deviation": statistics.stdev(known) if len(known) > 1 else None,
        "lowest": min(known),
        "highest": max(known),
    }


def _refused(message: str) -> IntegrityError:
    return IntegrityError(
        message,
        remedy="restore the run's folder, or remove it: its point then runs again",
        code="sweep-folder",
    )
