"""Attacks that rehearse the deployed rule: they look for the strength that moves its answer furthest from the honest mean.

Opt-ALIE and Opt-IPM (Allouah et al. 2023, §6; Shejwalkar, Houmansadr 2021): send ``mean + η · a`` with a the deviations or the mean, both
signs, and the η of a geometric grid, refined once around the best, that does most harm to the pipeline of the federation file
with its own f. The liars know the pipeline and the honest updates; what the server draws they do not know, and draw for themselves.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloister.core.errors import InfeasibleByzantineBound
from cloister.core.spec.robustness import UNDEFENDED
from cloister.core.update import Vector
from cloister.simulation.attacks.knowing import Known
from cloister.strategies.mean import Direction
from cloister.strategies.robust.pipeline import Pipeline

__all__ = ["opt_alie", "opt_ipm", "rehearsed"]

#: η: 0.25 to 64.
_STRENGTHS = tuple(2.0**power for power in range(-2, 7))
_FINER = (2.0**-0.5, 2.0**0.5)


def opt_alie(known: Known) -> dict[int, Vector]:
    """Send the honest mean and the worst number of deviations, either way."""
    return known.all_send(_worst(known, known.deviation))


def opt_ipm(known: Known) -> dict[int, Vector]:
    """Send the honest mean and the worst multiple of itself, either way."""
    return known.all_send(_worst(known, known.mean))


def rehearsed(known: Known, lie: npt.NDArray[np.float64]) -> Direction:
    """Return what the deployed rule answers if every liar sends ``lie``.

    Raises:
        InfeasibleByzantineBound: there are too few updates for the rule: the round will not count.
    """
    rows = np.concatenate([known.rows, np.repeat(lie[None, :], len(known.own), axis=0)])
    rule, f = known.spec.aggregation.rule, known.spec.aggregation.byzantine
    return Pipeline.parse(rule).aggregate(
        rows, f=0 if rule == UNDEFENDED else f, generator=known.generator, start=known.moved
    )


def _worst(known: Known, along: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    harm: dict[float, float] = {}

    def try_out(strength: float) -> None:
        answer = rehearsed(known, known.mean + strength * along)
        harm[strength] = float(np.sum(np.square(answer - known.mean)))

    try:
        for size in _STRENGTHS:
            try_out(-size)
            try_out(size)
        best = max(harm, key=lambda one: harm[one])
        for factor in _FINER:
            try_out(best * factor)
    except InfeasibleByzantineBound:
        return known.mean - along
    best = max(harm, key=lambda one: harm[one])
    found: npt.NDArray[np.float64] = known.mean + best * along
    return found
