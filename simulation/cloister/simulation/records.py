"""What each site of a simulation holds, for audits: entry points ``records`` and ``fingerprint`` of the group ``cloister.partitions``."""

from __future__ import annotations

import json

from cloister.core.data import Split
from cloister.core.spec import Loaded
from cloister.simulation.sites import SimulatedSites

__all__ = ["run_fingerprint", "site_records"]

#: More sites than this are not told apart.
_TOLD_APART = 1000


def site_records(loaded: Loaded) -> dict[str, Split] | None:
    """Return each site's records by its name, as a run of ``loaded`` deals them; ``None`` where its sites are too many, or unknown.

    A liar's are what it made of its own.
    """
    cohort = loaded.spec.cohort
    if cohort.partition.by != "site" and (cohort.sites is None or cohort.sites > _TOLD_APART):
        return None
    sites = SimulatedSites(json.dumps(loaded.effective()), loaded.base)
    if len(sites.roster) > _TOLD_APART:
        return None
    return {sites.roster.name(position): sites.records(position) for position in range(len(sites.roster))}


def run_fingerprint(loaded: Loaded) -> str:
    """Return what a run of ``loaded`` would compute with now: `SimulatedSites.fingerprint`."""
    return SimulatedSites(json.dumps(loaded.effective()), loaded.base).fingerprint
