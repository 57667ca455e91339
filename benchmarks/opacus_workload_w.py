"""Workload W with differential privacy as a user of Flower and Opacus writes it, on Flower's Ray engine.

The ClientApp is the pattern of Flower's own Opacus example: an engine, an optimiser and a Poisson loader by `PrivacyEngine.make_private`
for each client and round. In its favour: no ε is asked for, the noise is torch's and no cipher's, and each actor keeps the data.
"""

from __future__ import annotations

import argparse
import logging
import os
import warnings
from functools import lru_cache
from pathlib import Path

os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
os.environ.setdefault("FLWR_DISABLE_UPDATE_CHECK", "1")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from flwr.simulation import run_simulation
from measuring import cores
from opacus import PrivacyEngine  # type: ignore[import-untyped]
from plain_w import (
    BATCH,
    CLIENTS,
    CLIP,
    COHORT,
    LEARNING_RATE,
    PARAMETERS,
    SIGMA,
    PlainCnn,
    clients,
    hand_over,
    now,
    read_mnist,
)
from torch import Tensor
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset


@lru_cache(maxsize=1)
def everyone(folder: str, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return all clients' records; an actor reads them once."""
    return clients(*read_mnist(Path(folder)), seed)


def client_app(folder: str, seed: int) -> ClientApp:
    """Return the site's app."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        warnings.filterwarnings("ignore", category=UserWarning, module=r"opacus|torch")
        images, labels = everyone(folder, seed)[int(context.node_config["partition-id"])]
        net = PlainCnn()
        net.load_state_dict(message.content.array_records["arrays"].to_torch_state_dict())
        net.train()
        model, optimiser, loader = PrivacyEngine().make_private(
            module=net,
            optimizer=torch.optim.SGD(net.parameters(), lr=LEARNING_RATE),
            data_loader=DataLoader(TensorDataset(images, labels), batch_size=BATCH),
            noise_multiplier=SIGMA,
            max_grad_norm=CLIP,
        )
        for inputs, targets in loader:
            optimiser.zero_grad()
            functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
        reply = RecordDict(
            {
                "arrays": ArrayRecord(net.state_dict()),  # type: ignore[arg-type]  # Flower's type asks for an OrderedDict
                "metrics": MetricRecord({"num-examples": len(labels)}),
            }
        )
        return Message(reply, reply_to=message)

    return app


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
