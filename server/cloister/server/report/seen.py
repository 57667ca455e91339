"""Who could see what during a run, in sentences that follow from the protection that was used; an unknown one promises nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cloister.server.history import History

__all__ = ["Seer", "who_sees"]

#: Engines that carry messages between machines; every other one keeps them on one machine or one cluster.
_DEPLOYED = frozenset({"superlink", "deployment"})


@dataclass(frozen=True, kw_only=True)
class Seer:
    """One party and what it could see.

    Attributes:
        who: ``server``, ``other sites``, ``outsiders`` or ``who holds the model``.
        sees: what lay open to it.
        hidden: what did not; empty where nothing is promised.
    """

    who: str
    sees: str
    hidden: str


def who_sees(history: History, spec: Mapping[str, Any]) -> tuple[Seer, ...]:
    """Return what each party could see.

    Args:
        history: what the run's events add up to.
        spec: the effective federation file.
    """
    aggregation = spec.get("aggregation") or {}
    protection = aggregation.get("protection") or (history.run.protection if history.run else None) or "plain"
    private = (spec.get("privacy") or {}).get("unit", "none") != "none"
    capped = isinstance(aggregation.get("weighting"), Mapping)
    deployed = history.run is not None and history.run.engine in _DEPLOYED
    return (
        _server(str(protection), capped=capped),
        Seer(
            who="other sites",
            sees="the common model at the start of each round it took part in",
            hidden="any single site's records or figures, nor its update unless all the others put theirs together",
        ),
        _outsiders(deployed=deployed),
        Seer(
            who="who holds the model",
            sees="the model's parameters; "
            + (
                "what they reveal of a record is bounded by ε"
                if private
                else "without differential privacy they may reveal single records"
            ),
            hidden="the records themselves",
        ),
    )


def _server(protection: str, *, capped: bool) -> Seer:
    weights = (
        "the number of records it states (used up to a public cap)"
        if capped
        else "the number of records it states"
    )
    if protection == "plain":
        return Seer(
            who="server",
            sees=f"every site's update in clear in each round, its losses and metrics, and {weights}",
            hidden="the records themselves; an update in clear can still reveal some of them",
        )
    return Seer(
        who="server",
        sees=f"what protection '{protection}' leaves open; this report has no statement about it",
        hidden="",
    )


def _outsiders(*, deployed: bool) -> Seer:
    if deployed:
        return Seer(
            who="outsiders",
            sees="that sites and server talk, when, and how much",
            hidden="the content: every connection is encrypted (TLS)",
        )
    return Seer(
        who="outsiders",
        sees="nothing: this was a simulation and no message went over a public network",
        hidden="everything; a deployment encrypts every connection (TLS)",
    )
