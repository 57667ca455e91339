"""Workload W without a framework: its numbers, its data and its model in plain torch.

Needs torch and NumPy only, so that the same file serves the plain loop and pfl in an environment of its own. Both models
compute the same function of the same 114,314 parameters:

- `PlainCnn` is what one writes without thinking of the CPU: convolution, ReLU, pool, channels first.
- `TunedCnn` is the way Cloister's ``cnn`` is written: channels last, pool before ReLU.
"""

from __future__ import annotations

import gzip
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = [
    "BATCH",
    "CLIENTS",
    "CLIP",
    "COHORT",
    "LEARNING_RATE",
    "MODELS",
    "PARAMETERS",
    "RECORDS",
    "SIGMA",
    "PlainCnn",
    "TunedCnn",
    "clients",
    "flops_of_a_round",
    "hand_over",
    "now",
    "read_mnist",
]

CLIENTS, COHORT, RECORDS, BATCH, LEARNING_RATE = 1000, 50, 60, 10, 0.05
PARAMETERS = 114_314
#: With differential privacy: the largest norm of a record's gradient, and the noise's standard deviation over it.
CLIP, SIGMA = 1.0, 1.0


class PlainCnn(nn.Module):
    """Two convolutions of 5 by 5 with 16 and 32 filters, each followed by ReLU and a halving pool, then 64 units and 10 scores."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 16, 5, padding=2)
        self.second = nn.Conv2d(16, 32, 5, padding=2)
        self.hidden = nn.Linear(32 * 7 * 7, 64)
        self.output = nn.Linear(64, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, 10) scores of (n, 1, 28, 28) images."""
        x = functional.max_pool2d(functional.relu(self.first(images)), 2)
        x = functional.max_pool2d(functional.relu(self.second(x)), 2)
        scores: Tensor = self.output(functional.relu(self.hidden(x.flatten(1))))
        return scores


class TunedCnn(PlainCnn):
    """The same network, channels last and with the pool before ReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs leave this keyword out

    def forward(self, images: Tensor) -> Tensor:
        """Return (n, 10) scores of (n, 1, 28, 28) images."""
        x = images.contiguous(memory_format=torch.channels_last)
        x = functional.relu(functional.max_pool2d(self.first(x), 2))
        x = functional.relu(functional.max_pool2d(self.second(x), 2))
        scores: Tensor = self.output(functional.relu(self.hidden(x.permute(0, 2, 3, 1).flatten(1))))
        return scores


MODELS: dict[str, type[PlainCnn]] = {"plain": PlainCnn, "tuned": TunedCnn}


def flops_of_a_round() -> dict[str, int]:
    """Return the floating-point operations of one round by layer and pass, a multiplication and an addition counting as two.

    Convolutions and linear layers only: everything else is less than one part in a hundred.
    """
    records = COHORT * RECORDS
    first, second = 2 * 28 * 28 * 16 * 25, 2 * 14 * 14 * 32 * 16 * 25
    hidden, output = 2 * 32 * 7 * 7 * 64, 2 * 64 * 10
    passes = {
        "first.forward": first,
        "first.weights": first,  # nobody asks for the gradient of the images
        "second.forward": second,
        "second.inputs": second,
        "second.weights": second,
        "linear.forward": hidden + output,
        "linear.inputs": hidden + output,
        "linear.weights": hidden + output,
    }
    return {name: records * count for name, count in passes.items()}


def read_mnist(folder: Path) -> tuple[Tensor, Tensor]:
    """Return MNIST's training images (60000, 1, 28, 28) float32 in [0, 1] and labels (60000,) int64 from its IDX files."""
    with gzip.open(folder / "train-images-idx3-ubyte.gz") as file:
        images = np.frombuffer(file.read(), np.uint8, offset=16).reshape(-1, 1, 28, 28)
    with gzip.open(folder / "train-labels-idx1-ubyte.gz") as file:
        labels = np.frombuffer(file.read(), np.uint8, offset=8)
    return torch.from_numpy(images.astype(np.float32) / 255), torch.from_numpy(labels.astype(np.int64))


def clients(images: Tensor, labels: Tensor, seed: int) -> list[tuple[Tensor, Tensor]]:
    """Return `CLIENTS` clients with `RECORDS` records each, no record twice, each client's tensors its own and contiguous."""
    order = torch.from_numpy(np.random.default_rng(seed).permutation(len(labels))[: CLIENTS * RECORDS])
    return [(images[rows], labels[rows]) for rows in torch.split(order, RECORDS)]


def hand_over(result: Path, answer: Mapping[str, Any]) -> None:
    """Leave a contestant's answer for ``measuring.run``, whole or not at all."""
    part = result.with_suffix(".part")
    part.write_text(json.dumps(answer))
    part.replace(result)


def now() -> float:
    """Return the monotonic clock in seconds: on Linux the same one in every process."""
    return time.monotonic()
