"""What the federation is compared with: one model on the pooled records, and each site's own model.

A baseline is a federation of one: as many rounds, the same local training, the same schedule and the same test records. So the
only difference is who trains on what.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from cloister.client.trainer import Trainer
from cloister.core.data import Data
from cloister.core.metrics import Measurement
from cloister.core.update import Vector
from cloister.simulation.sites import SimulatedSites

__all__ = ["train_baselines"]


def train_baselines(
    sites: SimulatedSites, start: Vector, measure: Callable[[Vector], Measurement]
) -> Iterator[tuple[str, Measurement]]:
    """Train the baselines that ``evaluation.baselines`` asks for and yield each with its measurement.

    Args:
        sites: the simulation.
        start: (size,) the model as the federation began with it.
        measure: measures a model on the pooled test records.

    Yields:
        (``baseline:pooled`` or ``baseline:local:<site>``, its measurement).
    """
    asked, roster = sites.spec.evaluation.baselines, sites.roster
    if "pooled" in asked:
        yield "baseline:pooled", measure(_train_alone(sites, start, roster.pooled_train, "pooled"))
    if "local" in asked:
        for position in range(len(roster)):
            name = roster.name(position)
            yield (
                f"baseline:local:{name}",
                measure(_train_alone(sites, start, roster.split(position).train, name)),
            )


def _train_alone(sites: SimulatedSites, start: Vector, data: Data, name: str) -> Vector:
    trainer: Trainer = sites.bench.trainer
    vector = start
    for number in range(1, sites.spec.federation.rounds + 1):
        result = trainer.train(
            vector, data, site=f"baseline:{name}", round_number=number, randomness=sites.randomness
        )
        vector = vector + result.change
    return vector
