"""What a private run has spent: ε by round with what the rest of the run will cost, and ε by site against its cap.

A projection is the accountant's: what a site will have spent that is asked in every round that is left, all of its rounds
composed at once. No line is drawn on from the rounds before, since ε does not grow in proportion to them.

=============================  ===========================================================================
the run                        its projection
=============================  ===========================================================================
has ended all of its rounds    none
was never private              none, and nothing is spent
=============================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.core.spec import FederationSpec
from cloister.privacy.plan import Plan, plan_from
from cloister.server.history import History

__all__ = ["SiteCost", "SpentSoFar", "spent_so_far"]

#: At most so many points of a projection, and so many sites one by one.
_POINTS, _SITES = 24, 200


@dataclass(frozen=True, kw_only=True)
class SiteCost:
    """What one site has spent.

    Attributes:
        epsilon: in this run.
        asked: in how many rounds it was asked to train; ``None`` where nothing says so.
        ledger: ε of everything on the site's own ledger, this run included; ``None`` where the site told none.
        cap: what the site allows its dataset over all runs; ``None`` where it told none.
    """

    epsilon: float
    asked: int | None = None
    ledger: float | None = None
    cap: float | None = None


@dataclass(frozen=True, kw_only=True)
class SpentSoFar:
    """What a private run has spent.

    Attributes:
        rounds: (round, ε of the site that had spent most by then), by round.
        projection: the same for the rounds that are left; it begins at the newest round, and is empty when none is left.
        allowed: ε that the federation file promises not to pass; ``None`` where it gives the noise instead.
        cap: the smallest cap that a site told; ``None`` where none did.
        sites: what each site has spent, by name.
    """

    rounds: tuple[tuple[int, float], ...]
    projection: tuple[tuple[int, float], ...]
    allowed: float | None
    cap: float | None
    sites: Mapping[str, SiteCost]

    def as_dict(self) -> dict[str, Any]:
        """Return what ``report.json`` says of it: ``allowed``, ``history`` and ``projection``."""
        return {
            "allowed": self.allowed,
            "history": [{"round": number, "epsilon": epsilon} for number, epsilon in self.rounds],
            "projection": [{"round": number, "epsilon": epsilon} for number, epsilon in self.projection],
        }


def spent_so_far(spec: Mapping[str, Any], history: History) -> SpentSoFar | None:
    """Return what a run has spent, unfinished ones too; ``None`` where it promises nothing.

    Args:
        spec: the effective federation file.
        history: what the run's events add up to.
    """
    size = (history.run.parameters if history.run else None) or 1
    plan = plan_from(FederationSpec.model_validate(spec), size)
    if plan is None:
        return None
    told = [event for event in history.privacy_by_round if event.get("epsilon") is not None]
    rounds = [(int(event["round"]), float(event["epsilon"])) for event in told]
    sites = _sites(plan, history)
    caps = [site.cap for site in sites.values() if site.cap is not None]
    return SpentSoFar(
        rounds=tuple(rounds),
        projection=tuple(_projection(plan, history, told)),
        allowed=(spec.get("privacy") or {}).get("epsilon"),
        cap=min(caps, default=None),
        sites=sites,
    )


def _projection(plan: Plan, history: History, told: list[Mapping[str, Any]]) -> list[tuple[int, float]]:
    if history.run is None:
        return []
    now, last = max((one.round for one in history.rounds), default=0), history.run.rounds
    if now >= last:
        return []
    asked = max((tally.asked for tally in history.sites.values()), default=0)
    if told and told[-1].get("asked") is not None:  # a round that is tried again is asked for twice
        asked = max(asked, int(told[-1]["asked"]))
    step = max(1, (last - now) // _POINTS)
    ahead = sorted({*range(now, last, step), last})
    return [(number, plan.spent(asked + number - now).epsilon) for number in ahead]


def _sites(plan: Plan, history: History) -> dict[str, SiteCost]:
    """The newest figure that was told of each site; of a run that has not told them yet, what its rounds cost."""
    found: dict[str, SiteCost] = {}
    ended = max((one.round for one in history.rounds), default=0)
    for site, tally in history.sites.items():
        event = history.privacy.get(site)
        current = event is not None and int(event["round"]) >= ended
        if not current and len(history.sites) <= _SITES:
            epsilon, asked = plan.spent(tally.asked).epsilon, tally.asked
        elif event is not None and event.get("epsilon") is not None:
            epsilon, asked = float(event["epsilon"]), event.get("asked") or tally.asked
        else:
            continue
        told = event or {}
        found[site] = SiteCost(
            epsilon=epsilon,
            asked=asked,
            ledger=(told.get("ledger") or {}).get("epsilon"),
            cap=told.get("cap"),
        )
    return found
