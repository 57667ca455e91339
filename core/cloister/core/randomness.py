"""Randomness is an argument: seeded in simulation, drawn from the operating system in deployment.

Every draw is keyed by what it is for, such as ``("cohort", round)`` or ``("train", round, site)``. Two draws with
different keys are independent, and a draw does not depend on how many came before it: so a run gives the same result for
any number of workers, and a resumed run needs no stored generator state.
"""

from __future__ import annotations

import hashlib
import json
import secrets
from abc import ABC, abstractmethod
from typing import Protocol

import numpy as np

__all__ = ["Key", "Randomness", "SeededRandomness", "SystemRandomness"]

Key = str | int


class Randomness(Protocol):
    """A source of independent generators, one for each key."""

    reproducible: bool

    def bits(self, *key: Key) -> int:
        """Return 128 bits for ``key``."""
        ...

    def generator(self, *key: Key) -> np.random.Generator:
        """Return a fresh generator for ``key``."""
        ...

    def torch_seed(self, *key: Key) -> int:
        """Return a seed for a ``torch.Generator`` (63 bits) for ``key``."""
        ...


class _Keyed(ABC):
    @abstractmethod
    def bits(self, *key: Key) -> int: ...

    def generator(self, *key: Key) -> np.random.Generator:
        return np.random.Generator(np.random.PCG64DXSM(self.bits(*key)))

    def torch_seed(self, *key: Key) -> int:
        return self.bits(*key) >> 65


class SeededRandomness(_Keyed):
    """Reproducible: the same ``(seed, key)`` gives the same draws. For simulation only."""

    reproducible = True

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def bits(self, *key: Key) -> int:
        """Return the first 128 bits of SHA-256 over the seed and the key."""
        digest = hashlib.sha256(json.dumps([self.seed, *key]).encode()).digest()
        return int.from_bytes(digest[:16])


class SystemRandomness(_Keyed):
    """Drawn from the operating system at every call; the key is ignored. For deployment."""

    reproducible = False

    def bits(self, *key: Key) -> int:  # noqa: ARG002
        """Return 128 fresh bits from the operating system."""
        return secrets.randbits(128)
