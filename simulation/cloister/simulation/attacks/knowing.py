"""Who lies, and what the liars know when they make their updates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import SpecError
from cloister.core.randomness import Randomness
from cloister.core.spec import Attack, FederationSpec
from cloister.core.update import Vector
from cloister.strategies.mean import Direction

__all__ = ["Known", "Memory", "draw_liars"]

#: What liars remember between rounds: named arrays, kept in checkpoints.
Memory = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class Known:
    """What all liars together know in one round.

    Attributes:
        attack: what they are to do.
        spec: the federation: the deployed rule and f.
        number: the round.
        model: (size,) the round's model.
        moved: (size,) what the last round changed in it; ``None`` in the first.
        honest: the honest sites' updates by node.
        own: by liar's node, what that liar's own training made.
        generator: where they draw from.
        memory: what they remember; they may write to it.
    """

    attack: Attack
    spec: FederationSpec
    number: int
    model: Vector
    moved: Direction | None
    honest: Mapping[int, Vector]
    own: Mapping[int, Vector]
    generator: np.random.Generator
    memory: Memory

    @cached_property
    def rows(self) -> npt.NDArray[np.float64]:
        """(h, size) honest updates in the order of their nodes."""
        return np.array([self.honest[node] for node in sorted(self.honest)], dtype=np.float64)

    @cached_property
    def mean(self) -> Direction:
        """(size,) their mean."""
        found: Direction = self.rows.mean(axis=0)
        return found

    @cached_property
    def deviation(self) -> Direction:
        """(size,) their standard deviation in each coordinate."""
        found: Direction = self.rows.std(axis=0)
        return found

    def all_send(self, vector: npt.NDArray[np.float64]) -> dict[int, Vector]:
        """Return ``vector`` as every liar's update."""
        with np.errstate(over="ignore"):
            one = vector.astype(np.float32)
        return dict.fromkeys(self.own, one)


def draw_liars(spec: FederationSpec, sites: int, randomness: Randomness) -> frozenset[int]:
    """Return the positions of the sites that lie.

    Raises:
        SpecError: none would lie, or all would (code ``attack``).
    """
    attack = spec.attack
    if attack is None or attack.name == "none":
        return frozenset()
    amount = attack.liars(sites, spec.aggregation.byzantine)
    if not 0 < amount < sites:
        raise SpecError(
            f"attack: {amount} of {sites} sites would lie; at least one must, and at least one must not",
            remedy="change attack.fraction, attack.sites or aggregation.byzantine",
            code="attack",
        )
    drawn = randomness.generator("attack", "liars").choice(sites, size=amount, replace=False)
    return frozenset(int(position) for position in drawn)
