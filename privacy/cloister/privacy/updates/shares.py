"""Gaussian noise shares on integers: real vectors that are noised, scaled, rounded and summed modulo 2³².

Each of m sites adds N(0, τᵢ²) to each number xᵢ of its own (here in integer units), rounds at random and reduces modulo M = 2³².
Whoever sees only the sum sees, for all that can be told apart, the Gaussian mechanism with the variance of all shares, rounded
once. So what ε the Gaussian mechanism has, subsampled or not, the integers have, with no term for rounding or for the sensitivity of integers.

Lemma. Let kᵢ = ⌊xᵢ + N(0, τᵢ²) + Uᵢ⌋ with Uᵢ uniform in [0, 1), all independent, and all τᵢ ≥ τ ≥ 1/5. Let K = ⌊Σxᵢ + N(0, Στᵢ²) + V⌋, where V
is independent of all else: a U and m - 1 triangular variables U + U' - 1. The laws of Σkᵢ mod M and K mod M differ in total variation by at most

    η = (3/2)·√M·(m + 1)·exp(-π²τ²/2).

Proof. *One site.* P(k = j) = E[max(0, 1 - |j - x - N|)] = g(j - x), where g is the normal density of variance τ² convolved with the triangle
on [-1, 1] (dithered rounding: Schuchman 1964; Wannamaker, Lipshitz, Vanderkooy & Wright 2000, "A theory of nonsubtractive dither"). Its
Fourier transform is ĝ(ω) = exp(-τ²ω²/2)·(sin(ω/2)/(ω/2))². By Poisson's summation formula the characteristic function of k at θ in
[-π, π] is Σⱼ ĝ(θ + 2πj)·exp(-i(θ + 2πj)x) = a(θ) + r(θ), where a is the term j = 0 and

    |r(θ)| ≤ Σ_{j≠0} exp(-τ²(θ + 2πj)²/2) ≤ 2·exp(-π²τ²/2)·(1 + exp(-4π²τ²) + …) ≤ 3·exp(-π²τ²/2).

*The sum.* Its characteristic function is Π(aᵢ + rᵢ). All |aᵢ| ≤ 1 and all |aᵢ + rᵢ| ≤ 1, so it is within Σ|rᵢ| ≤ 3m·exp(-π²τ²/2) of Πaᵢ, which depends on the xᵢ through
their sum alone: Πaᵢ = exp(-iθΣxᵢ - θ²Στᵢ²/2)·(sin(θ/2)/(θ/2))^(2m). *K.* The density of Σxᵢ + N + V, with the U of V, is that of one
site with the sum's variance and m triangles; by the same formula its characteristic function has the same term j = 0 and a rest of at
most 3·exp(-π²τ²/2). *Modulo M* both laws have their characteristic functions at θ_t = 2πt/M as discrete Fourier transforms, so by Cauchy-Schwarz
and Parseval Σ_k|p(k) - q(k)| ≤ √M·‖p - q‖₂ = (Σ_t|p̂(θ_t) - q̂(θ_t)|²)^(1/2) ≤ √M·max|p̂ - q̂|; the distance is half of that. ∎

What follows. K is made from Σxᵢ + N(0, Στᵢ²) alone: it is post-processing of the Gaussian mechanism. Over d numbers and T releases the sites'
mechanism is within d·T·η of it, whatever the xᵢ are, so (ε, δ) of the one is (ε, δ + (1 + e^ε)·d·T·η) of the other. `LEAST_SHARE`, τ = 32, is what
`ShareCode.choose` insists on: there η < 10⁻²¹⁰⁰, which is nothing beside any δ. The same holds for the sum over the honest sites alone: what
colluders know of their own kᵢ they can subtract.

Not covered: floating point, as in `cloister.privacy.noise` (float64 holds a number of 2³¹ units to 2⁻²² of a unit); and uniforms of 53 bits.

Wrap-around is for accuracy alone: reduction modulo 2³² is done to what is private already.

=====================================  ==================================================================
case                                   outcome
=====================================  ==================================================================
a share below `LEAST_SHARE` units      `SpecError` (privacy-bits)
a number beyond 2^62 units, NaN, inf   `DataError` (update-not-finite), as in `FixedPoint`
a sum beyond 2³¹ units                 wraps around: wrong there, and as private as before
a number without noise                 rounded at random and summed; the lemma says nothing about it
=====================================  ==================================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import SpecError
from cloister.privacy.updates.encoding import WRAP_SIGMAS
from cloister.privacy.updates.fixed_point import FixedPoint
from cloister.privacy.updates.modular import Residues, centred
from cloister.privacy.updates.rotation import Reals

__all__ = ["LEAST_SHARE", "SHARE", "SHARE_BITS", "ShareCode"]

#: Bits of one value.
SHARE_BITS = 32
#: The standard deviation of a share in integer units, where there is room: rounding then adds a millionth of the noise's variance at most.
SHARE = 2.0**10
#: The least that the lemma is used for.
LEAST_SHARE = 32.0


@dataclass(frozen=True, kw_only=True)
class ShareCode:
    """How a vector that holds one site's share of the noise becomes integers, the same at all sites and public.

    Attributes:
        scale: s, integer units for one unit of the vector.
    """

    scale: float

    @classmethod
    def choose(cls, *, share: float, reach: float, most: int, least: int) -> ShareCode:
        """Return the code in which a share of the noise is `SHARE` units, or as many as fit.

        Args:
            share: standard deviation of one site's noise, in the vector's units.
            reach: the largest number in the sum before noise, as far as accuracy is concerned: beyond it a number may wrap around.
            most: the most sites in a sum.
            least: the fewest honest ones, for the message.

        Raises:
            SpecError: not even `LEAST_SHARE` units fit.
        """
        room = 2 ** (SHARE_BITS - 1) - 1 - most
        fits = room / (reach + WRAP_SIGMAS * share * math.sqrt(most))
        scale = min(SHARE / share, fits)
        if not scale * share >= LEAST_SHARE:
            raise SpecError(
                f"{SHARE_BITS} bits do not suffice: beside sums up to {reach:.3g} and the noise of {most} sites, one of {least} noise shares would have a "
                f"standard deviation of {scale * share:.3g} integer units, and {LEAST_SHARE:g} are needed",
                remedy="ask fewer sites a round, lower training.batch_size with privacy.sampling_rate, or allow less epsilon",
                code="privacy-bits",
            )
        return cls(scale=scale)

    def encode(self, noisy: npt.NDArray[Any], rounding: np.random.Generator) -> Residues:
        """Return a noisy float64 vector as integers modulo 2³², uint32.

        Args:
            noisy: (size,) float64, a share of the noise in every number that must be private.
            rounding: what the rounding is drawn from.
        """
        return FixedPoint(scale=self.scale).residues(noisy, rounding)

    def decode(self, total: Residues) -> Reals:
        """Return the (size,) sum of the noisy vectors from the sum of their integers modulo 2³²."""
        return FixedPoint(scale=self.scale).decode(centred(total, SHARE_BITS))
