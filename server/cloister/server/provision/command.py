"""``cloister provision``: what the consortium's registrar does, on a machine that no network reaches."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated

import click
import typer
from typer.core import TyperGroup

from cloister.core.outcome import JsonOption, outcome, visible

__all__ = ["register"]

_DEFAULT = "new"


class _Group(TyperGroup):
    """``cloister provision CONSORTIUM.toml --out DIR`` is ``cloister provision new …``."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in self.commands and args[0] not in {"--help", "-h"}:
            args = [_DEFAULT, *args]
        return super().parse_args(ctx, args)


def register(app: typer.Typer) -> None:
    """Add ``provision`` to ``app``."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Make a consortium: its authority, a kit for each member; renew, revoke. "
        "`cloister provision CONSORTIUM.toml --out DIR` is short for `provision new`.",
        rich_markup_mode="markdown",
        cls=_Group,
    )
    group.command(_DEFAULT)(new_command)
    app.add_typer(group, name="provision")


def new_command(
    file: Annotated[Path, typer.Argument(metavar="CONSORTIUM", help="consortium.toml.", show_default=False)],
    out: Annotated[
        Path,
        typer.Option(
            "--out", metavar="DIR", help="Where to make it; an older one is extended.", show_default=False
        ),
    ],
    json_output: JsonOption = False,
) -> None:
    """Make a consortium, or bring it up to date: an authority, and a kit for each member that is new."""
    with outcome(json_output) as out_:
        from cloister.server.provision.consortium_file import load_consortium_file
        from cloister.server.provision.making import provision

        loaded, raw = load_consortium_file(file)
        made = provision(loaded, raw, out)
        out_.result = {"folder": str(out), **made.as_dict()}
        out_.say(visible(f"consortium '{loaded.consortium.name}', fingerprint {made.fingerprint}"))
        for path in made.made:
            out_.say(visible(f"kit made: {path}"))
        for member in made.awaited:
            out_.say(visible(f"{member} enrols by itself: cloister site enrol, or cloister kit enrol"))
        for member in made.left:
            out_.say(
                visible(
                    f"{member} is no longer in {file} and still a member: "
                    f"cloister provision revoke {shlex.quote(str(out))} {member}"
                )
            )
        out_.say(
            visible(
                f"\nnext: hand each kit to its member and remove it here; take {out / 'authority-offline'} off the network"
            )
        )
