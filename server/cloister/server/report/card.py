"""The model card: what somebody who gets the model must know (after Mitchell et al. 2019), as Markdown."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from cloister.server.history import History, Measured
from cloister.server.report.clearance import Clearance
from cloister.server.report.tables import TableText, side_by_side, sites_table
from cloister.server.report.verdict import site_noun, verdict
from cloister.server.report.words import (
    count,
    headline,
    listed,
    metric_label,
    metric_text,
    plural,
    shown,
)

__all__ = ["model_card"]

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&!])")
_TEXT = 1200
#: Columns of the sites' table that concern the run and not the model.
_RUN_ONLY = frozenset({"Rounds answered", "Time a round", "Received", "Sent"})


def model_card(
    *, report: Mapping[str, Any], spec: Mapping[str, Any], history: History, clearance: Clearance
) -> str:
    """Return the model card.

    Every text that is not ours is escaped: a site's name can add no markup, link or HTML.

    Args:
        report: the figures of ``report.json``.
        spec: the effective federation file.
        history: what the run's events add up to.
        clearance: what became of the model.
    """
    task = {
        key: value for key, value in (report.get("task") or {}).items() if isinstance(value, str) and value
    }
    learned, price = verdict(
        history, protection=report["aggregation"]["protection"], unit=report["privacy"]["unit"]
    )
    sections = [
        f"# {_safe(task.get('title') or report['name'])}",
        f"**{clearance.word}.** {_safe(clearance.sentence, _TEXT)}",
        f"{_safe(learned, _TEXT)}",
        _section("Task", _task(report, task)),
        _section(
            "Intended use",
            _safe(task.get("intended_use"), _TEXT)
            or "The task states none. Decide for yourself whether it fits, and test it on your own records.",
        ),
        _section("Data", _data(report, task, history)),
        _section("How it was trained", _training(report, spec)),
        _section("How well it does", _quality(history)),
        _section("Limits", _limits(report, task, history)),
        _section("Audits", _audits(clearance)),
        _section("Privacy", f"{_safe(price, _TEXT)}\n\n{_safe(report['privacy']['statement'], _TEXT)}"),
        _section("Versions", _versions(report)),
    ]
    return "\n\n".join(part for part in sections if part) + "\n"


def _audits(clearance: Clearance) -> str:
    if clearance.summary is None:
        return ""
    lines = [
        f"- **{_safe(one.name)}**: {one.verdict}. {_safe(one.sentence, _TEXT)}" for one in clearance.findings
    ]
    return "\n".join([_safe(clearance.failed, _TEXT), "", *lines])


def _section(title: str, body: str) -> str:
    return f"## {title}\n\n{body}" if body else ""


def _safe(value: object, limit: int = 64) -> str:
    return _SPECIAL.sub(r"\\\1", shown(value, limit)) if value is not None else ""


def _task(report: Mapping[str, Any], task: Mapping[str, str]) -> str:
    classes = report.get("classes") or []
    kind = (
        f"Classification into {plural(len(classes), 'class', 'classes')}: {_safe(listed(classes, 20), _TEXT)}."
        if classes
        else "Regression."
    )
    shape = f"The model has {count(report.get('parameters'))} parameters."
    return "\n\n".join(part for part in (_safe(task.get("description"), _TEXT), f"{kind} {shape}") if part)


def _data(report: Mapping[str, Any], task: Mapping[str, str], history: History) -> str:
    partition = (report.get("partition") or {}).get("sites") or {}
    records = sum(sum(row) for row in partition.values())
    held = f"{plural(report.get('sites') or 0, 'site').capitalize()} trained on records that stayed with them"
    held += f": {count(records)} training records in all." if records else "."
    if site_noun(history.run) != "sites":
        held = held.replace("sites", _safe(site_noun(history.run)), 1)
    lines = [held]
    lines += (
        [f"- Source: {_safe(task['source'], _TEXT)}"]
        if "source" in task
        else ["- Source: not stated by the task"]
    )
    licence = task.get("licence") or task.get("license")
    lines.append(f"- Licence: {_safe(licence, _TEXT)}" if licence else "- Licence: not stated by the task")
    return lines[0] + "\n\n" + "\n".join(lines[1:])


def _training(report: Mapping[str, Any], spec: Mapping[str, Any]) -> str:
    training, aggregation = spec.get("training") or {}, report["aggregation"]
    steps, epochs = training.get("local_steps"), training.get("local_epochs") or 1
    local = plural(steps, "local step") if steps else plural(epochs, "local epoch")
    optimizer = training.get("optimizer") or {}
    server = aggregation["optimizer"]
    lines = [
        f"Federated learning over {count(report['rounds'])} of {count(report['rounds_planned'])} planned rounds.",
        "",
        f"- At a site: {local} a round, batches of {training.get('batch_size', 'an unstated size')}",
        f"- Optimiser at a site: {_safe(optimizer.get('name', 'sgd'))} with learning rate {optimizer.get('lr', 0.0):g}",
        f"- At the server: {_safe(aggregation['rule'])}, then {_safe(server.get('name') if isinstance(server, Mapping) else server)}",
        f"- Protection of the updates: {_safe(aggregation['protection'])}",
        f"- Federation hash: `{_code(report.get('digest'))}`",
        f"- Seed: {report['seed']}"
        if report.get("reproducible", True)
        else "- Seed: drawn from the operating system",
    ]
    return "\n".join(lines)


def _quality(history: History) -> str:
    models, sites = side_by_side(history), sites_table(history)
    if models is None:
        return "The model was not measured."
    parts = [_markdown(models)]
    if sites is not None and any(where.startswith("site:") for where in history.series):
        parts += ["### At each site, on its own test records", _markdown(sites, without=_RUN_ONLY)]
    return "\n\n".join(parts)


def _limits(report: Mapping[str, Any], task: Mapping[str, str], history: History) -> str:
    lines = [f"- {_safe(task['limits'], _TEXT)}"] if "limits" in task else []
    last = {
        where.removeprefix("site:"): series.last
        for where, series in history.series.items()
        if where.startswith("site:")
    }
    if line := _worst(last):
        lines.append(line)
    central = history.series.get("central")
    if central is not None and central.last.records:
        lines.append(
            f"- Measured on {count(central.last.records)} pooled test records of the same sites: other populations may differ."
        )
    if refused := sum(report["aggregation"]["refused"].values()):
        lines.append(
            f"- {plural(refused, 'reply was', 'replies were').capitalize()} refused during training."
        )
    if report["aggregation"]["missing"]:
        lines.append(
            f"- {plural(len(report['aggregation']['missing']), 'site').capitalize()} missed at least one round."
        )
    if report["status"] != "done":
        lines.append(f"- The run is {_safe(report['status'])}: this is not the model that was planned.")
    return "\n".join(lines) or "None are known beyond those of the data."


def _worst(last: Mapping[str, Measured]) -> str:
    """One line on the site that the model serves worst."""
    lead = headline([name for point in last.values() for name in point.metrics])
    known = {site: point for site, point in last.items() if lead in point.metrics}
    if lead is None or len(known) < 2:
        return ""
    sign = -1 if lead in ("mae", "mse") else 1
    site = min(known, key=lambda name: sign * known[name].metrics[lead])
    value = metric_text(lead, known[site].metrics[lead])
    return f"- It does worst at {_safe(site)}: {metric_label(lead).lower()} {value} on {count(known[site].records)} records."


def _versions(report: Mapping[str, Any]) -> str:
    return (
        ", ".join(f"{_safe(name)} {_safe(version)}" for name, version in report["versions"].items())
        or "Not recorded."
    )


def _markdown(table: TableText, without: frozenset[str] = frozenset()) -> str:
    kept = [index for index, column in enumerate(table.columns) if column not in without]
    lines = ["| " + " | ".join(_cell(table.columns[index]) for index in kept) + " |"]
    lines.append("|" + "|".join(" --- " if index == 0 else " ---: " for index in kept) + "|")
    for row in table.rows:
        cells = (row.head, *row.cells)
        lines.append("| " + " | ".join(_cell(cells[index]) for index in kept) + " |")
    return "\n".join(lines) + (f"\n\n{_safe(table.note, _TEXT)}" if table.note and not without else "")


def _cell(text: str) -> str:
    figure, _, small = text.partition("\n")
    return _safe(figure, 80) + (f" ({_safe(small, 80)})" if small else "")


def _code(value: object) -> str:
    return re.sub(r"[^A-Za-z0-9:._-]", "", str(value))[:80] if value is not None else "unknown"
