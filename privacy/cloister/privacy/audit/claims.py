"""What a run claims of its mechanism, and canaries' scores as that mechanism would give them.

The canary of the claim is the worst record there is: its gradient is as long as the clip allows in every step that takes it, in a direction that no other
record has. Its score is what all steps together released in that direction, in deviations of the noise: N(k/(σ√T), 1) after T steps of which k took
it, with k ~ Binomial(T, q) where it is in, and k = 0 where it is not. A person's canary is so many records in one direction.

Where the adversary sees more noise than the claim counts on (a sum with the noise of more sites), the scores carry it, and ε does not.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np

from cloister.core.errors import SpecError
from cloister.privacy.accounting import spent
from cloister.privacy.audit.scores import Scores
from cloister.privacy.events import Event, Gaussian, PoissonGaussian, SeveralRecords, Skellam

__all__ = ["Claim"]


@dataclass(frozen=True, kw_only=True)
class Claim:
    """A claim that can be audited.

    Attributes:
        event: what was done to one unit, in all rounds.
        epsilon: ε that the run claims to cost at the most.
        delta: its δ.
        records: how many records of one person the claim is about.
        dilution: how much larger than the claim's is the noise in what the adversary sees.
    """

    event: PoissonGaussian | Gaussian | Skellam
    epsilon: float
    delta: float
    records: int = 1
    dilution: float = 1.0

    @classmethod
    def of(cls, event: Event, *, epsilon: float, delta: float, dilution: float = 1.0) -> Claim:
        """Return the claim about ``event``.

        Raises:
            SpecError: an event whose noise is not Gaussian, or whose ε is not finite.
        """
        inner = event.event if isinstance(event, SeveralRecords) else event
        if not isinstance(inner, PoissonGaussian | Gaussian | Skellam) or not math.isfinite(epsilon):
            raise SpecError(
                f"a claim of '{inner.kind}' with epsilon = {epsilon:g} cannot be audited",
                remedy="audit a mechanism with Gaussian noise, or noise shares",
                code="audit-claim",
            )
        records = event.records if isinstance(event, SeveralRecords) else 1
        return cls(event=inner, epsilon=epsilon, delta=delta, records=records, dilution=dilution)

    @property
    def steps(self) -> int:
        """How many sums were released."""
        return self.event.steps if isinstance(self.event, PoissonGaussian) else self.event.count

    @property
    def sampling_rate(self) -> float:
        """The chance of the unit to be in one of them."""
        return self.event.sampling_rate if isinstance(self.event, PoissonGaussian) else 1.0

    @property
    def noise_multiplier(self) -> float:
        """The noise's standard deviation over what the unit may add."""
        event = self.event
        return math.sqrt(event.variance) / event.l2 if isinstance(event, Skellam) else event.noise_multiplier

    @property
    def whole(self) -> Event:
        """The event as it touches whom the claim is about."""
        return self._whole(self.event)

    def epsilon_at(self, noise: float) -> float:
        """Return what the mechanism would cost with ``noise`` times its noise."""
        event = self.event
        less = (
            replace(event, variance=event.variance * noise**2)
            if isinstance(event, Skellam)
            else replace(event, noise_multiplier=event.noise_multiplier * noise)
        )
        return spent(self._whole(less), self.delta).epsilon

    def scores(self, canaries: int, generator: np.random.Generator, *, noise: float = 1.0) -> Scores:
        """Return scores of so many canaries as the mechanism gives them with ``noise`` times its noise."""
        included = generator.integers(0, 2, canaries).astype(bool)
        drawn = generator.standard_normal(canaries)
        most = self.steps * self.records
        taken = generator.binomial(most, self.sampling_rate, canaries) if self.sampling_rate < 1 else most
        shift = taken * included / (self.noise_multiplier * math.sqrt(self.steps))
        return Scores(values=shift + noise * self.dilution * drawn, included=included)

    def _whole(self, event: PoissonGaussian | Gaussian | Skellam) -> Event:
        return event if self.records == 1 else SeveralRecords(records=self.records, event=event)
