"""Poisson sampling with a public probability.

Guarantee: in every step each record is taken independently of all others, and of all other steps, with probability q (up to the 2⁻⁵³ of a uniform float64).
This is the sampling that ``PoissonSampledDpEvent(q, ·)`` stands for; a shuffled pass or a batch of a fixed size is not.

q comes from the federation file and never from the number of records: Opacus derives both q and the batch that it divides by
from the private n, so that one record more moves every step's noise. How many records a step takes is private.

=================  ===============================================
case               result
=================  ===============================================
no record drawn    an empty batch: a step of noise only, charged like any other
no record at all   as many empty batches as steps
q = 1              every record in every step
q ≤ 0, > 1, NaN    refused
=================  ===============================================
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from cloister.core.errors import SpecError

__all__ = ["poisson_batches", "poisson_rows"]


def poisson_rows(records: int, probability: float, generator: np.random.Generator) -> Tensor:
    """Return the rows of one step: (k,) int64, ascending, k ~ Binomial(records, probability).

    It takes time in k: the gap from one taken record to the next is geometric (Devroye 1986, "Non-uniform random variate
    generation", section X.2), so records that are not taken cost nothing.

    Args:
        records: n, at least 0.
        probability: q, public.
        generator: a secret one; in deployment `cipher_generator`, since amplification by sampling needs a secret sample.

    Raises:
        SpecError: ``probability`` is not in (0, 1], or ``records`` is negative.
    """
    if not 0 < probability <= 1:  # also refuses NaN
        raise SpecError(
            f"a sampling probability of {probability} is not in (0, 1]",
            remedy="give the public probability with which a record joins a step, for example 0.01",
            code="privacy-sampling",
        )
    if records < 0:
        raise SpecError(
            f"{records} records cannot be sampled from",
            remedy="give the number of records",
            code="privacy-sampling",
        )
    if probability == 1:
        return torch.arange(records)
    expected = records * probability
    at_once = int(expected + 6 * math.sqrt(expected) + 16)
    parts, last = [], -1
    while last < records:
        # A gap beyond the end is cut there, so that sums stay far from the end of int64.
        gaps = np.minimum(generator.geometric(probability, at_once), records + 1)
        rows = last + np.cumsum(gaps)
        parts.append(rows)
        last = int(rows[-1])
    rows = np.concatenate(parts) if parts else np.zeros(0, np.int64)
    return torch.from_numpy(rows[: np.searchsorted(rows, records)].copy())


def poisson_batches(
    records: int, probability: float, *, steps: int, generator: np.random.Generator
) -> Iterator[Tensor]:
    """Yield exactly ``steps`` batches of `poisson_rows`, empty ones included.

    Args:
        records: n.
        probability: q, public.
        steps: T, public: never an expected or rounded number of passes over the private n records.
        generator: as in `poisson_rows`.

    Raises:
        SpecError: as `poisson_rows`.
    """
    for _ in range(steps):
        yield poisson_rows(records, probability, generator)
