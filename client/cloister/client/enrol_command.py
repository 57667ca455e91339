"""``cloister site enrol``: a site makes its keys itself, asks the consortium, and takes its answer."""

from __future__ import annotations

import typer

from cloister.core.outcome import JsonOption, outcome
from cloister.privacy.identity.command import (
    FingerprintOption,
    GrantOption,
    KitArgument,
    NameOption,
    enrol,
)

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``enrol`` to the group ``cloister site``."""
    app.command("enrol")(enrol_command)


def enrol_command(
    folder: KitArgument,
    name: NameOption = None,
    grant: GrantOption = None,
    fingerprint: FingerprintOption = None,
    json_output: JsonOption = False,
) -> None:
    """Enrol a site whose keys never leave it: first --name, then, with the consortium's answer, --grant."""
    with outcome(json_output) as out:
        from cloister.privacy.identity.members import Role

        enrol(
            out,
            command="cloister site enrol",
            role=Role.SITE,
            folder=folder,
            name=name,
            grant=grant,
            fingerprint=fingerprint,
        )
