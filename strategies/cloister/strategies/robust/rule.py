"""A pipeline behind the seam of `cloister.strategies.rules`: it keeps the round's rows until it is asked for their direction.

Memory is n · dim · 4 bytes for n updates, and then the answer and a few blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from cloister.core.update import Vector
from cloister.strategies.mean import Direction
from cloister.strategies.robust.pipeline import Joined, Pipeline, Point

__all__ = ["KeptRows", "RobustRule"]


@dataclass(frozen=True, kw_only=True)
class RobustRule:
    """A pipeline with f.

    Attributes:
        pipeline: steps and a rule.
        byzantine: f, how many of a round's updates may lie.
        draw: gives the round's generator, where the pipeline draws.
        begin: (dim,) the last round's direction, where the pipeline goes on from it.
        trust: gives the server's own update of the round, where the pipeline needs one.
    """

    pipeline: Pipeline
    byzantine: int
    draw: Callable[[], np.random.Generator] | None = None
    begin: Direction | None = None
    trust: Callable[[], Point] | None = None

    @property
    def name(self) -> str:
        """The pipeline, as the federation file writes it."""
        return self.pipeline.name

    def start(self, size: int) -> KeptRows:
        """Return an empty accumulator for updates of ``size`` elements."""
        return KeptRows(self, size)


class KeptRows:
    """The rows of one round."""

    def __init__(self, rule: RobustRule, size: int) -> None:
        if size < 1:
            raise ValueError(f"size = {size}: an update has at least one element")
        self._rule, self._size = rule, size
        self._rows: list[Vector] = []

    def add(self, vector: Vector, weight: float = 1.0) -> None:
        """Take one update, (size,) float32, in an array of its own.

        Raises:
            ValueError: wrong shape or dtype, a value that is not finite, or a weight that is not 1: every update weighs the same.
        """
        if vector.shape != (self._size,) or vector.dtype != np.float32:
            raise ValueError(
                f"expected a float32 vector of shape ({self._size},), got {vector.dtype} {vector.shape}"
            )
        if weight != 1.0:
            raise ValueError(f"weight = {weight}: under '{self._rule.name}' every update weighs 1")
        if not np.isfinite(vector).all():
            raise ValueError("the vector holds a value that is not finite")
        self._rows.append(vector.copy())

    @property
    def rows(self) -> list[Vector]:
        """The updates that were added, in their order; not to be written to."""
        return self._rows

    def result(self) -> Direction:
        """Return the direction of the rows, (size,) float64; raises what `joined` does."""
        return self.joined().direction

    def joined(self) -> Joined:
        """Return the direction of the rows, and the weight of each in it.

        Raises:
            InfeasibleByzantineBound: they are too few for f.
            ValueError: no update was added.
        """
        if not self._rows:
            raise ValueError("the direction of no update is undefined")
        rule = self._rule
        return rule.pipeline.joined(
            self._rows,
            f=rule.byzantine,
            generator=rule.draw() if rule.pipeline.draws and rule.draw is not None else None,
            start=rule.begin,
            trusted=rule.trust() if rule.pipeline.trusts and rule.trust is not None else None,
        )
