"""The sites of a job: who is asked, who is there, and which Flower node each is."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

from cloister.core.errors import PeersMissing, SpecError
from cloister.server.deployment.superlink_grid import SuperLinkGrid
from cloister.server.directory import ListedDirectory

__all__ = ["asked_sites", "gather"]

_PAUSE_S = 0.2


def asked_sites(members: Sequence[str], asked: Sequence[str]) -> list[str]:
    """Return the names of the sites of a job, sorted: those that the request names, or all members.

    Raises:
        SpecError: (sites) it names one that is no member, or there is none.
    """
    unknown = sorted(set(asked) - set(members))
    if unknown:
        raise SpecError(
            f"the request names sites that are no members: {', '.join(repr(name) for name in unknown[:5])}",
            remedy=f"name some of: {', '.join(sorted(members)[:20])}",
            code="sites",
        )
    found = sorted(asked or members)
    if not found:
        raise SpecError("the consortium has no sites", remedy="add one: cloister provision add", code="sites")
    return found


def gather(
    grid: SuperLinkGrid,
    nodes: Mapping[str, int],
    *,
    least: int,
    wait_s: float,
    awaited: Callable[[list[str]], None] = lambda _: None,
) -> ListedDirectory:
    """Wait until enough sites are there, and return all that are asked, those that are away too.

    Who is who follows from the key that the SuperLink let in, never from what a node says of itself.

    Args:
        grid: reaches them.
        nodes: the Flower node of each asked site, by name.
        least: how many must be there.
        wait_s: seconds to wait for them.
        awaited: told of the names of those that are away, when they change.

    Raises:
        PeersMissing: fewer came in time.
    """
    deadline, told = time.monotonic() + wait_s, None
    while True:
        online = set(grid.keys())
        away = sorted(name for name, node in nodes.items() if node not in online)
        if not away or (len(nodes) - len(away) >= least and time.monotonic() > deadline - wait_s / 2):
            break
        if time.monotonic() > deadline:
            raise PeersMissing(
                f"{len(nodes) - len(away)} of {len(nodes)} sites are connected after {wait_s:g} s; away: {', '.join(away[:10])}",
                remedy="have the missing sites started (cloister site run), or raise cohort.wait_s",
            )
        if away != told:
            awaited(away)
            told = away
        time.sleep(_PAUSE_S)
    names = sorted(nodes)
    return ListedDirectory([nodes[name] for name in names], names)
