"""``cloister rehearse``: a federation against every attack, under every rule that is to be compared."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cloister.core.errors import UsageError
from cloister.core.outcome import JsonOption, Outcome, SetOption, outcome
from cloister.simulation.options import WorkersOption

if TYPE_CHECKING:
    from cloister.server.events import Sink
    from cloister.simulation.sweep.grid import Grid, Point

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``rehearse`` to the command."""

    @app.command()
    def rehearse(  # noqa: PLR0917 - Typer reads a command's options from its arguments
        file: Annotated[
            Path | None,
            typer.Argument(metavar="[FILE]", help="The federation file (TOML).", show_default=False),
        ] = None,
        rules: Annotated[
            str | None,
            typer.Option(
                "--rules",
                metavar="R1; R2; …",
                help='The rules to compare, for example "mean; median; arc | nnm | trimmed-mean". Default: the file\'s.',
                show_default=False,
            ),
        ] = None,
        attacks: Annotated[
            str,
            typer.Option("--attacks", metavar="A1,A2,…", help="The attacks, or all that the task can bear."),
        ] = "all",
        seeds: Annotated[
            str | None,
            typer.Option(
                "--seeds",
                metavar="S1,S2,…",
                help="Run each with each of these seeds. Default: the file's.",
                show_default=False,
            ),
        ] = None,
        out: Annotated[Path, typer.Option("--out", help="Where the rehearsal's folder is made.")] = Path(
            "runs"
        ),
        resume: Annotated[
            Path | None,
            typer.Option(
                "--resume", metavar="FOLDER", help="Go on with an interrupted rehearsal.", show_default=False
            ),
        ] = None,
        settings: SetOption = None,
        workers: WorkersOption = None,
        json_output: JsonOption = False,
    ) -> None:
        """Run a federation against lying sites and report the worst case of each rule.

        As many sites lie as [attack] says, or else aggregation.byzantine. The liars know every honest update and the rule.
        """
        with outcome(json_output) as result:
            asked = (rules, seeds, settings)
            if resume is not None and (file is not None or attacks != "all" or any(one for one in asked)):
                raise UsageError(
                    "--resume goes on with a rehearsal as it was: nothing else goes with it but --workers",
                    remedy=f"cloister rehearse --resume {resume}",
                )
            if resume is None and file is None:
                raise UsageError(
                    "give a federation file, or --resume FOLDER",
                    remedy='for example: cloister rehearse FILE --rules "mean; arc | nnm | trimmed-mean"',
                )
            grid: Grid | None = None
            notes: list[str] = []
            if file is not None:
                from cloister.core.spec import read_document
                from cloister.simulation.rehearsal.planning import plan, read_attacks, read_rules
                from cloister.simulation.sweep.grid import read_seeds

                grid, notes = plan(
                    read_document(file),
                    base=file.resolve().parent,
                    settings=settings or [],
                    rules=read_rules(rules),
                    attacks=read_attacks(attacks),
                    seeds=read_seeds(seeds, {}),
                )
            _rehearse(result, grid, notes, out=out, resume=resume, workers=workers)


def _rehearse(
    result: Outcome,
    grid: Grid | None,
    notes: list[str],
    *,
    out: Path,
    resume: Path | None,
    workers: int | None,
) -> None:
    from cloister.core.files import write_whole
    from cloister.simulation.engines import make_engine
    from cloister.simulation.rehearsal.judging import judged
    from cloister.simulation.rehearsal.page import render_page, table_of
    from cloister.simulation.rehearsal.planning import ATTACK, RULE
    from cloister.simulation.sweep import running

    def started(folder: Path) -> None:
        result.on_interrupt = f"go on with: cloister rehearse --resume {folder}"

    @contextlib.contextmanager
    def watch(point: Point, number: int, of: int) -> Iterator[tuple[Sink, ...]]:
        text = f"run {number} of {of}: {point.values[RULE]} against {point.values[ATTACK]}, seed {point.seed}"
        result.progress.print(Text(text, style="bold"), soft_wrap=True)
        yield ()

    engine = make_engine("local", workers)
    if resume is not None:
        started(resume)
        made = running.resume(resume, engine=engine, watch=watch, past_stops=True)
        if {RULE, ATTACK} - made.figures["grid"]["over"].keys():
            raise UsageError(
                f"'{resume}' is a sweep and no rehearsal", remedy=f"cloister sweep --resume {resume}"
            )
    elif grid is not None:
        made = running.sweep(grid, out=out, engine=engine, watch=watch, on_start=started, past_stops=True)
    figures = judged(made.figures, notes)
    page = made.sweep / "rehearsal.html"
    write_whole(made.sweep / "rehearsal.json", json.dumps(figures, allow_nan=False, indent=1) + "\n")
    write_whole(page, render_page(figures))
    result.result = {"folder": str(made.sweep), "page": str(page), **figures}
    result.say(
        _table(table_of(figures)),
        "",
        *notes,
        f"page       {page}",
        f"rehearsal  {made.sweep}",
        "",
        f"Next: open {page} in a browser.",
    )


def _table(content: Any) -> Table:
    table = Table(title=None, box=None, pad_edge=False)
    for place, name in enumerate(content.columns):
        table.add_column(Text(name), justify="left" if place == 0 else "right")
    for row in content.rows:
        table.add_row(Text(row.head), *(Text(cell) for cell in row.cells), end_section=row.kind == "rest")
    return table
