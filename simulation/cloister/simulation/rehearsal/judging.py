"""``rehearsal.json``: what each rule scored under each attack, and its worst case.

A score is the mean over the seeds of the last round's central measurement. The worst case of a rule is its worst attack by that mean, so
it is a bound for these attacks, this data and these seeds, and for no others.

A run that liars bring to a stop (its rounds stop counting) has no such measurement: it scores 0 where more is better, and is left out of a mean
where less is.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from cloister.simulation.rehearsal.planning import ATTACK, NOBODY, RULE
from cloister.simulation.sweep.plots import lead_of

__all__ = ["FORMAT", "judged"]

#: Version of ``rehearsal.json``.
FORMAT = 1
_ERRORS = frozenset({"loss", "mae", "mse"})


def judged(figures: Mapping[str, Any], notes: Sequence[str] = ()) -> dict[str, Any]:
    """Return the rehearsal of a sweep's figures.

    Args:
        figures: what ``sweep.json`` holds.
        notes: what must be said of the rehearsal.
    """
    metric, stopped = figures["metric"], figures.get("stopped", {})
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for point in figures["points"]:
        by_attack = found.setdefault(point["values"][RULE], {})
        by_attack.setdefault(point["values"][ATTACK], [])
        if point["done"] or point["name"] in stopped:
            by_attack[point["values"][ATTACK]].append(point)
    rules = [_rule(rule, by_attack, metric) for rule, by_attack in found.items()]
    return {
        "format": FORMAT,
        "name": figures["name"],
        "sweep": figures["sweep"],
        "done": figures["done"],
        "metric": metric,
        "seeds": sorted({point["seed"] for point in figures["points"]}),
        "notes": list(notes),
        "rules": rules,
    }


def _rule(rule: str, by_attack: Mapping[str, Sequence[Mapping[str, Any]]], metric: str) -> dict[str, Any]:
    scored = {attack: _scored(points, metric) for attack, points in by_attack.items()}
    lies = {
        attack: one["mean"] for attack, one in scored.items() if attack != NOBODY and one["mean"] is not None
    }
    worst = (max if metric in _ERRORS else min)(lies, key=lambda attack: lies[attack], default=None)
    return {
        "rule": rule,
        "nobody_lies": scored[NOBODY]["mean"] if NOBODY in scored else None,
        "worst": None if worst is None else {"attack": worst, "mean": lies[worst]},
        "attacks": scored,
    }


def _scored(points: Sequence[Mapping[str, Any]], metric: str) -> dict[str, Any]:
    ended = [point for point in points if point["done"]]
    stops = len(points) - len(ended)
    values = [value for point in ended if (value := lead_of(point, metric)) is not None]
    values += [] if metric in _ERRORS else [0.0] * stops
    planted = [one for point in ended if (one := point["metrics"].get("attack_success")) is not None]
    return {
        "n": len(values),
        "stopped": stops,
        "mean": statistics.fmean(values) if values else None,
        "lowest": min(values, default=None),
        "highest": max(values, default=None),
        "attack_success": statistics.fmean(planted) if planted else None,
    }
