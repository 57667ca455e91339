"""A certified radius by randomised smoothing (Cohen, Rosenfeld and Kolter 2019, algorithm 1, CERTIFY).

Formal guarantee of `certify`. Let g(x) be the class that the model most likely gives to x + N(0, σ²I). For each record, with
probability at least 1 - α over its own noise, if a radius R is returned then g answers the returned class on the whole L2 ball of radius
R about x (theorem 1: R = σ Φ⁻¹(p), with p a lower bound, by Clopper and Pearson, on the class's probability). It is a promise about g, the
smoothed model, and not about the model itself. A record for which p ≤ 1/2 is abstained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from scipy import stats
from torch import Tensor, nn

from cloister.core.adversarial.attacks import attacking
from cloister.core.errors import SpecError

__all__ = ["Certificates", "certify", "lower_bound"]

ABSTAIN = -1


@dataclass(frozen=True, kw_only=True, eq=False)
class Certificates:
    """What is certified about each record.

    Attributes:
        predicted: (n,) the smoothed model's class; -1 where it abstains.
        radius: (n,) R in L2, in the units of the model's input; 0 where it abstains.
    """

    predicted: Tensor
    radius: Tensor


def lower_bound(successes: int, trials: int, alpha: float) -> float:
    """Return the one-sided Clopper-Pearson lower bound on a probability: it lies above the truth with probability at most ``alpha``."""
    if successes == 0:
        return 0.0
    return float(stats.beta.ppf(alpha, successes, trials - successes + 1))


def certify(
    model: nn.Module,
    records: Tensor,
    *,
    classes: int,
    sigma: float,
    seed: int,
    guesses: int = 100,
    samples: int = 1000,
    alpha: float = 0.001,
    batch: int = 1000,
) -> Certificates:
    """Certify each of ``records`` (n, …) by itself.

    Args:
        model: from inputs to scores.
        records: floating point.
        classes: how many scores a record has.
        sigma: σ, the noise's standard deviation, in the units of the model's input.
        seed: of the noise.
        guesses: samples that choose the class; other samples then bound its probability.
        samples: samples that bound it.
        alpha: how likely a certificate may be wrong, for each record.
        batch: samples that go through the model at once.

    Raises:
        SpecError: σ or α is out of range, or there are no samples.
    """
    if not (math.isfinite(sigma) and sigma > 0 and 0 < alpha < 1 and guesses > 0 and samples > 0):
        raise SpecError(
            f"smoothing with sigma = {sigma}, alpha = {alpha}, {guesses} + {samples} samples certifies nothing",
            remedy="give sigma > 0, 0 < alpha < 1 and at least one sample of each kind",
            code="smoothing",
        )
    generator = torch.Generator(records.device).manual_seed(seed)
    predicted = torch.full((len(records),), ABSTAIN)
    radius = torch.zeros(len(records))
    with attacking(model), torch.no_grad():
        for row, record in enumerate(records):
            noisy = _Noisy(model, record, sigma=sigma, classes=classes, batch=batch, generator=generator)
            guess = int(noisy.counts(guesses).argmax())
            probability = lower_bound(int(noisy.counts(samples)[guess]), samples, alpha)
            if probability > 0.5:
                predicted[row] = guess
                radius[row] = sigma * float(stats.norm.ppf(probability))
    return Certificates(predicted=predicted, radius=radius)


class _Noisy:
    """One record under noise: how often the model gives it each class."""

    def __init__(
        self,
        model: nn.Module,
        record: Tensor,
        *,
        sigma: float,
        classes: int,
        batch: int,
        generator: torch.Generator,
    ) -> None:
        self._model, self._record, self._sigma = model, record, sigma
        self._classes, self._batch, self._generator = classes, batch, generator

    def counts(self, samples: int) -> Tensor:
        """Return (classes,) how many of ``samples`` fresh samples the model puts into each class."""
        record, total = self._record, torch.zeros(self._classes, dtype=torch.int64)
        for first in range(0, samples, self._batch):
            shape = (min(self._batch, samples - first), *record.shape)
            noise = torch.randn(shape, generator=self._generator, device=record.device)
            found = self._model(record + self._sigma * noise).argmax(1)
            total += torch.bincount(found.cpu(), minlength=self._classes)
        return total
