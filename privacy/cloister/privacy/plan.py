"""What a federation file costs in privacy: the one place that turns ``[privacy]`` into noise, events and ε.

Server, site and ``cloister check`` all ask here, so that what is promised, what is done and what is charged are one thing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Protocol

from cloister.core.spec import FederationSpec
from cloister.privacy.accounting import Spent
from cloister.privacy.events import Event
from cloister.privacy.ledger.entry import Figures
from cloister.privacy.record_plans import distributed_record_plan, record_plan
from cloister.privacy.site_plans import distributed_plan, server_or_local_plan
from cloister.privacy.statement import Unit

__all__ = ["Plan", "plan_from", "predict"]


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

    @property
    def repeatable(self) -> bool:
        """Whether a site may send the very same message again under the same charge, to be summed with others'.

        Not where only sums are seen and a message carries a share of the noise: two sums over different sites that hold the same
        messages differ by single ones, each under its own share alone.
        """
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


def plan_from(spec: FederationSpec, size: int) -> Plan | None:
    """Return the plan of ``spec`` for a model of ``size`` numbers, or ``None`` where nothing is promised.

    Raises:
        SpecError: the promise cannot be kept.
    """
    match spec.privacy.unit:
        case "none":
            return None
        case "record":
            return record_plan(spec)
        case "record-distributed":
            return distributed_record_plan(spec)
        case "site-distributed":
            return distributed_plan(spec, size)
        case "site" | "site-local":
            return server_or_local_plan(spec)


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
