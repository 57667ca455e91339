"""The groups of a run at the server: who is in which, as `cloister.privacy.grouping` draws them and every site does for itself."""

from __future__ import annotations

from cloister.core.errors import PeersMissing, SpecError
from cloister.core.spec import FederationSpec
from cloister.core.spec.grouping import unsound_groups
from cloister.privacy.grouping import Groups, beacon_of
from cloister.privacy.request import JobRequest
from cloister.server.directory import Directory
from cloister.server.plan import RunPlan

__all__ = ["Placed", "placed_groups"]

#: Positions of each group's sites in the directory, ascending.
Placed = tuple[tuple[int, ...], ...]


def placed_groups(plan: RunPlan, directory: Directory) -> Placed | None:
    """Return the run's groups as positions in the directory; ``None`` where it has none.

    Raises:
        PeersMissing: sites that the request lists are not in the directory: their groups would be others than the sites compute.
        SpecError: the request lists no sites, or too few for the rule.
    """
    size = plan.loaded.spec.aggregation.group_size
    if size is None:
        return None
    names = [directory.name(position) for position in range(len(directory))]
    if plan.request is not None:
        asked = JobRequest.decode(plan.request.encoded).sites
        if not asked:
            raise SpecError(
                "aggregation.group_size needs the run's sites by name in the user's request: the groups are drawn from them",
                remedy="submit the job with the names of its sites",
                code="groups-open",
            )
        if missing := sorted(set(asked) - set(names)):
            raise PeersMissing(
                f"groups are drawn from all sites that the request lists, and {len(missing)} are not there: {', '.join(missing[:5])}",
                remedy="bring them back, or submit the job without them",
            )
        names = list(asked)
    if wrong := list(unsound_groups(_of(plan.loaded.spec, len(names)))):
        raise SpecError(
            f"the run has {len(names)} sites: " + "; ".join(wrong),
            remedy="ask more sites, or lower byzantine or group_size",
            code="groups-few",
        )
    position_of = {directory.name(position): position for position in range(len(directory))}
    drawn = Groups.draw(beacon_of(plan.randomness, plan.run), names, size)
    return tuple(tuple(sorted(position_of[name] for name in group)) for group in drawn.members)


def _of(spec: FederationSpec, sites: int) -> FederationSpec:
    """Return the federation as if its file said how many sites there are."""
    return spec.model_copy(update={"cohort": spec.cohort.model_copy(update={"sites": sites})})
