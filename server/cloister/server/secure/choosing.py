"""How a federation's replies are collected: in clear, or as protected sums."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from cloister.core.errors import SpecError
from cloister.privacy.manifest import Scheme
from cloister.privacy.protection import BITS
from cloister.server.collecting import Collector
from cloister.server.courier import Courier
from cloister.server.gathering import Gatherer
from cloister.server.group_gathering import GroupGatherer
from cloister.server.grouping import Placed
from cloister.server.plan import RunPlan, SecureSeat
from cloister.server.secure.collecting import SecureCollector
from cloister.server.secure.group_collecting import ClearGroupCollector, GroupCollector
from cloister.server.secure.manifests import Manifests
from cloister.server.secure.masked import MaskedSums
from cloister.server.secure.summing import Summing

if TYPE_CHECKING:
    from cloister.server.secure.keys import Keys

__all__ = ["collector_for"]


def collector_for(
    plan: RunPlan, courier: Courier, gatherer: Gatherer, groups: Placed | None = None
) -> Collector:
    """Return what collects the replies of ``plan``.

    Args:
        plan: the run.
        courier: reaches the sites.
        gatherer: makes directions of replies.
        groups: who is in which group, where there are groups.

    Raises:
        SpecError: updates are protected, and the server has no identity in a consortium.
    """
    protection = plan.loaded.spec.aggregation.protection
    grouped = (gatherer, groups) if groups is not None and isinstance(gatherer, GroupGatherer) else None
    if protection == "plain" and grouped is not None:
        return ClearGroupCollector(plan, courier, *grouped)
    if protection == "plain":
        return Collector(plan, courier, gatherer)
    if plan.secure is None:
        raise SpecError(
            f"aggregation.protection = '{protection}' needs a consortium, and the server has no identity in one",
            remedy="provision the consortium first",
            code="identity-missing",
        )
    manifests = Manifests(plan, protection, BITS[protection])
    if grouped is not None:
        return GroupCollector(
            plan, courier, grouped[0], MaskedSums(courier, manifests, plan.secure), grouped[1]
        )
    return SecureCollector(plan, courier, gatherer, _sums(protection, courier, manifests, plan.secure))


def _sums(protection: Scheme, courier: Courier, manifests: Manifests, seat: SecureSeat) -> Summing:
    if protection == "masked":
        return MaskedSums(courier, manifests, seat)
    from cloister.server.secure.encrypted import (
        EncryptedSums,  # what it needs is loaded only where it is used
    )

    return EncryptedSums(courier, manifests, seat, _keys(protection, courier, manifests, seat))


def _keys(
    protection: Literal["bfv", "ckks", "threshold-bfv"],
    courier: Courier,
    manifests: Manifests,
    seat: SecureSeat,
) -> Keys:
    if protection != "threshold-bfv":
        from cloister.server.secure.keys import AuthorityKeys

        if seat.authority is None:
            raise SpecError(
                f"aggregation.protection = '{protection}' needs a key authority, and the server knows none",
                remedy="run 'cloister authority run' at a party that is not the server",
                code="authority-missing",
            )
        return AuthorityKeys(seat.authority, courier, manifests, seat.consortium, protection)
    from cloister.server.secure.held import HeldKeys

    return HeldKeys(courier, manifests, seat.consortium)
