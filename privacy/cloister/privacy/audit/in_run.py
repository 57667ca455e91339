"""What an audit of a run claims and may assume, from the run's own federation file and plan.

==============================  ===========================================  ======================================================
unit, protection                what is scored                               how much more noise is in it than the claim counts on
==============================  ===========================================  ======================================================
record, plain                   the updates of the canaries' site, in clear  none
record, masked or encrypted     the rounds' sums, or their models            √n: each of n sites adds noise enough for itself
record-distributed              the same                                     √(n/h): n sites add shares, and the claim counts on h
site, site-distributed          the same                                     what the plan's release adds
site-local                      each canary site's own updates               none
==============================  ===========================================  ======================================================
"""

from __future__ import annotations

import math
from typing import Literal

from cloister.core.spec import FederationSpec
from cloister.privacy.audit.claims import Claim
from cloister.privacy.audit.power import Canaries
from cloister.privacy.plan import Plan
from cloister.privacy.record_plans import DistributedRecordPlan
from cloister.privacy.site_plans import DistributedPlan, SitePlan

__all__ = ["Sees", "Space", "claimed", "kinds_of", "plain_steps", "seen_in"]

Space = Literal["gradient", "input"]
#: What the adversary sees: single updates, or the rounds' sums, which are the differences of their models.
Sees = Literal["update", "model"]


def claimed(plan: Plan, *, sites: int, sees: Sees) -> Claim:
    """Return what a run under ``plan`` claims of a unit that takes part in every round.

    Args:
        plan: of the run.
        sites: how many take part in a round.
        sees: what the adversary sees.

    Raises:
        SpecError: (audit-claim) a mechanism that cannot be audited.
    """
    return Claim.of(
        plan.event(plan.rounds),
        epsilon=plan.spent(plan.rounds).epsilon,
        delta=plan.delta,
        dilution=_dilution(plan, sites, sees),
    )


def seen_in(spec: FederationSpec) -> Sees:
    """Return what a run's coordinator sees of a site that plants records."""
    clear = spec.aggregation.protection == "plain" and spec.privacy.unit == "record"
    return "update" if clear else "model"


def plain_steps(spec: FederationSpec) -> bool:
    """Whether what is scored is the plain sum of the noisy steps: then scores are normal, and each canary is the worst record."""
    training = spec.training
    optimizer, schedule = training.optimizer, training.schedule
    moved = optimizer.momentum or optimizer.weight_decay or training.proximal_mu or training.l1 or training.l2
    return optimizer.name == "sgd" and not moved and (schedule.name, schedule.warmup) == ("constant", 0)


def kinds_of(*, space: Space, plain: bool) -> Canaries:
    """Return what is known beforehand of the canaries of an audit."""
    return Canaries(independent=space == "gradient", normal=plain, worst=plain and space == "gradient")


def _dilution(plan: Plan, sites: int, sees: Sees) -> float:
    if isinstance(plan, DistributedPlan | DistributedRecordPlan):
        return math.sqrt(sites / plan.honest)
    if isinstance(plan, SitePlan):
        return plan.update_noise / plan.noise_multiplier
    return math.sqrt(sites) if sees == "model" else 1.0
