"""The mechanisms themselves: what one application releases and how much noise it carries."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from cloister.core.errors import SpecError
from cloister.privacy.events.base import NOISE_RANGE, RATE_RANGE, Counted, Event, dp, times

__all__ = [
    "CohortGaussian",
    "FixedSizeGaussian",
    "Gaussian",
    "Laplace",
    "NonPrivate",
    "PoissonGaussian",
    "Skellam",
    "joint_noise_multiplier",
]


@dataclass(frozen=True, kw_only=True)
class PoissonGaussian(Counted):
    """DP-SGD at the level of records: each step takes each record with probability q, independently and in secret.

    Attributes:
        noise_multiplier: σ/C, dimensionless.
        sampling_rate: q, from a public constant and never from the private number of records.
        steps: how many steps were sampled, the empty ones included.
    """

    kind = "poisson-gaussian"
    sensitivity = "the L2 norm C to which each record's gradient is clipped"
    count_field = "steps"

    noise_multiplier: float
    sampling_rate: float
    steps: int = 1

    def __post_init__(self) -> None:
        """Check every field."""
        self._check_number("noise_multiplier", *NOISE_RANGE)
        self._check_number("sampling_rate", *RATE_RANGE)
        self._check_count("steps")

    def dp_event(self, *, sensitivity: float = 1.0) -> Any:
        """Return ``PoissonSampledDpEvent(q, GaussianDpEvent(σ/C))``, ``steps`` times."""
        inner = dp().GaussianDpEvent(self.noise_multiplier / sensitivity)
        return times(dp().PoissonSampledDpEvent(self.sampling_rate, inner), self.steps)

    def units(self, *, hidden_cohort: bool = False) -> Iterator[tuple[Event, int]]:
        """Yield one step and its count; with q = 1 the step is a `Gaussian`."""
        if self.sampling_rate == 1.0:
            yield from Gaussian(noise_multiplier=self.noise_multiplier, count=self.steps).units()
        else:
            yield from super().units(hidden_cohort=hidden_cohort)


@dataclass(frozen=True, kw_only=True)
class Gaussian(Counted):
    """The Gaussian mechanism over everything, without sampling.

    Attributes:
        noise_multiplier: σ/C, dimensionless.
        count: how many sums were released.
    """

    kind = "gaussian"
    sensitivity = "the L2 norm C to which each contribution is clipped"
    count_field = "count"

    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        """Check every field."""
        self._check_number("noise_multiplier", *NOISE_RANGE)
        self._check_count("count")

    def dp_event(self, *, sensitivity: float = 1.0) -> Any:
        """Return ``GaussianDpEvent(σ/C)``, ``count`` times."""
        return times(dp().GaussianDpEvent(self.noise_multiplier / sensitivity), self.count)


@dataclass(frozen=True, kw_only=True)
class FixedSizeGaussian(Counted):
    """A batch of fixed size, drawn without replacement. It is never billed as Poisson sampling.

    The bound is that of Wang, Balle & Kasiviswanathan (2019, Thm. 27), for replacing one record. Replacing a record moves the sum
    by up to 2C, and so may the swap of batch members that its presence causes: the bound is taken at σ/(2C) under every
    relation. A record's zero-out is one such replacement, which makes the bound valid there too.

    Attributes:
        noise_multiplier: σ/C, dimensionless.
        sample_size: records in a batch.
        population: records in the dataset, a public number.
        steps: how many batches were drawn.
    """

    kind = "fixed-size-gaussian"
    sensitivity = "twice the L2 norm C to which each record's gradient is clipped (C is what noise_multiplier refers to)"
    count_field = "steps"

    noise_multiplier: float
    sample_size: int
    population: int
    steps: int = 1

    def __post_init__(self) -> None:
        """Check every field, and that a batch is no larger than the population."""
        self._check_number("noise_multiplier", *NOISE_RANGE)
        self._check_count("population", least=1)
        self._check_count("sample_size", least=1, most=self.population)
        self._check_count("steps")

    def dp_event(self, *, sensitivity: float = 1.0) -> Any:  # noqa: ARG002 - it is always that of a replacement
        """Return ``SampledWithoutReplacementDpEvent(n, m, GaussianDpEvent(σ/2C))``, ``steps`` times."""
        inner = dp().GaussianDpEvent(self.noise_multiplier / 2)
        return times(
            dp().SampledWithoutReplacementDpEvent(self.population, self.sample_size, inner), self.steps
        )


@dataclass(frozen=True, kw_only=True)
class CohortGaussian(Event):
    """A noisy sum over a cohort that takes each site with probability ``rate`` in each round.

    Sampling protects a site only from those who do not learn whether it took part. Where the cohort is known, as it is to the
    server that draws it, the site pays for each of its participations in full.

    Attributes:
        noise_multiplier: σ/C, dimensionless; C bounds one site's update.
        rate: probability with which each site is in a round's cohort.
        rounds: rounds drawn.
        participations: rounds that this site took part in; ``None`` where that is not known, and then all of them.
    """

    kind = "cohort-gaussian"
    sensitivity = "the L2 norm C to which each site's update is clipped"

    noise_multiplier: float
    rate: float
    rounds: int
    participations: int | None = None

    def __post_init__(self) -> None:
        """Check every field, and that there are no more participations than rounds."""
        self._check_number("noise_multiplier", *NOISE_RANGE)
        self._check_number("rate", *RATE_RANGE)
        self._check_count("rounds")
        if self.participations is not None:
            self._check_count("participations", most=self.rounds)

    def resolved(self, *, hidden_cohort: bool) -> PoissonGaussian | Gaussian:
        """Return what the rounds amount to for those who may, or may not, know the cohorts."""
        if hidden_cohort:
            return PoissonGaussian(
                noise_multiplier=self.noise_multiplier, sampling_rate=self.rate, steps=self.rounds
            )
        count = self.rounds if self.participations is None else self.participations
        return Gaussian(noise_multiplier=self.noise_multiplier, count=count)

    def dp_event(self, *, sensitivity: float = 1.0) -> Any:
        """Return the event for a known cohort; for a hidden one convert ``resolved(hidden_cohort=True)``."""
        return self.resolved(hidden_cohort=False).dp_event(sensitivity=sensitivity)

    def units(self, *, hidden_cohort: bool = False) -> Iterator[tuple[Event, int]]:
        """Yield one round, sampled or not, and its count."""
        yield from self.resolved(hidden_cohort=hidden_cohort).units()


@dataclass(frozen=True, kw_only=True)
class Skellam(Counted):
    """An integer sum under the noise of the difference of two Poisson variables (distributed differential privacy).

    Agarwal, Kairouz & Liu (2021, arXiv 2110.04995, Thm. 3.5 and Cor. 4.1): for integer orders α > 1 the Rényi divergence is at
    most ``αΔ₂²/2μ + ((2α-1)Δ₂² + 6Δ₁)/4μ²``. That is ``ξ + ρα`` with ``ρ = Δ₂²/2μ + Δ₂²/2μ²`` and
    ``ξ = (6Δ₁ - Δ₂²)/4μ²``; ξ below zero is raised to zero. The accounting uses integer orders only where one of these is
    involved. There is no known gain from a sampled cohort.

    Attributes:
        variance: μ, of the noise that all honest survivors added together, for each coordinate, in integer units.
        l2: Δ₂, largest L2 norm of one site's integer vector (after rotation, scaling and rounding).
        l1: Δ₁, largest L1 norm of the same vector, at least Δ₂.
        count: how many sums were released.
    """

    kind = "skellam"
    sensitivity = "the L2 and L1 norms of one site's integer vector, in the integer units of the variance"
    count_field = "count"

    variance: float
    l2: float
    l1: float
    count: int = 1

    def __post_init__(self) -> None:
        """Check every field, and that Δ₁ ≥ Δ₂, as it is for every vector."""
        self._check_number("variance", 1e-12, 1e30)
        self._check_number("l2", 1e-12, 1e15)
        self._check_number("l1", self.l2, 1e30)
        self._check_count("count")

    def dp_event(self, *, sensitivity: float = 1.0) -> Any:
        """Return ``ZCDpEvent(rho=ρ, xi=max(ξ, 0))``, ``count`` times."""
        l2, l1, mu = self.l2 * sensitivity, self.l1 * sensitivity, self.variance
        rho = l2**2 / (2 * mu) + l2**2 / (2 * mu**2)
        xi = max((6 * l1 - l2**2) / (4 * mu**2), 0.0)
        return times(dp().ZCDpEvent(rho=rho, xi=xi), self.count)


@dataclass(frozen=True, kw_only=True)
class Laplace(Counted):
    """The Laplace mechanism over everything, without sampling.

    Attributes:
        noise_multiplier: b/C, where b is the scale of the noise in each coordinate.
        count: how many sums were released.
    """

    kind = "laplace"
    sensitivity = "the L1 norm C to which each contribution is clipped"
    count_field = "count"

    noise_multiplier: float
    count: int = 1

    def __post_init__(self) -> None:
        """Check every field."""
        self._check_number("noise_multiplier", *NOISE_RANGE)
        self._check_count("count")

    def dp_event(self, *, sensitivity: float = 1.0) -> Any:
        """Return ``LaplaceDpEvent(b/C)``, ``count`` times."""
        return times(dp().LaplaceDpEvent(self.noise_multiplier / sensitivity), self.count)


@dataclass(frozen=True, kw_only=True)
class NonPrivate(Event):
    """Something was released without any bound: from then on ε is infinite, and the ledger says why.

    Attributes:
        what: what was released, in words, without any client data.
    """

    kind = "non-private"
    sensitivity = "unbounded"

    what: str

    def __post_init__(self) -> None:
        """Check that it says what was released."""
        if not isinstance(self.what, str) or not self.what.strip():
            raise SpecError(
                f"non-private: what must be a text, not {type(self.what).__name__}",
                remedy="Say what was released.",
                code="privacy-event",
            )

    def dp_event(self, *, sensitivity: float = 1.0) -> Any:  # noqa: ARG002 - there is no bound to scale
        """Return ``NonPrivateDpEvent()``."""
        return dp().NonPrivateDpEvent()

    def units(self, *, hidden_cohort: bool = False) -> Iterator[tuple[Event, int]]:  # noqa: ARG002
        """Yield the release, once."""
        yield self, 1


def joint_noise_multiplier(*noise_multipliers: float) -> float:
    """Return the noise multiplier of one Gaussian query that costs as much as several on the same sample.

    Gaussian queries on one sample are one query of the stacked, rescaled vectors (McMahan et al. 2018, arXiv 1812.06210, section 3):
    ``1/z² = Σ 1/zᵢ²``. Adaptive clipping asks two such queries in each round.

    Raises:
        SpecError: no multiplier, or one that is not a positive finite number.
    """
    if not noise_multipliers or not all(0 < z < math.inf for z in noise_multipliers):
        raise SpecError(
            f"joint_noise_multiplier: noise multipliers must be positive and finite, not {list(noise_multipliers)}",
            remedy="Give the noise multiplier of each query on the sample.",
            code="privacy-event",
        )
    return 1 / math.sqrt(math.fsum(z**-2 for z in noise_multipliers))
