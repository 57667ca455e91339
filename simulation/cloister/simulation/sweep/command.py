"""``cloister sweep``: a federation file and a grid in, a sweep folder with a run folder for each point out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from cloister.core.errors import PeersMissing, SpecError, UsageError
from cloister.core.outcome import JsonOption, Outcome, SetOption, outcome
from cloister.simulation.options import EngineOption, LedgersOption, NoLedgersOption, WorkersOption

if TYPE_CHECKING:
    from cloister.server.events import Sink
    from cloister.simulation.sweep.grid import Grid, Point

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``sweep`` to the command."""

    @app.command()
    def sweep(  # noqa: PLR0917 - Typer reads a command's options from its arguments
        file: Annotated[
            Path | None,
            typer.Argument(metavar="[FILE]", help="The federation file (TOML).", show_default=False),
        ] = None,
        over: Annotated[
            list[str] | None,
            typer.Option(
                "--over",
                metavar="KEY=V1,V2,…",
                help="Sweep a key over values, for example privacy.epsilon=1,2,4,8. Repeatable: the grid is the product.",
                show_default=False,
            ),
        ] = None,
        seeds: Annotated[
            str | None,
            typer.Option(
                "--seeds",
                metavar="S1,S2,…",
                help="Run each point with each of these seeds, for example 7,8,9. Default: the file's.",
                show_default=False,
            ),
        ] = None,
        reference: Annotated[
            bool,
            typer.Option("--reference", help="Also run the file without its [privacy], to compare with."),
        ] = False,
        out: Annotated[Path, typer.Option("--out", help="Where the sweep folder is made.")] = Path("runs"),
        resume: Annotated[
            Path | None,
            typer.Option(
                "--resume",
                metavar="SWEEP",
                help="Go on with an interrupted sweep's folder.",
                show_default=False,
            ),
        ] = None,
        settings: SetOption = None,
        engine: EngineOption = "local",
        workers: WorkersOption = None,
        ledgers: LedgersOption = None,
        no_ledgers: NoLedgersOption = False,
        json_output: JsonOption = False,
    ) -> None:
        """Run a federation file at every point of a grid and plot what came of it.

        Checks all points before the first one trains. What a sweep over private data costs each site, all points together, stands
        on its page.
        """
        with outcome(json_output) as result:
            asked = _Asked(file, tuple(over or ()), seeds, reference, tuple(settings or ()))
            if resume is not None and (ledgers is not None or no_ledgers):
                raise UsageError(
                    "--ledgers and --no-ledgers do not go with --resume: a sweep goes on with the ledgers that it began with",
                    remedy="start a new sweep with them",
                )
            if ledgers is not None and no_ledgers:
                raise UsageError(
                    "give --ledgers DIR or --no-ledgers, not both", remedy="leave one of them out"
                )
            grid = asked.grid(resuming=resume is not None)
            if grid is not None and ledgers is None and not no_ledgers and _keep_ledgers(grid):
                ledgers = out / "ledgers"
            _sweep(result, grid, out=out, resume=resume, engine=engine, workers=workers, ledgers=ledgers)


class _Asked:
    """The part of the command line that says which runs are meant."""

    def __init__(
        self,
        file: Path | None,
        over: tuple[str, ...],
        seeds: str | None,
        reference: bool,
        settings: tuple[str, ...],
    ) -> None:
        self.file, self.over, self.seeds, self.reference, self.settings = (
            file,
            over,
            seeds,
            reference,
            settings,
        )

    def grid(self, *, resuming: bool) -> Grid | None:
        """Return the grid; ``None`` where an interrupted sweep's own is meant.

        Raises:
            UsageError: something that belongs to a grid is missing.
            SpecError: the file or the grid is refused.
        """
        if self.file is None:
            if not resuming:
                raise UsageError(
                    "give a federation file, or --resume SWEEP",
                    remedy="for example: cloister sweep examples/heart/private.toml --over privacy.epsilon=1,2,4,8",
                )
            if self.over or self.seeds is not None or self.reference or self.settings:
                raise UsageError(
                    "--over, --seeds, --reference and --set need the federation file",
                    remedy="go on with the sweep as it was: cloister sweep --resume SWEEP",
                )
            return None
        if not self.over:
            raise UsageError(
                "give at least one --over KEY=V1,V2,…", remedy="for example: --over privacy.epsilon=1,2,4,8"
            )
        from cloister.core.spec import read_document
        from cloister.simulation.sweep.grid import Grid, read_over, read_seeds

        over = read_over(self.over)
        for setting in self.settings:
            if (key := setting.partition("=")[0].strip()) in over:
                raise SpecError(
                    f"--set and --over both set '{key}'", remedy="give it in --over only", code="over"
                )
        return Grid(
            document=read_document(self.file),
            base=self.file.resolve().parent,
            settings=self.settings,
            over=over,
            seeds=read_seeds(self.seeds, over),
            reference=self.reference,
        )


