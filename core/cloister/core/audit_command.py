"""``cloister audit …``: a group of commands that each part adds to.

A part names its audits in the entry point group ``cloister.audits``: the entry point's name is the subcommand's name, its value a function
``register(group: typer.Typer) -> None`` that adds one command of that name. A part that is not installed adds none.
"""

from __future__ import annotations

from importlib.metadata import entry_points

import typer

__all__ = ["register"]

_GROUP = "cloister.audits"


def register(app: typer.Typer) -> None:
    """Add ``audit``, with the audits of every installed part, to ``app``."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Audit a model or a run: what it withstands, and what it gives away.",
        rich_markup_mode="markdown",
    )
    for point in sorted(entry_points(group=_GROUP), key=lambda point: point.name):
        try:
            point.load()(group)
        except ModuleNotFoundError:
            continue

    @group.callback()
    def _audits() -> None:
        """Keep a group of one audit a group."""

    app.add_typer(group, name="audit")
