"""The clip that follows a quantile of the updates' norms (Andrew, Thakkar, McMahan & Ramaswamy 2021, arXiv 1905.03871, Alg. 1).

Each site sends, beside its clipped update, the bit b = (norm ≤ C) less one half; the server adds N(0, σ_b²) to the sum of the bits,
divides by the public n and moves C against the excess over the quantile γ that is asked for: ``C ← C·exp(-η·(b̃ - γ))``. Too many updates
within C: C falls; too few: it rises.

Formal guarantee: a bit less one half moves the sum by at most 1/2 under zero-out, so the bits are a Gaussian query with noise multiplier
2σ_b; the update is one with z_Δ = (z⁻² - (2σ_b)⁻²)^(-1/2). Both together are one Gaussian query with z (`joint_noise_multiplier`).

===========================  ==========================================================================
edge case                    answer
===========================  ==========================================================================
2σ_b at most z               `SpecError`: the bits alone would cost all that z allows, or more
fewer sites answer than n    the noisy share is drawn towards 1/2: a missing site counts as half a bit
C would leave 1e-12 to 1e12  `SpecError`: the noise of the bits has led it away
===========================  ==========================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from cloister.core.errors import SpecError

__all__ = ["AdaptiveClip"]

_LEAST, _MOST = 1e-12, 1e12
#: The paper's noise on the bits: a twentieth of the cohort (section 3.1).
_SHARE = 20


@dataclass(frozen=True, kw_only=True)
class AdaptiveClip:
    """How C follows the norms.

    Attributes:
        quantile: γ, the share of updates that shall be within C.
        rate: η, how fast C moves.
        count_noise: σ_b, the standard deviation of the noise on the sum of the bits, in sites.
        sites: n, the public divisor of the sum.
    """

    quantile: float
    rate: float
    count_noise: float
    sites: float

    @staticmethod
    def default_count_noise(noise_multiplier: float, sites: float) -> float:
        """Return max(n/20, z): a twentieth of the cohort, but no less than what leaves z_Δ at most 1.16·z."""
        return max(sites / _SHARE, noise_multiplier)

    def update_noise(self, noise_multiplier: float) -> float:
        """Return z_Δ, the noise multiplier of the updates, so that updates and bits together cost what z costs.

        Raises:
            SpecError: σ_b is too small for z.
        """
        left = noise_multiplier**-2 - (2 * self.count_noise) ** -2
        if left <= 0:
            raise SpecError(
                f"privacy.adaptive_clip.count_noise = {self.count_noise:g} is too small for a noise multiplier of "
                f"{noise_multiplier:.4g}: the bits alone would cost as much as the whole round may",
                remedy=f"give a count_noise above {noise_multiplier / 2:.4g}, or leave it out",
                code="privacy-count-noise",
            )
        return 1 / math.sqrt(left)

    def share_within(self, noisy_sum: float) -> float:
        """Return b̃, the noisy share of updates within C, from the noisy sum of (b - 1/2)."""
        return noisy_sum / self.sites + 0.5

    def next_clip(self, clip: float, share: float) -> float:
        """Return the next round's C from this round's and ``share_within``.

        Raises:
            SpecError: C left the range in which it means something.
        """
        moved = clip * math.exp(min(max(-self.rate * (share - self.quantile), -50.0), 50.0))
        if not _LEAST <= moved <= _MOST:
            raise SpecError(
                f"the adaptive clip went from {clip:g} to {moved:g}: noise moves it, not the updates",
                remedy="lower privacy.adaptive_clip.rate or count_noise, ask more sites a round, or give a fixed clip",
                code="privacy-clip",
            )
        return moved
