"""``cloister audit …``: questions about a run, each a command that a part adds.

A part names its audits in the entry point group ``cloister.audits``: the entry point's name is the subcommand's, its value a function
``register(app: typer.Typer) -> None`` that adds a command of that name.
"""

from __future__ import annotations

from importlib.metadata import entry_points

import typer

__all__ = ["register"]

_GROUP = "cloister.audits"


def register(app: typer.Typer) -> None:
    """Add ``audit``, with every audit of an installed part, to ``app``."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Ask what a run shows: each audit gives evidence, a verdict and its power.",
        rich_markup_mode="markdown",
    )
    for point in sorted(entry_points(group=_GROUP), key=lambda point: point.name):
        try:
            add = point.load()
        except ModuleNotFoundError:  # its part is not installed
            continue
        add(group)

    @group.callback()
    def _audits() -> None:
        """Keep a group of one audit a group."""

    app.add_typer(group, name="audit")
