"""Noise on integers: the difference of two Poisson variables (Agarwal, Kairouz & Liu 2021, arXiv 2110.04995).

Formal guarantee: for a random key, `skellam_noise` is independent Skellam noise of mean 0 and the stated variance in every coordinate, up to
the floating-point arithmetic of NumPy's Poisson sampler (transformed rejection with double-precision tests; Hörmann 1993). A sum of Skellam
noises is Skellam noise of the summed variance, exactly: that is why each site can add a share of its own.
"""

from __future__ import annotations

import math

import numpy as np

from cloister.core.errors import SpecError
from cloister.privacy.updates.rounding import Integers

__all__ = ["skellam_noise"]


def skellam_noise(generator: np.random.Generator, *, variance: float, size: int) -> Integers:
    """Return (size,) integers of Skellam noise.

    Args:
        generator: a cipher's stream (`cloister.privacy.noise.cipher_generator`).
        variance: in integer units squared, above 0 and at most 1e17.
        size: how many.

    Raises:
        SpecError: a variance outside this range.
    """
    if not (math.isfinite(variance) and 0 < variance <= 1e17):
        raise SpecError(
            f"Skellam noise of variance {variance} is not offered",
            remedy="give a positive noise multiplier and clip",
            code="privacy-noise",
        )
    return generator.poisson(variance / 2, size) - generator.poisson(variance / 2, size)
