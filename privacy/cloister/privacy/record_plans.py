"""What ``[privacy]`` costs and does where records are the unit: noise, events and ε of the two mechanisms.

===================  ===========================================  ====================================================================
unit                 noise of one step's sum                      holds against
===================  ===========================================  ====================================================================
record               σC from each site, in its own sum            everybody outside the site
record-distributed   σC from the fewest honest sites together     whoever sees only sums, and the shares of at most ``colluders`` sites
===================  ===========================================  ====================================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

from cloister.core.spec import FederationSpec
from cloister.core.spec.grouping import least_in_sum
from cloister.privacy.accounting import Spent, spent
from cloister.privacy.calibration import noise_multiplier_for
from cloister.privacy.events import Composed, Event, PoissonGaussian, SeveralRecords
from cloister.privacy.ledger.entry import Figures
from cloister.privacy.public_numbers import given, most_in_sum, sites_in_sum
from cloister.privacy.site_plans import MEASURED, shares_not_covered
from cloister.privacy.statement import Unit
from cloister.privacy.updates import SHARE_BITS, ShareCode

__all__ = ["DistributedRecordPlan", "RecordPlan", "distributed_record_plan", "record_plan"]

#: The largest number in a sum is taken to be that of so many times the expected records, all aligned in one coordinate.
_REACH = 4


@dataclass(frozen=True, kw_only=True)
class _Records:
    """What both mechanisms share."""

    noise_multiplier: float
    sampling_rate: float
    clip: float
    expected_batch: int
    rounds: int
    delta: float
    records_per_person: int = 1


@dataclass(frozen=True, kw_only=True)
class RecordPlan(_Records):
    """Record-level differential privacy of one federation (``unit = "record"``).

    Formal guarantee: what one site releases over ``rounds`` rounds is (ε, δ)-differentially private for its records, in the
    zero-out relation, against everybody who sees all that the site releases, where ε = ``self.spent(rounds).epsilon``.

    Attributes:
        noise_multiplier: σ, the noise's standard deviation over ``clip``; dimensionless.
        sampling_rate: q, public.
        clip: C, the largest L2 norm of one record's gradient.
        expected_batch: the public divisor of a step's sum.
        steps: noisy steps a round.
        rounds: the most rounds that a site can take part in.
        delta: δ.
        records_per_person: k: the guarantee is a person's who has up to k records, each clipped and drawn by itself.
    """

    unit: ClassVar[Unit] = "record"
    repeatable: ClassVar[bool] = True

    steps: int

    @property
    def sampling(self) -> str:
        """How batches are drawn, in words."""
        return f"Poisson with a public rate of {self.sampling_rate:g} a step, {self.steps} steps a round"

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What this plan leaves open beside what its unit does: nothing."""
        return ()

    def event(self, rounds: int = 1) -> Event:
        """Return what a site's ``rounds`` rounds are, for the accountant and the ledger."""
        return _event(self.noise_multiplier, self.sampling_rate, rounds * self.steps, self.records_per_person)

    def spent(self, rounds: int) -> Spent:
        """Return what a site has spent after taking part in ``rounds`` rounds."""
        steps = rounds * self.steps
        return _spent(self.noise_multiplier, self.sampling_rate, steps, self.records_per_person, self.delta)

    def spent_by(self, survivors: Mapping[int, int]) -> Spent:
        """Return what a site has spent in rounds with these survivors, who change nothing here: each adds noise enough."""
        return self.spent(sum(survivors.values()))

    def facts(self) -> dict[str, Any]:
        """Return what ``cloister check`` says beside ε."""
        return {
            "sampling_rate": self.sampling_rate,
            "steps": self.rounds * self.steps,
            "records_per_person": self.records_per_person,
        }

    def figures(self) -> Figures:
        """Return what a round ran with, for a reader of the ledger."""
        return Figures(
            steps=self.steps,
            noise_multiplier=self.noise_multiplier,
            clip=self.clip,
            sampling_rate=self.sampling_rate,
        )


