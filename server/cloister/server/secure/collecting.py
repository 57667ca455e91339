"""Rounds and measurements out of protected sums.

Nothing of a single site is known here but that it answered: losses, weights, metrics and counts are sums, and reports show means.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core import protocol
from cloister.core.metrics import METRIC_RANGES
from cloister.core.update import Vector
from cloister.privacy.manifest import SumKind
from cloister.privacy.sums import CUT, LOSS, summed_metrics
from cloister.server.collecting import Collected, Collector
from cloister.server.courier import Courier
from cloister.server.exchange import Answer
from cloister.server.gathering import Gatherer
from cloister.server.plan import RunPlan
from cloister.server.replies import CheckedEvaluation, CheckedUpdate, Refused
from cloister.server.secure.bounds import implausible
from cloister.server.secure.summing import Summed, Summing

__all__ = ["Given", "SecureCollector"]


class SecureCollector(Collector):
    """A `Collector` that sees sums only.

    Args:
        plan: the run.
        courier: reaches the sites.
        gatherer: makes directions of sums.
        sums: the protection.
    """

    def __init__(self, plan: RunPlan, courier: Courier, gatherer: Gatherer, sums: Summing) -> None:
        super().__init__(plan, courier, gatherer)
        self._sums = sums

    def train(self, number: int, cohort: list[int], vectors: dict[str, Vector]) -> Collected:
        """Have the cohort train on ``vectors``, and take the sum of what it made."""
        gathering = self._gatherer.start(number, tuple(vectors))
        summed = self._sums.sum(
            "train",
            number,
            cohort,
            vectors=vectors,
            clip=self._gatherer.job().get(protocol.CLIP),
            given=Given(self, "train", number, sum(vector.nbytes for vector in vectors.values())),
        )
        summed = self.plausible(number, summed)
        losses = []
        if summed.values:
            gathering.add_sum(summed.values, summed.count)
            if LOSS in summed.values:
                losses = [float(summed.values[LOSS][0]) / summed.count]
            self.tell_cut(number, summed)
        elif summed.why:
            self._plan.bus.emit("warning", number, text=f"round {number}: no sum was unmasked: {summed.why}")
        heard = summed.heard
        return Collected(
            asked=len(cohort),
            missing=heard.missing,
            refused=heard.refused,
            answered=summed.count,
            losses=losses,
            gathering=gathering,
            bytes_down=heard.bytes_down,
            bytes_up=heard.bytes_up,
            short="" if summed.values else summed.why,
            suspects=summed.suspects,
            tried=summed.tried,
        )

    def plausible(self, number: int, summed: Summed) -> Summed:
        """Return ``summed``, or nothing of it where no honest sites could have made it: somebody in it lied."""
        wrong = implausible(self._plan.loaded.spec, summed.values, summed.count)
        if not wrong:
            return summed
        self._plan.bus.emit("warning", number, text=f"round {number}: a sum was thrown away: {wrong}")
        return Summed(values={}, count=0, heard=summed.heard, why=wrong, tried=summed.tried)

    def tell_cut(self, number: int, summed: Summed) -> None:
        """Warn where updates were cut to the reach."""
        if CUT in summed.values and summed.values[CUT][0] >= 1:
            reach = self._plan.loaded.spec.aggregation.reach
            text = f"updates held numbers beyond aggregation.reach = {reach:g}, which were cut to it; raise it, or lower the learning rate"
            self._plan.bus.emit("warning", number, text=text)

    def measure(self, number: int, cohort: list[int], model: Vector) -> CheckedEvaluation | None:
        """Have the cohort measure ``model``, and take the sum; return the mean over the sites in it, which all have test records."""
        summed = self._sums.sum(
            "evaluate",
            number,
            cohort,
            vectors={protocol.VECTOR: model},
            clip=None,
            given=Given(self, "evaluate", number, model.nbytes),
        )
        summed = self.plausible(number, summed)
        if not summed.values:
            text = f"round {number}: the sites' measurements were not unmasked: {summed.why}"
            self._plan.bus.emit("warning", number, text=text)
            return None
        mean = _mean(summed.values, summed.count, self._plan.classes)
        self._plan.bus.emit("evaluation", number, where="sites", **vars(mean))
        return mean


class Given:
    """Tells the run's watchers who answered, and has ledgers looked at."""

    def __init__(self, collector: Collector, kind: SumKind, number: int, nbytes: int) -> None:
        self._collector = collector
        self._kind = kind
        self._number = number
        self._nbytes = nbytes

    def __call__(
        self, name: str, answer: Answer, checked: CheckedUpdate | Refused
    ) -> CheckedUpdate | Refused:
        """Look at the ledger that came with it, and tell; see `cloister.server.secure.summing.Given`."""
        if self._kind == "train":
            checked = self._collector.witnessed(name, checked)
        self._collector.tell(
            self._number, self._kind, name, answer=answer, checked=checked, nbytes=self._nbytes
        )
        return checked


def _mean(sums: dict[str, npt.NDArray[Any]], count: int, classes: int) -> CheckedEvaluation:
    def one(name: str) -> float:
        return float(sums[name][0]) / count

    known = METRIC_RANGES["classification" if classes else "regression"]
    metrics = {
        name: float(np.clip(one(protocol.METRIC + name), *known[name])) for name in summed_metrics(classes)
    }
    counts = np.rint(sums[protocol.CONFUSION]).astype(np.int64) if classes else None
    return CheckedEvaluation(
        loss=one(LOSS),
        metrics=metrics,
        records=1 if counts is None else int(counts.sum()),
        confusion=None if counts is None else counts.reshape(classes, classes).tolist(),
    )
