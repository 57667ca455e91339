"""``cloister audit model RUN``: what a released model is, how it behaves, and whom it belongs to, as findings and a page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from cloister.core.errors import UsageError
from cloister.core.outcome import JsonOption, outcome

__all__ = ["MODEL_CHECKS", "model_command", "register"]

#: The checks of a model, in the page's order. Checks of other packages come after them.
MODEL_CHECKS = (
    "structure",
    "provenance",
    "fit",
    "calibration",
    "fairness",
    "explanations",
    "novelty",
    "backdoor",
    "poison",
    "drift",
    "fingerprint",
    "extraction",
)
#: Audits with a command of their own, or of the run and not of its model.
_APART = frozenset({"accounting", "ledgers", "leakage", "membership", "privacy", "robustness", "transcript"})


def register(group: typer.Typer) -> None:
    """Add ``model`` to the group of audits."""
    group.command("model")(model_command)


def model_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    check: Annotated[
        list[str] | None,
        typer.Option("--check", metavar="NAME", help="Only this check. Repeatable.", show_default=False),
    ] = None,
    group: Annotated[
        list[str] | None,
        typer.Option(
            "--group",
            metavar="COLUMN",
            help="A column by whose values fairness is looked at. Repeatable; by default those that the task declares.",
            show_default=False,
        ),
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything that is drawn.")] = 0,
    again: Annotated[
        bool, typer.Option("--again", help="Also make findings that are there already.")
    ] = False,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where findings go, by default RUN/audits.", show_default=False
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Look at a released model: structure, provenance, fit, calibration, fairness, explanations, strange inputs, backdoors, theft. Exit 8 if a check fails."""
    with outcome(json_output) as out:
        from cloister.core.evidence import installed_checks
        from cloister.server.audit.ending import end_audit
        from cloister.server.audit.running import run_checks
        from cloister.server.audit.subject import open_audit

        checks = dict(installed_checks())
        names = [name for name in MODEL_CHECKS if name in checks]
        names += [name for name in checks if name not in {*MODEL_CHECKS, *_APART}]
        if unknown := [name for name in check or () if name not in names]:
            raise UsageError(f"there is no check '{unknown[0]}'", remedy="checks: " + ", ".join(names))
        chosen = [name for name in names if not check or name in check]
        subject = open_audit(
            run,
            out=out_folder,
            seed=seed,
            settings={"fairness": {"groups": list(group)}} if group else {},
            tell=lambda text: out.progress.print(text, highlight=False, markup=False),
        )
        out.on_interrupt = f"cloister audit model {run}   # goes on after the last finding"
        findings = list(run_checks(subject, ((name, checks[name]) for name in chosen), again=again))
        end_audit(out, subject, findings, checks, kind="model")
