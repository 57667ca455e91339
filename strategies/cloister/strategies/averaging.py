"""A running mean of the rounds' models (Polyak & Juditsky 1992; as De et al. 2022, arXiv 2204.13650, use an exponential one under noise).

With ``aggregation.average_rounds`` = k, x_t the model after round t and a_t the mean:

    a_t = a_{t-1} + max(1/k, 1/t)·(x_t - a_{t-1})

so it is the plain mean of all models up to round k, and from then on an exponential one that forgets with a factor of 1 - 1/k a round. Sites go
on from x_t; a_t is what is measured and released. It reads the models alone, which are released anyway: under differential privacy it is
post-processing, and costs nothing.

==============  ====================================================
case            outcome
==============  ====================================================
k = 1           a_t = x_t
first round     a_1 = x_1: what the model began as has no weight
k ≥ all rounds  the plain mean of all models
==============  ====================================================

The mean is float64 and is rounded to float32 where it leaves.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cloister.core.update import Vector
from cloister.strategies.mean import Direction

__all__ = ["RunningMean"]


@dataclass(frozen=True, kw_only=True)
class RunningMean:
    """The mean after some round.

    Attributes:
        mean: a_t, (size,) float64.
    """

    mean: Direction

    @classmethod
    def start(cls, model: Vector) -> RunningMean:
        """Return the mean before the first round: ``model``, (size,) float32, without any weight later."""
        return cls(mean=model.astype(np.float64))

    def after(self, model: Vector, *, round_number: int, rounds: int) -> RunningMean:
        """Return the mean with one model more.

        Args:
            model: x_t, (size,) float32.
            round_number: t, from 1.
            rounds: k.
        """
        weight = max(1 / rounds, 1 / round_number)
        return RunningMean(mean=self.mean + weight * (model - self.mean))

    def model(self) -> Vector:
        """Return a_t as a model."""
        return self.mean.astype(np.float32)
