"""Run the points of a sweep, one after the other, each as `cloister simulate` would.

Formal guarantees:

- Every point is checked before the first one trains: a value that cannot run is refused while nothing has been made.
- A sweep that is killed at any moment goes on to the figures of an unbroken one, but for times: a finished run is read and not run
  again, a run that was begun is resumed by the simulation's own resume, and the others are run.
- A sweep goes on only with the data, code and versions that it began with.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.core.errors import CloisterError, IntegrityError, PeersMissing
from cloister.core.files import write_whole
from cloister.server.events import Sink
from cloister.simulation import simulate as simulation
from cloister.simulation.engines import Engine
from cloister.simulation.sweep.figures import Finished, finished, sweep_figures
from cloister.simulation.sweep.folder import SweepFolder
from cloister.simulation.sweep.grid import Grid, Point, about
from cloister.simulation.sweep.page import render_page

__all__ = ["SweepResult", "Watch", "resume", "sweep"]

#: Called for each point that is about to run, with its number and how many there are; gives who is told of the run's events.
Watch = Callable[[Point, int, int], AbstractContextManager[tuple[Sink, ...]]]


@dataclass(frozen=True, kw_only=True)
class SweepResult:
    """What a sweep made: its folder, its page and the figures of ``sweep.json``."""

    sweep: Path
    page: Path
    figures: dict[str, Any]


def _unwatched(_: Point, _number: int, _of: int) -> AbstractContextManager[tuple[Sink, ...]]:
    return contextlib.nullcontext(())


def sweep(
    grid: Grid,
    *,
    out: Path,
    engine: Engine,
    watch: Watch = _unwatched,
    on_start: Callable[[Path], None] = lambda _: None,
    ledgers: Path | None = None,
    past_stops: bool = False,
) -> SweepResult:
    """Check every point of ``grid``, then run them.

    Args:
        grid: what to run.
        out: where the sweep folder is made.
        engine: what carries the messages of each run.
        watch: who is told of the runs' events.
        on_start: told of the sweep folder as soon as it is there.
        ledgers: the folder in which the sites of private runs keep their ledgers; ``None``: they keep none.
        past_stops: go on after a run whose rounds stopped counting (`PeersMissing`): what lying sites can bring about.

    Raises:
        CloisterError: whatever refused the grid, a point or a run.
    """
    points = grid.points()
    prints = {point.name: _checked(point) for point in points}
    folder = SweepFolder.create(out, grid, points, prints=prints, ledgers=ledgers)
    try:
        on_start(folder.path)
        return _run(folder, engine, watch, past_stops=past_stops)
    finally:
        folder.close()


def resume(
    path: Path,
    *,
    engine: Engine,
    grid: Grid | None = None,
    watch: Watch = _unwatched,
    past_stops: bool = False,
) -> SweepResult:
    """Go on with a sweep that was broken off.

    Args:
        path: its folder.
        engine: what carries the messages of each run.
        grid: where given, the sweep must be of this grid.
        watch: who is told of the runs' events.
        past_stops: as in `sweep`.

    Raises:
        IntegrityError: the folder does not hold, is of another grid, or data, code or versions have changed since it began.
        CloisterError: whatever else refused it.
    """
    folder = SweepFolder.reopen(path)
    try:
        if grid is not None:
            _same_grid(folder, grid)
        for point in folder.points:
            if _checked(point) != folder.fingerprints[point.name]:
                raise IntegrityError(
                    f"at the point {point.text}: the data, the task's code or a version is not what the sweep '{path}' began with",
                    remedy="bring them back, or start a new sweep",
                    code="sweep-differs",
                )
        return _run(folder, engine, watch, past_stops=past_stops)
    finally:
        folder.close()


def _checked(point: Point) -> str:
    with about(point.text):
        return simulation.check(point.loaded)


def _same_grid(folder: SweepFolder, grid: Grid) -> None:
    def runs(points: tuple[Point, ...] | list[Point]) -> list[tuple[str, bool, Path]]:
        return [(point.loaded.digest(), point.reference, point.loaded.base) for point in points]

    if runs(folder.points) != runs(grid.points()):
        raise IntegrityError(
            f"the sweep '{folder.path}' is of another federation file or another grid",
            remedy="leave FILE and --over out to go on with the sweep as it was, or start a new one without --resume",
            code="sweep-differs",
        )


def _run(folder: SweepFolder, engine: Engine, watch: Watch, *, past_stops: bool) -> SweepResult:
    found: dict[str, Finished] = {}
    stopped: dict[str, str] = {}
    try:
        for number, point in enumerate(folder.points, start=1):
            run = folder.run_of(point)
            one = finished(folder, point, run) if run is not None else None
            if one is None:
                try:
                    with watch(point, number, len(folder.points)) as sinks, about(point.text):
                        one = _run_point(folder, point, run, engine, sinks)
                except PeersMissing as error:
                    if not past_stops:
                        raise
                    stopped[point.name] = error.message
                    continue
            found[point.name] = one
            folder.save(sweep_figures(folder, found, compose=False))
    except BaseException:
        with contextlib.suppress(CloisterError, OSError):
            _publish(folder, found, {})  # what there is so far
        raise
    return SweepResult(sweep=folder.path, page=folder.html, figures=_publish(folder, found, stopped))


def _run_point(
    folder: SweepFolder, point: Point, run: Path | None, engine: Engine, sinks: tuple[Sink, ...]
) -> Finished:
    if run is not None:
        made = simulation.resume(run, engine=engine, sinks=sinks)
    else:
        made = simulation.simulate(
            point.loaded, out=folder.place(point), engine=engine, sinks=sinks, ledgers=folder.ledgers
        )
    one = finished(folder, point, made.run)
    if one is None:
        raise CloisterError(f"the run '{made.run}' came back and is not done")
    return one


def _publish(
    folder: SweepFolder, found: Mapping[str, Finished], stopped: Mapping[str, str]
) -> dict[str, Any]:
    figures = folder.save(sweep_figures(folder, found, stopped=stopped))
    write_whole(folder.html, render_page(figures))
    return figures
