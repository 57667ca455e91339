"""``cloister audit leakage RUN|FEDERATION``: what one update gives away of a site's records."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from cloister.core.outcome import JsonOption, outcome

__all__ = ["leakage_command", "register"]


def register(group: typer.Typer) -> None:
    """Add ``leakage`` to the group of audits."""
    group.command("leakage")(leakage_command)


def leakage_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FEDERATION", help="A run's folder, or a federation file.", show_default=False
        ),
    ],
    inversion: Annotated[
        bool, typer.Option("--inversion/--no-inversion", help="Also invert gradients, which takes longer.")
    ] = True,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures/--no-pictures",
            help="Show images of records and of what was made of them on the page.",
        ),
    ] = True,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of everything that is drawn.")] = 0,
    again: Annotated[bool, typer.Option("--again", help="Also where the finding is there already.")] = False,
    out_folder: Annotated[
        Path | None,
        typer.Option(
            "--out", metavar="DIR", help="Where findings go, by default RUN/audits.", show_default=False
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Reconstruct records from one update: imprint layer and gradient inversion, unprotected and as the federation protects it. Exit 8 if protection fails."""
    with outcome(json_output) as out:
        from cloister.core.evidence import Finding
        from cloister.server.audit.ending import end_audit
        from cloister.server.audit.running import run_check
        from cloister.server.audit.sections import shown_as
        from cloister.server.audit.subject import AuditSubject, open_audit
        from cloister.simulation.leakage.checking import check_leakage, section_with_pictures
        from cloister.simulation.threads import one_thread

        subject = open_audit(
            path,
            out=out_folder,
            seed=seed,
            settings={"leakage": {"inversion": inversion, "pictures": pictures}},
            tell=lambda text: out.progress.print(text, highlight=False, markup=False),
        )

        @shown_as("Leakage of an update", partial(section_with_pictures, folder=subject.folder))
        def check(looked_at: AuditSubject) -> Finding:
            return check_leakage(looked_at)

        with one_thread():
            found = run_check(subject, "leakage", check, again=again)
        end_audit(out, subject, [found], {"leakage": check}, kind="leakage")
