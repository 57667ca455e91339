"""What each site has spent, as the server can know it: a site that was asked may have trained, so asking is charged.

A site's own ledger is the authority; this is the server's view, for progress, events and the report. The composition of all of a
site's steps is accounted for at once; ε's are never added.
"""

from __future__ import annotations

from collections import Counter

import numpy as np

from cloister.core.spec import FederationSpec
from cloister.privacy.plan import RecordPlan, record_plan
from cloister.privacy.statement import statement_for
from cloister.server.checkpoints import Arrays
from cloister.server.directory import Directory
from cloister.server.events import EventBus
from cloister.server.witnessing import Witnesses

__all__ = ["Spending"]

#: At most so many rounds of a run are accounted for on the way, and so many sites one by one at the end.
_POINTS, _SITES = 20, 200


class Spending:
    """Counts how often each site was asked to train, and tells ε."""

    def __init__(
        self,
        spec: FederationSpec,
        bus: EventBus,
        directory: Directory,
        *,
        seeded: bool,
        witnesses: Witnesses | None = None,
    ) -> None:
        self._plan: RecordPlan | None = record_plan(spec)
        self._spec = spec
        self._bus = bus
        self._directory = directory
        self._seeded = seeded
        self._witnesses = witnesses
        self._asked: Counter[int] = Counter()

    def ask(self, cohort: list[int]) -> None:
        """Charge a cohort (positions in the directory) that is about to be asked."""
        if self._plan is not None:
            self._asked.update(cohort)

    def tell(self, number: int) -> None:
        """Emit what the site that was asked most has spent after round ``number``; at the end, what each site has."""
        rounds = self._spec.federation.rounds
        if self._plan is None or (number < rounds and number % max(1, rounds // _POINTS)):
            return
        self._emit(number, max(self._asked.values()), site=None)
        if number == rounds and len(self._asked) <= _SITES:
            for position in sorted(self._asked):
                self._emit(number, self._asked[position], site=self._directory.name(position))

    def arrays(self) -> Arrays:
        """Return the counts for a checkpoint."""
        return {
            "positions": np.array(list(self._asked), dtype=np.int64),
            "counts": np.array(list(self._asked.values()), dtype=np.int64),
        }

    def restore(self, arrays: Arrays) -> None:
        """Put the counts of a checkpoint back."""
        if "positions" in arrays:
            pairs = zip(arrays["positions"].tolist(), arrays["counts"].tolist(), strict=True)
            self._asked = Counter(dict(pairs))

    def _emit(self, number: int, asked: int, *, site: str | None) -> None:
        if self._plan is None:
            return
        plan, found = self._plan, self._plan.spent(asked)
        sampling = f"Poisson with a public rate of {plan.sampling_rate:g} a step, {plan.steps} steps a round"
        told = None if site is None or self._witnesses is None else self._witnesses.newest(site)
        self._bus.emit(
            "privacy",
            number,
            epsilon=found.epsilon,
            allowed=self._spec.privacy.epsilon,
            delta=plan.delta,
            asked=asked,
            relation="zero-out",
            sampling=sampling,
            noise_multiplier=plan.noise_multiplier,
            pld=found.pld,
            rdp=found.rdp,
            statement=statement_for("record", found, sampling=sampling, seeded=self._seeded).text(),
            site=site,
            ledger=None
            if told is None
            else {"epsilon": told.epsilon, "delta": told.delta, "entries": told.head.seq},
            cap=None if told is None else told.cap,
        )
