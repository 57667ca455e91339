"""What the hostile tests share: a consortium, and vectors to sum."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from cloister.privacy.masking.rehearsal import Stage
from cloister.privacy.updates.modular import Residues

Vectors = Callable[..., dict[str, Residues]]


@pytest.fixture(scope="session")
def stage() -> Stage:
    return Stage()


@pytest.fixture(scope="session")
def vectors(stage: Stage) -> Vectors:
    def drawn(count: int, *, size: int = 5, seed: int = 0) -> dict[str, Residues]:
        rows = np.random.default_rng(seed).integers(0, 1 << 32, (count, size), dtype=np.uint32)
        return {site.name: row.copy() for site, row in zip(stage.sites(count), rows, strict=True)}

    return drawn
