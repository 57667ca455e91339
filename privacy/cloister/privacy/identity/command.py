"""``cloister kit show | enrol | update``: what any member does with its kit."""

from __future__ import annotations

import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.core.errors import UsageError
from cloister.core.outcome import JsonOption, Outcome, outcome, visible

if TYPE_CHECKING:
    from cloister.privacy.identity.members import Role

__all__ = [
    "FingerprintOption",
    "GrantOption",
    "KitArgument",
    "NameOption",
    "enrol",
    "register",
]

KitArgument = Annotated[
    Path, typer.Argument(metavar="FOLDER", help="The member's folder: its kit.", show_default=False)
]
NameOption = Annotated[
    str | None,
    typer.Option(
        "--name", metavar="NAME", help="Make new keys and ask to be this member.", show_default=False
    ),
]
GrantOption = Annotated[
    Path | None,
    typer.Option(
        "--grant",
        metavar="FILE",
        help="Complete the folder with the consortium's answer.",
        show_default=False,
    ),
]
FingerprintOption = Annotated[
    str | None,
    typer.Option(
        "--fingerprint",
        metavar="HEX",
        help="The consortium's, as its people told you: any other's grant is refused.",
        show_default=False,
    ),
]


def register(app: typer.Typer) -> None:
    """Add ``kit`` to ``app``."""
    group = typer.Typer(
        no_args_is_help=True,
        help="A member's own folder: who it is, keys it made itself, news from the consortium.",
        rich_markup_mode="markdown",
    )
    group.command("show")(show_command)
    group.command("enrol")(enrol_command)
    group.command("update")(update_command)
    app.add_typer(group, name="kit")


def show_command(folder: KitArgument, json_output: JsonOption = False) -> None:
    """Show who a kit is of, until when it holds, and which lists it has. Exit 7 if it does not hold."""
    with outcome(json_output) as out:
        from cloister.privacy.identity.showing import shown

        found = shown(folder)
        out.result = found
        left = (datetime.fromisoformat(str(found["expires"])) - datetime.now(UTC)).days
        out.say(visible(f"{found['role']} '{found['name']}' of consortium '{found['consortium']}'"))
        out.say(visible(f"consortium's fingerprint {found['fingerprint']}"))
        out.say(f"holds until {found['expires']:.10}, {left} days from now")
        out.say(f"members.json: number {found['members']}; revoked.json: number {found['revoked']}")


def enrol_command(
    folder: KitArgument,
    name: NameOption = None,
    grant: GrantOption = None,
    fingerprint: FingerprintOption = None,
    json_output: JsonOption = False,
) -> None:
    """Enrol a user that makes its keys itself: first --name, then, with the consortium's answer, --grant."""
    with outcome(json_output) as out:
        from cloister.privacy.identity.members import Role

        enrol(
            out,
            command="cloister kit enrol",
            role=Role.USER,
            folder=folder,
            name=name,
            grant=grant,
            fingerprint=fingerprint,
        )


def update_command(
    folder: KitArgument,
    files: Annotated[
        list[Path],
        typer.Argument(
            metavar="FILE…",
            help="grant.json, members.json, revoked.json or crl.pem from the consortium.",
            show_default=False,
        ),
    ],
    json_output: JsonOption = False,
) -> None:
    """Take news from the consortium: certificates renewed, members new or struck off. Older lists are refused."""
    with outcome(json_output) as out:
        from cloister.privacy.identity.crl import take_crl
        from cloister.privacy.identity.documents import read_document
        from cloister.privacy.identity.enrolment import accept, is_grant
        from cloister.privacy.identity.kit import load_consortium
        from cloister.privacy.identity.register import take_document

        taken: list[dict[str, Any]] = []
        for path in files:
            raw = read_document(path)
            if raw.startswith(b"-----BEGIN X509 CRL"):
                taken.append({"file": str(path), "number": take_crl(folder, raw)})
            elif is_grant(raw):
                grant, _ = accept(folder, raw)
                taken.append({"file": str(path), "member": f"{grant.role}:{grant.name}"})
            else:
                taken.append(
                    {"file": str(path), "number": take_document(folder, raw, load_consortium(folder)).number}
                )
        out.result = {"folder": str(folder), "taken": taken}
        for one in taken:
            out.say(visible(f"taken: {one['file']}"))
        out.say("\nnext: restart what runs with this kit; nginx: nginx -s reload")


def enrol(
    out: Outcome,
    *,
    command: str,
    role: Role,
    folder: Path,
    name: str | None,
    grant: Path | None,
    fingerprint: str | None,
) -> None:
    """Do the step of an enrolment that the options ask for, and say what is next.

    Args:
        out: of the command.
        command: how it is called.
        role: the member's.
        folder: the member's.
        name: for the first step.
        grant: for the second.
        fingerprint: of the consortium, for the second.
    """
    from cloister.privacy.identity.enrolling import ask, complete

    quoted = shlex.quote(str(folder))
    if (name is None) == (grant is None):
        raise UsageError(
            "give --name to make keys and ask, or --grant to complete the folder",
            remedy=f"for example: {command} {quoted} --name NAME",
        )
    if name is not None:
        asked = ask(folder, name, role)
        out.result = {"folder": str(folder), "request": str(folder / "request.json"), "fingerprint": asked}
        out.say(visible(f"keys made in {folder}; they stay there"))
        out.say(visible(f"send {folder / 'request.json'} to the consortium; its fingerprint is {asked}"))
        out.say("read the fingerprint to them over the telephone: who asks is known by nothing else")
        out.say(visible(f"\nnext, with their answer: {command} {quoted} --grant grant.json"))
        return
    assert grant is not None
    given, consortium = complete(folder, grant, role=role, fingerprint=fingerprint)
    out.result = {
        "folder": str(folder),
        "member": f"{given.role}:{given.name}",
        "consortium": consortium.name,
        "fingerprint": consortium.fingerprint,
    }
    out.say(visible(f"{given.role} '{given.name}' is a member of consortium '{consortium.name}'"))
    if fingerprint is None:
        out.say(
            f"compare its fingerprint with the consortium's people before you go on: {consortium.fingerprint}"
        )
    out.say(visible(f"\nnext: read {folder / 'README.md'}"))
