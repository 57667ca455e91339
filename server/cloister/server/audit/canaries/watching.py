"""What the adversary of a run sees of its canaries, added up round by round.

For each canary one number: how far everything that was seen of it lies in the direction that it pulls. The adversary reads either the updates of
sites whose canaries those are, in clear, or the directions that come out of the rounds' sums.

Formal guarantees:

- Only rounds that count are added: of a round that is tried again, the last attempt.
- All of it is in every checkpoint, so that a run which goes on after an interruption scores as if nothing had happened.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import IntegrityError
from cloister.server.checkpoints import Arrays

__all__ = ["Watch"]


class Watch:
    """Adds up what is seen of the canaries.

    Args:
        place: where their weights begin in the model's vector.
        canaries: how many.
        columns: whose updates are seen in clear, and which canaries are theirs; ``None``: sums are.
        site: the one site whose canaries they are; ``None``: each has a site of its own.
        counted: whether a direction is a mean over whoever answered, and not over a public number.
    """

    def __init__(
        self,
        *,
        place: int,
        canaries: int,
        columns: Mapping[str, Sequence[int]] | None = None,
        site: str | None = None,
        counted: bool = False,
    ) -> None:
        self._place, self.canaries, self.site = place, canaries, site
        self._columns = None if columns is None else {name: np.asarray(at) for name, at in columns.items()}
        self._counted = counted
        self._total = np.zeros(canaries)
        self._rounds = 0
        self._seen: dict[str, npt.NDArray[np.float64]] = {}
        #: Of the coins, as the site that planted them told it; empty: not yet.
        self.seal = ""
        #: How many sites the run has.
        self.sites = 0

    @property
    def rounds(self) -> int:
        """In how many rounds all canaries were seen."""
        return self._rounds

    @property
    def scores(self) -> npt.NDArray[np.float64]:
        """(m,) float64: the larger, the likelier was the canary in."""
        return -self._total

    def begin(self) -> None:
        """Forget what an attempt at a round brought: another begins."""
        self._seen.clear()

    def update(self, site: str, vector: npt.NDArray[Any]) -> None:
        """Look at a site's update, where those are seen."""
        if self._columns is not None and site in self._columns:
            columns = self._columns[site]
            self._seen[site] = vector[self._place + columns].astype(np.float64)

    def end(self, direction: npt.NDArray[Any], *, answered: int, away: Sequence[str]) -> None:
        """Add the round that just counted.

        Args:
            direction: (size,) what came out of it.
            answered: of how many sites.
            away: whose update is not in it.
        """
        if self._columns is not None:
            for site, part in self._seen.items():
                self._total[self._columns[site]] += part
            whole = len(self._seen) == len(self._columns)
        else:
            part = direction[self._place : self._place + self.canaries].astype(np.float64)
            self._total += part * (answered if self._counted else 1)
            whole = self.site not in away if self.site is not None else not away
        self._rounds += whole
        self._seen.clear()

    def arrays(self) -> Arrays:
        """Return it as named arrays for a checkpoint."""
        seal = np.frombuffer(bytes.fromhex(self.seal), dtype=np.uint8)
        return {"total": self._total.copy(), "rounds": np.array([self._rounds]), "seal": seal}

    def restore(self, arrays: Arrays) -> None:
        """Put it back.

        Raises:
            IntegrityError: (checkpoint-unreadable) the checkpoint holds none, or of other canaries.
        """
        total, rounds, seal = (arrays.get(name) for name in ("total", "rounds", "seal"))
        if total is None or rounds is None or seal is None or total.shape != (self.canaries,):
            raise IntegrityError(
                "the checkpoint does not hold what was seen of this run's canaries",
                remedy="remove that checkpoint: the one before it is used then",
                code="checkpoint-unreadable",
            )
        self._total, self._rounds = total.astype(np.float64), int(rounds[0])
        self.seal = seal.astype(np.uint8).tobytes().hex()
