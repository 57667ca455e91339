"""A private round at a site that keeps a ledger: charge, compute, keep, commit, and only then send.

Formal guarantees:

- Nothing is computed on the records before the round's charge is on the disk, and nothing is sent before it is committed with the
  digest of what is sent.
- For one (run, round) and one model noise is drawn once under one charge. A round that is asked for again is answered with what was
  kept, unless a message may go into one sum only; where that is lost, or another model was sent, it is a new attempt and a new charge.
- A ledger that does not hold what others witnessed is an older copy: nothing is computed.
- All charges of a run together, those of repeated rounds too, compose to no more than the site allows a run; and no repetition takes the room of a
  round that was not charged yet.
- Signatures of others are taken with a charge only, `_WITNESSES` of them, and one by a name and about a head: a round that is asked for again and again
  makes the ledger no longer.

==============================================  ==================================================================
case                                            outcome
==============================================  ==================================================================
the cap, or the rate, would be passed           ``PolicyError`` (budget); nothing computed, nothing charged
killed after the charge, before it was kept     charged; asked again: a new attempt, charged too
killed after it was kept                        asked again: the kept update, under the same charge
asked again with another model                  a new attempt
asked again, noise shared, only sums seen       a new attempt: `Plan.repeatable`
more new attempts in a run than the site allows  ``PolicyError`` (policy-repeats); nothing charged
the run's own bound would be passed              ``PolicyError`` (policy-epsilon); nothing charged
==============================================  ==================================================================
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy.typing as npt

from cloister.client.kept import Kept, keep, kept_output
from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.accounting import account
from cloister.privacy.events import to_json
from cloister.privacy.ledger import Ledger, Reservation, load_key, load_or_create_key, sign_witness
from cloister.privacy.ledger.budget import RELATION
from cloister.privacy.ledger.heads import anchor_path
from cloister.privacy.ledger.telling import FromSite, ToSite, Witness
from cloister.privacy.plan import Plan

__all__ = ["Charge", "RunBounds", "SiteLedger", "afford", "release"]

#: Signatures that are taken with one charge: the server's and a few sites'.
_WITNESSES = 4

Arrays = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, kw_only=True)
class SiteLedger:
    """Where a site keeps the ledger of one data set.

    Attributes:
        path: the ledger's file.
        key: the file of the key that signs it; made, with mode 0600, where there is none.
        site: whose it is.
        dataset: the lineage of the records.
        durable: whether an entry survives a power cut (``False``: in a simulation).
        wait_s: how long to wait for another run's entry, seconds.
    """

    path: Path
    key: Path
    site: str
    dataset: str
    durable: bool = True
    wait_s: float = 60.0

    def open(self, *, create: bool = True) -> Ledger:
        """Open it for writing, or make it and its key where ``create`` allows that and neither is there.

        Raises:
            IntegrityError: it does not hold, or is not there.
            PolicyError: another run writes to it.
        """
        begun = self.path.exists() or anchor_path(self.path).exists()
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise IntegrityError(
                f"the ledger '{self.path}' cannot be written: {error.strerror}",
                remedy="make its folder one that you may write to",
                code="ledger-unwritable",
            ) from None
        return Ledger.open(
            self.path,
            site=self.site,
            dataset=self.dataset,
            key=load_key(self.key) if begun or not create else load_or_create_key(self.key),
            create=create,
            account=account,
            wait_s=self.wait_s,
            durable=self.durable,
        )


@dataclass(frozen=True, kw_only=True)
class RunBounds:
    """What one run may be charged at the most, beside the data set's cap.

    Attributes:
        repeats: how many of its rounds may be charged once more; ``None``: any number.
        epsilon: the most that all its charges may compose to, at the run's own δ; ``None``: nothing but the cap bounds it.
    """

    repeats: int | None = None
    epsilon: float | None = None

    def allow(self, epsilon: float) -> bool:
        """Whether a run may cost ``epsilon``; what rounding of the accounting adds does not count."""
        return self.epsilon is None or epsilon <= self.epsilon * (1 + 1e-9)


@dataclass(frozen=True, kw_only=True)
class Charge:
    """What one round costs, and what goes with it.

    Attributes:
        run: names the run.
        round_number: from 1.
        given: digest of what the site was sent: a kept update answers the same question only.
        plan: what a round is, to the accountant.
        code_hash: what computes.
        told: what others saw of this ledger, and heads of theirs to be signed.
        bounds: what the run may be charged at the most.
    """

    run: str
    round_number: int
    given: str
    plan: Plan
    code_hash: str
    told: ToSite
    bounds: RunBounds = RunBounds()


def afford(ledger: SiteLedger, plan: Plan, rounds: int, told: ToSite) -> None:
    """Check that ``rounds`` rounds of ``plan`` may be charged; nothing is charged.

    Raises:
        PolicyError: (budget, delta, relation) they may not.
        IntegrityError: the ledger does not hold, or is older than what others saw.
    """
    with ledger.open(create=not told.heads) as book:
        book.check_witnessed(told.heads)
        if rounds > 0:
            book.afford([to_json(plan.event(rounds))], unit=plan.unit, relation=RELATION, delta=plan.delta)


def release(ledger: SiteLedger, charge: Charge, compute: Callable[[], Arrays]) -> tuple[Arrays, FromSite]:
    """Charge a round, compute it unless it was kept, commit it, and return the update and what is told of the ledger with it.

    Args:
        ledger: the site's.
        charge: the round.
        compute: trains on the records; called at most once, after the charge.

    Raises:
        PolicyError: the site does not allow it.
        IntegrityError: the ledger does not hold, or is older than what others saw.
    """
    with ledger.open(create=not charge.told.heads) as book:
        book.check_witnessed(charge.told.heads)
        before = book.find(charge.run, charge.round_number, unit=charge.plan.unit)
        if before is not None and before.may_reuse and charge.plan.repeatable:
            kept = kept_output(
                ledger.path, charge.run, charge.round_number, before.entry.attempt or 1, charge.given
            )
            if kept is not None and before.output in (None, kept.digest):
                before.commit(output=kept.digest)
                return kept.arrays, _told(ledger, book, charge)
        attempt = 1 if before is None else (before.entry.attempt or 1) + 1
        _check_bounds(book, charge, again=before is not None)
        _reserve(book, charge, attempt).noise_drawn()
        for witness in _new_witnesses(book, charge.told.witnesses):
            book.witness(witness.signature, by=witness.by, public_key=witness.public_key, head=witness.head)
    # The lock is free while the site trains: another run on the same data set may write its own lines.
    kept = Kept(
        run=charge.run,
        round_number=charge.round_number,
        attempt=attempt,
        given=charge.given,
        arrays=compute(),
    )
    keep(ledger.path, kept, durable=ledger.durable)
    with ledger.open(create=False) as book:
        reserved = book.find(charge.run, charge.round_number, unit=charge.plan.unit, attempt=attempt)
        if reserved is None:
            raise RuntimeError("a charge that was written is not in the ledger")
        reserved.commit(output=kept.digest)
        return kept.arrays, _told(ledger, book, charge)


def _check_bounds(book: Ledger, charge: Charge, *, again: bool) -> None:
    """Refuse a charge that the run's bounds do not allow: a server may ask for a round as often as it likes.

    Args:
        book: the ledger.
        charge: the round.
        again: whether it was charged before.
    """
    bounds, plan = charge.bounds, charge.plan
    charged = [
        entry.round
        for entry in book.entries
        if entry.kind == "RESERVE" and (entry.run, entry.unit) == (charge.run, plan.unit)
    ]
    repeated = len(charged) - len(set(charged))
    if again and bounds.repeats is not None and repeated >= bounds.repeats:
        raise PolicyError(
            f"this site charges at most {bounds.repeats} rounds of a run once more, and it has done so",
            remedy="submit the federation anew; at the site: repeated_rounds in policy.toml",
            code="policy-repeats",
        )
    if bounds.epsilon is None:
        return
    left = max(plan.rounds - len(set(charged)), 0) if again else 0
    events = [to_json(plan.event())] + ([to_json(plan.event(left))] if left else [])
    epsilon = book.spent_by(charge.run, unit=plan.unit, delta=plan.delta, more=events)
    if not bounds.allow(epsilon):
        what = f"round {charge.round_number} {'once more' if again else ''}".strip()
        raise PolicyError(
            f"with {what} this run would cost ε = {epsilon:.4g} here at δ = {plan.delta:g}, what it was charged and its rounds to come included; "
            f"at most {bounds.epsilon:g} a run",
            remedy="submit a federation that leaves room for repeated rounds; at the site: epsilon_run in policy.toml",
            code="policy-epsilon",
        )


def _reserve(book: Ledger, charge: Charge, attempt: int) -> Reservation:
    plan = charge.plan
    return book.reserve(
        charge.run,
        charge.round_number,
        to_json(plan.event()),
        unit=plan.unit,
        relation=RELATION,
        delta=plan.delta,
        code_hash=charge.code_hash,
        attempt=attempt,
        figures=plan.figures(),
    )


def _new_witnesses(book: Ledger, given: tuple[Witness, ...]) -> list[Witness]:
    """Return the signatures that are new to the ledger: at most `_WITNESSES`, one by a name about a head, none by a known name under another key."""
    keys: dict[str, str] = {}
    held: set[tuple[str, str]] = set()
    for entry in book.entries:
        if entry.kind == "WITNESS":
            event = json.loads(entry.event)
            keys.setdefault(event["by"], event["public_key"])
            held.add((event["by"], event["head"]["entry_hash"]))
    new: list[Witness] = []
    for one in given:
        about = (one.by, one.head.entry_hash)
        if about not in held and keys.setdefault(one.by, one.public_key.hex()) == one.public_key.hex():
            held.add(about)
            new.append(one)
    return new[:_WITNESSES]


def _told(ledger: SiteLedger, book: Ledger, charge: Charge) -> FromSite:
    budget = next(one for one in book.budgets() if one.unit == charge.plan.unit)
    key = load_key(ledger.key)
    return FromSite(
        head=book.head(),
        epsilon=budget.epsilon,
        delta=budget.delta,
        cap=budget.cap,
        signed=tuple(
            Witness(
                by=ledger.site,
                public_key=key.public_key().public_bytes_raw(),
                signature=sign_witness(head, key),
                head=head,
            )
            for head in charge.told.peers
        ),
    )
