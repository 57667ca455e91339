"""``cloister site approve | deny | pause | resume | status | log``: what an officer asks and tells a site. Nothing here needs the network.

What is decided is a line of the site's log, which a running site reads before it answers the next message.
"""

from __future__ import annotations

import getpass
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cloister.core.errors import UsageError
from cloister.core.outcome import JsonOption, outcome

if TYPE_CHECKING:
    from cloister.client.gate.log_state import LogState
    from cloister.client.gate.site_log import SiteLog

__all__ = ["register"]

RunArgument = Annotated[
    str, typer.Argument(metavar="RUN", help="The run's name, or how it begins.", show_default=False)
]
FolderArgument = Annotated[
    Path, typer.Argument(metavar="[FOLDER]", help="The site's folder.", show_default=False)
]
ReasonOption = Annotated[str, typer.Option("--reason", help="Why: it goes into the log.", show_default=False)]


def register(app: typer.Typer) -> None:
    """Add the commands to ``cloister site``."""
    app.command("approve")(approve_command)
    app.command("deny")(deny_command)
    app.command("pause")(pause_command)
    app.command("resume")(resume_command)
    app.command("status")(status_command)
    app.command("log")(log_command)


def approve_command(
    run: RunArgument,
    folder: FolderArgument = Path(),
    reason: ReasonOption = "",
    json_output: JsonOption = False,
) -> None:
    """Let a run that waits for it train here, up to the policy's limits."""
    _decide("approved", run, folder, reason, json_output=json_output)


def deny_command(
    run: RunArgument,
    folder: FolderArgument = Path(),
    reason: ReasonOption = "",
    json_output: JsonOption = False,
) -> None:
    """Refuse a run, also one that is under way. It cannot be allowed again: its user has to ask anew."""
    _decide("denied", run, folder, reason, json_output=json_output)


def pause_command(
    folder: FolderArgument = Path(), reason: ReasonOption = "", json_output: JsonOption = False
) -> None:
    """Answer nothing until the site is resumed; it stays connected."""
    with outcome(json_output) as out, _opened(folder) as (log, state):
        if state.paused is not None:
            raise UsageError("the site is paused already", remedy="cloister site resume")
        log.append("paused", {"by": _who(), "reason": reason})
        out.result = {"paused": state.paused}
        out.say("paused: from the next message on nothing is answered. next: cloister site resume")


def resume_command(folder: FolderArgument = Path(), json_output: JsonOption = False) -> None:
    """Answer again after a pause."""
    with outcome(json_output) as out, _opened(folder) as (log, state):
        if state.paused is None:
            raise UsageError("the site is not paused", remedy="nothing is to be done")
        log.append("resumed", {"by": _who()})
        out.result = {"paused": None}
        out.say("resumed: messages are answered again")


def status_command(folder: FolderArgument = Path(), json_output: JsonOption = False) -> None:
    """Say what waits for approval and what it would cost, what left last, what was refused, what is left of each budget."""
    with outcome(json_output) as out:
        from cloister.client.gate.policy import POLICY, read_policy
        from cloister.client.gate.showing import status_text
        from cloister.client.gate.status import site_status

        state, folder_of_state = _read(folder)
        out.result = site_status(folder_of_state, state, read_policy(folder / POLICY).policy)
        out.say(status_text(out.result))


