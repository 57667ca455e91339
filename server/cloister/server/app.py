"""The coordinator as a Flower ServerApp: the same one in every engine."""

from __future__ import annotations

from collections.abc import Callable

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from cloister.core.update import Vector
from cloister.server.coordinator import Coordinator
from cloister.server.directory import Directory
from cloister.server.plan import RunPlan

__all__ = ["make_server_app"]


def make_server_app(
    plan: RunPlan, find_sites: Callable[[Grid], Directory], done: Callable[[Vector], None]
) -> ServerApp:
    """Return the ServerApp of one run.

    Args:
        plan: all that the run needs.
        find_sites: gives the sites that a grid reaches.
        done: takes the model when the rounds are over.
    """
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        done(Coordinator(plan, grid, find_sites(grid)).run())

    return app
