"""What each site has spent, as the server can know it: a site that was asked may have trained, so asking is charged.

A site's own ledger is the authority; this is the server's view, for progress, events and the report. The composition of all of a
site's steps is accounted for at once; ε's are never added.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from cloister.core.spec import FederationSpec
from cloister.privacy.plan import Plan, plan_from
from cloister.privacy.record_plans import DistributedRecordPlan
from cloister.privacy.site_plans import DistributedPlan
from cloister.privacy.statement import statement_for
from cloister.server.checkpoints import Arrays
from cloister.server.directory import Directory
from cloister.server.events import EventBus
from cloister.server.witnessing import Witnesses

__all__ = ["Spending"]

#: At most so many rounds of a run are accounted for on the way, and so many sites one by one at the end.
_POINTS, _SITES = 20, 200
#: Survivors of a round that did not count (or not yet).
_UNKNOWN = 0


class Spending:
    """Counts in which rounds each site was asked to train, by how many sites the round's sum held, and tells ε."""

    def __init__(
        self,
        spec: FederationSpec,
        size: int,
        bus: EventBus,
        directory: Directory,
        *,
        seeded: bool,
        witnesses: Witnesses | None = None,
    ) -> None:
        self._plan: Plan | None = plan_from(spec, size)
        self._spec = spec
        self._bus = bus
        self._directory = directory
        self._seeded = seeded
        self._witnesses = witnesses
        self._asked: dict[int, Counter[int]] = {}

    def ask(self, cohort: list[int]) -> None:
        """Charge a cohort (positions in the directory) that is about to be asked, as if the fewest answered."""
        if self._plan is not None:
            for position in cohort:
                self._asked.setdefault(position, Counter())[_UNKNOWN] += 1

    def settle(self, cohort: list[int], survivors: int) -> None:
        """Charge the cohort that was asked last by the number of sites that are in the sum, where that makes a difference."""
        if isinstance(self._plan, DistributedPlan | DistributedRecordPlan):
            for position in cohort:
                rounds = self._asked[position]
                rounds[survivors] += 1
                rounds[_UNKNOWN] -= 1
                rounds += Counter()  # drops what is zero

    def tell(self, number: int) -> None:
        """Emit what the site that has spent most has spent after round ``number``; at the end, what each site has."""
        rounds = self._spec.federation.rounds
        if self._plan is None or (number < rounds and number % max(1, rounds // _POINTS)):
            return
        most = max(self._asked.values(), key=self._burden)
        self._emit(number, most, site=None)
        if number == rounds and len(self._asked) <= _SITES:
            for position in sorted(self._asked):
                self._emit(number, self._asked[position], site=self._directory.name(position))

    def arrays(self) -> Arrays:
        """Return the counts for a checkpoint."""
        rows = [
            (position, survivors, rounds)
            for position, counts in self._asked.items()
            for survivors, rounds in counts.items()
        ]
        table = np.array(rows, dtype=np.int64).reshape(-1, 3)
        return {"positions": table[:, 0], "survivors": table[:, 1], "counts": table[:, 2]}

    def restore(self, arrays: Arrays) -> None:
        """Put the counts of a checkpoint back."""
        self._asked = {}
        if "positions" in arrays:
            table = zip(
                *(arrays[name].tolist() for name in ("positions", "survivors", "counts")), strict=True
            )
            for position, survivors, rounds in table:
                self._asked.setdefault(position, Counter())[survivors] = rounds

    def _burden(self, rounds: Mapping[int, int]) -> float:
        """Return what grows with the cost: rounds, each divided by the honest noise shares in its sum."""
        least, colluders = self._spec.cohort.min_sites, self._spec.privacy.colluders or 0
        return sum(count / (max(survivors, least) - colluders) for survivors, count in rounds.items())

    def _emit(self, number: int, rounds: Mapping[int, int], *, site: str | None) -> None:
        if self._plan is None:
            return
        plan, found, asked = self._plan, self._plan.spent_by(rounds), sum(rounds.values())
        told = None if site is None or self._witnesses is None else self._witnesses.newest(site)
        statement = statement_for(
            plan.unit,
            found,
            sampling=plan.sampling,
            seeded=self._seeded,
            also_not_covered=plan.not_covered,
            records_per_person=plan.records_per_person,
        )
        self._bus.emit(
            "privacy",
            number,
            epsilon=found.epsilon,
            allowed=self._spec.privacy.epsilon,
            delta=plan.delta,
            asked=asked,
            relation=str(found.relation),
            sampling=plan.sampling,
            noise_multiplier=plan.noise_multiplier,
            pld=found.pld,
            rdp=found.rdp,
            statement=statement.text(),
            site=site,
            ledger=None
            if told is None
            else {
                "epsilon": told.epsilon,
                "delta": told.delta,
                "entries": told.head.seq,
                "head": told.head.as_dict(),
            },
            cap=None if told is None else told.cap,
        )
