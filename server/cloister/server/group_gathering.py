"""Gathering by groups: each group's sum becomes one row, its mean, and the rule joins the rows.

A group is gathered as a federation of its own would be (`cloister.server.gathering`): its sum is noised, decoded and divided as ``privacy.unit``
asks, with the group's own public size as divisor, so that each row carries the whole noise. What the rule does with the rows reads nothing else.
All rows weigh the same, though groups may differ by one site.

Memory is (groups) · (size of the model) · 8 bytes.

==============================================  ==============================================================
case                                            outcome
==============================================  ==============================================================
a group without a sum this round                no row
fewer rows than the rule needs for f            `GroupRows.short` says so, and the round does not count
``rule = "mean"``                               the mean of the rows, whatever f says
==============================================  ==============================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from cloister.core import protocol
from cloister.core.errors import IntegrityError
from cloister.core.randomness import Key, Randomness
from cloister.core.spec.pipelines import fewest_rows
from cloister.core.spec.robustness import UNDEFENDED
from cloister.server.checkpoints import Arrays
from cloister.server.gathered import Gathered, Seen, Sums
from cloister.server.replies import CheckedUpdate, Wanted
from cloister.strategies.mean import Direction
from cloister.strategies.robust.pipeline import Pipeline
from cloister.strategies.signals import row_signals

__all__ = ["GroupGatherer", "GroupRows", "Keyed"]

_DIRECTION = "direction"


class Keyed:
    """Randomness whose draws are those of another under a longer key: each group's noise is its own.

    Args:
        inner: the run's.
        prefix: stands before every key.
    """

    def __init__(self, inner: Randomness, *prefix: Key) -> None:
        self._inner, self._prefix, self.reproducible = inner, prefix, inner.reproducible

    def bits(self, *key: Key) -> int:
        """Return 128 bits."""
        return self._inner.bits(*self._prefix, *key)

    def generator(self, *key: Key) -> np.random.Generator:
        """Return a fresh generator."""
        return self._inner.generator(*self._prefix, *key)

    def torch_seed(self, *key: Key) -> int:
        """Return a seed for a ``torch.Generator``."""
        return self._inner.torch_seed(*self._prefix, *key)


class GroupGatherer:
    """Gathers group means, and keeps the last direction where the rule goes on from it.

    Args:
        rule: ``aggregation.rule``.
        byzantine: f.
        groups: how many groups there are.
        size: length of the model's vector.
        randomness: where the rule's draws come from.
        alone: starts the gathering of one group by its number, in a round.
    """

    def __init__(
        self,
        *,
        rule: str,
        byzantine: int,
        groups: int,
        size: int,
        randomness: Randomness,
        alone: Callable[[int, int], Any],
    ) -> None:
        self.pipeline = Pipeline.parse(rule)
        self.byzantine = 0 if rule == UNDEFENDED else byzantine
        self.groups, self.size, self.alone = groups, size, alone
        self.randomness = randomness
        self.last: Direction | None = None

    def job(self) -> dict[str, float]:
        """Return nothing: the sites need not be told."""
        return {}

    def start(self, number: int, names: tuple[str, ...]) -> GroupRows:
        """Return an empty gathering for round ``number``."""
        if names != (protocol.VECTOR,):
            raise ValueError(f"groups join updates alone, not {names}")
        return GroupRows(self, number)

    def arrays(self) -> Arrays:
        """Return the last direction, where the next round begins there."""
        return {} if self.last is None else {_DIRECTION: self.last}

    def restore(self, arrays: Arrays) -> None:
        """Put it back.

        Raises:
            IntegrityError: it is of another length.
        """
        kept = arrays.get(_DIRECTION)
        if kept is not None and kept.shape != (self.size,):
            raise IntegrityError(
                f"the stored direction has shape {kept.shape}, not ({self.size},)",
                remedy="resume from another checkpoint",
                code="checkpoint",
            )
        self.last = kept


class GroupRows:
    """The group means of one round."""

    def __init__(self, owner: GroupGatherer, number: int) -> None:
        self.wanted: Mapping[str, Wanted] = {protocol.VECTOR: Wanted(size=owner.size)}
        self._owner, self._number = owner, number
        self.rows: dict[int, Direction] = {}

    def add(self, checked: CheckedUpdate) -> None:  # noqa: ARG002 - the seam's signature
        """Refuse: a group's updates come as their sum.

        Raises:
            ValueError: always.
        """
        raise ValueError("a rule over groups was given a single update")

    def add_sum(self, sums: Sums, count: int) -> None:  # noqa: ARG002 - the seam's signature
        """Refuse: a sum comes with its group's number.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"a rule over groups was given the sum of {count} sites, and not whose")

    def add_group(self, group: int, sums: Sums, count: int) -> None:
        """Take the sum of the ``count`` sites of ``group`` that answered."""
        alone = self._owner.alone(group, self._number)
        alone.add_sum(sums, count)
        self.rows[group] = alone.finish().directions[protocol.VECTOR]

    @property
    def short(self) -> str:
        """Why there are too few rows for the rule; empty: there are enough."""
        owner, needed = self._owner, fewest_rows(self._owner.pipeline.stages, self._owner.byzantine)
        if needed is not None and len(self.rows) >= needed:
            return ""
        return (
            f"{len(self.rows)} of {owner.groups} groups have a mean, and '{owner.pipeline.name}' needs {needed} "
            f"to bear {owner.byzantine} that lie"
        )

    def finish(self) -> Gathered:
        """Return the round's direction."""
        owner = self._owner
        groups = sorted(self.rows)
        rows = [self.rows[group] for group in groups]
        joined = owner.pipeline.joined(
            rows,
            f=owner.byzantine,
            generator=owner.randomness.generator("rule", self._number) if owner.pipeline.draws else None,
            start=owner.last,
        )
        if owner.pipeline.remembers:
            owner.last = joined.direction
        seen = Seen(
            signals=row_signals(rows),
            toward="median",
            shares=joined.shares,
            names=tuple(f"group {group}" for group in groups),
        )
        return Gathered(
            directions={protocol.VECTOR: joined.direction}, facts={"rows": float(len(rows))}, seen=seen
        )