@dataclass(frozen=True, kw_only=True)
class DistributedRecordPlan(_Records):
    """Record-level differential privacy by the noise shares of all sites (``unit = "record-distributed"``).

    One step of DP-SGD over the records of all sites a round, after Heikkilä, Koskela, Shimizu, Kaski & Honkela (2020), "Differentially
    private cross-silo federated learning" (arXiv 2007.05553): each site draws a Poisson batch of its own records, adds N(0, (σC)²/h) to every number of its
    sum of clipped gradients and sends integers (`cloister.privacy.updates.shares`), which are summed modulo 2³². There, Gaussian noise and
    the lemma on rounded shares take the place of the paper's discretised noise.

    Formal guarantee: the sums of all rounds are (ε, δ)-differentially private for the records of one site over ``rounds`` rounds, in the
    zero-out relation, against whoever sees only sums with at least ``least`` sites in each, together with all that up to ``colluders`` of those know.

    - Mechanism. Without the colluders' own terms a sum is that of at least h = ``honest`` sites: post-processing (see the lemma there) of one
      Poisson-subsampled Gaussian mechanism with rate q over the union of their records, sensitivity C and noise of at least σC. So a round is
      ``PoissonGaussian(noise_multiplier=σ, sampling_rate=q)``, what central training with this noise would cost.
    - More survivors m than the fewest add noise: a round then has σ·√((m - colluders)/h) (`spent_by`). A site's own ledger, which does not know
      m in time, is charged for the fewest.
    - A person with up to k records, at whatever honest sites they lie, is one of `SeveralRecords`.
    - A message under a share of the noise goes into one sum: a round that is asked for again is computed, noised and charged anew (`repeatable`), since
      two sums with the same messages in them differ by single ones.
    - A single message carries 1/h of the noise's variance: whoever sees it, the server above all where messages go in clear, is not covered.

    ==========================  ====================================================================
    case                        outcome
    ==========================  ====================================================================
    one site, no colluder       central DP-SGD of that site
    colluders ≥ least           refused by the federation file's checks
    no site drew a record       noise alone, charged like any other
    32 bits are too few         ``SpecError`` (privacy-bits)
    fewer survivors than least  the round is not used, and charged as one with ``least``
    ==========================  ====================================================================

    Attributes:
        noise_multiplier: σ, the standard deviation over ``clip`` of the noise of ``honest`` sites together.
        sampling_rate: q, public.
        clip: C, the largest L2 norm of one record's gradient.
        expected_batch: B, the public divisor of one site's sum.
        rounds: the most rounds that a site can take part in: as many steps.
        delta: δ.
        records_per_person: k, over all honest sites together.
        sites: n, the public number of sites in a round: the sum is divided by n·B.
        least: the fewest sites in a sum.
        colluders: how many of those may side with an attacker.
        code: how a noisy sum becomes integers.
        in_clear: whether the server sees single messages.
    """

    unit: ClassVar[Unit] = "record-distributed"
    steps: ClassVar[int] = 1

    sites: float
    least: int
    colluders: int
    code: ShareCode
    in_clear: bool

    @property
    def honest(self) -> int:
        """Return h, the fewest honest sites in a sum."""
        return self.least - self.colluders

    @property
    def share(self) -> float:
        """Return one site's noise multiplier, σ/√h."""
        return self.noise_multiplier / math.sqrt(self.honest)

    @property
    def repeatable(self) -> bool:
        """Whether a message may be sent again: only where it is seen by itself anyway."""
        return self.in_clear

    @property
    def divisor(self) -> float:
        """Return n·B, the public divisor of the sum."""
        return self.sites * self.expected_batch

    @property
    def sampling(self) -> str:
        """How batches are drawn, in words."""
        return (
            f"Poisson with a public rate of {self.sampling_rate:g} over the records of all sites, one step a round; a site is charged for every round that it "
            f"is asked in; the sum is divided by the public number {self.divisor:g}"
        )

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What this plan leaves open beside what its unit does."""
        return (*shares_not_covered(self.honest, self.colluders, in_clear=self.in_clear), MEASURED)

    def event(self, rounds: int = 1, *, survivors: int | None = None) -> Event:
        """Return what a site's ``rounds`` rounds are with so many survivors; with the fewest, where that is left out."""
        honest = (self.least if survivors is None else survivors) - self.colluders
        sigma = self.noise_multiplier * math.sqrt(honest / self.honest)
        return _event(sigma, self.sampling_rate, rounds, self.records_per_person)

    def spent(self, rounds: int) -> Spent:
        """Return what a site has spent after ``rounds`` rounds with the fewest survivors."""
        return spent(self.event(rounds), self.delta)

    def spent_by(self, survivors: Mapping[int, int]) -> Spent:
        """Return what a site has spent in rounds with these survivors (survivors → rounds); fewer than ``least`` count as ``least``."""
        rounds = (self.event(count, survivors=max(many, self.least)) for many, count in survivors.items())
        return spent(Composed(events=tuple(rounds)), self.delta)

    def facts(self) -> dict[str, Any]:
        """Return what ``cloister check`` says beside ε."""
        return {
            "sampling_rate": self.sampling_rate,
            "steps": self.rounds,
            "records_per_person": self.records_per_person,
            "clip": self.clip,
            "divisor": self.divisor,
            "survivors": self.least,
            "colluders": self.colluders,
            "share_noise_multiplier": self.share,
            "scale": self.code.scale,
            "bits": SHARE_BITS,
        }

    def figures(self) -> Figures:
        """Return what a round ran with, for a reader of the ledger."""
        return Figures(
            steps=1,
            noise_multiplier=self.noise_multiplier,
            clip=self.clip,
            sampling_rate=self.sampling_rate,
            survivors=self.least,
        )


