"""``cloister release``, ``cloister verify``, ``cloister unseal``."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from cloister.core.errors import UsageError
from cloister.core.outcome import JsonOption, outcome, visible

if TYPE_CHECKING:
    from cloister.server.releasing.sealing import Secret

__all__ = [
    "register_release",
    "register_unseal",
    "register_verify",
    "release_command",
    "unseal_command",
    "verify_command",
]

_PASSPHRASE = "CLOISTER_PASSPHRASE"  # noqa: S105 - the variable's name

KeyOption = Annotated[
    Path | None,
    typer.Option("--key-file", metavar="FILE", help="The key: a file of mode 0600.", show_default=False),
]
PassphraseOption = Annotated[
    bool, typer.Option("--passphrase", help=f"Use a passphrase, from {_PASSPHRASE} or typed.")
]


def register_release(app: typer.Typer) -> None:
    """Add ``release`` to ``app``."""
    app.command("release")(release_command)


def register_verify(app: typer.Typer) -> None:
    """Add ``verify`` to ``app``."""
    app.command("verify")(verify_command)


def register_unseal(app: typer.Typer) -> None:
    """Add ``unseal`` to ``app``."""
    app.command("unseal")(unseal_command)


def release_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    kit: Annotated[
        Path | None,
        typer.Option(
            "--kit",
            metavar="DIR",
            help="The server's folder, whose identity signs; a simulation may go without.",
            show_default=False,
        ),
    ] = None,
    key_file: Annotated[
        Path | None,
        typer.Option(
            "--encrypt-with",
            metavar="FILE",
            help="Encrypt the model with the key in FILE, which is made if it is not there.",
            show_default=False,
        ),
    ] = None,
    passphrase: Annotated[
        bool,
        typer.Option(
            "--passphrase", help=f"Encrypt the model with a passphrase, from {_PASSPHRASE} or typed."
        ),
    ] = False,
    json_output: JsonOption = False,
) -> None:
    """Release a model that passes its consortium's thresholds: model, card, report and a signed certificate. Exit 8 if it does not pass."""
    with outcome(json_output) as out:
        from cloister.privacy.identity import Role
        from cloister.privacy.identity.kit import load_kit
        from cloister.server.releasing.issuing import issue
        from cloister.server.releasing.sealing import Secret
        from cloister.server.report import write_report

        if not run.is_dir():
            raise UsageError(f"'{run}' is no run's folder", remedy="name a folder under runs/")
        signer = None
        if kit is not None:
            own = load_kit(kit, Role.SERVER)
            signer = own.identity, own.consortium
        secret = None
        made = key_file is not None and not key_file.exists()
        if made and key_file is not None and not passphrase:
            secret = Secret.made(key_file)
        elif key_file is not None or passphrase:
            secret = _secret(key_file, passphrase=passphrase, twice=True)
        released = issue(
            run,
            kit=signer,
            secret=secret,
            tell=lambda text: out.progress.print(text, highlight=False, markup=False),
        )
        write_report(run)
        content = released.content
        out.result = {
            "release": str(released.folder),
            "certificate": str(released.certificate),
            "model": content.model.model_dump(),
            "signer": content.signer.name,
            "fingerprint": released.fingerprint,
            "simulated": content.simulated,
            "thresholds": [one.model_dump() for one in content.thresholds if one.asked],
        }
        out.say(
            visible(f"released: {content.federation.name}, model {content.model.sha256}"),
            visible(f"signed by server '{content.signer.name}', consortium {released.fingerprint}"),
        )
        if content.simulated:
            out.say("a simulation: the certificate says so, and speaks for no real site")
        if made:
            out.say(f"key      {key_file}   (made now; keep it apart from the release)")
        out.say(
            f"release  {released.folder}", f"\nnext: cloister verify {shlex.quote(str(released.certificate))}"
        )


def verify_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    certificate: Annotated[
        Path,
        typer.Argument(
            metavar="CERTIFICATE", help="certificate.json, or the folder of a release.", show_default=False
        ),
    ],
    consortium: Annotated[
        Path | None,
        typer.Option(
            "--consortium",
            metavar="FILE",
            help="consortium.der: whom you believe. A revoked.json beside it is heeded.",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None,
        typer.Option("--model", metavar="FILE", help="The model, if it lies elsewhere.", show_default=False),
    ] = None,
    report: Annotated[
        list[Path] | None,
        typer.Option(
            "--report",
            metavar="FILE",
            help="Report, card or another file of the release that lies elsewhere. Repeatable.",
            show_default=False,
        ),
    ] = None,
    federation: Annotated[
        Path | None,
        typer.Option(
            "--federation",
            metavar="FILE",
            help="The federation file, if it lies elsewhere.",
            show_default=False,
        ),
    ] = None,
    ledger: Annotated[
        list[Path] | None,
        typer.Option(
            "--ledger",
            metavar="FILE",
            help="A site's ledger, that must hold the certified entry. Repeatable.",
            show_default=False,
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Check a release offline: signatures, files, epsilon, thresholds, ledgers. Exit 7 if something does not hold, 8 if a threshold is not met."""
    with outcome(json_output) as out:
        from cloister.server.releasing.certificate import CERTIFICATE
        from cloister.server.releasing.verifying import read_consortium, verify_release

        path = certificate / CERTIFICATE if certificate.is_dir() else certificate
        found = verify_release(
            path,
            consortium=None if consortium is None else read_consortium(consortium),
            model=model,
            reports=report or (),
            federation=federation,
            ledgers=ledger or (),
        )
        found.require()
        content = found.signed.content
        out.result = {
            "verified": True,
            "certificate": str(path),
            "run": content.run,
            "simulated": content.simulated,
            "signer": content.signer.name,
            "consortium": found.signed.consortium.fingerprint,
            "consortium_given": found.signed.known,
            "held": found.held,
            "unchecked": found.unchecked,
        }
        table = Table("checked, and holds", box=None, pad_edge=False)
        for line in found.held:
            table.add_row(visible(line))
        out.say(table)
        for line in found.unchecked:
            out.say(visible(f"not checked: {line}"))


def unseal_command(
    file: Annotated[
        Path, typer.Argument(metavar="FILE", help="An encrypted model: model.sealed.", show_default=False)
    ],
    to: Annotated[
        Path, typer.Option("--out", metavar="FILE", help="Where the model goes.", show_default=False)
    ] = Path("model.safetensors"),
    key_file: KeyOption = None,
    passphrase: PassphraseOption = False,
    json_output: JsonOption = False,
) -> None:
    """Decrypt a model that was released encrypted. Exit 7 with another key."""
    with outcome(json_output) as out:
        from cloister.server.releasing.sealing import unseal

        if not file.is_file():
            raise UsageError(f"there is no file '{file}'", remedy="name model.sealed of a release")
        if to.exists():
            raise UsageError(f"'{to}' exists", remedy="give another --out")
        unseal(file, to, _secret(key_file, passphrase=passphrase))
        out.result = {"model": str(to)}
        out.say(f"model  {to}")


def _secret(key_file: Path | None, *, passphrase: bool, twice: bool = False) -> Secret:
    from cloister.server.releasing.sealing import Secret

    if (key_file is None) == (not passphrase):
        raise UsageError("give a key file or --passphrase", remedy="one of the two")
    if key_file is not None:
        return Secret.of_file(key_file)
    text = os.environ.get(_PASSPHRASE)
    if text is None:
        text = typer.prompt("passphrase", hide_input=True, confirmation_prompt=twice, err=True)
    return Secret.of_passphrase(str(text))
