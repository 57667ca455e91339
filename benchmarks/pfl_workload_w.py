"""Workload W in pfl 0.6.0, as a user of pfl would write it. Runs in pfl's own environment, one process or several.

``workload_w.py`` starts it with ``torchrun``, as pfl's guide recommends for PyTorch models ("Fast distributed simulations"): pfl
then gives each process its share of the cohort and sums over gloo. What is chosen in pfl's favour:

- every user's `Dataset` is built once and re-used, so pfl's cached batches serve all rounds (and pfl does not shuffle);
- one thread a process, in-memory tensors, no evaluation, no callback but the clock, no metrics;
- ``--model tuned`` gives it the network that Cloister's own is faster by.
"""

# pfl is installed in an environment of its own, not where this is type-checked.
# mypy: disable-error-code="import-not-found"

from __future__ import annotations

import argparse
import asyncio
import os
from pathlib import Path
from typing import Any

from plain_w import (
    BATCH,
    CLIENTS,
    COHORT,
    LEARNING_RATE,
    MODELS,
    PARAMETERS,
    PlainCnn,
    clients,
    hand_over,
    now,
    read_mnist,
)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--result", type=Path, required=True)
    arguments.add_argument("--rounds", type=int, required=True)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--model", choices=sorted(MODELS), default="plain")
    given = arguments.parse_args()

    import numpy as np
    import torch

    torch.set_num_threads(1)
    # pfl draws the same cohort in every process from NumPy's global state: its own convention.
    np.random.seed(given.seed)  # noqa: NPY002
    torch.manual_seed(given.seed)
    asyncio.set_event_loop(asyncio.new_event_loop())  # pfl 0.6.0 asks for the thread's current loop

    from pfl.aggregate.simulate import SimulatedBackend
    from pfl.algorithm.base import NNAlgorithmParams
    from pfl.algorithm.federated_averaging import FederatedAveraging
    from pfl.callback.base import TrainingProcessCallback
    from pfl.data.dataset import Dataset
    from pfl.data.federated_dataset import FederatedDataset
    from pfl.data.sampling import get_user_sampler
    from pfl.hyperparam.base import NNTrainHyperParams
    from pfl.internal.ops import pytorch_ops
    from pfl.metrics import Metrics
    from pfl.model.pytorch import PyTorchModel

    marks = {"imported": now()}
    ends: list[float] = []

    class Clock(TrainingProcessCallback):  # type: ignore[misc]  # an unknown class where pfl is not installed
        """Notes when each round ends."""

        def after_central_iteration(self, *_: Any, central_iteration: int) -> tuple[bool, Any]:  # noqa: ARG002
            ends.append(now())
            return False, Metrics()

    kind = MODELS[given.model]

    class Network(kind):  # type: ignore[valid-type, misc]  # the class is chosen by the argument
        """The network with the two methods that pfl's adapter wants."""

        def loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.cross_entropy(self(images), labels)

        def metrics(self, images: torch.Tensor, labels: torch.Tensor) -> dict[str, Any]:  # noqa: ARG002
            return {}

    network: PlainCnn = Network()
    if sum(p.numel() for p in network.parameters()) != PARAMETERS:
        raise SystemExit("the network is not workload W's")
    datasets = [
        Dataset(pair, user_id=str(user))
        for user, pair in enumerate(clients(*read_mnist(given.data), given.seed))
    ]
    users = FederatedDataset(datasets.__getitem__, get_user_sampler("random", list(range(CLIENTS))))
    model = PyTorchModel(network, torch.optim.SGD, torch.optim.SGD(network.parameters(), lr=1.0))
    before = [p.detach().clone() for p in network.parameters()]
    marks["ready"] = now()
    FederatedAveraging().run(
        backend=SimulatedBackend(users, users),
        model=model,
        algorithm_params=NNAlgorithmParams(
            central_num_iterations=given.rounds,
            evaluation_frequency=10 * given.rounds,
            train_cohort_size=COHORT,
            val_cohort_size=None,
        ),
        model_train_params=NNTrainHyperParams(
            local_num_epochs=1, local_learning_rate=LEARNING_RATE, local_batch_size=BATCH
        ),
        callbacks=[Clock()],
        send_metrics_to_platform=False,
    )
    moved = sum(float((a - b).detach().norm()) for a, b in zip(before, network.parameters(), strict=True))
    if len(ends) != given.rounds or not moved > 0:
        raise SystemExit("pfl did not train")
    if pytorch_ops.distributed.global_rank == 0:
        from importlib.metadata import version

        versions = {name: version(name) for name in ("pfl", "torch", "numpy")}
        answer = {
            "marks": marks,
            "ends": ends,
            "processes": pytorch_ops.distributed.world_size,
            "versions": versions,
        }
        hand_over(given.result, answer)
    if torch.distributed.is_initialized():
        torch.distributed.barrier()  # nobody leaves before the answer is there
    os._exit(0)  # pfl leaves gloo's threads running, and taking them down now and then aborts the process


if __name__ == "__main__":
    main()
