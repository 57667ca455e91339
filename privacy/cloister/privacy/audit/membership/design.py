"""Which shadow is trained with which record: in pairs, each the other's complement.

Formal guarantees: of every site's records each shadow is trained with half (rounded down or up, the same way for both of a pair but for an odd
record); every record is in exactly one of each pair. So with 2m shadows each record has m that saw it and m that did not, and leaving out one pair
leaves m - 1 and m - 1: how often a record was in says nothing of whether it is in the one left out.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from cloister.core.randomness import Randomness

__all__ = ["halves"]


def halves(sizes: Sequence[int], shadows: int, randomness: Randomness) -> npt.NDArray[np.bool_]:
    """Return (shadows, records) whether a shadow is trained with a record, site after site.

    Args:
        sizes: records of each site.
        shadows: how many models, an even number.
        randomness: draws each pair's halves.

    Raises:
        ValueError: an odd number of shadows, or fewer than four.
    """
    if shadows < 4 or shadows % 2:
        raise ValueError(f"{shadows} shadows are no pairs: at least two pairs are needed")
    rows = []
    for pair in range(shadows // 2):
        parts = []
        for place, size in enumerate(sizes):
            chosen = np.zeros(size, dtype=np.bool_)
            order = randomness.generator("membership", "halves", pair, place).permutation(size)
            chosen[order[: (size + (pair % 2)) // 2]] = True
            parts.append(chosen)
        one = np.concatenate(parts) if parts else np.zeros(0, dtype=np.bool_)
        rows += [one, ~one]
    return np.stack(rows)
