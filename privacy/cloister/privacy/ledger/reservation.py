"""A charge that was made before it is computed, and how it ends: committed before anything leaves, or given back.

Formal guarantees:

- `Reservation.commit` returns after the COMMIT is on the disk; only then may the output leave.
- A reservation is committed once. Called again, it says so by returning the first COMMIT, and refuses another output: noise
  that was drawn is drawn, and a second draw under the same charge would be free.
- It is given back only by the process that made it, before it said that noise was drawn.

===============  ==================  ===================================================================================
state            `may_reuse`         what a resumed run does
===============  ==================  ===================================================================================
open             yes                 commit and send the output if it was kept; else reserve the next attempt
committed        yes                 send the same output again if it was kept; else reserve the next attempt
aborted          no                  reserve the next attempt
===============  ==================  ===================================================================================
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from cloister.core.errors import PolicyError
from cloister.privacy.ledger.chain import Holding, State
from cloister.privacy.ledger.entry import Entry, Figures, checked_name

__all__ = ["Reservation"]

Look = Callable[[], Holding]
Settle = Callable[[Holding, str, Mapping[str, Any], Figures], Entry]


class Reservation:
    """One reserved charge; made by ``Ledger.reserve`` (to be computed) or ``Ledger.find`` (made before)."""

    def __init__(self, *, look: Look, settle: Settle, mine: bool) -> None:
        self._look = look
        self._settle = settle
        self._mine = mine
        self._drawn = False

    @property
    def entry(self) -> Entry:
        """The RESERVE entry: run, round, attempt, unit, what it brought ε to."""
        return self._look().reserve

    @property
    def state(self) -> State:
        """``open``, ``committed`` or ``aborted``."""
        return self._look().state

    @property
    def output(self) -> str | None:
        """The digest of what left, as the COMMIT states it."""
        return self._look().output

    @property
    def may_compute(self) -> bool:
        """Whether noise may be drawn under it: it was made by this very object, is open, and none was drawn yet."""
        return self._mine and not self._drawn and self.state == "open"

    @property
    def may_reuse(self) -> bool:
        """Whether the output that was computed under it may be sent, after `commit`."""
        return self.state != "aborted"

    def noise_drawn(self) -> None:
        """Say that noise is about to be drawn: from here on it cannot be given back.

        Raises:
            PolicyError: (``already-drawn``) noise was, or may have been, drawn under it before.
        """
        if not self.may_compute:
            raise PolicyError(
                f"{self._name()} was begun before ({self.state}): no new noise may be drawn under it",
                remedy="send the output that was kept, or reserve the next attempt, which is charged anew",
                code="already-drawn",
            )
        self._drawn = True

    def commit(
        self,
        *,
        output: str | None = None,
        event: Mapping[str, Any] | None = None,
        figures: Figures = Figures(),  # noqa: B008 - frozen
    ) -> Entry:
        """Charge for good, before anything leaves.

        Args:
            output: a digest of what leaves, so that nothing else can leave under this charge later.
            event: what was done, where that costs less than what was reserved (fewer steps); charged in its place. That it
                was less must not tell anything of the records.
            figures: of what was done, for a reader.

        Returns:
            The COMMIT; the first one, where it was committed before.

        Raises:
            PolicyError: (``already-committed``) with another output; (``already-aborted``) it was given back; (``over-commit``)
                ``event`` costs more than was reserved, which then stays charged.
            IntegrityError: (``ledger-unwritable``, ``ledger-changed``) it could not be written down: nothing may leave.
        """
        holding = self._look()
        if output is not None:
            checked_name("output", output)
        if holding.state == "aborted":
            raise PolicyError(
                f"{self._name()} was given back and cannot be committed",
                remedy="reserve the next attempt",
                code="already-aborted",
            )
        if holding.settled is not None:
            if output != holding.output:
                raise PolicyError(
                    f"{self._name()} was committed with the output {holding.output}, not {output}",
                    remedy="send the output that was kept, or reserve the next attempt, which is charged anew",
                    code="already-committed",
                )
            return holding.settled
        data = {"output": output, "event": None if event is None else dict(event)}
        return self._settle(holding, "COMMIT", data, figures)

    def abort(self, reason: str) -> Entry:
        """Give it back: no noise was drawn and nothing left.

        Args:
            reason: for a reader, without anything of the records.

        Raises:
            PolicyError: (``already-drawn``, ``already-committed``, ``already-aborted``) it cannot be given back, and stays as it is.
        """
        holding = self._look()
        checked_name("reason", reason)
        if holding.state != "open":
            raise PolicyError(
                f"{self._name()} is {holding.state} and cannot be given back",
                remedy="leave it as it is",
                code=f"already-{holding.state}",
            )
        if not self.may_compute:
            raise PolicyError(
                f"{self._name()} cannot be given back: noise was, or may have been, drawn under it",
                remedy="leave it: it is charged in full",
                code="already-drawn",
            )
        return self._settle(holding, "ABORT", {"reason": reason}, Figures())

    def _name(self) -> str:
        entry = self.entry
        return f"round {entry.round} of run '{entry.run}' (unit '{entry.unit}', attempt {entry.attempt})"
