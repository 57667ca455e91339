"""What a run came to, in the sentences that a person reads first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloister.server.history import History, Measured, Run, Series
from cloister.server.report.figures import site_series
from cloister.server.report.words import (
    count,
    headline,
    metric_label,
    metric_text,
    number,
    percent,
    plural,
    points,
    shown,
)

__all__ = ["privacy_in_a_word", "saw_in_a_word", "site_noun", "verdict"]


_UNITS = {
    "record": "record",
    "record-distributed": "record",
    "site": "site",
    "site-local": "site",
    "site-distributed": "site",
}


def verdict(history: History, *, protection: str, unit: str) -> tuple[str, str]:
    """Return what was learned, and at what price in privacy: a sentence or two each.

    Args:
        history: what the run's events add up to.
        protection: ``aggregation.protection`` of the effective file.
        unit: ``privacy.unit`` of the effective file.
    """
    return " ".join(part for part in (_happened(history), _quality(history)) if part), _privacy(
        protection, unit, history
    )


def privacy_in_a_word(report: Mapping[str, Any]) -> str:
    """Return what is promised to whom, in one line.

    Args:
        report: the figures of ``report.json``.
    """
    private = report["privacy"]
    if private["unit"] == "none":
        return "None promised: the model may reveal something about single records."
    if private["epsilon"] is None:
        return f"Unit '{shown(private['unit'])}'; nothing was spent yet."
    allowed = private.get("allowed")
    cap = f", allowed {number(allowed)}" if allowed is not None else ""
    return f"ε = {number(private['epsilon'])} at δ = {number(private['delta'])} for each {_UNITS.get(private['unit'], shown(private['unit']))}{cap}."


def saw_in_a_word(report: Mapping[str, Any]) -> str:
    """Return what lay open to the server, in one line."""
    protection = report["aggregation"]["protection"]
    if protection == "plain":
        return "Each site's update, in clear. No training record."
    how = {"masked": "secure aggregation"}.get(protection, f"encryption, {shown(protection)}")
    return f"Sums of updates over several sites only ({how}). No training record."


def site_noun(run: Run | None) -> str:
    """Return what the task calls its sites, in the plural; ``sites`` where it does not say."""
    noun = (run.task if run else {}).get("owners")
    return shown(noun) if isinstance(noun, str) and noun else "sites"


def _happened(history: History) -> str:
    run, end, ended = history.run, history.end, len(history.rounds)
    noun = site_noun(run)
    who = plural(run.sites, noun.removesuffix("s"), noun).capitalize() if run else "This federation"
    if not ended:
        return f"{who} did not finish a round{_why(history)}."
    planned = run.rounds if run else ended
    rounds = plural(ended, "round") if ended < 10 else f"{count(ended)} rounds"
    if end is not None and end.status != "done":
        return f"{who} trained one model for {rounds} of {count(planned)}, then the run {_stopped(end.status)}{_why(history)}."
    if end is None and ended < planned:
        return f"{who} trained one model for {rounds} of {count(planned)}; the run has not ended."
    return f"{who} trained one model in {rounds}."


def _stopped(status: str) -> str:
    return {"interrupted": "was interrupted", "failed": "failed"}.get(status, "stopped")


def _why(history: History) -> str:
    message = history.end.message if history.end and history.end.status == "failed" else None
    return f": {shown(message, 240).rstrip('.')}" if message else ""


def _quality(history: History) -> str:
    central, mean = history.series.get("central"), history.series.get("sites")
    series = central or mean
    if series is None:
        return "The model was not measured." if history.rounds else ""
    last = series.last
    name = headline(list(last.metrics))
    if name is None:
        return f"{_where(last, central is not None)} its loss is {number(last.loss)}."
    if name != "accuracy":
        return f"{_where(last, central is not None)} its {_label(name)} is {metric_text(name, last.metrics[name])}."
    told = f"{_where(last, central is not None)} it is right {percent(last.metrics[name])} of the time"
    return told + (_compared(history, last) if central is not None else "") + "."


def _where(point: Measured, central: bool) -> str:
    if central:
        return f"On the {count(point.records)} pooled test records"
    return f"On the sites' own test records ({count(point.records)} in all, mean of the sites)"


def _label(name: str) -> str:
    label = metric_label(name)
    return label if label.isupper() or label == "R²" else label.lower()


def _compared(history: History, last: Measured) -> str:
    accuracy = last.metrics["accuracy"]
    parts = []
    pooled = history.series.get("baseline:pooled")
    if pooled is not None and (reference := _accuracy(pooled, last.records)) is not None:
        gap = accuracy - reference
        against = f"training on the pooled data ({percent(reference)})"
        parts.append(
            f"as often as {against}"
            if round(1000 * abs(gap)) == 0
            else f"{points(gap)} {'more' if gap > 0 else 'less'} than {against}"
        )
    own = {
        name: _accuracy(series, last.records)
        for name, series in site_series(history, "baseline:local:").items()
    }
    known = {name: value for name, value in own.items() if value is not None}
    if known:
        best = max(known, key=lambda name: known[name])
        told = f"{shown(best)}, {percent(known[best])}"
        better = sum(value > accuracy for value in known.values())
        if not better:
            parts.append(f"no site's own model does better (best: {told})")
        else:
            parts.append(
                f"{plural(better, 'site')} would do better with its own model alone (best: {told})"
                if better == 1
                else f"{plural(better, 'site')} would do better with their own models alone (best: {told})"
            )
    return "".join(f"{', ' if index == 0 else '; '}{part}" for index, part in enumerate(parts))


def _accuracy(series: Series, records: int | None) -> float | None:
    """The last accuracy, where it was measured on as many records: other records are no comparison."""
    return series.last.metrics.get("accuracy") if series.last.records == records else None


def _privacy(protection: str, unit: str, history: History) -> str:
    seen = (
        "The server saw each site's update in clear"
        if protection == "plain"
        else f"The server saw sums of updates over several sites ({shown(protection)})"
    )
    if unit == "none":
        return f"{seen}, and no differential privacy was applied."
    spent = [
        float(event["epsilon"]) for event in history.privacy.values() if event.get("epsilon") is not None
    ]
    return f"{seen}; differential privacy with unit '{shown(unit)}'" + (
        f", ε = {number(max(spent))} spent." if spent else "."
    )
