"""A site's status and log as text for a person."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from cloister.client.gate.log_entry import LogEntry
from cloister.core.outcome import visible

__all__ = ["line_text", "status_text", "verification_text"]


def status_text(status: Mapping[str, Any]) -> str:
    """Return what ``cloister site status`` prints."""
    # What somebody else wrote stays in its line: it must not look like a line of ours.
    return visible("\n".join(line.replace("\n", " ") for line in _status(status)))


def line_text(entry: LogEntry) -> str:
    """Return a line of the log in one line of text."""
    return visible(f"{entry.seq:>6}  {_when(entry.time)}  {entry.kind:<9} {_said(entry)}").replace("\n", " ")


def verification_text(found: Mapping[str, Any]) -> str:
    """Return what ``cloister site log --verify`` prints of a log that holds."""
    vouched = " The consortium's certificate of the site vouches for the key." if found["vouched"] else ""
    lines = [
        f"verified: {found['entries']} lines of site '{found['site']}', signed by {found['public_key'][:16]}….{vouched}",
        f"newest line: {found['head']}",
        *(f"note: {warning}" for warning in found["warnings"]),
    ]
    return visible("\n".join(lines))


def _status(status: Mapping[str, Any]) -> Iterator[str]:
    paused = status["paused"]
    if paused is None:
        yield "running: messages are answered as the policy allows (if the site is up)"
    else:
        reason = f": {paused['reason']}" if paused["reason"] else ""
        yield f"PAUSED since {_when(paused['since'])} by {paused['by']}{reason}"
    for run in status["held"]:
        yield from _held(run)
    if not status["held"]:
        yield "no run waits for approval"
    for dataset, budgets in status["budgets"].items():
        yield from _budgets(dataset, budgets)
    yield from _listed("last messages that left", [_left(one) for one in status["left"]])
    yield from _listed(
        "last refusals",
        [
            f"{_when(one['time'])}  {one['run'] or '(no run)'}: {one['code']}: {one['why']}"
            for one in status["refused"]
        ],
    )


def _held(run: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"WAITS for approval since {_when(run['since'])}: {run['run']}"
    yield f"  who        {run.get('user', '?')}"
    yield f"  why        {run.get('purpose') or '(no purpose was given)'}"
    yield f"  what       task '{run.get('task')}' on data set '{run.get('dataset')}', {run.get('rounds')} rounds"
    yield f"  protection {run.get('protection')}, at least {run.get('min_sites')} sites in a round"
    yield f"  privacy    {run.get('unit')}{_cost(run.get('cost'))}"
    yield "  the server will see:"
    yield from (f"    - {sentence}" for sentence in run.get("server_sees", []))
    yield f"  → cloister site approve {run['run']}"
    yield f"  → cloister site deny {run['run']}"
    yield ""


def _cost(cost: Mapping[str, Any] | None) -> str:
    if cost is None:
        return ": nothing bounds what the model tells of a record"
    cap = "no cap is set" if cost["cap"] is None else f"the cap is {cost['cap']:g}"
    return (
        f": the whole run costs ε = {_figure(cost['run'])}; the data set would go from {_figure(cost['before'])} to "
        f"{_figure(cost['after'])} at δ = {cost['delta']:g}, and {cap}"
    )


def _budgets(dataset: str, budgets: Any) -> Iterator[str]:
    if isinstance(budgets, dict):
        yield f"data set '{dataset}': THE LEDGER DOES NOT HOLD: {budgets['message']}"
        return
    if not budgets:
        yield f"data set '{dataset}': nothing was spent"
    for one in budgets:
        cap = "no cap" if one["cap"] is None else f"of {one['cap']:g}, {one['left']:.4g} left"
        yield f"data set '{dataset}', unit '{one['unit']}': ε = {_figure(one['epsilon'])} spent at δ = {one['delta']:g}, {cap}"


def _left(one: Mapping[str, Any]) -> str:
    step = f" ({one['step']})" if one["step"] else ""
    after = f", {', '.join(one['after'])}" if one["after"] else ""
    spent = f"; ε so far {_figure(one['ledger']['epsilon'])}" if one["ledger"] else ""
    records = ", ".join(one["records"])
    return f"{_when(one['time'])}  {one['run']} round {one['round']}, {one['message']}{step}: {records}, {one['bytes']} bytes{after}{spent}"


def _listed(title: str, lines: list[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines)


def _said(entry: LogEntry) -> str:
    said = entry.said
    if entry.kind == "left":
        arrays = [
            f"{record['record']}.{one['name']}"
            + (f" {one['dtype']}{tuple(one['shape'])}" if "shape" in one else f" {one['kind']}")
            + f" {one['bytes']} bytes sha256 {one['sha256'][:16]}"
            for record in said["records"]
            for one in (*record.get("arrays", ()), *record.get("fields", ()))
        ]
        after = f" after: {', '.join(said['after'])}" if said["after"] else ""
        return f"{said['run']} round {said['round']} {said['message']}: {'; '.join(arrays)}{after}"
    return "  ".join(
        f"{name}: {value}"
        for name, value in said.items()
        if isinstance(value, str | int | float) and value != ""
    )


def _figure(value: float | None) -> str:
    return "unbounded" if value is None else f"{value:.4g}"


def _when(time: str) -> str:
    return time[:19].replace("T", " ")
