"""A grid for the tests of sweeps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloister.core.spec import read_document
from cloister.simulation.sweep.grid import Grid, read_over, read_seeds

__all__ = ["PRIVATE", "grid_of"]

PRIVATE: dict[str, dict[str, Any]] = {
    "federation": {"rounds": 4},
    "training": {"local_steps": 3},
    "privacy": {"unit": "record", "noise_multiplier": 1.1, "delta": 1e-4, "clip": 0.5, "sampling_rate": 0.2},
}


def grid_of(
    path: Path,
    *over: str,
    seeds: str | None = None,
    reference: bool = False,
    settings: tuple[str, ...] = (),
) -> Grid:
    swept = read_over(over)
    return Grid(
        document=read_document(path),
        base=path.resolve().parent,
        settings=settings,
        over=swept,
        seeds=read_seeds(seeds, swept),
        reference=reference,
    )
