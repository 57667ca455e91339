"""``cloister audit membership RUN|FEDERATION``: who can tell from a model whose records it was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.core.outcome import JsonOption, outcome

__all__ = ["membership_command", "register"]


def register(group: typer.Typer) -> None:
    """Add ``membership`` to the group of audits."""
    group.command("membership")(membership_command)


def membership_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    path: Annotated[
        Path,
        typer.Argument(
            metavar="RUN|FEDERATION", help="A run's folder, or a federation file.", show_default=False
        ),
    ],
    shadows: Annotated[
        int, typer.Option("--shadows", min=4, help="Shadow models that an attack has; an even number.")
    ] = 24,
    records: Annotated[
        int,
        typer.Option("--records", min=40, help="The most records of all sites that shadows are dealt from."),
    ] = 6000,
    most: Annotated[
        float,
        typer.Option(
            "--most", min=0, max=1, help="The largest share of members that may be found at 1% false alarms."
        ),
    ] = 0.05,
    site: Annotated[
        str | None,
        typer.Option(
            "--site",
            metavar="NAME",
            help="Also write which records of this site are the most exposed, by row, for the site's own eyes.",
            show_default=False,
        ),
    ] = None,
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
    """Attack a run's model, and models trained like it: loss, LiRA, RMIA with shadow models. Exit 8 if more members are found than may be."""
    with outcome(json_output) as out:
        from cloister.server.audit.ending import end_audit
        from cloister.server.audit.running import run_check
        from cloister.server.audit.subject import open_audit
        from cloister.simulation.membership.checking import check_membership
        from cloister.simulation.threads import one_thread

        told: dict[str, Any] = {"shadows": shadows, "records": records, "most": most}
        if site is not None:
            told["site"] = site
        subject = open_audit(
            path,
            out=out_folder,
            seed=seed,
            settings={"membership": told},
            tell=lambda text: out.progress.print(text, highlight=False, markup=False),
        )
        out.on_interrupt = f"cloister audit membership {path}   # goes on after the last shadow model"
        with one_thread():
            found = run_check(subject, "membership", check_membership, again=again)
        end_audit(out, subject, [found], {"membership": check_membership}, kind="membership")
