"""``cloister watch RUN``: a read-only page on this machine that follows a run, or a folder of runs."""

from __future__ import annotations

import contextlib
import socket
from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.core.errors import UsageError
from cloister.core.outcome import JsonOption, Outcome, outcome

__all__ = ["register"]

_PORT = 8866
_TRIED = 10
#: To listen on every address of this machine; nobody can visit that.
_EVERYWHERE = ("0.0.0.0", "::")  # noqa: S104 - compared with, not listened on
#: How long ``--json`` waits for the accountant.
_WAIT_S = 60.0


def register(app: typer.Typer) -> None:
    """Add ``watch`` to the command."""

    @app.command()
    def watch(
        path: Annotated[
            Path,
            typer.Argument(
                metavar="RUN",
                help="A run's folder, or a folder of runs; it need not be there yet.",
                show_default=False,
            ),
        ],
        listen: Annotated[
            str | None,
            typer.Option(
                "--listen",
                metavar="HOST[:PORT]",
                help=f"Where to listen, by default 127.0.0.1 and the first free port from {_PORT} on; beyond this machine, a token is asked for.",
                show_default=False,
            ),
        ] = None,
        token_file: Annotated[
            Path | None,
            typer.Option(
                "--token-file",
                metavar="FILE",
                help="A file with the token that a visitor must show; made where it is not there.",
                show_default=False,
            ),
        ] = None,
        host: Annotated[
            list[str] | None,
            typer.Option(
                "--host",
                metavar="NAME",
                help="A host name under which visitors reach the page. Repeatable.",
                show_default=False,
            ),
        ] = None,
        json_output: JsonOption = False,
    ) -> None:
        """Follow a run in a browser: rounds, sites, curves, ε, refusals, audits. With --json, what there is now, and no page."""
        with outcome(json_output) as out:
            if json_output:
                out.result = _now(path)
            else:
                _serve(out, path, listen=listen, token_file=token_file, hosts=host or [])


def _now(path: Path) -> dict[str, Any]:
    from cloister.server.watching.place import PlaceWatch

    if not path.exists():
        raise UsageError(f"there is no run '{path}'", remedy="name a run's folder, or a folder of runs")
    watched = PlaceWatch(path)
    while watched.refresh():
        pass
    return watched.sections(wait_s=_WAIT_S)


def _serve(
    out: Outcome, path: Path, *, listen: str | None, token_file: Path | None, hosts: list[str]
) -> None:
    import asyncio

    from cloister.server.watching.access import Access, is_loopback, names_of, token_from
    from cloister.server.watching.pages import Pages, application
    from cloister.server.watching.serving import Server

    name, port = _address(listen)
    local = is_loopback(name)
    token, made = (None, False) if local and token_file is None else token_from(token_file)
    bound = _bound(name, port)
    names = names_of([*hosts, *([] if local else [name, socket.gethostname()])])
    access = Access(token=token, names=names, addresses=not local)
    port = bound.getsockname()[1]
    reached = socket.gethostname() if name in _EVERYWHERE else f"[{name}]" if ":" in name else name
    url = f"http://{reached}:{port}/"

    async def serve() -> None:
        pages = Pages(path)
        await Server(application(pages, access, cookie=f"cloister-watch-{port}"), pages.stopping).serve(
            sockets=[bound]
        )

    out.say(f"watching {path}", f"page  {url}" + (f"?token={token}" if made else ""))
    if token is not None and not made:
        out.say(f"token  the one in {token_file}")
    if not local:
        out.say(
            "The page is not encrypted on its way: between machines use an ssh tunnel, or a proxy with TLS."
        )
    out.say("Ctrl-C ends watching; the run goes on.")
    with contextlib.suppress(KeyboardInterrupt):  # the one way to end it
        asyncio.run(serve())


def _address(listen: str | None) -> tuple[str, int | None]:
    if listen is None:
        return "127.0.0.1", None
    name, separator, port = listen.rpartition(":")
    if not separator or listen.endswith("]") or (listen.count(":") > 1 and not listen.startswith("[")):
        name, port = listen, str(_PORT)
    name = name.removeprefix("[").removesuffix("]")
    if not name or not port.isdigit() or int(port) > 65535:
        raise UsageError(
            f"'{listen}' is no address to listen on", remedy="give HOST or HOST:PORT, such as 0.0.0.0:8866"
        )
    return name, int(port)


def _bound(name: str, port: int | None) -> socket.socket:
    ports = [port] if port is not None else range(_PORT, _PORT + _TRIED)
    reason = ""
    for one in ports:
        try:
            family, kind, proto, _, address = socket.getaddrinfo(
                name, one, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            made = socket.socket(family, kind, proto)
        except OSError as error:
            reason = error.strerror or type(error).__name__
            continue
        try:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            made.bind(address)
            made.listen()  # who reads the page's address may open it at once
        except OSError as error:
            made.close()
            reason = error.strerror or type(error).__name__
        else:
            return made
    raise UsageError(
        f"cannot listen on '{name}', port {ports[0]}: {reason}",
        remedy="give another --listen HOST:PORT; port 0 takes a free one",
        code="listen",
    )