def log_command(  # noqa: PLR0917 - Typer reads a command's options from its arguments
    folder: FolderArgument = Path(),
    verify: Annotated[
        bool, typer.Option("--verify", help="Check every line and signature (exit 7 if not).")
    ] = False,
    since: Annotated[
        str | None,
        typer.Option(
            "--since",
            metavar="TIME",
            help="From this time on, UTC: 2026-11-25, or with T and the time.",
            show_default=False,
        ),
    ] = None,
    last: Annotated[
        int, typer.Option("--last", help="At most so many lines, the newest; 0: all.", min=0)
    ] = 40,
    public_key: Annotated[
        str | None,
        typer.Option(
            "--public-key",
            metavar="HEX",
            help="With --verify: the key that must have signed.",
            show_default=False,
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show the site's log, or verify it; a copy of the log's folder will do."""
    with outcome(json_output) as out:
        from cloister.client.gate.log_verification import read_log
        from cloister.client.gate.showing import line_text, verification_text

        path = _log_path(folder)
        if verify:
            found = _verified(path, folder, public_key)
            out.result = found
            out.say(verification_text(found))
            return
        first = _time(since)
        lines = [entry for entry in read_log(path) if first is None or entry.at >= first]
        shown = lines[-last:] if last else lines
        out.result = {
            "lines": [
                {"seq": entry.seq, "time": entry.time, "kind": entry.kind, **entry.said, "hash": entry.hash}
                for entry in shown
            ]
        }
        for entry in shown:
            out.say(line_text(entry))


def _decide(kind: str, run: str, folder: Path, reason: str, *, json_output: bool) -> None:
    with outcome(json_output) as out, _opened(folder) as (log, state):
        name = _run(state, run, kind)
        log.append(kind, {"run": name, "by": _who(), "reason": reason})
        out.result = {"run": name, "state": kind, "by": _who()}
        out.say(f"{kind}: {name}; it holds from the next message on")


def _run(state: LogState, given: str, kind: str) -> str:
    """Return the one run that is meant and can be decided so."""
    fits = {"approved": ("held",), "denied": ("asked", "allowed", "held", "approved")}[kind]
    found = [run.run for run in state.runs.values() if run.run.startswith(given) and run.state in fits]
    exact = [name for name in found if name == given]
    if len(exact or found) != 1:
        many = ", ".join(found[:5]) or "none"
        what = "waits for approval" if kind == "approved" else "could be denied"
        raise UsageError(
            f"'{given}' is not the one run that {what}; there are: {many}",
            remedy="cloister site status names the runs",
        )
    return (exact or found)[0]


@contextmanager
def _opened(folder: Path) -> Iterator[tuple[SiteLog, LogState]]:
    """Open the log of the site in ``folder`` for writing, and read what it says."""
    from cloister.client.gate.log_state import LogState
    from cloister.client.gate.site_log import SiteLog, log_key

    path, state = _log_path(folder), LogState()
    if not path.exists():
        raise UsageError(
            f"there is no log '{path}'", remedy="it is begun when the site first runs: cloister site run"
        )
    yield SiteLog(path, key=log_key(path), took=state.take), state


def _read(folder: Path) -> tuple[LogState, Path]:
    from cloister.client.gate.log_state import LogState
    from cloister.client.gate.log_verification import read_log

    path, state = _log_path(folder), LogState()
    for entry in read_log(path):
        state.take(entry)
    return state, path.parent


def _log_path(folder: Path) -> Path:
    """Return the log of a site's folder; of a folder that holds a log only, that."""
    from cloister.client.gate.site_log import LOG
    from cloister.client.site_config import CONFIG, load_site, state_folder

    if not (folder / CONFIG).exists() and (folder / LOG).exists():
        return folder / LOG
    return state_folder(folder, load_site(folder)) / LOG


def _verified(path: Path, folder: Path, public_key: str | None) -> dict[str, Any]:
    from dataclasses import asdict

    from cloister.client.gate.log_verification import verify_log
    from cloister.privacy.identity.kit import load_consortium

    known = (folder / "consortium.der").exists()
    found = verify_log(path, public_key=public_key, consortium=load_consortium(folder) if known else None)
    found.require()
    return asdict(found)


def _time(text: str | None) -> Any:
    from datetime import UTC, datetime

    if text is None:
        return None
    try:
        found = datetime.fromisoformat(text)
    except ValueError:
        raise UsageError(
            f"--since {text}: no time", remedy="write for example 2026-11-25 or 2026-11-25T18:00"
        ) from None
    return found if found.tzinfo is not None else found.replace(tzinfo=UTC)


def _who() -> str:
    """Return the name of the user of this machine who decides."""
    try:
        return getpass.getuser()
    except (OSError, KeyError):  # an id without a name
        return "unknown"
