"""Workload W as a plain loop in torch: one process, one thread, one model that is re-used; the mean is taken as it goes.

No messages, no checks, no events, no file: what a round costs before anything is built around it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from plain_w import (
    BATCH,
    CLIENTS,
    COHORT,
    LEARNING_RATE,
    MODELS,
    PARAMETERS,
    RECORDS,
    clients,
    hand_over,
    now,
    read_mnist,
)
from torch.nn import functional


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    arguments.add_argument("--data", type=Path, required=True)
    arguments.add_argument("--result", type=Path, required=True)
    arguments.add_argument("--rounds", type=int, required=True)
    arguments.add_argument("--seed", type=int, default=1)
    arguments.add_argument("--model", choices=sorted(MODELS), default="plain")
    given = arguments.parse_args()

    torch.set_num_threads(1)
    torch.manual_seed(given.seed)
    marks = {"imported": now()}
    model = MODELS[given.model]()
    everyone = clients(*read_mnist(given.data), given.seed)
    generator = np.random.default_rng(given.seed)
    parameters = list(model.parameters())
    if sum(parameter.numel() for parameter in parameters) != PARAMETERS:
        raise SystemExit("the network is not workload W's")
    current = [parameter.detach().clone() for parameter in parameters]
    ends: list[float] = []
    marks["ready"] = now()
    for _ in range(given.rounds):
        totals = [torch.zeros_like(tensor, dtype=torch.float64) for tensor in current]
        for chosen in generator.choice(CLIENTS, COHORT, replace=False):
            images, labels = everyone[chosen]
            with torch.no_grad():
                for parameter, tensor in zip(parameters, current, strict=True):
                    parameter.copy_(tensor)
            optimiser = torch.optim.SGD(parameters, lr=LEARNING_RATE)
            for rows in torch.from_numpy(generator.permutation(RECORDS)).split(BATCH):  # type: ignore[no-untyped-call]
                optimiser.zero_grad()
                functional.cross_entropy(model(images[rows]), labels[rows]).backward()  # type: ignore[no-untyped-call]
                optimiser.step()
            with torch.no_grad():
                for total, parameter in zip(totals, parameters, strict=True):
                    total.add_(parameter)
        current = [(total / COHORT).to(torch.float32) for total in totals]
        ends.append(now())
    hand_over(given.result, {"marks": marks, "ends": ends, "processes": 1})


if __name__ == "__main__":
    main()
