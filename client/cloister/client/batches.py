"""How a site goes through its records: shuffled passes, cut into batches.

The seam for sampling: under record-level differential privacy another function of the same shape draws Poisson batches.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

__all__ = ["epoch_batches", "hold_out", "step_batches"]


def epoch_batches(rows: int, batch_size: int, generator: np.random.Generator) -> Iterator[Tensor]:
    """Yield one shuffled pass over ``rows`` records: every row once, in (batch_size,) int64 batches, the last one shorter."""
    order = torch.from_numpy(generator.permutation(rows))
    yield from torch.split(order, batch_size)


def step_batches(rows: int, batch_size: int, steps: int, generator: np.random.Generator) -> Iterator[Tensor]:
    """Yield exactly ``steps`` batches, starting a new shuffled pass whenever one ends."""
    while True:
        for batch in epoch_batches(rows, batch_size, generator):
            if steps == 0:
                return
            steps -= 1
            yield batch


def hold_out(rows: int, fraction: float, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Split ``rows`` records into those to train on and a validation part (at least one of each when rows > 1)."""
    order = torch.from_numpy(generator.permutation(rows))
    held = min(max(1, round(rows * fraction)), rows - 1)
    return order[held:], order[:held]
