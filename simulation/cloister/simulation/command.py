"""``cloister simulate``: a federation file in, a run folder out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from cloister.core.errors import PeersMissing, UsageError
from cloister.core.outcome import JsonOption, Outcome, SetOption, outcome
from cloister.simulation.options import EngineOption, LedgersOption, NoLedgersOption, WorkersOption

__all__ = ["register"]


def register(app: typer.Typer) -> None:
    """Add ``simulate`` to the command."""

    @app.command()
    def simulate(  # noqa: PLR0917 - Typer reads a command's options from its arguments
        file: Annotated[
            Path | None,
            typer.Argument(metavar="[FILE]", help="The federation file (TOML).", show_default=False),
        ] = None,
        out: Annotated[Path, typer.Option("--out", help="Where the run folder is made.")] = Path("runs"),
        resume: Annotated[
            Path | None,
            typer.Option(
                "--resume", metavar="RUN", help="Go on with an interrupted run's folder.", show_default=False
            ),
        ] = None,
        settings: SetOption = None,
        engine: EngineOption = "local",
        workers: WorkersOption = None,
        ledgers: LedgersOption = None,
        no_ledgers: NoLedgersOption = False,
        json_output: JsonOption = False,
    ) -> None:
        """Train a federation on this machine and write a run folder with model and report."""
        with outcome(json_output) as result:
            _simulate(
                result,
                file,
                out=out,
                resume=resume,
                settings=settings or [],
                engine=engine,
                workers=workers,
                ledgers=ledgers,
                no_ledgers=no_ledgers,
            )


def _simulate(
    result: Outcome,
    file: Path | None,
    *,
    out: Path,
    resume: Path | None,
    settings: list[str],
    engine: str,
    workers: int | None,
    ledgers: Path | None,
    no_ledgers: bool,
) -> None:
    _refuse_contradictions(file, resume=resume, settings=settings, ledgers=ledgers, no_ledgers=no_ledgers)
    from cloister.core.spec import load_federation
    from cloister.server.progress import Progress
    from cloister.simulation import simulate as simulation
    from cloister.simulation.engines import make_engine
    from cloister.simulation.ledgers import keeps_ledgers

    carrier = make_engine(engine, workers)
    progress = Progress(console=result.progress)

    def started(run: Path) -> None:
        result.on_interrupt = f"go on with: cloister simulate --resume {run}"

    try:
        if resume is not None:
            started(resume)
            made = simulation.resume(resume, engine=carrier, sinks=(progress,))
        else:
            loaded = load_federation(_given(file), settings)
            if ledgers is not None and loaded.spec.privacy.unit == "none":
                raise UsageError(
                    "--ledgers with a file that promises no differential privacy: nothing bounds what it costs",
                    remedy="add a [privacy] table, or leave --ledgers out",
                )
            if ledgers is None and not no_ledgers and keeps_ledgers(loaded.spec):
                ledgers = out / "ledgers"
            made = simulation.simulate(
                loaded, out=out, engine=carrier, sinks=(progress,), on_start=started, ledgers=ledgers
            )
    except PeersMissing as error:
        raise PeersMissing(
            error.message, remedy=f"bring the sites back, then {result.on_interrupt}", code=error.code
        ) from None
    finally:
        progress.close()
    figures = made.figures
    result.result = {
        "run": str(made.run),
        "report": str(made.report),
        "model": str(made.model),
        "metrics": figures["metrics"],
        "privacy": figures["privacy"],
    }
    result.say(
        _table(figures),
        "",
        f"report  {made.report}",
        f"model   {made.model}",
        f"run     {made.run}",
        "",
        f"Next: open {made.report} in a browser.",
    )


def _refuse_contradictions(
    file: Path | None, *, resume: Path | None, settings: list[str], ledgers: Path | None, no_ledgers: bool
) -> None:
    if resume is None and file is None:
        raise UsageError(
            "give a federation file, or --resume RUN",
            remedy="for example: cloister simulate examples/heart/federation.toml",
        )
    if resume is not None and settings:
        raise UsageError(
            "--set does not go with --resume: a run goes on with the file that it began with",
            remedy="start a new run with --set",
        )
    if resume is not None and file is not None:
        raise UsageError(
            "give a federation file or --resume RUN, not both",
            remedy="a run goes on with the file in its own folder",
        )
    if resume is not None and (ledgers is not None or no_ledgers):
        raise UsageError(
            "--ledgers and --no-ledgers do not go with --resume: a run goes on with the ledgers that it began with",
            remedy="start a new run with them",
        )
    if ledgers is not None and no_ledgers:
        raise UsageError("give --ledgers DIR or --no-ledgers, not both", remedy="leave one of them out")


def _given(file: Path | None) -> Path:
    if file is None:
        raise UsageError("give a federation file")
    return file


def _table(figures: dict[str, Any]) -> Table:
    """Show the last figures side by side: the federation, its sites, and what it is compared with."""
    metrics = figures["metrics"]
    series = {
        "federated, pooled test records": metrics["central"],
        "federated, mean of the sites": metrics["sites_mean"],
        "trained on the pooled records": metrics["baselines"]["pooled"],
        **{f"{name} alone": found for name, found in metrics["baselines"]["local"].items()},
    }
    rows = {label: found["last"] for label, found in series.items() if found}
    names = [
        name
        for name in ("accuracy", "f1", "auroc", "r2", "mae", "loss")
        if any(name in row for row in rows.values())
    ]
    table = Table(title=None, box=None, pad_edge=False)
    table.add_column("")
    for name in names:
        table.add_column(name, justify="right")
    for label, row in rows.items():
        table.add_row(
            label, *(f"{row[name]:.3f}" if isinstance(row.get(name), float) else "–" for name in names)
        )
    return table
