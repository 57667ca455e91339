"""The root of the command ``cloister``; each installed part adds its own commands.

A part names its commands in the entry point group ``cloister.commands``: the entry point's name is the command's name, its value
a function ``register(app: typer.Typer) -> None`` that adds the command (or a group of that name). Only the command that is
called is loaded, so a site need not install the server, and ``cloister --help`` waits for nothing heavy. A part that cannot
be imported because something is not installed is left out; ``cloister version`` says which and why.

`cloister.core.outcome` says how to write a command and how it ends.
"""

from __future__ import annotations

import inspect
import os
import platform
import sys
from collections.abc import Sequence
from importlib.metadata import EntryPoint, PackageNotFoundError, entry_points, version
from typing import Annotated, Any, NoReturn

import click
import typer
from rich.table import Table
from typer.core import TyperGroup

from cloister.core._version import __version__
from cloister.core.errors import UsageError
from cloister.core.outcome import JsonOption, outcome, settle
from cloister.core.waiting import wait_briefly

__all__ = ["app", "main", "run"]

_GROUP = "cloister.commands"
_PACKAGES = ("flwr", "torch", "opacus", "numpy", "ray")


class _Root(TyperGroup):
    """Commands that are loaded when they are called for."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of the commands that can be loaded."""
        return [
            name for name in sorted({*self.commands, *_points()}) if self.get_command(ctx, name) is not None
        ]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return the command, loading its part if need be; ``None`` where there is none or its part is not installed."""
        point = _points().get(cmd_name)
        if cmd_name not in self.commands and point is not None:
            try:
                self.add_command(_load(point), cmd_name)
            except ModuleNotFoundError:
                return None
        return super().get_command(ctx, cmd_name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command that ``args`` starts with.

        Raises:
            UsageError: there is none; says whether its part is missing or which name is nearest.
        """
        name = args[0]
        if self.get_command(ctx, name) is None:
            if name in _points():
                raise UsageError(
                    f"the command '{name}' needs {_absent()[name]}, which is not installed",
                    remedy="install that part of cloister",
                )
            from cloister.core.spec.refusals import nearest

            raise UsageError(
                f"there is no command '{name}'{nearest(name, self.list_commands(ctx))}",
                remedy="see: cloister --help",
            )
        return super().resolve_command(ctx, args)


app = typer.Typer(
    cls=_Root,
    help="Train one model on data that never leaves its owner, and prove what was revealed.",
    epilog="Every command ends with an exit status of one table: docs/simulate.md.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"cloister {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool,
        typer.Option("--version", help="Print the version and leave.", is_eager=True, callback=_show_version),
    ] = False,
) -> None:
    pass


@app.command("version")
def _versions(json_output: JsonOption = False) -> None:
    """Show the versions of cloister and of what it stands on."""
    with outcome(json_output) as out:
        found = {name: _version_of(name) for name in _PACKAGES}
        absent = _absent()
        out.result = {
            "cloister": __version__,
            "python": platform.python_version(),
            **{name: number for name, number in found.items() if number},
            "commands": sorted({"tasks", "version", *_points()} - absent.keys()),
            "absent": absent,
        }
        lines = [f"cloister {__version__}", f"python {platform.python_version()}"]
        lines += [f"{name} {number}" for name, number in found.items() if number]
        lines += [f"not installed: the command '{name}' needs {module}" for name, module in absent.items()]
        out.say("\n".join(lines))


@app.command("tasks")
def _tasks(json_output: JsonOption = False) -> None:
    """List the installed tasks, what each learns and the options it takes in the table task."""
    with outcome(json_output) as out:
        tasks = [
            _describe(point)
            for point in sorted(entry_points(group="cloister.tasks"), key=lambda point: point.name)
        ]
        out.result = {"tasks": tasks}
        table = Table("task", "what it learns", "options", box=None, pad_edge=False)
        for task in tasks:
            table.add_row(task["name"], task["description"], ", ".join(task["options"]))
        out.say(table)


def run(arguments: Sequence[str]) -> int:
    """Run ``cloister`` with these arguments and return its exit status."""
    # Before any part imports Flower: nothing of a run is told to anybody.
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
    wait_briefly()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")  # a terminal that cannot show ε shows a question mark
    json_output = "--json" in arguments
    try:
        status = typer.main.get_command(app).main(
            list(arguments), prog_name="cloister", standalone_mode=False
        )
    except click.exceptions.NoArgsIsHelpError as error:
        typer.echo(error.format_message(), err=True)
        return UsageError.exit_code
    except click.ClickException as error:
        return settle(_usage(error), json_output=json_output)
    except Exception as error:  # noqa: BLE001 - `settle` reports each kind
        return settle(error, json_output=json_output)
    return status if isinstance(status, int) else 0


def main() -> NoReturn:
    """Run ``cloister`` with the process's arguments."""
    sys.exit(run(sys.argv[1:]))


def _points() -> dict[str, EntryPoint]:
    return {point.name: point for point in entry_points(group=_GROUP)}


def _load(point: EntryPoint) -> click.Command:
    part = typer.Typer(rich_markup_mode="markdown", pretty_exceptions_enable=False)
    point.load()(part)
    group = typer.main.get_group(part)
    if list(group.commands) != [point.name]:
        raise RuntimeError(
            f"the entry point '{point.name}' of {_GROUP} registers {sorted(group.commands)}, not one command of its own name"
        )
    return group.commands[point.name]


def _absent() -> dict[str, str]:
    """Return the commands whose part is not installed, each with the module that is missing."""
    missing = {}
    for name, point in _points().items():
        try:
            point.load()
        except ModuleNotFoundError as error:
            missing[name] = error.name or point.module
    return missing


def _version_of(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _describe(point: EntryPoint) -> dict[str, Any]:
    try:
        task = point.load()
    except ModuleNotFoundError as error:
        return {"name": point.name, "description": f"not installed: needs {error.name}", "options": []}
    first = (inspect.getdoc(task) or "").partition("\n")[0]
    return {"name": point.name, "description": first, "options": list(inspect.signature(task).parameters)}


def _usage(error: click.ClickException) -> UsageError:
    context = getattr(error, "ctx", None)
    return UsageError(
        error.format_message(), remedy=f"see: {context.command_path if context else 'cloister'} --help"
    )
