"""Stochastic rounding to integers that never lengthens a vector beyond a stated norm.

Kairouz, Liu & Steinke 2021 (arXiv 2102.06387), section 4.2: each coordinate is rounded up with a probability of its fraction, which keeps
its mean; the whole is drawn again until its L2 norm is at most a bound that holds for any input of norm at most c with a probability of
at least 1 - β (Prop. 22, γ = 1). The condition biases the mean by an amount that β bounds and buys a sensitivity that is exact.

Formal guarantee: ‖`conditional_round`‖₂ ≤ `rounded_norm`(c, dim) for every input, checked on the integers themselves.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from cloister.core.errors import DataError
from cloister.privacy.updates.rotation import Reals

__all__ = ["Integers", "conditional_round", "rounded_norm"]

#: A flat int64 array.
Integers = npt.NDArray[np.int64]

#: β = e^(-1/2), the paper's choice: the bound is short, and fewer than three draws are needed on average.
_LOG_INVERSE_BETA = 0.5
#: A vector within the norm is drawn again so often with a probability of at most β^1000.
_DRAWS = 1000


def rounded_norm(norm: float, dim: int) -> float:
    """Return Δ₂, the largest norm after rounding of a vector of ``dim`` coordinates and L2 norm at most ``norm``, in integer units.

    ``Δ₂² = min{(c + √dim)², c² + dim/4 + √(2·log(1/β))·(c + √dim/2)}``, section 4.2 of the paper.
    """
    root = math.sqrt(dim)
    likely = norm**2 + dim / 4 + math.sqrt(2 * _LOG_INVERSE_BETA) * (norm + root / 2)
    return math.sqrt(min((norm + root) ** 2, likely))


def conditional_round(vector: Reals, *, norm: float, generator: np.random.Generator) -> Integers:
    """Return ``vector`` rounded to integers, its L2 norm at most `rounded_norm` of ``norm``.

    Args:
        vector: (dim,), its L2 norm at most ``norm``.
        norm: c, public.
        generator: where the rounding is drawn from.

    Raises:
        DataError: no draw kept to the bound: the vector is longer than ``norm``.
    """
    bound = rounded_norm(norm, len(vector)) ** 2
    for _ in range(_DRAWS):
        drawn: Integers = np.floor(vector + generator.random(len(vector))).astype(np.int64)
        if float(np.einsum("i,i->", drawn.astype(np.float64), drawn.astype(np.float64))) <= bound:
            return drawn
    raise DataError(
        f"a vector could not be rounded within the norm in {_DRAWS} draws",
        remedy="clip the update before it is rounded",
        code="update-rounding",
    )
