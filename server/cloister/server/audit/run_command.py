"""``cloister audit run RUN``: every check that applies to a run, one table, and whether its model may be released."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from cloister.core.errors import AuditFailed, UsageError
from cloister.core.outcome import JsonOption, Outcome, outcome, visible

if TYPE_CHECKING:
    from cloister.core.evidence import Finding
    from cloister.server.audit.subject import AuditSubject
    from cloister.server.audit.verdicts import Summary

__all__ = ["register", "run_command"]

_STYLE = {"pass": "green", "warn": "yellow", "fail": "bold red", "no power": "dim"}


def register(group: typer.Typer) -> None:
    """Add ``run`` to the group of audits."""
    group.command("run")(run_command)


def run_command(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help="The run's folder: of a simulation, or of a job at the server.",
            show_default=False,
        ),
    ],
    check: Annotated[
        list[str] | None,
        typer.Option(
            "--check",
            metavar="NAME",
            help="Only this check; nothing is summarised then. Repeatable.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything that is drawn.")] = 0,
    again: Annotated[
        bool, typer.Option("--again", help="Also make findings that are there already.")
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Make every installed check that applies to a run, and hold what they find against [audit.require]. Exit 8 if a threshold is not met.

    A check that cannot show anything here, since it needs records or a transcript that is elsewhere, says "no power". Interrupted, the
    command goes on after the last finding.
    """
    with outcome(json_output) as out:
        from cloister.server.audit.page import render_findings
        from cloister.server.audit.running import run_check
        from cloister.server.audit.subject import open_audit
        from cloister.server.audit.summary import checks_of, settings_for, write_summary
        from cloister.server.report import write_report

        if not run.is_dir():
            raise UsageError(f"'{run}' is no run's folder", remedy="name a folder under runs/")
        turn = ""

        def tell(text: str) -> None:
            out.progress.print(f"{turn}{text}", highlight=False, markup=False)

        subject = open_audit(run, seed=seed, settings=settings_for(run), tell=tell)
        checks = dict(checks_of(check or subject.spec.audit.checks))
        if unknown := [name for name in check or () if name not in checks]:
            raise UsageError(
                f"there is no check '{unknown[0]}'", remedy="checks: " + ", ".join(dict(checks_of(None)))
            )
        out.on_interrupt = f"cloister audit run {shlex.quote(str(run))}   # goes on after the last finding"
        findings: list[Finding] = []
        for place, (name, one) in enumerate(checks.items(), start=1):
            turn = f"[{place}/{len(checks)}] "
            findings.append(run_check(subject, name, one, again=again))
        if check:
            out.result = {"findings": {found.name: found.as_dict() for found in findings}}
            out.say(_table(findings))
            return
        from cloister.core.files import write_whole

        summary = write_summary(subject, findings)
        page = subject.folder / "run.html"
        write_whole(page, render_findings(subject, findings, checks, kind="run"), mode=0o600)
        write_report(run)
        _end(out, subject, summary, page)


def _end(out: Outcome, subject: AuditSubject, summary: Summary, page: Path) -> None:
    missed = [one for one in summary.thresholds if not one.met]
    out.result = summary.as_dict() | {"page": str(page), "summary": str(subject.folder / "summary.json")}
    asked = [one for one in summary.thresholds if one.asked]
    out.say(_table(summary.findings), "")
    if asked:
        table = Table("threshold", "required", "found", "", box=None, pad_edge=False)
        for one in asked:
            table.add_row(
                visible(one.name), one.required, visible(one.found), "met" if one.met else "NOT MET"
            )
        out.say(table, "")
    else:
        out.say(
            "The federation file sets no thresholds: [audit.require]. A check that failed bars a release.\n"
        )
    out.say(f"page     {page}", f"report   {subject.path / 'report.html'}")
    if not missed:
        out.say(f"\nnext: cloister release {shlex.quote(str(subject.path))}")
        return
    error = AuditFailed(
        "thresholds are not met: "
        + "; ".join(visible(f"{one.name}: {one.found}, required: {one.required}") for one in missed),
        remedy=f"the model is not to be released; read {page}",
        code="thresholds",
    )
    if out.json_output:
        out.result = dict[str, Any](out.result) | {"error": error.as_dict()}
    raise error


def _table(findings: Sequence[Finding]) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("verdict", "check", "what was found", "power"):
        table.add_column(column, overflow="fold", no_wrap=column in ("verdict", "check"))
    for found in findings:
        table.add_row(
            found.verdict,
            found.name,
            visible(found.sentence),
            visible(found.power),
            style=_STYLE[found.verdict] if found.verdict == "fail" else "",
        )
    return table
