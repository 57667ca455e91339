"""``cloister audit budget LEDGER…``: do ledgers, runs and witnessed heads tell one story?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import RenderableType
from rich.table import Table

from cloister.core.errors import AuditFailed
from cloister.core.outcome import JsonOption, outcome, settle, visible

__all__ = ["budget_command", "register"]


def register(app: typer.Typer) -> None:
    """Add ``budget`` to ``app``."""
    app.command("budget")(budget_command)


def budget_command(
    ledgers: Annotated[
        list[Path], typer.Argument(metavar="LEDGER…", help="The sites' ledger files.", show_default=False)
    ],
    runs: Annotated[
        list[Path] | None,
        typer.Option(
            "--run",
            metavar="RUN",
            help="A run's folder, whose rounds the ledgers must hold. Repeatable.",
            show_default=False,
        ),
    ] = None,
    witnessed: Annotated[
        Path | None,
        typer.Option(
            "--witnessed",
            metavar="FILE",
            help="Heads that others saw (JSON): each ledger must hold its own.",
            show_default=False,
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Verify ledgers and hold them against runs: every update is charged, nothing else is, and the totals are right. Exit 8 if not."""
    failed: AuditFailed | None = None
    with outcome(json_output) as out:
        from cloister.privacy.ledger_command import read_heads
        from cloister.server.audit.budget.auditing import audit_budget

        out.progress.print("recomputing every epsilon from its events", highlight=False)
        heads = [] if witnessed is None else read_heads(witnessed)
        found = audit_budget(ledgers, runs or [], witnessed=heads)
        out.result = found
        out.say(*_told(found))
        if found["verdict"] == "failed":
            first = found["discrepancies"][0]
            failed = AuditFailed(
                f"{len(found['discrepancies'])} discrepancies; the first: {first['code']}: {first['message']}",
                remedy="keep ledgers and run folders as they are; train no more on this data until each is explained",
                code="budget-audit",
            )
            out.result = {**found, "error": failed.as_dict()}
    if failed is not None:
        raise typer.Exit(failed.exit_code if json_output else settle(failed, json_output=False))


def _told(found: Mapping[str, Any]) -> list[RenderableType]:
    said: list[RenderableType] = []
    totals = Table(
        "ledger",
        "unit",
        "charges",
        "of given runs",
        "epsilon",
        "ledger says",
        "delta",
        box=None,
        pad_edge=False,
    )
    for one in found["totals"]:
        totals.add_row(
            visible(one["ledger"]),
            one["unit"],
            str(one["charges"]),
            str(one["from_runs"]),
            f"{one['epsilon']:.4g}",
            f"{one['ledger_says']:.4g}",
            f"{one['delta']:g}",
        )
    said.append(totals)
    if found["runs"]:
        runs = Table("run", "unit", "sites", "ledgers given", "updates", box=None, pad_edge=False)
        for one in found["runs"]:
            runs.add_row(
                visible(one["run"]),
                one["unit"],
                str(one["sites"]),
                str(one["ledgers_given"]),
                str(one["updates"]),
            )
        said += ["", runs]
    if found["discrepancies"]:
        faults = Table("discrepancy", "ledger", "run", "round", "what", box=None, pad_edge=False)
        for one in found["discrepancies"]:
            faults.add_row(
                one["code"],
                visible(one["ledger"] or ""),
                visible(one["run"] or ""),
                "" if one["round"] is None else str(one["round"]),
                visible(one["message"]),
            )
        said += ["", faults]
    said += [visible(f"note: {note}") for note in found["notes"]]
    said.append(f"\nverdict: {found['verdict']}")
    return said
