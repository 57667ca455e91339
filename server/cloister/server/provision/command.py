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
_REASONS = ("unspecified", "key-compromise", "affiliation-changed", "superseded", "left")
FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The consortium's folder.", show_default=False)
]
MemberArgument = Annotated[
    str,
    typer.Argument(metavar="MEMBER", help="Its name, or ROLE:NAME, as site:cleveland.", show_default=False),
]


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
    group.command("add")(add_command)
    group.command("renew")(renew_command)
    group.command("revoke")(revoke_command)
    group.command("list")(list_command)
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


def add_command(
    folder: FolderArgument,
    request: Annotated[
        Path, typer.Argument(metavar="REQUEST", help="request.json of the member.", show_default=False)
    ],
    fingerprint: Annotated[
        str | None,
        typer.Option(
            "--fingerprint",
            metavar="HEX",
            help="The request's, as the member told you: any other request is refused.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Where the grant goes; DIR/grants.", show_default=False),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Answer a member that made its keys itself: check its request, and write its grant.json."""
    with outcome(json_output) as out:
        from cloister.server.provision.membership import add

        made = add(folder, request, fingerprint=fingerprint, to=to)
        out.result = made.as_dict()
        out.say(visible(f"{made.member} is a member until {made.expires:.10}"))
        if fingerprint is None:
            out.say("compare the request's fingerprint with the member before you hand the grant over:")
        out.say(f"fingerprint {made.fingerprint}")
        out.say(visible(f"\nnext: send {made.grant} to the member; {_spread(folder)}"))


def renew_command(
    folder: FolderArgument,
    member: MemberArgument,
    new_keys: Annotated[
        bool, typer.Option("--new-keys", help="Make new keys in a new kit, and take the old ones back.")
    ] = False,
    days: Annotated[
        int | None,
        typer.Option(
            "--days", min=1, max=3650, help="How long; as consortium.toml says.", show_default=False
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Certify a member again before its certificates end: the same keys, so that a site stays the same Flower node."""
    with outcome(json_output) as out:
        from cloister.server.provision.membership import renew

        made = renew(folder, member, new_keys=new_keys, days=days)
        out.result = made.as_dict()
        out.say(visible(f"{made.member} is a member until {made.expires:.10}"))
        if made.grant is not None:
            out.say(
                visible(
                    f"\nnext: send {made.grant} to the member: cloister kit update FOLDER {made.grant.name}"
                )
            )
        else:
            out.say(visible(f"\nnext: hand {made.kit} to the member; {_spread(folder)}"))


def revoke_command(
    folder: FolderArgument,
    member: MemberArgument,
    reason: Annotated[
        str, typer.Option("--reason", metavar="WHY", help=", ".join(_REASONS) + ".")
    ] = "unspecified",
    json_output: JsonOption = False,
) -> None:
    """Take back all certificates of a member, and sign the lists that tell everybody."""
    with outcome(json_output) as out:
        from cloister.core.errors import UsageError
        from cloister.core.spec.refusals import nearest
        from cloister.server.provision.issued import REASONS
        from cloister.server.provision.membership import revoke

        why = next((one for one in REASONS if one == reason), None)
        if why is None:
            raise UsageError(
                f"no reason is called '{reason}'{nearest(reason, REASONS)}", remedy="give one of these"
            )
        made = revoke(folder, member, why)
        out.result = made.as_dict()
        out.say(visible(f"{made.member} is a member no more"))
        out.say(
            visible(f"\nnext: {_spread(folder)}; until a member has the new lists, it believes the old ones")
        )


def list_command(folder: FolderArgument, json_output: JsonOption = False) -> None:
    """Show all members: until when they hold, who is due, who is awaited, who was struck off."""
    with outcome(json_output) as out:
        from rich.table import Table

        from cloister.server.provision.membership import members_table

        rows, number = members_table(folder)
        out.result = {"members": rows, "number": number}
        table = Table(
            "role", "name", "state", "expires", "days", "keys made", "may", box=None, pad_edge=False
        )
        for row in rows:
            cells = (
                row["role"],
                row["name"],
                row["state"],
                row.get("expires", "")[:10],
                str(row.get("days_left", "")),
                row.get("keys_made", ""),
                ", ".join(row.get("roles", [])),
            )
            table.add_row(*(visible(cell) for cell in cells))
        out.say(table)
        out.say(f"\nthe newest lists have number {number}: 'cloister kit show' says which a kit has")


def _spread(folder: Path) -> str:
    public = folder / "public"
    return f"put members.json and revoked.json of {public} into every kit, and crl.pem into the server's (cloister kit update)"
