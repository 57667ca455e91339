"""``report.json``: the figures of a run for machines. Its names are a contract: a key may be added, one that stands stays."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.server.events import plain
from cloister.server.history import History, Measured, Refused, Run, Series
from cloister.server.report.seen import who_sees
from cloister.server.report.spent import spent_so_far

__all__ = ["FORMAT", "alerts_of", "build_report", "signals_figures", "site_series"]

#: Version of the file's format; it grows when a key changes its meaning.
FORMAT = 1

_REFUSALS_LISTED = 1000
_LOCAL = "baseline:local:"


def build_report(run_folder: Path, *, spec_effective: Mapping[str, Any], history: History) -> dict[str, Any]:
    """Return the figures of a run as plain data that strict JSON can hold.

    Args:
        run_folder: the run's folder; only its name is used.
        spec_effective: the effective federation file.
        history: what the run's events add up to.
    """
    run, end = history.run, history.end
    report = {
        "format": FORMAT,
        "run": run_folder.name,
        "name": run.name if run else None,
        "status": end.status if end else "unfinished",
        "message": end.message if end else None,
        "rounds": len(history.rounds),
        "rounds_planned": run.rounds if run else None,
        "metrics": _metrics(history),
        "privacy": _privacy(history, spec_effective),
        "aggregation": _aggregation(history, spec_effective),
        "signals": signals_figures(history),
        "traffic": _traffic(history),
        "time": _time(history),
        "audit": {name: _audit(event) for name, event in history.audits.items()},
        "versions": dict(run.versions) if run else {},
        "seed": run.seed if run else None,
        **(_facts(run) if run else {}),
        "resumed_from": list(history.resumed_from),
        "warnings": list(history.warnings),
        "model": end.model if end else None,
    }
    result: dict[str, Any] = plain(report)
    return result


def site_series(history: History, prefix: str = "site:") -> dict[str, Series]:
    """Return the series of the sites by name; ``baseline:local:`` as prefix gives those of the sites' own models."""
    return {
        where.removeprefix(prefix): series
        for where, series in history.series.items()
        if where.startswith(prefix)
    }


def alerts_of(history: History) -> list[dict[str, Any]]:
    """Return the alerts of a run in order, each with its ``round``."""
    return [{"round": event["round"], **alert} for event in history.signals for alert in event["alerts"]]


def signals_figures(history: History) -> dict[str, Any]:
    """Return what ``report.json`` holds of signals: the alerts, and the direction of each round."""
    return {
        "alerts": alerts_of(history),
        "rounds": [{"round": event["round"], **event["direction"]} for event in history.signals],
    }


def _metrics(history: History) -> dict[str, Any]:
    sites = site_series(history)
    local = site_series(history, _LOCAL)
    pooled = history.series.get("baseline:pooled")
    return {
        "central": _ends(history.series.get("central")),
        "sites": {name: _ends(series) for name, series in sites.items()},
        "sites_mean": _ends(history.series.get("sites")),
        "baselines": {
            "pooled": _ends(pooled),
            "local": {name: _ends(series) for name, series in local.items()},
        },
        "history": {
            "central": _points(history.series.get("central")),
            "sites_mean": _points(history.series.get("sites")),
            "sites": {name: _points(series) for name, series in sites.items()},
            "training": [
                {"round": one.round, "loss": one.loss, "update_norm": one.update_norm}
                for one in history.rounds
            ],
        },
    }


def _ends(series: Series | None) -> dict[str, Any] | None:
    if series is None:
        return None
    return {"last": _point(series.last, confusion=True), "best": _point(series.best, confusion=True)}


def _points(series: Series | None) -> list[dict[str, Any]]:
    return [_point(point) for point in series.points] if series else []


def _point(point: Measured, *, confusion: bool = False) -> dict[str, Any]:
    own = {"round": point.round, "loss": point.loss, "records": point.records}
    return {**point.metrics, **own, **({"confusion": point.confusion} if confusion else {})}


