"""The sweep folder: which runs a sweep is made of, and where each of them lies.

======================  =============================================================================================
in the folder           is
======================  =============================================================================================
``sweep.json``          the grid, each point's digest and figures; written whole, before the first run and after each
``sweep.html``          the page, once there is something to show
``points/NNN/<run>/``   the run folder of point NNN, as `cloister simulate` makes it
======================  =============================================================================================

The grid in ``sweep.json`` is enough to make every point's federation file again; a digest that has changed since is refused.
A run folder that a kill left without its federation file holds nothing and is removed when the sweep goes on.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.core.errors import CloisterError, IntegrityError, StorageError, UsageError
from cloister.core.files import sweep as sweep_up
from cloister.core.files import write_whole
from cloister.core.spec import load_federation
from cloister.server.run_folder import lock_folder, new_folder
from cloister.simulation.sweep.grid import Grid, Point

__all__ = ["FORMAT", "SweepFolder"]

#: Version of ``sweep.json``; it grows when a key changes its meaning.
FORMAT = 1

_WHOLE = re.compile(r"sweep\.(json|html)")


@dataclass(frozen=True, kw_only=True)
class SweepFolder:
    """One sweep's folder, locked against a second writer while it is open.

    Attributes:
        path: the folder.
        lock: the descriptor that holds the lock.
        grid: what the sweep is made of.
        points: its runs, in their order.
        fingerprints: by point, what its run computes with (data, code and versions).
        ledgers: where the sites of its private runs keep their ledgers; ``None``: they keep none.
    """

    path: Path
    lock: int
    grid: Grid
    points: tuple[Point, ...]
    fingerprints: Mapping[str, str]
    ledgers: Path | None

    @classmethod
    def create(
        cls,
        parent: Path,
        grid: Grid,
        points: list[Point],
        *,
        prints: Mapping[str, str],
        ledgers: Path | None,
    ) -> SweepFolder:
        """Make a new folder ``<name>-sweep-<time>`` under ``parent`` for points that were all checked.

        Raises:
            UsageError: the folder cannot be made there.
            StorageError: the disk is full or refuses.
        """
        path = new_folder(parent, f"{points[0].loaded.spec.federation.name}-sweep", "a sweep folder")
        folder = cls(
            path=path,
            lock=lock_folder(path, "sweep"),
            grid=grid,
            points=tuple(points),
            fingerprints=dict(prints),
            ledgers=ledgers.absolute() if ledgers is not None else None,
        )
        try:
            (path / "points").mkdir()
            folder.save({})  # last: a folder with this file is a sweep that can be resumed
        except OSError as error:
            folder.close()
            raise error if isinstance(error, StorageError) else StorageError.of(path, error) from None
        return folder

    @classmethod
    def reopen(cls, path: Path) -> SweepFolder:
        """Open a sweep's folder again to go on with it; what a killed write left behind is removed.

        Raises:
            UsageError: it is not a sweep's folder, or it cannot be written to.
            IntegrityError: another process is writing to it, or ``sweep.json`` does not hold.
        """
        if not (path / "sweep.json").is_file():
            raise UsageError(
                f"'{path}' is not a sweep that can be resumed: it has no sweep.json",
                remedy="name a folder that cloister sweep made; one that was stopped before its first run begins anew",
            )
        lock = lock_folder(path, "sweep")
        try:
            grid, points, kept = _read(path / "sweep.json")
            listed, ledgers = kept["points"], kept["ledgers"]
        except BaseException:
            os.close(lock)
            raise
        folder = cls(
            path=path,
            lock=lock,
            grid=grid,
            points=tuple(points),
            fingerprints={one["name"]: str(one["fingerprint"]) for one in listed},
            ledgers=Path(ledgers) if ledgers is not None else None,
        )
        sweep_up(path, _WHOLE)
        return folder

    @property
    def json(self) -> Path:
        """The figures for machines."""
        return self.path / "sweep.json"

    @property
    def html(self) -> Path:
        """The page for people."""
        return self.path / "sweep.html"

    def place(self, point: Point) -> Path:
        """Return the folder that the run folder of ``point`` lies in."""
        return self.path / "points" / point.name

    def run_of(self, point: Point) -> Path | None:
        """Return the run folder of ``point``, finished or not; ``None`` where there is none. What is no run is removed.

        Raises:
            IntegrityError: the run there is of another federation file, or there are several.
            StorageError: a folder cannot be removed.
        """
        runs = []
        for path in sorted(self.place(point).glob("*/")):
            if (path / "federation.toml").is_file() and (path / "base.txt").is_file():
                runs.append(path)
                continue
            try:
                shutil.rmtree(path)
            except OSError as error:
                raise StorageError.of(path, error) from None
        if len(runs) > 1:
            raise _refused(f"'{self.place(point)}' holds {len(runs)} runs of one point")
        if runs and load_federation(runs[0] / "federation.toml").digest() != point.loaded.digest():
            raise _refused(f"'{runs[0]}' is a run of another federation file than the point {point.text}")
        return runs[0] if runs else None

    def save(self, figures: Mapping[str, Any]) -> dict[str, Any]:
        """Write ``sweep.json`` whole and return what it holds.

        Args:
            figures: what the sweep has come to: `cloister.simulation.sweep.figures.sweep_figures`, or nothing yet.
        """
        found = figures.get("points", {})
        points = [
            {
                "name": point.name,
                "reference": point.reference,
                "values": dict(point.values),
                "seed": point.seed,
                "digest": point.loaded.digest(),
                "fingerprint": self.fingerprints[point.name],
                **found.get(point.name, {"done": False}),
            }
            for point in self.points
        ]
        whole = {
            "format": FORMAT,
            "sweep": self.path.name,
            "name": self.points[0].loaded.spec.federation.name,
            "grid": self.grid.as_dict(),
            "ledgers": str(self.ledgers) if self.ledgers is not None else None,
            "done": False,
            **figures,
            "points": points,
        }
        write_whole(self.json, json.dumps(whole, allow_nan=False, indent=1) + "\n")
        return whole

    def close(self) -> None:
        """Let another process write here."""
        os.close(self.lock)


def _read(path: Path) -> tuple[Grid, list[Point], dict[str, Any]]:
    """Read ``sweep.json`` and make its points again; they must be the federations that they were."""
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))
        version, grid, listed = kept["format"], Grid.from_dict(kept["grid"]), list(kept["points"])
        digests = [(str(one["name"]), str(one["digest"])) for one in listed]
        [one["fingerprint"] for one in listed]
        if not isinstance(kept["ledgers"], str | None):
            raise TypeError  # noqa: TRY301 - told with the others below
    except OSError as error:
        raise _refused(f"cannot read '{path}': {error.strerror}") from None
    except (KeyError, TypeError, ValueError, AttributeError):
        raise _refused(f"'{path}' is not what cloister sweep wrote") from None
    if version != FORMAT:
        raise _refused(f"'{path}' has format {version}, and this version reads format {FORMAT}")
    try:
        points = grid.points()
    except CloisterError as error:
        raise _refused(f"the grid in '{path}' is refused: {error.message}") from None
    if [(point.name, point.loaded.digest()) for point in points] != digests:
        raise _refused(
            f"the grid in '{path}' does not give the federation files that the sweep began with: "
            "it was changed, or another version of cloister fills in other defaults"
        )
    return grid, points, kept


def _refused(message: str) -> IntegrityError:
    return IntegrityError(message, remedy="restore the folder, or start a new sweep", code="sweep-folder")
