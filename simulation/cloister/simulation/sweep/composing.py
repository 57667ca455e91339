"""What all points of a sweep cost each site together: one composition over all of them, never a sum of ε's.

Formal guarantee: if each site did in each point what the point's plan says, as often as it was asked there, then everything
that all points released about its records satisfies (ε, δ)-differential privacy in the zero-out relation, with the ε stated
here, whoever looks at them and whichever point is kept in the end. The choice of a point by what it scored is covered as far as it
rests on what the points released; scores on test records are not.

The runs of a grid are fixed in advance and every one of them is shown, so each is charged in full. Bounds below composition hold only
where a random number of runs is made and nothing but the best one is released (Papernot & Steinke 2022, arXiv 2110.03620).

====================================  =========================================================================
points                                are composed
====================================  =========================================================================
of one unit, with different δ's       at the smallest of them
of different units                    apart: guarantees for different units are never added
without privacy                       never: what they release has no bound, and they are counted by themselves
of a site that was never asked        to 0
====================================  =========================================================================
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.core.spec import FederationSpec
from cloister.privacy.accounting import Spent, spent
from cloister.privacy.plan import plan_from
from cloister.server.events import read_events

__all__ = ["MOST_SITES", "Charged", "asked_rounds", "composed"]

#: Up to so many sites are told one by one; of more, only what a site cost that was asked as often as any was in each point.
MOST_SITES = 200


@dataclass(frozen=True, kw_only=True)
class Charged:
    """One point as its sites pay for it.

    Attributes:
        spec: the federation of the point.
        asked: in how many rounds each site was asked to train, by name; a site that was asked may have trained.
        size: length of the model's vector.
    """

    spec: FederationSpec
    asked: Mapping[str, int]
    size: int = 1


def asked_rounds(run: Path) -> dict[str, int]:
    """Return how often each site of a run was asked to train, by name, repeated attempts at a round included.

    Raises:
        IntegrityError: the run's events cannot be read.
    """
    asked: Counter[str] = Counter()
    for event in read_events(run / "events.jsonl"):
        if event["kind"] == "site" and event.get("phase") == "train":
            asked[str(event["site"])] += 1
    return dict(asked)


def composed(points: Iterable[Charged]) -> list[dict[str, Any]]:
    """Return what the private points cost together, one entry a unit: ``unit``, ``delta``, ``relation``, ``points``, ``most``, ``sites``.

    ``most`` is the cost to a site that was asked as often as any was in each point, which no site passes; ``sites`` holds each
    site's own, and is ``None`` with more than `MOST_SITES`. Costs are ``epsilon``, ``pld``, ``rdp`` and ``rounds``.

    Raises:
        SpecError: no bound covers the points together.
    """
    by_unit: defaultdict[str, list[Charged]] = defaultdict(list)
    for point in points:
        if point.spec.privacy.unit != "none":
            by_unit[point.spec.privacy.unit].append(point)
    return [_unit(unit, found) for unit, found in by_unit.items()]


def _unit(unit: str, points: Sequence[Charged]) -> dict[str, Any]:
    plans = [plan for point in points if (plan := plan_from(point.spec, point.size)) is not None]
    delta = min(plan.delta for plan in plans)

    def cost(rounds: Sequence[int]) -> dict[str, Any]:
        events = [plan.event(times) for plan, times in zip(plans, rounds, strict=True) if times]
        return _cost(spent(events, delta), sum(rounds))

    names = sorted({name for point in points for name in point.asked})
    most = [max(point.asked.values(), default=0) for point in points]
    sites = (
        {name: cost([point.asked.get(name, 0) for point in points]) for name in names}
        if len(names) <= MOST_SITES
        else None
    )
    return {
        "unit": unit,
        "delta": delta,
        "relation": str(spent((), delta).relation),
        "points": len(points),
        "most": cost(most),
        "sites": sites,
    }


def _cost(found: Spent, rounds: int) -> dict[str, Any]:
    plain = found.as_dict()
    return {"epsilon": plain["epsilon"], "pld": plain["pld"], "rdp": plain["rdp"], "rounds": rounds}
