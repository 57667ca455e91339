"""Gathering for robust rules: the round's updates are kept as rows, one a site, until the round counts.

Memory is (sites of the round) · (size of the model) · 4 bytes, beside one float64 vector and a few blocks. All rows weigh the same,
whatever a site says of its records. What a rule draws is keyed by the round, so that a resumed run draws it again.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from cloister.core import protocol
from cloister.core.errors import IntegrityError
from cloister.core.randomness import Randomness
from cloister.server.checkpoints import Arrays
from cloister.server.gathered import Gathered, Seen, Sums
from cloister.server.replies import CheckedUpdate, Wanted
from cloister.strategies.mean import Direction
from cloister.strategies.robust.rule import RobustRule
from cloister.strategies.signals import row_signals

__all__ = ["RowGatherer"]

_DIRECTION = "direction"


class RowGatherer:
    """Keeps the last round's direction between rounds, where the rule goes on from it.

    Args:
        rule: the rule.
        size: length of the model's vector.
        randomness: where the rule's draws come from.
    """

    def __init__(self, rule: RobustRule, *, size: int, randomness: Randomness) -> None:
        self._rule, self._size, self._randomness = rule, size, randomness
        self._last: Direction | None = None

    def job(self) -> dict[str, float]:
        """Return nothing: the sites need not be told."""
        return {}

    def start(self, number: int, names: tuple[str, ...]) -> _Rows:
        """Return an empty gathering for round ``number``."""
        if names != (protocol.VECTOR,):
            raise ValueError(f"a robust rule joins updates alone, not {names}")
        draw = partial(self._randomness.generator, "rule", number)
        return _Rows(self, replace(self._rule, draw=draw, begin=self._last), self._size)

    def arrays(self) -> Arrays:
        """Return the last direction, where the next round begins there."""
        return {} if self._last is None else {_DIRECTION: self._last}

    def restore(self, arrays: Arrays) -> None:
        """Put it back.

        Raises:
            IntegrityError: it is of another length.
        """
        kept = arrays.get(_DIRECTION)
        if kept is not None and kept.shape != (self._size,):
            raise IntegrityError(
                f"the stored direction has shape {kept.shape}, not ({self._size},)",
                remedy="resume from another checkpoint",
                code="checkpoint",
            )
        self._last = kept

    def keep(self, direction: Direction) -> None:
        """Remember a round's direction, where the rule wants it."""
        if self._rule.pipeline.remembers:
            self._last = direction


class _Rows:
    """The rows of one attempt at a round."""

    def __init__(self, owner: RowGatherer, rule: RobustRule, size: int) -> None:
        self.wanted = {protocol.VECTOR: Wanted(size=size)}
        self._owner = owner
        self._rows = rule.start(size)

    def add(self, checked: CheckedUpdate) -> None:
        self._rows.add(checked.arrays[protocol.VECTOR])

    def add_sum(self, sums: Sums, count: int) -> None:  # noqa: ARG002 - the seam's signature
        """Refuse: a rule that compares rows is told of no sum; the federation file's checks see to it.

        Raises:
            ValueError: always.
        """
        raise ValueError(f"a rule over rows was given the sum of {count} sites")

    def finish(self) -> Gathered:
        joined = self._rows.joined()
        self._owner.keep(joined.direction)
        seen = Seen(signals=row_signals(self._rows.rows), toward="median", shares=joined.shares)
        return Gathered(directions={protocol.VECTOR: joined.direction}, facts={}, seen=seen)
