"""Groups of commands to which parts add theirs: ``cloister audit …`` and ``cloister site …``.

A part names a subcommand in the group's entry points: the entry point's name is the subcommand's, its value a function
``register(app: typer.Typer) -> None`` that adds a command (or more) to it.
"""

from __future__ import annotations

from importlib.metadata import entry_points

import typer

__all__ = ["register_audit", "register_site"]


def register_audit(app: typer.Typer) -> None:
    """Add ``audit``, with every audit of an installed part, to ``app``."""
    _add_group(
        app,
        "audit",
        "cloister.audits",
        "Ask what a run shows: each audit gives evidence, a verdict and its power.",
    )


def register_site(app: typer.Typer) -> None:
    """Add ``site``, with all that an operator of a site does, to ``app``."""
    _add_group(
        app, "site", "cloister.sites", "Run a site: enrol it, check it, decide what may run on its data."
    )


def _add_group(app: typer.Typer, name: str, entries: str, about: str) -> None:
    group = typer.Typer(no_args_is_help=True, help=about, rich_markup_mode="markdown")
    for point in sorted(entry_points(group=entries), key=lambda point: point.name):
        try:
            add = point.load()
        except ModuleNotFoundError:  # its part is not installed
            continue
        add(group)

    @group.callback()
    def _group() -> None:
        """Keep a group of one command a group."""

    app.add_typer(group, name=name)
