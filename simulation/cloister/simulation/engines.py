"""Engines: what carries messages between the ServerApp and the ClientApps of a simulation.

Every engine runs the same two apps from the same federation file. `LocalEngine` is the default; `cloister.simulation.ray_engine`
is Flower's own, for more machines.
"""

from __future__ import annotations

import importlib.util
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from functools import partial
from typing import Protocol

from flwr.app import ArrayRecord, Context, RecordDict
from flwr.serverapp import Grid

from cloister.client.app import make_client_app
from cloister.core.errors import IntegrityError, UsageError
from cloister.core.update import Vector
from cloister.server.app import make_server_app
from cloister.server.checkpoints import Arrays
from cloister.server.conduct import Opened
from cloister.server.directory import ComputedDirectory
from cloister.server.grouping import placed_groups
from cloister.server.plan import RunPlan, SiteMemory
from cloister.simulation.attacks.grid import AttackedGrid, LiarsMemory
from cloister.simulation.live_array import LiveArray
from cloister.simulation.local_grid import LocalGrid, client_runner
from cloister.simulation.sites import POSITION, SimulatedSites
from cloister.simulation.workers import Inline, Runner, WorkerPool

__all__ = ["Engine", "LocalEngine", "make_engine"]

#: The name of an array that a site keeps: node, record, key.
_KEPT = re.compile(r"([1-9][0-9]{0,17})\.([^.]+)\.(.+)", re.ASCII | re.DOTALL)


class Engine(Protocol):
    """Carries messages between the apps.

    Attributes:
        name: as ``--engine`` names it.
        workers: how many processes train at a time.
    """

    name: str
    workers: int

    def open(self, sites: SimulatedSites) -> AbstractContextManager[Opened]:
        """Start the workers; they stop when the context ends."""
        ...


def make_engine(name: str, workers: int | None) -> Engine:
    """Return the engine ``name`` with one worker a core unless ``workers`` says otherwise.

    Raises:
        UsageError: an unknown name, a negative number, or an engine whose extra is not installed.
    """
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers is not None and workers < 0:
        raise UsageError(f"--workers {workers} is negative", remedy="give 0 (no worker process) or more")
    count = count if workers is None else workers
    if name == "local":
        return LocalEngine(count)
    if name == "ray":
        if importlib.util.find_spec("ray") is None:
            raise UsageError(
                "--engine ray needs Ray, which is not installed",
                remedy="pip install 'cloister[ray]', or use --engine local",
            )
        from cloister.simulation.ray_engine import RayEngine

        return RayEngine(max(count, 1))
    raise UsageError(f"there is no engine '{name}'", remedy="use local or ray")


def _runner(sites: SimulatedSites) -> Runner:
    return client_runner(make_client_app(sites, make_array=LiveArray))


class LocalEngine:
    """In process: a Flower grid of our own over single-threaded worker processes (0: in this very process)."""

    name = "local"

    def __init__(self, workers: int, *, method: str | None = None) -> None:
        """Take the number of workers, and how they start (`WorkerPool` chooses when that is left out)."""
        self.workers = workers
        self._method = method

    @contextmanager
    def open(self, sites: SimulatedSites) -> Iterator[Opened]:
        """Start the workers; they stop when the context ends."""
        size = len(sites.roster)  # built before the fork, so that the workers share it
        make_runner = partial(_runner, sites)
        workers = (
            WorkerPool(make_runner, self.workers, method=self._method)
            if self.workers
            else Inline(make_runner)
        )
        grid = LocalGrid(
            nodes=size, node_config=lambda node: {POSITION: node - 1, "num-partitions": size}, workers=workers
        )
        try:
            yield _OpenedLocal(grid, sites)
        finally:
            grid.close()


class _OpenedLocal:
    def __init__(self, grid: LocalGrid, sites: SimulatedSites) -> None:
        self._grid = grid
        self._sites = sites

    def run(self, plan: RunPlan) -> Vector:
        models: list[Vector] = []
        roster = self._sites.roster
        directory = ComputedDirectory(size=len(roster), name_of=roster.name)
        memory: SiteMemory = _GridMemory(self._grid)
        grid: Grid = self._grid
        attack, liars = self._sites.spec.attack, self._sites.liars
        if attack is not None and liars:
            nodes = frozenset(position + 1 for position in liars)
            groups = [[position + 1 for position in of] for of in placed_groups(plan, directory) or ()]
            lying = AttackedGrid(grid, self._sites.spec, attack, nodes, self._sites.randomness, groups=groups)
            grid, memory = lying, LiarsMemory(memory, lying)
        plan = replace(plan, memory=memory, make_array=LiveArray)
        app = make_server_app(plan, lambda _: directory, models.append)
        app(
            grid=grid,
            context=Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config={}),
        )
        return models[0]


class _GridMemory:
    """What virtual sites keep (SCAFFOLD's controls), for checkpoints."""

    def __init__(self, grid: LocalGrid) -> None:
        self._grid = grid

    def arrays(self) -> Arrays:
        return {
            f"{node}.{record}.{key}": array.numpy()
            for node, state in self._grid.states.items()
            for record, arrays in state.array_records.items()
            for key, array in arrays.items()
        }

    def restore(self, arrays: Arrays) -> None:
        nodes = self._grid.get_node_ids()
        for name, array in arrays.items():
            match = _KEPT.fullmatch(name)
            if match is None or int(match[1]) not in nodes:
                raise IntegrityError(
                    f"the checkpoint's array 'site.{name}' belongs to no site of this run",
                    remedy="remove that checkpoint: the one before it is used then",
                    code="checkpoint-unreadable",
                )
            state = self._grid.states.setdefault(int(match[1]), RecordDict())
            state.setdefault(match[2], ArrayRecord())
            state.array_records[match[2]][match[3]] = LiveArray(array)
