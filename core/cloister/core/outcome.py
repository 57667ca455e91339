"""How every command of ``cloister`` ends: one exit status, one JSON object or a text for a person, never a traceback.

A command of any part is written like this::

    def register(app: typer.Typer) -> None:
        @app.command()
        def simulate(file: FileArgument, json_output: JsonOption = False) -> None:
            \"\"\"Train a federation on this machine.\"\"\"
            with outcome(json_output) as out:
                from cloister.simulation.engine import run       # slow imports belong inside
                out.progress.print("starting")                   # a Rich console on standard error
                out.on_interrupt = "cloister simulate … --resume runs/x"
                out.result = run(file)                           # what --json prints: one object
                out.say(table)                                   # Rich, on standard output; silent with --json

What happens in the block decides how the process ends:

=========================  ==========  ================================================================================
the block                  exit        what is printed
=========================  ==========  ================================================================================
ends                       0           ``out.result`` on standard output with ``--json``, else what ``out.say`` was given
raises a `CloisterError`   its own     ``error: message`` and ``  → remedy`` on standard error, or ``{"error": …}`` with
                                       ``--json`` on standard output
is interrupted             130         the same, with ``out.on_interrupt`` as the remedy
writes to a reader gone    141         nothing more: ``cloister check … | head -1`` ends as other programs do (128 + SIGPIPE)
raises anything else       1           the same, with a report id; the traceback goes to a file that only its owner may
                                       read (it may quote data), and to standard error only with ``CLOISTER_DEBUG=1``
=========================  ==========  ================================================================================

"Anything else" holds ``SystemExit``: code that a command calls does not decide how the command ends.

With ``--json`` everything else that writes to standard output during the block, a task's ``print`` or a worker process, lands
on standard error, so that standard output holds one JSON object and nothing more.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import platform
import secrets
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from rich.console import Console, RenderableType
from rich.text import Text

from cloister.core._version import __version__
from cloister.core.errors import EXIT_CODES, CloisterError
from cloister.core.files import write_whole

__all__ = [
    "FileArgument",
    "JsonOption",
    "Outcome",
    "SetOption",
    "outcome",
    "reports_folder",
    "settle",
    "visible",
]

FileArgument = Annotated[
    Path, typer.Argument(metavar="FILE", help="The federation file (TOML).", show_default=False)
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on standard output.")]
SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Lay a value over the file's, for example federation.rounds=5. Repeatable.",
        show_default=False,
    ),
]

_INTERRUPTED = 130
_READER_GONE = 141


@dataclass(kw_only=True)
class Outcome:
    """What a command hands over at its end.

    Attributes:
        json_output: whether ``--json`` was given.
        result: the object that ``--json`` prints.
        progress: a Rich console on standard error.
        on_interrupt: what to do after an interruption, for example the command that resumes.
    """

    json_output: bool
    result: Mapping[str, Any] = field(default_factory=dict)
    progress: Console = field(default_factory=lambda: Console(stderr=True))
    on_interrupt: str = ""

    def say(self, *renderables: RenderableType) -> None:
        """Print for a person on standard output; nothing with ``--json``."""
        if not self.json_output:
            console = Console(highlight=False)
            for renderable in renderables:
                # A text keeps its lines whatever the terminal's width: it can be searched and copied.
                console.print(renderable, soft_wrap=isinstance(renderable, str | Text), markup=False)


@contextlib.contextmanager
def outcome(json_output: bool) -> Iterator[Outcome]:
    """Run a command's body and end the process as the table above says.

    Raises:
        typer.Exit: with the exit status, for anything but a good end.
    """
    out = Outcome(json_output=json_output)
    try:
        with _only_on_stderr() if json_output else contextlib.nullcontext():
            yield out
        if json_output:
            _print_json(out.result)
    except (click.ClickException, click.exceptions.Exit):
        raise
    except (Exception, KeyboardInterrupt, SystemExit) as error:  # noqa: BLE001 - `settle` reports each kind
        if _reader_gone(error):
            raise typer.Exit(_READER_GONE) from None
        raise typer.Exit(settle(error, json_output=json_output, on_interrupt=out.on_interrupt)) from None


def settle(error: BaseException, *, json_output: bool, on_interrupt: str = "") -> int:
    """Tell the user of ``error`` and return the exit status that goes with it."""
    if os.environ.get("CLOISTER_DEBUG") == "1":
        Console(stderr=True, highlight=False, markup=False, soft_wrap=True).print(
            "".join(traceback.format_exception(error))
        )
    if isinstance(error, CloisterError):
        _tell(error.as_dict(), json_output=json_output)
        return error.exit_code
    if isinstance(error, KeyboardInterrupt | click.Abort):
        _tell(
            {"code": "interrupted", "message": "interrupted", "remedy": on_interrupt}, json_output=json_output
        )
        return _INTERRUPTED
    report, path = _report(error)
    kept = (
        f"its traceback is in {path}; it may quote data: read it before you send it on"
        if path
        else "its traceback could not be written down"
    )
    _tell(
        {
            "code": "internal",
            "message": f"{EXIT_CODES[1]} {report} ({type(error).__name__})",
            "remedy": kept,
            "report": report,
        },
        json_output=json_output,
    )
    return 1


def _reader_gone(error: BaseException) -> bool:
    """Whether Rich found that nobody reads what it prints; it has then turned standard output to nowhere.

    A broken pipe that did not come from a console (a worker process that died) is a fault like any other.
    """
    return isinstance(error, SystemExit) and isinstance(error.__context__, BrokenPipeError)


def reports_folder() -> Path:
    """Return the folder of traceback files: ``$XDG_STATE_HOME/cloister/reports``, by default below ``~/.local/state``."""
    stated = os.environ.get("XDG_STATE_HOME", "")
    state = Path(stated) if os.path.isabs(stated) else Path.home() / ".local" / "state"  # noqa: PTH117 - "" is no path
    return state / "cloister" / "reports"


def visible(text: str) -> str:
    """Show control characters instead of sending them to the terminal: a message may quote a file from somebody else."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def _report(error: BaseException) -> tuple[str, Path | None]:
    """Write the traceback down; return the report id and the file, or ``None`` where no file could be made."""
    report = f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(3)}"
    text = "".join(
        [
            f"report {report}\ncloister {__version__}, Python {platform.python_version()}, {platform.platform()}\n",
            f"arguments: {sys.argv[1:]}\n\n",
            *traceback.format_exception(error),
        ]
    )
    try:
        folder = reports_folder()
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        path = folder / f"{report}.txt"
        write_whole(path, text, mode=0o600)
    except (OSError, RuntimeError):  # RuntimeError: there is no home folder
        return report, None
    return report, path


