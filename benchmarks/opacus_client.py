"""A client of workload W with Flower and Opacus, as their user writes it.

An engine, an optimiser and a Poisson loader by `PrivacyEngine.make_private` for each client and round, as in Flower's own Opacus
example. In its favour: no ε is asked for, the noise is torch's and no cipher's, and each actor keeps the data.
"""

from __future__ import annotations

import warnings
from functools import lru_cache
from pathlib import Path

import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from opacus import PrivacyEngine  # type: ignore[import-untyped]
from plain_w import BATCH, CLIP, LEARNING_RATE, SIGMA, PlainCnn, clients, read_mnist
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