def _keep_ledgers(grid: Grid) -> bool:
    """Whether every private point keeps ledgers without being told to."""
    from cloister.simulation.ledgers import keeps_ledgers

    specs = [point.loaded.spec for point in grid.points()]
    private = [spec for spec in specs if spec.privacy.unit != "none"]
    return bool(private) and all(keeps_ledgers(spec) for spec in private)


def _sweep(
    result: Outcome,
    grid: Grid | None,
    *,
    out: Path,
    resume: Path | None,
    engine: str,
    workers: int | None,
    ledgers: Path | None,
) -> None:
    from cloister.simulation.engines import make_engine
    from cloister.simulation.sweep import running

    carrier = make_engine(engine, workers)

    def started(sweep: Path) -> None:
        result.on_interrupt = f"go on with: cloister sweep --resume {sweep}"

    @contextlib.contextmanager
    def watch(point: Point, number: int, of: int) -> Iterator[tuple[Sink, ...]]:
        from cloister.server.progress import Progress

        result.progress.print(Text(f"point {number} of {of}: {point.text}", style="bold"), soft_wrap=True)
        progress = Progress(console=result.progress)
        try:
            yield (progress,)
        finally:
            progress.close()

    try:
        if resume is not None:
            started(resume)
            made = running.resume(resume, engine=carrier, grid=grid, watch=watch)
        elif grid is not None:
            made = running.sweep(
                grid, out=out, engine=carrier, watch=watch, on_start=started, ledgers=ledgers
            )
    except PeersMissing as error:
        raise PeersMissing(
            error.message, remedy=f"bring the sites back, then {result.on_interrupt}", code=error.code
        ) from None
    figures = made.figures
    result.result = {"folder": str(made.sweep), "page": str(made.page), **figures}
    result.say(
        _table(figures),
        "",
        *_costs(figures),
        f"page   {made.page}",
        f"sweep  {made.sweep}",
        "",
        f"Next: open {made.page} in a browser.",
    )


def _table(figures: Mapping[str, Any]) -> Table:
    """Show what each point scored over its seeds."""
    from cloister.server.report.words import metric_label, metric_text, number
    from cloister.simulation.sweep.page import values_text

    metric = figures["metric"]
    table = Table(title=None, box=None, pad_edge=False)
    table.add_column("")
    for name in (metric_label(metric), "lowest", "highest", "ε spent", "runs"):
        table.add_column(name, justify="right")
    for one in figures["values"]:
        spread, epsilon = one[metric] or {}, one["epsilon"] or {}
        table.add_row(
            Text(values_text(one)),
            metric_text(metric, spread.get("mean")),
            metric_text(metric, spread.get("lowest")),
            metric_text(metric, spread.get("highest")),
            number(epsilon.get("highest")),
            str(spread.get("n", 0)),
        )
    return table


def _costs(figures: Mapping[str, Any]) -> list[str]:
    """Say what all points cost together."""
    if not figures["composes"]:
        return []
    from cloister.simulation.sweep.page import composed_text

    return [figures["composes"], *(composed_text(one) for one in figures["composed"]), ""]
