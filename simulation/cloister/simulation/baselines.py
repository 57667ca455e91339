"""What the federation is compared with: one model on the pooled records, and each site's own model.

A baseline is a federation of one: as many rounds, the same local training, the same schedule and the same test records. So the
only difference is who trains on what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from cloister.core.data import Data
from cloister.core.metrics import Measurement
from cloister.core.update import Vector
from cloister.simulation.sites import SimulatedSites

__all__ = ["Baseline", "baselines"]


@dataclass(frozen=True, kw_only=True)
class Baseline:
    """One model trained alone.

    Attributes:
        where: ``baseline:pooled`` or ``baseline:local:<site>``.
        sites: the simulation.
        data: what it trains on.
        start: (size,) the model as the federation began with it.
        measure: measures a model on the pooled test records.
    """

    where: str
    sites: SimulatedSites
    data: Data
    start: Vector
    measure: Callable[[Vector], Measurement]

    def train(self) -> Measurement:
        """Train it and return its measurement.

        Raises:
            DataError: training left the model not finite.
        """
        trainer, vector = self.sites.bench.trainer, self.start
        for number in range(1, self.sites.spec.federation.rounds + 1):
            result = trainer.train(
                vector, self.data, site=self.where, round_number=number, randomness=self.sites.randomness
            )
            vector = vector + result.change
        return self.measure(vector)


def baselines(
    sites: SimulatedSites, start: Vector, measure: Callable[[Vector], Measurement]
) -> Iterator[Baseline]:
    """Yield the baselines that ``evaluation.baselines`` asks for.

    Args:
        sites: the simulation.
        start: (size,) the model as the federation began with it.
        measure: measures a model on the pooled test records.
    """
    asked, roster = sites.spec.evaluation.baselines, sites.roster
    if "pooled" in asked:
        yield Baseline(
            where="baseline:pooled", sites=sites, data=roster.pooled_train, start=start, measure=measure
        )
    if "local" in asked:
        for position in range(len(roster)):
            where, data = f"baseline:local:{roster.name(position)}", roster.split(position).train
            yield Baseline(where=where, sites=sites, data=data, start=start, measure=measure)
