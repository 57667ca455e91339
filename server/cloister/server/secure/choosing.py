"""How a federation's replies are collected: in clear, or as protected sums."""

from __future__ import annotations

from cloister.core.errors import SpecError
from cloister.server.collecting import Collector
from cloister.server.courier import Courier
from cloister.server.gathering import Gatherer
from cloister.server.plan import RunPlan
from cloister.server.secure.collecting import SecureCollector
from cloister.server.secure.manifests import Manifests
from cloister.server.secure.masked import BITS, MaskedSums

__all__ = ["collector_for"]


def collector_for(plan: RunPlan, courier: Courier, gatherer: Gatherer) -> Collector:
    """Return what collects the replies of ``plan``.

    Raises:
        SpecError: updates are protected, and the server has no identity in a consortium.
    """
    protection = plan.loaded.spec.aggregation.protection
    if protection == "plain":
        return Collector(plan, courier, gatherer)
    if plan.secure is None:
        raise SpecError(
            f"aggregation.protection = '{protection}' needs a consortium, and the server has no identity in one",
            remedy="provision the consortium first",
            code="identity-missing",
        )
    sums = MaskedSums(courier, Manifests(plan, "masked", BITS), plan.secure)
    return SecureCollector(plan, courier, gatherer, sums)
