"""The process's own generators, seeded for one site and round and put back afterwards.

Dropout draws from torch's generator, an augmentation perhaps from NumPy's or Python's. A worker process trains one site after
another: without this, what a site draws would depend on which worker it met and who came before it.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from cloister.core.randomness import Key, Randomness

__all__ = ["seeded"]


@contextmanager
def seeded(randomness: Randomness, device: torch.device, *key: Key) -> Iterator[None]:
    """Seed the generators of torch (on CPU and ``device``), NumPy and Python for ``key``; leave them as they were at the end.

    ``torch.manual_seed`` is not used: it also queues a seed for every absent device, each time that it is called.
    """
    seed = randomness.torch_seed("layers", *key)
    kept = np.random.get_state(), random.getstate()  # noqa: NPY002 - the generator that a task may use
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        elif device.type == "mps":
            torch.mps.manual_seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        random.seed(seed)
        try:
            yield
        finally:
            np.random.set_state(kept[0])  # noqa: NPY002
            random.setstate(kept[1])
