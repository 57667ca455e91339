"""Workload W with differential privacy as a user of Flower and Opacus writes it, on Flower's Ray engine.

The server is Flower's `FedAvg`; the client is in ``opacus_client.py``, a module that Ray's actors can import.
"""

from __future__ import annotations

import argparse
import logging
import os
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from flwr.app import ArrayRecord, Context, MetricRecord, RecordDict
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from measuring import cores
from opacus_client import client_app
from plain_w import (
    CLIENTS,
    COHORT,
    PARAMETERS,
    PlainCnn,
    hand_over,
    now,
)


def server_app(rounds: int, ends: list[float], answered: list[int]) -> ServerApp:
    """Return the coordinator's app; ``ends`` and ``answered`` are told when each round ends, and by how many."""
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:  # noqa: ARG001 - Flower's signature
        def mark(server_round: int, arrays: ArrayRecord) -> None:  # noqa: ARG001 - Flower's signature
            if server_round:
                ends.append(now())

        def count(replies: list[RecordDict], weight: str) -> MetricRecord:  # noqa: ARG001 - Flower's signature
            answered.append(len(replies))
            return MetricRecord()

        strategy = FedAvg(
            fraction_train=COHORT / CLIENTS,
            min_train_nodes=COHORT,
            fraction_evaluate=0.0,
            min_available_nodes=CLIENTS,
            train_metrics_aggr_fn=count,
        )
        initial = ArrayRecord(PlainCnn().state_dict())  # type: ignore[arg-type]  # as above
        strategy.start(grid, initial, num_rounds=rounds, evaluate_fn=mark)

    return app


def main() -> None:
    arguments = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--result", type=Path, required=True)
    arguments.add_argument("--rounds", type=int, required=True)
    arguments.add_argument("--seed", type=int, default=1)
    given = arguments.parse_args()

    logging.getLogger("ray").setLevel(logging.ERROR)
    torch.manual_seed(given.seed)
    if sum(parameter.numel() for parameter in PlainCnn().parameters()) != PARAMETERS:
        raise SystemExit("the network is not workload W's")
    ends: list[float] = []
    answered: list[int] = []
    run_simulation(
        server_app=server_app(given.rounds, ends, answered),
        client_app=client_app(str(given.data.resolve()), given.seed),
        num_supernodes=CLIENTS,
        backend_config={
            "client_resources": {"num_cpus": 1, "num_gpus": 0.0},
            "init_args": {"num_cpus": cores(), "include_dashboard": False},
        },
    )
    if len(ends) != given.rounds or answered != [COHORT] * given.rounds:
        raise SystemExit(f"not workload W: {len(ends)} rounds ended, with {answered} answers")
    hand_over(given.result, {"ends": ends, "processes": cores()})


if __name__ == "__main__":
    main()
