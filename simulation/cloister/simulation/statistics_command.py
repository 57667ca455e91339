"""``cloister statistics``: what the records of a federation look like, counted together under differential privacy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cloister.core.errors import UsageError
from cloister.core.outcome import JsonOption, Outcome, SetOption, outcome, visible
from cloister.simulation.options import EngineOption, LedgersOption, NoLedgersOption, WorkersOption

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``statistics`` to the command."""

    @app.command()
    def statistics(  # noqa: PLR0917 - Typer reads a command's options from its arguments
        file: Annotated[
            Path | None,
            typer.Argument(
                metavar="[FILE]",
                help="The federation file whose records are asked about.",
                show_default=False,
            ),
        ] = None,
        columns: Annotated[
            str,
            typer.Option(
                "--columns",
                metavar="NAMES",
                help="Comma-separated columns of the schema; 'target' counts the classes. Default: all.",
            ),
        ] = "",
        epsilon: Annotated[
            float | None,
            typer.Option("--epsilon", help="ε of the answer, for each record.", show_default=False),
        ] = None,
        delta: Annotated[
            float | None,
            typer.Option(
                "--delta", help="δ of the answer. Default: the file's, or 1e-6.", show_default=False
            ),
        ] = None,
        bins: Annotated[
            int, typer.Option("--bins", min=2, max=1024, help="Parts of a numeric column's public range.")
        ] = 32,
        most_records: Annotated[
            int, typer.Option("--most-records", min=1, help="A public number that no site's records exceed.")
        ] = 100_000,
        confidence: Annotated[
            float, typer.Option("--confidence", min=0.5, max=0.9999, help="Of each interval.")
        ] = 0.95,
        write: Annotated[
            Path | None,
            typer.Option(
                "--write",
                metavar="TOML",
                help="Write the question as a federation file and run nothing: for 'cloister check' and 'cloister job submit'.",
                show_default=False,
            ),
        ] = None,
        run: Annotated[
            Path | None,
            typer.Option(
                "--run",
                metavar="RUN",
                help="Show the answer of a finished run: a simulation's, or a downloaded job's.",
                show_default=False,
            ),
        ] = None,
        out: Annotated[Path, typer.Option("--out", help="Where the run folder is made.")] = Path("runs"),
        settings: SetOption = None,
        engine: EngineOption = "local",
        workers: WorkersOption = None,
        ledgers: LedgersOption = None,
        no_ledgers: NoLedgersOption = False,
        json_output: JsonOption = False,
    ) -> None:
        """Count the records of all sites together under differential privacy: histograms, categories, quantiles, with intervals."""
        with outcome(json_output) as result:
            if run is not None:
                _refuse_both(file, write, epsilon)
                _show(result, run, confidence)
                return
            from cloister.server.statistics.asking import question

            loaded = question(
                _loaded(file, settings or []),
                columns=[name.strip() for name in columns.split(",") if name.strip()],
                epsilon=_given(epsilon),
                delta=delta,
                bins=bins,
                most_records=most_records,
            )
            if write is not None:
                _write(result, loaded, write)
                return
            made = _simulate(
                result,
                loaded,
                out=out,
                engine=engine,
                workers=workers,
                ledgers=ledgers,
                no_ledgers=no_ledgers,
            )
            _show(result, made, confidence)


def _refuse_both(file: Path | None, write: Path | None, epsilon: float | None) -> None:
    if file is not None or write is not None or epsilon is not None:
        raise UsageError(
            "--run shows an answer that is there: it goes with no question",
            remedy="leave out FILE, --write and --epsilon",
        )


def _loaded(file: Path | None, settings: list[str]) -> Any:
    from cloister.core.spec import load_federation

    if file is None:
        raise UsageError(
            "give a federation file, or --run RUN",
            remedy="for example: cloister statistics examples/heart/federation.toml --columns age,chol --epsilon 1",
        )
    return load_federation(file, settings)


def _given(epsilon: float | None) -> float:
    if epsilon is None:
        raise UsageError("say what the answer may cost each record", remedy="for example --epsilon 0.5")
    return epsilon


def _write(result: Outcome, loaded: Any, path: Path) -> None:
    import tomli_w

    from cloister.core.files import write_whole

    write_whole(path, tomli_w.dumps(loaded.effective()))
    result.result = {"file": str(path), "digest": loaded.digest()}
    result.say(f"question  {path}", "", f"next: cloister check {path}, then cloister job submit {path}")


def _simulate(
    result: Outcome,
    loaded: Any,
    *,
    out: Path,
    engine: str,
    workers: int | None,
    ledgers: Path | None,
    no_ledgers: bool,
) -> Path:
    from cloister.server.progress import Progress
    from cloister.simulation.engines import make_engine
    from cloister.simulation.ledgers import keeps_ledgers
    from cloister.simulation.simulate import simulate

    if ledgers is not None and no_ledgers:
        raise UsageError("give --ledgers DIR or --no-ledgers, not both", remedy="leave one of them out")
    if ledgers is None and not no_ledgers and keeps_ledgers(loaded.spec):
        ledgers = out / "ledgers"
    progress = Progress(console=result.progress)
    try:
        made = simulate(
            loaded, out=out, engine=make_engine(engine, workers), sinks=(progress,), ledgers=ledgers
        )
    finally:
        progress.close()
    return made.run


def _show(result: Outcome, run: Path, confidence: float) -> None:
    from cloister.server.statistics.answering import answer, write_answer

    found = answer(run, confidence=confidence)
    paths = write_answer(found, run)
    result.result = found | paths
    table = Table(box=None, pad_edge=False)
    for head, justify in (
        ("column", "left"),
        ("quantile", "right"),
        ("about", "right"),
        (f"{confidence:.0%} interval", "right"),
    ):
        table.add_column(head, justify=justify)  # type: ignore[arg-type]
    for column in found["columns"]:
        for one in column.get("quantiles") or ():
            table.add_row(
                visible(column["name"]),
                f"{one['share']:.0%}",
                f"{one['value']:.4g}",
                f"{one['low']:.4g} to {one['high']:.4g}",
            )
    records, privacy = found["records"], found["privacy"]
    result.say(
        f"{round(records['value']):,} records ({round(records['low']):,} to {round(records['high']):,}) at {found['sites']} sites, for ε = {privacy['epsilon']:.3g}, "
        f"δ = {privacy['delta']:g}; each count is off by about ± {found['noise_std']:.3g}",
        "",
        table if table.row_count else "",
        f"page     {paths['page']}",
        f"figures  {paths['figures']}",
    )