def _tell(refusal: Mapping[str, str], *, json_output: bool) -> None:
    try:
        _print_refusal(refusal, json_output=json_output)
    except SystemExit as error:
        if not _reader_gone(error):
            raise


def _print_refusal(refusal: Mapping[str, str], *, json_output: bool) -> None:
    if json_output:
        _print_json({"error": refusal})
        return
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    console.print(Text.assemble(("error: ", "bold red"), visible(refusal["message"])))
    if refusal["remedy"]:
        console.print(Text.assemble(("  → ", "bold cyan"), visible(refusal["remedy"])))


def _print_json(value: Mapping[str, Any]) -> None:
    Console(soft_wrap=True).out(json.dumps(_plain(value), allow_nan=False), highlight=False)


def _plain(value: Any) -> Any:
    """Turn what commands return into JSON; a number that JSON cannot hold (nan, inf) becomes null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else None
    return str(value)


@contextlib.contextmanager
def _only_on_stderr() -> Iterator[None]:
    """Send standard output to standard error: Python's own, and the descriptor that child processes inherit."""
    sys.stdout.flush()
    try:
        kept = os.dup(1)
        os.dup2(2, 1)
    except OSError:  # a closed descriptor: nothing to keep clean
        kept = None
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        if kept is not None:
            os.dup2(kept, 1)
            os.close(kept)
