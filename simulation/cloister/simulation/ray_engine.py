"""Flower's own simulation engine on Ray: for more cores or machines than one process should own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

from flwr.app import ConfigRecord
from flwr.serverapp import Grid

from cloister.client.app import make_client_app
from cloister.core import protocol
from cloister.core.errors import SpecError
from cloister.core.update import Vector
from cloister.server.app import make_server_app
from cloister.server.conduct import Opened
from cloister.server.directory import Directory, discover
from cloister.server.plan import RunPlan
from cloister.simulation.sites import SimulatedSites

__all__ = ["RayEngine"]


class RayEngine:
    """Flower's engine: each site is a Ray task, taken by one of ``workers`` actors with one core each."""

    name = "ray"

    def __init__(self, workers: int) -> None:
        self.workers = workers

    @contextmanager
    def open(self, sites: SimulatedSites) -> Iterator[Opened]:
        """Nothing to do before the run: Flower starts and stops Ray by itself.

        Raises:
            SpecError: the file has an ``[attack]``.
        """
        if sites.liars:
            raise SpecError(
                "an [attack] runs with --engine local only: liars see the honest updates of their round",
                remedy="use --engine local, or remove [attack]",
                code="attack",
            )
        yield _OpenedRay(self.workers, sites)


class _OpenedRay:
    def __init__(self, workers: int, sites: SimulatedSites) -> None:
        self._workers = workers
        self._sites = sites

    def run(self, plan: RunPlan) -> Vector:
        """Run a plan to its end and return the model.

        Raises:
            SpecError: a SCAFFOLD run is resumed.
        """
        if plan.resume is not None and plan.loaded.spec.training.scaffold:
            raise SpecError(
                "a SCAFFOLD run cannot be resumed with --engine ray: Flower keeps the sites' controls in memory only",
                remedy="resume with --engine local",
                code="ray-resume",
            )
        from flwr.simulation import run_simulation

        models: list[Vector] = []
        roster = self._sites.roster
        names = [roster.name(position) for position in range(len(roster))]
        job = ConfigRecord(
            {
                "protocol": protocol.PROTOCOL,
                "run": plan.run,
                "round": 0,
                "federation": self._sites.federation,
                "layout": plan.layout.digest,
            }
        )

        def find_sites(grid: Grid) -> Directory:
            return discover(
                grid, expected=len(names), wait_s=plan.loaded.spec.cohort.wait_s, job=job, names=names
            )

        logging.getLogger("flwr").setLevel(logging.ERROR)
        run_simulation(
            server_app=make_server_app(plan, find_sites, models.append),
            client_app=make_client_app(self._sites),
            num_supernodes=len(names),
            backend_config={
                "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
                "init_args": {"num_cpus": self._workers, "include_dashboard": False},
            },
        )
        return models[0]
