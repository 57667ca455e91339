"""``cloister site run`` and ``cloister site check``."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from cloister.core.errors import PolicyError
from cloister.core.outcome import JsonOption, outcome, visible

__all__ = ["register"]

FolderArgument = Annotated[Path, typer.Argument(metavar="FOLDER", help="The site's folder.")]


def register(group: typer.Typer) -> None:
    """Add ``run`` and ``check`` to ``group``."""
    group.command("run")(run_command)
    group.command("check")(check_command)


def run_command(folder: FolderArgument = Path(), json_output: JsonOption = False) -> None:
    """Run the site until it is stopped (Ctrl-C, SIGTERM): answer the coordinator, as far as the policy allows."""
    with outcome(json_output) as out:
        from contextlib import ExitStack

        from cloister.client.site_run import open_site
        from cloister.core.observing import Observatory, log_to
        from cloister.core.stopping import stopped_by_signals

        log_to()
        with ExitStack() as stack:
            site = open_site(folder.absolute())
            stack.callback(site.close)
            if site.config.health is not None:
                stack.enter_context(
                    Observatory(site.config.health.listen, site.watched.registry, site.watched.health)
                )
            stop = stack.enter_context(stopped_by_signals())
            out.progress.print(
                visible(f"site '{site.kit.identity.name}' asks {site.config.server.address}"), highlight=False
            )
            site.run(stop)
        out.result = {"folder": str(folder)}


def check_command(
    folder: FolderArgument = Path(),
    offline: Annotated[bool, typer.Option("--offline", help="Do not try to reach the server.")] = False,
    json_output: JsonOption = False,
) -> None:
    """Check everything that this site needs before it runs: keys, policy, data, ledger, disk, clock, server."""
    with outcome(json_output) as out:
        from cloister.client.preflight import preflight

        found = preflight(folder.absolute(), offline=offline)
        out.result = {"checks": [one.as_dict() for one in found]}
        table = Table(box=None, pad_edge=False)
        for title in ("", "what", "found"):
            table.add_column(title)
        marks = {"ok": "ok", "warning": "!", "error": "ERROR"}
        for one in found:
            text = one.found if not one.remedy or one.state == "ok" else f"{one.found}\n  → {one.remedy}"
            table.add_row(marks[one.state], visible(one.what), visible(text))
        out.say(table)
        wrong = [one.what for one in found if one.state == "error"]
        if wrong:
            raise PolicyError(
                f"this site is not ready: {', '.join(wrong)}",
                remedy="mend what the table says",
                code="site-not-ready",
            )
        out.say(f"\nnext: cloister site run {shlex.quote(str(folder))}")
