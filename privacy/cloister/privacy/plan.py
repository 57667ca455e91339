"""What a federation file costs in privacy: the one place that turns ``[privacy]`` into noise, events and ε.

Server, site and ``cloister check`` all ask here, so that what is promised, what is done and what is charged are one thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, Protocol

from cloister.core.errors import SpecError
from cloister.core.spec import FederationSpec
from cloister.privacy.accounting import Spent, spent
from cloister.privacy.calibration import noise_multiplier_for
from cloister.privacy.events import Event, PoissonGaussian, SeveralRecords
from cloister.privacy.ledger.entry import Figures
from cloister.privacy.site_plans import distributed_plan, server_or_local_plan
from cloister.privacy.statement import Unit

__all__ = ["Plan", "RecordPlan", "plan_from", "predict", "record_plan"]


class Plan(Protocol):
    """What every unit's plan can be asked."""

    #: Whose contribution is hidden.
    unit: ClassVar[Unit]

    @property
    def rounds(self) -> int:
        """The most rounds that a site can take part in."""
        ...

    @property
    def delta(self) -> float:
        """δ."""
        ...

    @property
    def noise_multiplier(self) -> float:
        """The noise's standard deviation over the clip."""
        ...

    @property
    def sampling(self) -> str:
        """How batches or cohorts are drawn, in words."""
        ...

    @property
    def records_per_person(self) -> int:
        """Up to how many records a person may have for whom the promise is made; 1: it is made to records, or to sites."""
        ...

    @property
    def not_covered(self) -> tuple[str, ...]:
        """What this plan leaves open beside what its unit does."""
        ...

    def event(self, rounds: int = 1) -> Event:
        """Return what a site's ``rounds`` rounds are at the most, for the accountant and the ledger."""
        ...

    def spent(self, rounds: int) -> Spent:
        """Return what a site has spent at the most after taking part in ``rounds`` rounds."""
        ...

    def spent_by(self, survivors: Mapping[int, int]) -> Spent:
        """Return what a site has spent in rounds with these survivors: survivors → rounds (0: unknown, the fewest)."""
        ...

    def facts(self) -> dict[str, Any]:
        """Return what ``cloister check`` says beside ε."""
        ...

    def figures(self) -> Figures:
        """Return what a round ran with, for a reader of the ledger."""
        ...


@dataclass(frozen=True, kw_only=True)
class RecordPlan:
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

    noise_multiplier: float
    sampling_rate: float
    clip: float
    expected_batch: int
    steps: int
    rounds: int
    delta: float
    records_per_person: int = 1

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


def plan_from(spec: FederationSpec, size: int) -> Plan | None:
    """Return the plan of ``spec`` for a model of ``size`` numbers, or ``None`` where nothing is promised.

    Raises:
        SpecError: the promise cannot be kept.
    """
    if spec.privacy.unit in ("none", "record"):
        return record_plan(spec)
    return (
        distributed_plan(spec, size)
        if spec.privacy.unit == "site-distributed"
        else server_or_local_plan(spec)
    )


def record_plan(spec: FederationSpec) -> RecordPlan | None:
    """Return the plan of ``unit = "record"``, or ``None`` where ``spec`` promises nothing to records.

    With ``privacy.epsilon``, σ is calibrated to a site that takes part in every round: one that is drawn less often spends less.

    Raises:
        SpecError: the promise cannot be kept.
    """
    privacy, steps = spec.privacy, spec.training.local_steps
    if privacy.unit != "record":
        return None
    if privacy.delta is None or privacy.clip is None or privacy.sampling_rate is None or steps is None:
        raise SpecError(
            "[privacy] is not complete", remedy="give delta, clip, sampling_rate and training.local_steps"
        )
    rounds, records = spec.federation.rounds, privacy.max_records_per_person or 1
    sigma = privacy.noise_multiplier
    if sigma is None:
        if privacy.epsilon is None:
            raise SpecError("[privacy] has neither epsilon nor noise_multiplier", remedy="give one of them")
        sigma = _calibrated(privacy.epsilon, privacy.delta, privacy.sampling_rate, rounds * steps, records)
    return RecordPlan(
        noise_multiplier=sigma,
        sampling_rate=privacy.sampling_rate,
        clip=privacy.clip,
        expected_batch=spec.training.batch_size,
        steps=steps,
        rounds=rounds,
        delta=privacy.delta,
        records_per_person=records,
    )


def predict(spec: FederationSpec, size: int) -> dict[str, Any]:
    """Return what ``cloister check`` prints: the cost of the whole run to a site that takes part in every round.

    Args:
        spec: the federation.
        size: length of the model's vector.
    """
    plan = plan_from(spec, size)
    if plan is None:
        return {"unit": "none", "epsilon": None}
    return {
        "unit": plan.unit,
        "epsilon": plan.spent(plan.rounds).epsilon,
        "delta": plan.delta,
        "noise_multiplier": plan.noise_multiplier,
        **plan.facts(),
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
