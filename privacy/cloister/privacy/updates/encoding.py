"""An update as 20-bit integers with a share of the noise, and the sum of many back as a real vector.

Distributed differential privacy after Kairouz, Liu & Steinke (2021, arXiv 2102.06387, Alg. 1 and 2) with Skellam noise (Agarwal, Kairouz &
Liu 2021): rotate, scale by s, round conditionally, add a share of the noise, reduce modulo 2²⁰; the sum is centred, unscaled and
rotated back.

Wrap-around: for signs that are independent of the updates, a coordinate of the sum over m sites is at most sub-Gaussian with variance proxy
``(s·m·C)²/dim`` (all updates equal: the worst case), plus rounding of variance at most m/4, plus noise. `choose_scale` puts
`WRAP_SIGMAS` = 8 standard deviations of that inside 2¹⁹, so a coordinate wraps with a probability of about 1e-15 at most. A wrapped
coordinate costs accuracy, never privacy: reduction is done to what is private already.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloister.core.update import Vector
from cloister.privacy.updates.modular import MODULUS, Residues, centred, wrapped
from cloister.privacy.updates.rotation import Reals, padded, rotate, rotate_back
from cloister.privacy.updates.rounding import conditional_round, rounded_norm
from cloister.privacy.updates.skellam import skellam_noise

__all__ = ["WRAP_SIGMAS", "IntegerCode", "choose_scale"]

#: So many standard deviations of a coordinate of the sum lie inside the modulus.
WRAP_SIGMAS = 8


def choose_scale(*, clip: float, noise_multiplier: float, most: int, least: int, dim: int) -> float:
    """Return s, integer units for one unit of the model: the largest for which `WRAP_SIGMAS` hold.

    Args:
        clip: C.
        noise_multiplier: z of the noise that ``least`` sites add together.
        most: the most sites in a sum.
        least: the fewest.
        dim: coordinates, a power of two.
    """
    room = (MODULUS / 2 / WRAP_SIGMAS) ** 2 - most / 4
    signal, noise = most**2 / dim, most / least * noise_multiplier**2
    return math.sqrt(max(room, 1e-12) / (signal + noise)) / clip


@dataclass(frozen=True, kw_only=True)
class IntegerCode:
    """How a clipped update becomes integers, the same at all sites and public.

    Attributes:
        size: parameters of the model.
        clip: C, the L2 norm of a clipped update.
        scale: s, integer units for one unit of the model.
        share: variance of one site's share of the noise, in integer units squared.
    """

    size: int
    clip: float
    scale: float
    share: float

    @property
    def dim(self) -> int:
        """Length of the integer vector: ``size`` up to a power of two."""
        return padded(self.size)

    @property
    def l2(self) -> float:
        """Δ₂, the largest L2 norm of one site's integers before noise."""
        return rounded_norm(self.scale * self.clip, self.dim)

    @property
    def l1(self) -> float:
        """Δ₁, the largest L1 norm of the same: at most √dim·Δ₂, and at most Δ₂², since integers are no longer than their squares."""
        return max(min(math.sqrt(self.dim) * self.l2, self.l2**2), self.l2)

    @property
    def stretch(self) -> float:
        """Δ₂ over s·C: how much rounding adds to the sensitivity, 1 for none."""
        return self.l2 / (self.scale * self.clip)

    def encode(
        self,
        clipped: Vector,
        signs: npt.NDArray[np.int8],
        *,
        rounding: np.random.Generator,
        noise: np.random.Generator,
    ) -> Residues:
        """Return (dim,) values from 0 to 2²⁰ - 1 of a clipped update with one site's share of the noise.

        Args:
            clipped: (size,) float32, its norm at most C.
            signs: (dim,) of the round (`rotation_signs`).
            rounding: what the rounding is drawn from.
            noise: what the noise is drawn from: a cipher's stream of this site and round alone.
        """
        rotated = rotate(clipped, signs)
        np.multiply(rotated, self.scale, out=rotated)
        integers = conditional_round(rotated, norm=self.scale * self.clip, generator=rounding)
        integers += skellam_noise(noise, variance=self.share, size=self.dim)
        return wrapped(integers)

    def decode(self, total: Residues, signs: npt.NDArray[np.int8]) -> Reals:
        """Return the (size,) sum of the updates, with the noise of all who are in it, from the sum of their values."""
        return rotate_back(centred(total) / self.scale, signs, self.size)
