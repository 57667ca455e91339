"""Robust rules as Flower strategies, for a Flower app of your own.

::

    from cloister.server.robust_strategies import RobustStrategy

    strategy = RobustStrategy("arc | nnm | trimmed-mean", byzantine=2)
    result = strategy.start(grid=grid, initial_arrays=ArrayRecord(model.state_dict()), num_rounds=10)

Each rule has a strategy of its own name as well: `MedianStrategy`, `TrimmedMeanStrategy`, `GeometricMedianStrategy`, `KrumStrategy`,
`MultiKrumStrategy`, `BulyanStrategy`, `CenteredClippingStrategy`, `NormBoundStrategy`, `FLTrustStrategy`, `DnCStrategy`.

What differs from Flower's own Krum, Bulyan and trimmed mean: rules look at updates and not at models; distances are float64 and centred;
weights are uniform whatever a client claims; a reply with a NaN is refused before the rule sees it; f that a round's replies cannot bear
is refused when the strategy is made, where Flower goes on. All else is as in `cloister.server.flower_strategies`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar

import numpy.typing as npt

from cloister.core.errors import InfeasibleByzantineBound
from cloister.core.update import Vector
from cloister.server.flower_strategies import CloisterStrategy
from cloister.strategies.arrays import ArrayLayout
from cloister.strategies.mean import Direction
from cloister.strategies.robust.pipeline import Pipeline
from cloister.strategies.robust.rule import RobustRule

__all__ = [
    "BulyanStrategy",
    "CenteredClippingStrategy",
    "DnCStrategy",
    "FLTrustStrategy",
    "GeometricMedianStrategy",
    "KrumStrategy",
    "MedianStrategy",
    "MultiKrumStrategy",
    "NormBoundStrategy",
    "RobustStrategy",
    "TrimmedMeanStrategy",
]

#: Takes the round's number and the model's arrays, and returns the arrays that the server trained on clean records of its own.
Trusted = Callable[[int, Mapping[str, npt.NDArray[Any]]], Mapping[str, npt.NDArray[Any]]]


class RobustStrategy(CloisterStrategy):
    """Federated learning under a pipeline of Cloister's.

    Args:
        pipeline: steps and a rule, as ``aggregation.rule`` writes them.
        byzantine: f, how many of the nodes that answer a round may lie.
        trusted: trains the server's own update, which ``fltrust`` needs; it gets the round and the model's arrays and returns them trained.
        min_replies: with fewer accepted replies a round leaves the model as it is; left out, the fewest that the pipeline needs.
        **options: those of `CloisterStrategy` but ``rule`` and ``weight_of``.

    Raises:
        InfeasibleByzantineBound: ``min_replies`` are too few for f, or no number is enough.
        SpecError: the pipeline is none.
        ValueError: an option that does not go with a robust rule, or ``trusted`` is missing.
    """

    def __init__(
        self,
        pipeline: str,
        *,
        byzantine: int,
        trusted: Trusted | None = None,
        min_replies: int | None = None,
        **options: Any,
    ) -> None:
        if taken := {"rule", "weight_of"} & set(options):
            raise ValueError(
                f"a robust rule has no {min(taken)}: the pipeline is the rule, and all weigh the same"
            )
        read = Pipeline.parse(pipeline)
        least = read.least(byzantine)
        if least is None:
            raise InfeasibleByzantineBound.of(read.name, n=min_replies or 0, f=byzantine, needed=None)
        replies = least if min_replies is None else min_replies
        read.check(n=replies, f=byzantine)
        if read.trusts and trusted is None:
            raise ValueError("'fltrust' needs trusted: a function that trains the server's own update")
        minima = {key: max(2, replies) for key in ("min_train_nodes", "min_available_nodes")}
        super().__init__(min_replies=replies, **{**minima, **options})
        self.byzantine, self._pipeline, self._trusted = byzantine, read, trusted
        self._last: Direction | None = None
        self.rule = RobustRule(pipeline=read, byzantine=byzantine)

    def _begin(self, server_round: int, layout: ArrayLayout, connected: int) -> None:
        super()._begin(server_round, layout, connected)
        if server_round == 1 or (self._last is not None and len(self._last) != layout.size):
            self._last = None
        self.rule = RobustRule(
            pipeline=self._pipeline,
            byzantine=self.byzantine,
            draw=partial(self.randomness.generator, "rule", server_round),
            begin=self._last,
            trust=partial(self._own_update, server_round, layout),
        )

    def _move(self, directions: list[Direction], count: int) -> Vector:
        if self._pipeline.remembers:
            self._last = directions[0]
        return super()._move(directions, count)

    def _own_update(self, server_round: int, layout: ArrayLayout) -> Vector:
        if self._trusted is None:
            raise ValueError("'fltrust' needs trusted")
        return layout.flatten(self._trusted(server_round, self._arrays)) - self._model


class _Named(RobustStrategy):
    """A rule by its own name, without steps before it."""

    stage: ClassVar[str]

    def __init__(self, *, byzantine: int, **options: Any) -> None:
        super().__init__(self.stage, byzantine=byzantine, **options)


class MedianStrategy(_Named):
    """The coordinate median; bears f of n ≥ 2f + 1."""

    stage = "median"


class TrimmedMeanStrategy(_Named):
    """The coordinate-wise trimmed mean; bears f of n ≥ 2f + 1."""

    stage = "trimmed-mean"


class GeometricMedianStrategy(_Named):
    """The geometric median; bears f of n ≥ 2f + 1."""

    stage = "geometric-median"


class KrumStrategy(_Named):
    """Krum; bears f of n ≥ 2f + 3."""

    stage = "krum"


class MultiKrumStrategy(_Named):
    """MultiKrum; bears f of n ≥ 2f + 3."""

    stage = "multi-krum"


class BulyanStrategy(_Named):
    """Bulyan over Krum; bears f of n ≥ 4f + 3."""

    stage = "bulyan"


class DnCStrategy(_Named):
    """DnC; bears f of n ≥ 2f + 1, where sites' data are alike."""

    stage = "dnc"


class FLTrustStrategy(_Named):
    """FLTrust; needs ``trusted``, and one honest node."""

    stage = "fltrust"


class CenteredClippingStrategy(RobustStrategy):
    """Centered clipping around the last round's direction.

    Args:
        radius: τ; ``None``: the median distance, anew each time.
        byzantine: f.
        **options: those of `RobustStrategy`.
    """

    def __init__(self, *, byzantine: int, radius: float | None = None, **options: Any) -> None:
        stage = "centered-clipping" if radius is None else f"centered-clipping({radius:.12g})"
        super().__init__(stage, byzantine=byzantine, **options)


class NormBoundStrategy(RobustStrategy):
    """The mean of updates clipped to a norm.

    Args:
        bound: the largest norm of an update.
        byzantine: f.
        **options: those of `RobustStrategy`.
    """

    def __init__(self, *, byzantine: int, bound: float, **options: Any) -> None:
        super().__init__(f"norm-bound({bound:.12g})", byzantine=byzantine, **options)