def _privacy(history: History, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The guarantee; every value is null where there is none, and `statement` says so in words."""
    stated = dict(spec.get("privacy") or {})
    unit = stated.get("unit", "none")
    spent = [event for event in history.privacy.values() if event.get("epsilon") is not None]
    most = max(spent, key=lambda event: float(event["epsilon"]), default=None)
    so_far = spent_so_far(spec, history)
    return {
        "unit": unit,
        "epsilon": most["epsilon"] if most else None,
        "delta": (most or {}).get("delta", stated.get("delta")),
        "relation": (most or {}).get("relation"),
        "sampling": (most or {}).get("sampling"),
        "sites": {
            site: {key: event.get(key) for key in ("epsilon", "allowed", "delta")}
            | {key: event[key] for key in ("asked", "ledger", "cap") if event.get(key) is not None}
            for site, event in history.privacy.items()
            if site
        },
        "statement": "No differential privacy: the model may reveal something about single records that it was trained on."
        if unit == "none"
        else (most or {}).get("statement") or f"Differential privacy with unit '{unit}'.",
        **(so_far.as_dict() if so_far else {"allowed": None, "history": [], "projection": []}),
    }


def _aggregation(history: History, spec: Mapping[str, Any]) -> dict[str, Any]:
    stated, run = dict(spec.get("aggregation") or {}), history.run
    protection = stated.get("protection") or (run.protection if run else None) or "plain"
    missing: dict[str, int] = {site: tally.missing for site, tally in history.sites.items() if tally.missing}
    return {
        "protection": protection,
        "rule": stated.get("rule") or (run.rule if run else None),
        "optimizer": stated.get("optimizer") or (run.optimizer if run else None),
        "weighting": stated.get("weighting"),
        "visible_to": {
            seer.who: {"sees": list(seer.sees), "does_not_see": seer.hidden} for seer in who_sees(spec)
        },
        "refused": history.refused_by_reason,
        "refusals": [_refusal(refused) for refused in history.refused[:_REFUSALS_LISTED]],
        "missing": missing,
    }


def _refusal(refused: Refused) -> dict[str, Any]:
    return {"round": refused.round, "site": refused.site, "phase": refused.phase, "reason": refused.reason}


def _traffic(history: History) -> dict[str, Any]:
    """Bytes; a site's are its own where they were measured, otherwise even shares of each round's."""
    return {
        "bytes_down": sum(one.bytes_down for one in history.rounds),
        "bytes_up": sum(one.bytes_up for one in history.rounds),
        "rounds": [
            {"round": one.round, "bytes_down": one.bytes_down, "bytes_up": one.bytes_up}
            for one in history.rounds
        ],
        "sites": {
            site: {"bytes_down": round(tally.bytes_down), "bytes_up": round(tally.bytes_up)}
            for site, tally in history.sites.items()
        },
        "sites_are": "measured" if history.bytes_measured else "even shares",
    }


def _time(history: History) -> dict[str, Any]:
    phases = history.seconds
    return {
        "seconds": sum(phases.values()),
        "phases": phases,
        "rounds": [{"round": one.round, **one.seconds} for one in history.rounds],
        "sites": {site: {"train": tally.seconds} for site, tally in history.sites.items()},
    }


def _audit(event: Mapping[str, Any]) -> dict[str, Any]:
    return {key: event.get(key) for key in ("verdict", "evidence", "power", "reason")}


def _facts(run: Run) -> dict[str, Any]:
    return {
        "reproducible": run.reproducible,
        "digest": run.digest,
        "layout": run.layout,
        "parameters": run.parameters,
        "sites": run.sites,
        "site_names": list(itertools.islice(run.site_names, 1000)),
        "engine": run.engine,
        "workers": run.workers,
        "task": dict(run.task),
        "classes": list(run.classes),
        "partition": run.partition,
        "notes": list(run.notes),
    }
