"""``cloister authority init | run | rotate | tls``: what the operator of the key authority does."""

from __future__ import annotations

import shlex
import shutil
import signal
import threading
from pathlib import Path
from typing import Annotated

import typer

from cloister.core.errors import UsageError
from cloister.core.outcome import JsonOption, outcome, visible

__all__ = ["register"]

FolderArgument = Annotated[
    Path, typer.Argument(metavar="DIR", help="The authority's folder.", show_default=False)
]
HostOption = Annotated[
    str, typer.Option("--host", metavar="NAME", help="The name or address that the server reaches it as.")
]
_GRACE_S = 30.0


def register(app: typer.Typer) -> None:
    """Add ``authority`` to ``app``."""
    group = typer.Typer(
        no_args_is_help=True,
        help="Hold the keys that encrypted updates are summed under; never at the server.",
        rich_markup_mode="markdown",
    )
    group.command("init")(init_command)
    group.command("run")(run_command)
    group.command("rotate")(rotate_command)
    group.command("tls")(tls_command)
    app.add_typer(group, name="authority")


def init_command(
    folder: FolderArgument, host: HostOption = "127.0.0.1", json_output: JsonOption = False
) -> None:
    """Make an authority's folder: its identity, its record, and the certificates of its channel."""
    with outcome(json_output) as out:
        from cloister.privacy.authority.folder import CERTIFICATE, CONSORTIUM, TLS, make_folder

        public_key = make_folder(folder, host)
        out.result = {"folder": str(folder), "public_key": public_key, "host": host}
        out.say(visible(f"the key authority's folder is {folder}; its public key is {public_key}"))
        out.say(
            visible(
                f"have the consortium certify that key as an authority: put the certificate into {folder / CERTIFICATE} "
                f"and the consortium's into {folder / CONSORTIUM}"
            )
        )
        out.say(
            visible(f"hand root.pem, server.pem and server.key of {folder / TLS} to the server's operator")
        )
        out.say(
            f"\nnext: cloister authority run {shlex.quote(str(folder))} --listen {shlex.quote(host)}:9443"
        )


def run_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    folder: FolderArgument,
    listen: Annotated[
        str, typer.Option("--listen", metavar="HOST:PORT", help="Where to listen.")
    ] = "127.0.0.1:9443",
    identity: Annotated[
        Path | None,
        typer.Option(
            "--identity", metavar="FILE", help="Its key; identity.key of DIR if left out.", show_default=False
        ),
    ] = None,
    certificate: Annotated[
        Path | None,
        typer.Option(
            "--certificate", metavar="FILE", help="Its certificate; identity.der of DIR.", show_default=False
        ),
    ] = None,
    consortium: Annotated[
        Path | None,
        typer.Option(
            "--consortium",
            metavar="FILE",
            help="The consortium's; consortium.der of DIR.",
            show_default=False,
        ),
    ] = None,
    least: Annotated[
        int,
        typer.Option("--least", min=2, help="The fewest sites whose sum is decrypted, whatever is asked."),
    ] = 3,
    most_values: Annotated[
        int, typer.Option("--most-values", min=1, help="The longest sum that is decrypted.")
    ] = 1 << 26,
    json_output: JsonOption = False,
) -> None:
    """Answer the server until it is stopped (Ctrl-C, SIGTERM)."""
    with outcome(json_output) as out:
        from cloister.privacy.authority import folder as files
        from cloister.privacy.authority.service import AuthorityService
        from cloister.privacy.authority.tls import AUTHORITY, Credentials
        from cloister.privacy.homomorphic.authority import KeyAuthority
        from cloister.privacy.homomorphic.vault import Vault

        who, members = files.load_identity(
            identity or folder / files.IDENTITY,
            certificate or folder / files.CERTIFICATE,
            consortium or folder / files.CONSORTIUM,
        )
        credentials = Credentials.read(folder / files.TLS, AUTHORITY)
        vault = Vault.open(folder)
        before = vault.decrypted
        authority = KeyAuthority(vault, who, members, least=least, most_values=most_values)
        stopped = threading.Event()
        try:
            service = AuthorityService(authority, credentials, listen)
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, lambda *_: stopped.set())
            service.start()
            host = listen.rpartition(":")[0]
            out.progress.print(
                visible(f"key authority '{who.name}' listens on {host}:{service.port}"), highlight=False
            )
            stopped.wait()
            service.stop(_GRACE_S)
        finally:
            authority.close()
        out.result = {"folder": str(folder), "decrypted": vault.decrypted - before, "waiting": vault.waiting}
        out.say(f"{vault.decrypted - before} sums decrypted, {vault.waiting} keys wait for theirs")


def rotate_command(folder: FolderArgument, json_output: JsonOption = False) -> None:
    """Destroy every key that waits for its sum. Each session has a new key anyway; this ends those under way."""
    with outcome(json_output) as out:
        from cloister.privacy.homomorphic.vault import Vault

        vault = Vault.open(folder)
        try:
            forgotten = vault.forget()
        finally:
            vault.close()
        out.result = {"folder": str(folder), "forgotten": forgotten}
        out.say(f"{forgotten} keys destroyed; their sessions are lost and can be run again")


def tls_command(
    folder: FolderArgument, host: HostOption = "127.0.0.1", json_output: JsonOption = False
) -> None:
    """Make new certificates for the channel; those before are good no more."""
    with outcome(json_output) as out:
        from cloister.privacy.authority.folder import TLS
        from cloister.privacy.authority.tls import make_tls

        if not (folder / TLS).is_dir():
            raise UsageError(
                f"'{folder}' is no authority's folder", remedy="make it with: cloister authority init"
            )
        shutil.rmtree(folder / TLS)
        make_tls(folder / TLS, host)
        out.result = {"folder": str(folder / TLS), "host": host}
        out.say(
            visible(f"new certificates for {host}: hand root.pem, server.pem and server.key to the server")
        )
