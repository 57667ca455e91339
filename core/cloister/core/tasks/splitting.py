"""A fixed split of one owner's records into those to train on and those kept for testing."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloister.core.data import Rows
from cloister.core.randomness import SeededRandomness

__all__ = ["split_rows"]


def split_rows(
    strata: npt.NDArray[np.int64], *, test_fraction: float, seed: int, owner: str
) -> tuple[Rows, Rows]:
    """Split rows so that each stratum gives the same share to the test part.

    The split depends on the seed, the owner's name and the strata only: never on a federation's seed or on
    how many draws came before. A stratum gives its share rounded to the nearest row and always keeps one row
    to train on.

    Args:
        strata: (n,) each row's class; all zero to split without regard to classes.
        test_fraction: share to keep for testing, at least 0 and below 1.
        seed: the split's own seed.
        owner: whose rows they are.

    Returns:
        Row numbers to train on and to test on, ascending; every row is in exactly one of them.
    """
    generator = SeededRandomness(seed).generator("split", owner)
    test: list[Rows] = []
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        count = min(int(np.floor(test_fraction * len(rows) + 0.5)), len(rows) - 1)
        test.append(generator.permutation(rows)[:count])
    kept = np.sort(np.concatenate(test)) if test else np.empty(0, dtype=np.int64)
    return np.setdiff1d(np.arange(len(strata)), kept).astype(np.int64), kept.astype(np.int64)