def record_plan(spec: FederationSpec) -> RecordPlan | None:
    """Return the plan of ``unit = "record"``, or ``None`` where ``spec`` promises something else, or nothing.

    With ``privacy.epsilon``, σ is calibrated to a site that takes part in every round: one that is drawn less often spends less.

    Raises:
        SpecError: the promise cannot be kept.
    """
    if spec.privacy.unit != "record":
        return None
    steps = given(spec.training.local_steps, "training.local_steps")
    return RecordPlan(**_stated(spec, steps), steps=steps)


def distributed_record_plan(spec: FederationSpec) -> DistributedRecordPlan:
    """Return the plan of ``unit = "record-distributed"``; σ is calibrated as for `record_plan`, to the fewest honest sites.

    Raises:
        SpecError: the promise cannot be kept, or 32 bits do not suffice for it.
    """
    stated = _stated(spec, steps=1)
    least, colluders, most = least_in_sum(spec), spec.privacy.colluders or 0, most_in_sum(spec)
    honest, clip = least - colluders, stated["clip"]
    code = ShareCode.choose(
        share=stated["noise_multiplier"] * clip / math.sqrt(honest),
        reach=_REACH * most * stated["expected_batch"] * clip,
        most=most,
        least=honest,
    )
    return DistributedRecordPlan(
        **stated,
        sites=sites_in_sum(spec),
        least=least,
        colluders=colluders,
        code=code,
        in_clear=spec.aggregation.protection == "plain",
    )


def _stated(spec: FederationSpec, steps: int) -> dict[str, Any]:
    """Return what the file says of both mechanisms, with σ for ``steps`` steps a round."""
    privacy, rounds, records = spec.privacy, spec.federation.rounds, spec.privacy.max_records_per_person or 1
    delta, rate = given(privacy.delta, "privacy.delta"), given(privacy.sampling_rate, "privacy.sampling_rate")
    sigma = privacy.noise_multiplier
    if sigma is None:
        sigma = _calibrated(given(privacy.epsilon, "privacy.epsilon"), delta, rate, rounds * steps, records)
    return {
        "noise_multiplier": sigma,
        "sampling_rate": rate,
        "clip": given(privacy.clip, "privacy.clip"),
        "expected_batch": spec.training.batch_size,
        "rounds": rounds,
        "delta": delta,
        "records_per_person": records,
    }


def _event(sigma: float, rate: float, steps: int, records: int) -> Event:
    one = PoissonGaussian(noise_multiplier=sigma, sampling_rate=rate, steps=steps)
    return one if records == 1 else SeveralRecords(records=records, event=one)


@lru_cache(maxsize=1024)
def _spent(sigma: float, rate: float, steps: int, records: int, delta: float) -> Spent:
    return spent([_event(sigma, rate, steps, records)], delta)


@lru_cache(maxsize=64)
def _calibrated(epsilon: float, delta: float, rate: float, steps: int, records: int) -> float:
    return noise_multiplier_for(epsilon, delta, lambda sigma: [_event(sigma, rate, steps, records)])
