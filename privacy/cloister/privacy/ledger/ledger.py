"""A site's ledger of one data set: reserve, compute, commit, and only then let something leave.

How a round is charged::

    with Ledger.open(path, site="north", dataset="heart-2024", key=key, account=account, wait_s=60) as ledger:
        ledger.set_cap(3.0, 1e-5)
        reservation = ledger.reserve("run-7", 1, event, unit="record", relation="zero-out", delta=1e-5, code_hash=code)
        reservation.noise_drawn()           # from here on it cannot be given back
        update = train()
        keep(update)                        # so that a crash from here on needs no new noise
        reservation.commit(output=sha256(update))
        send(update)

Formal guarantees:

- When `Ledger.reserve` returns, the charge is on the disk; when it raises, nothing may be computed (after ``ledger-unwritable``
  the charge may stand all the same; otherwise nothing was charged).
- Everything reserved and not aborted is charged, in full, whatever became of the process: a crash never under-counts.
- For one (run, round, attempt, unit) there is one reservation, and it is committed at most once. A resumed run finds it with
  `Ledger.find` and is told by `Reservation.may_reuse` whether the output computed under it may (still) be sent. It draws no
  new noise under it: a round that must be computed anew is a new attempt, and a new charge.
- A cap that would be passed, by everything charged to the unit in whatever run and this, refuses before anything happens.
- A ledger that lost entries is refused when it is opened (`cloister.privacy.ledger.heads`), one that is older than what
  somebody witnessed by `Ledger.check_witnessed`.

======================================  ==========================================================================
case                                    outcome
======================================  ==========================================================================
no cap                                  everything is charged, nothing is refused
a cap of 0, or below what is spent      nothing more is allowed
reserved, committed or aborted before   ``PolicyError`` (already-reserved): use `Ledger.find`, or the next attempt
commit twice                            the first stands; another output is refused (already-committed)
a COMMIT that costs more than reserved  ``PolicyError`` (over-commit); the reservation stands, charged in full
somebody else writes it at once         waits, or ``PolicyError`` (ledger-busy)
the clock is set back                   the last entry's time is used
======================================  ==========================================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.ledger.budget import Account, Cap, Composer, Rate
from cloister.privacy.ledger.chain import Holding
from cloister.privacy.ledger.entry import (
    REPEATED,
    Entry,
    Figures,
    canonical_json,
    checked_integer,
    checked_name,
    checked_number,
)
from cloister.privacy.ledger.heads import Head, witness_holds
from cloister.privacy.ledger.reservation import Reservation
from cloister.privacy.ledger.spending import (
    Budget,
    budget_of,
    epsilon_of,
    how_many_more,
    refuse_beyond,
    stated_delta,
)
from cloister.privacy.ledger.verification import Verification, verify
from cloister.privacy.ledger.writer import Clock, Writer, utc_now

__all__ = ["Ledger"]


class Ledger:
    """The ledger of one site and one data set, open for writing; a context manager. Made by `Ledger.open`."""

    def __init__(self, writer: Writer, account: Account) -> None:
        self._writer = writer
        self._account = account
        self._composer = Composer(account)

    @classmethod
    def open(
        cls,
        path: Path,
        *,
        site: str,
        dataset: str,
        key: Ed25519PrivateKey,
        account: Account,
        wait_s: float = 10.0,
        create: bool = True,
        durable: bool = True,
        clock: Clock = utc_now,
    ) -> Ledger:
        """Open the ledger in ``path`` for writing, or make it.

        Args:
            path: the file; beside it lie ``<name>.head`` and ``<name>.lock``.
            site: whose it is.
            dataset: the lineage of the records: one name for all versions of a data set, whatever the runs.
            key: signs every entry.
            account: composes events to ε (`cloister.privacy.ledger.budget`).
            wait_s: how long to wait for another writer, seconds.
            create: whether a ledger that does not exist is made; a site that has enrolled says ``False``.
            durable: whether an entry survives a power cut, at several disk syncs each; ``False`` is for simulations, and an
                entry then survives a killed process only.
            clock: the time, aware of its zone.

        Raises:
            PolicyError: (``ledger-busy``) another writer; (``ledger-other``) it is the ledger of another site or data set.
            IntegrityError: it is damaged, lost entries, is signed by another key, does not exist or cannot be written.
        """
        writer = Writer(
            path,
            site=site,
            dataset=dataset,
            key=key,
            wait_s=wait_s,
            create=create,
            durable=durable,
            clock=clock,
        )
        return cls(writer, account)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the file and let the next writer in; a second call does nothing."""
        self._writer.close()

    @property
    def entries(self) -> Sequence[Entry]:
        """All entries, in order."""
        return self._writer.chain.entries

    def set_cap(
        self, epsilon: float, delta: float, *, rate: Rate | None = None, unit: str | None = None
    ) -> Entry:
        """Set, or change, what this site allows to be spent; a signed POLICY entry.

        Args:
            epsilon: the most that everything charged may compose to.
            delta: at this δ.
            rate: how fast.
            unit: for this unit; ``None``: for every unit without a cap of its own, each by itself.

        Raises:
            PolicyError: (``ledger-input``) a number out of range.
        """
        return self._writer.append(
            "POLICY", Cap(epsilon=epsilon, delta=delta, rate=rate, unit=unit).as_event()
        )

    def afford(self, events: Sequence[Mapping[str, Any]], *, unit: str, relation: str, delta: float) -> float:
        """Check that a whole run, all its ``events`` together, may be charged; nothing is written.

        Returns:
            The ε that everything charged to ``unit`` would then compose to, at the cap's δ (without a cap: at ``delta``).

        Raises:
            PolicyError: (``budget``, ``delta``, ``relation``) it may not.
        """
        with self._writer.mutex:
            return refuse_beyond(
                self._writer.chain,
                [canonical_json(event) for event in events],
                self._composer,
                unit=checked_name("unit", unit),
                relation=checked_name("relation", relation),
                delta=checked_number("delta", delta, below=1, open_end=True),
                now=self._writer.now(),
            )

    def reserve(
        self,
        run: str,
        round_number: int,
        event: Mapping[str, Any],
        *,
        unit: str,
        relation: str,
        delta: float,
        code_hash: str,
        attempt: int = 1,
        figures: Figures = Figures(),  # noqa: B008 - frozen
    ) -> Reservation:
        """Charge ``event`` before it is computed.

        Args:
            run: names the run.
            round_number: its round, from 0.
            event: the mechanism as plain data, as the account reads it.
            unit: whose privacy it is about.
            relation: the neighbouring relation that it is stated under.
            delta: the δ that the run states.
            code_hash: what computes.
            attempt: 1, and one more each time that the round is computed anew.
            figures: for a reader.

        Raises:
            PolicyError: (``budget``) a cap or a rate would be passed; (``delta``, ``relation``) it does not go with what the site
                allows or charged; (``already-reserved``) it was reserved before; (``ledger-input``) it is no fit event.
            IntegrityError: (``ledger-unwritable``, ``ledger-changed``) it could not be written down.
        """
        columns = {
            "run": str(checked_name("run", run)),
            "round": checked_integer("round", round_number),
            "attempt": checked_integer("attempt", attempt, least=1),
            "unit": str(checked_name("unit", unit)),
            "relation": str(checked_name("relation", relation)),
            "delta": checked_number("delta", delta, below=1, open_end=True),
            "code_hash": str(checked_name("code_hash", code_hash)),
            **figures.as_dict(),
        }
        with self._writer.mutex:
            chain, now = self._writer.chain, self._writer.now()
            if (before := chain.find(run, round_number, unit=unit, attempt=attempt)) is not None:
                raise PolicyError(
                    f"round {round_number} of run '{run}' was reserved before (unit '{unit}', attempt {attempt}, {before.state})",
                    remedy="resume it with Ledger.find; if its output is lost, reserve the next attempt, which is charged anew",
                    code="already-reserved",
                )
            epsilon = refuse_beyond(
                chain,
                [canonical_json(event)],
                self._composer,
                unit=unit,
                relation=relation,
                delta=delta,
                now=now,
            )
            columns |= {"at_delta": stated_delta(chain, unit, float(delta)), "epsilon_after": epsilon}
            entry = self._writer.append("RESERVE", event, columns, now=now)
        return self._reservation(entry.seq, mine=True)

    def find(
        self, run: str, round_number: int, *, unit: str, attempt: int | None = None
    ) -> Reservation | None:
        """Return a reservation that was made before, the newest attempt unless one is given; ``None`` where there is none."""
        holding = self._writer.chain.find(run, round_number, unit=unit, attempt=attempt)
        return None if holding is None else self._reservation(holding.reserve.seq, mine=False)

    def audit(self, event: Mapping[str, Any], *, run: str | None = None) -> Entry:
        """Note an audit: a sealed coin, a verdict. It charges nothing: what an audit releases is reserved like anything else."""
        return self._writer.append(
            "AUDIT", event, {"run": None if run is None else str(checked_name("run", run))}
        )

    def spent(self, unit: str, *, delta: float | None = None) -> float:
        """Return ε of everything charged to ``unit``.

        Args:
            unit: whose privacy.
            delta: at this δ; ``None``: at the cap's, or without one at that of the last reservation.
        """
        with self._writer.mutex:
            if delta is not None:
                return epsilon_of(
                    self._writer.chain,
                    unit,
                    checked_number("delta", delta, below=1, open_end=True),
                    self._composer,
                )
            found = self._budget(unit)
            return 0.0 if found is None else found.epsilon

    def spent_by(self, run: str, *, unit: str, delta: float, more: Sequence[Mapping[str, Any]] = ()) -> float:
        """Return ε at ``delta`` of everything that one run was charged, repeated rounds too, and of the events ``more`` on top."""
        with self._writer.mutex:
            events = self._writer.chain.charged(unit, run=run)
            events.update(canonical_json(event) for event in more)
            return self._composer.epsilon(events, checked_number("delta", delta, below=1, open_end=True))

    def remaining(self, unit: str) -> float | None:
        """Return the cap minus what is spent, or the rate minus what its window holds if that is less; ``None`` without a cap.

        It is not an amount to hand out, since ε's do not add up: `more` says how often an event still fits.
        """
        found = self._budget(unit)
        if found is None or found.left is None:
            return None
        return found.left if found.window_left is None else min(found.left, found.window_left)

    def more(self, event: Mapping[str, Any], *, unit: str) -> int | None:
        """Return how many more times ``event`` fits under the cap of ``unit`` (at most 10,000); ``None`` without a cap."""
        with self._writer.mutex:
            chain = self._writer.chain
            cap = chain.cap(unit)
            return (
                None
                if cap is None
                else how_many_more(chain, canonical_json(event), self._composer, unit=unit, cap=cap)
            )

    def budgets(self) -> tuple[Budget, ...]:
        """Return every unit's account."""
        found = [self._budget(unit) for unit in self._writer.chain.units]
        return tuple(budget for budget in found if budget is not None)

    def head(self) -> Head:
        """Return the newest entry, signed, for others to witness."""
        with self._writer.mutex:
            return self._writer.head()

    def witness(self, signature: bytes, *, by: str, public_key: bytes, head: Head) -> Entry:
        """Keep somebody's signature of one of this ledger's heads (made by `cloister.privacy.ledger.heads.sign_witness`).

        Args:
            signature: 64 bytes.
            by: who witnessed.
            public_key: theirs, 32 bytes.
            head: what they witnessed.

        Raises:
            IntegrityError: (``ledger-witness``) the signature does not hold; (``ledger-head``, ``ledger-rollback``) the head is not one
                of this ledger.
        """
        event = {
            "by": checked_name("by", by),
            "public_key": public_key.hex(),
            "signature": signature.hex(),
            "head": head.as_dict(),
        }
        with self._writer.mutex:
            self._writer.chain.expect(head)
            if not witness_holds(head, signature.hex(), public_key.hex()):
                raise IntegrityError(
                    f"the signature of the witness '{by}' under entry {head.seq} does not hold",
                    remedy="ask for it again, and check that the key is theirs",
                    code="ledger-witness",
                )
            return self._writer.append("WITNESS", event)

    def check_witnessed(self, heads: Iterable[Head]) -> None:
        """Check that this ledger holds every head that others have seen: call it before anything is reserved.

        Raises:
            IntegrityError: (``ledger-rollback``) one is missing: this is an older copy, or another history; (``ledger-head``) a head
                that this ledger never signed.
        """
        chain = self._writer.chain
        for head in heads:
            chain.expect(head)

    def verify(self) -> Verification:
        """Verify the files as they are on the disk, against this ledger's key."""
        with self._writer.mutex:
            return verify(self._writer.path, account=self._account, public_key=self._writer.public_key)

    def _budget(self, unit: str) -> Budget | None:
        with self._writer.mutex:
            return budget_of(self._writer.chain, unit, self._composer, now=self._writer.now())

    def _reservation(self, seq: int, *, mine: bool) -> Reservation:
        return Reservation(look=lambda: self._writer.chain.holding(seq), settle=self._settle, mine=mine)

    def _settle(self, holding: Holding, kind: str, event: Mapping[str, Any], figures: Figures) -> Entry:
        """Append the COMMIT or ABORT of ``holding``, which is open."""
        with self._writer.mutex:
            chain, reserve = self._writer.chain, holding.reserve
            unit = str(reserve.unit)
            at = stated_delta(chain, unit, float(reserve.delta or 0.0))
            charged = chain.charged(unit)
            reserved = self._composer.epsilon(charged, at)
            charged[reserve.event] -= 1
            if kind == "COMMIT":
                instead = event["event"]
                charged[reserve.event if instead is None else canonical_json(instead)] += 1
            epsilon = self._composer.epsilon(+charged, at)
            if epsilon > reserved:
                raise PolicyError(
                    f"round {reserve.round} of run '{reserve.run}' would bring the spent epsilon to {epsilon:.4g}, and it reserved up to {reserved:.4g}",
                    remedy="reserve the most that a round can cost before it is computed",
                    code="over-commit",
                )
            columns = {name: getattr(reserve, name) for name in REPEATED} | figures.as_dict()
            columns |= {"reservation": reserve.seq, "at_delta": at, "epsilon_after": epsilon}
            return self._writer.append(kind, event, columns)
