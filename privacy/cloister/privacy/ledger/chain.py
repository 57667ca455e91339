"""The entries of a ledger in order, checked one by one as they are added, and what stands by them.

Writer and verifier use this one class, so that what is written is what verifies.

Formal guarantees:

- An entry is taken only if its number is the next, its ``prev_hash`` is the hash of the last entry, its own hash is right, its
  time is not earlier, and site and data set are the ledger's.
- Kinds come in a legal order: the first entry opens the ledger; a COMMIT or an ABORT settles one open RESERVE, once, and repeats
  what it was for; a (run, round, attempt, unit) is reserved once; a WITNESS is about an entry that is there.
- Everything reserved and not aborted is charged: a reservation that a crash left open counts in full.
- Charges to one unit are all under one neighbouring relation: ε's under different ones do not compose.

An entry that is refused changes nothing. Signatures are `cloister.privacy.ledger.verification`'s business.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from cloister.core.errors import IntegrityError
from cloister.privacy.ledger.budget import Cap
from cloister.privacy.ledger.entry import KINDS, REPEATED, Entry, canonical_json
from cloister.privacy.ledger.heads import Head

__all__ = ["ZERO_HASH", "Chain", "Holding", "State", "witnessed_head"]

ZERO_HASH = "0" * 64
State = Literal["open", "committed", "aborted"]
_SETTLES: dict[str, State] = {"COMMIT": "committed", "ABORT": "aborted"}
_FIGURES = ("steps", "noise_multiplier", "clip", "sampling_rate", "survivors")
_CHARGING = (*REPEATED, "at_delta", "epsilon_after")
_SILENT = (*(name for name in _CHARGING if name != "run"), "reservation", *_FIGURES)


@dataclass(frozen=True, kw_only=True)
class Holding:
    """A reservation and what became of it."""

    reserve: Entry
    settled: Entry | None = None

    @property
    def state(self) -> State:
        """``open`` until a COMMIT or an ABORT settles it."""
        return "open" if self.settled is None else _SETTLES[self.settled.kind]

    @property
    def output(self) -> str | None:
        """The digest of what left, as the COMMIT states it."""
        return self.settled.data.get("output") if self.settled is not None else None

    @property
    def charge(self) -> str | None:
        """The event (canonical JSON) that is charged: the reserved one, or the COMMIT's in its place; nothing once aborted."""
        if self.state == "aborted":
            return None
        instead = self.settled.data.get("event") if self.settled is not None else None
        return self.reserve.event if instead is None else canonical_json(instead)


class Chain:
    """A ledger's entries and what follows from them."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._caps: dict[str | None, Cap] = {}
        self._holdings: dict[int, Holding] = {}
        self._keys: dict[tuple[str, int, str], dict[int, int]] = {}
        self._charged: dict[str, Counter[str]] = {}

    @property
    def entries(self) -> Sequence[Entry]:
        """All entries, in order."""
        return self._entries

    @property
    def last(self) -> Entry | None:
        """The newest entry."""
        return self._entries[-1] if self._entries else None

    @property
    def public_key(self) -> str:
        """The ledger's public key (hex), as its first entry names it."""
        return str(self._entries[0].data["public_key"])

    @property
    def holdings(self) -> Sequence[Holding]:
        """All reservations, in order."""
        return list(self._holdings.values())

    @property
    def units(self) -> Sequence[str]:
        """The units that anything was reserved for or that have a cap of their own, sorted."""
        reserved = {str(holding.reserve.unit) for holding in self._holdings.values()}
        return sorted(reserved | {unit for unit in self._caps if unit is not None})

    def holding(self, seq: int) -> Holding:
        """Return the reservation of entry ``seq``."""
        return self._holdings[seq]

    def find(self, run: str, round_number: int, *, unit: str, attempt: int | None = None) -> Holding | None:
        """Return a reservation: the given attempt, or the newest one."""
        attempts = self._keys.get((run, round_number, unit), {})
        seq = attempts.get(attempt if attempt is not None else max(attempts, default=0))
        return None if seq is None else self._holdings[seq]

    def cap(self, unit: str) -> Cap | None:
        """Return the cap in force for ``unit``: its own, else the one for all."""
        return self._caps.get(unit, self._caps.get(None))

    @property
    def caps(self) -> Sequence[Cap]:
        """All caps in force, the one for all units first."""
        return [self._caps[unit] for unit in sorted(self._caps, key=lambda unit: unit or "")]

    def relation(self, unit: str) -> str | None:
        """Return the relation that charges to ``unit`` are under, or ``None`` before the first."""
        return next((h.reserve.relation for h in self._holdings.values() if h.reserve.unit == unit), None)

    def charged(self, unit: str, *, since: datetime | None = None, run: str | None = None) -> Counter[str]:
        """Return what is charged to ``unit``: how often each event (canonical JSON), of reservations made after ``since``, by ``run``."""
        if since is None and run is None:
            return Counter(self._charged.get(unit, {}))
        return Counter(
            holding.charge
            for holding in reversed(self._holdings.values())
            if holding.reserve.unit == unit
            and holding.charge is not None
            and (run is None or holding.reserve.run == run)
            and (since is None or datetime.fromisoformat(holding.reserve.time) > since)
        )

    def expect(self, head: Head) -> None:
        """Check that this ledger holds ``head``, which somebody witnessed.

        Raises:
            IntegrityError: (``ledger-rollback``) it does not, so that it is an older copy or another history;
                (``ledger-head``) the head is of another ledger, or was never signed by this one.
        """
        first = self._entries[0]
        if (head.site, head.dataset, head.public_key) != (first.site, first.dataset, self.public_key):
            raise IntegrityError(
                f"the head is of the ledger of '{head.site}' for '{head.dataset}', not of this one ('{first.site}', '{first.dataset}', or another key)",
                remedy="hand over heads of this ledger",
                code="ledger-head",
            )
        if not head.holds():
            raise IntegrityError(
                f"the head at entry {head.seq} was never signed by this ledger",
                remedy="whoever showed it must be asked where it comes from",
                code="ledger-head",
            )
        if not (0 <= head.seq < len(self._entries) and self._entries[head.seq].entry_hash == head.entry_hash):
            raise IntegrityError(
                f"this ledger does not hold entry {head.seq}, which somebody witnessed: it is an older copy or another history ({len(self._entries)} entries)",
                remedy="restore the newest ledger; until then this site must not train on the data set",
                code="ledger-rollback",
            )

    def add(self, entry: Entry) -> None:
        """Take the next entry.

        Raises:
            IntegrityError: (``ledger-entry``) a column holds what it must not; (``ledger-chain``) it does not follow the last
                one; (``ledger-order``) its kind cannot come here. Nothing has changed then.
        """
        self._check_link(entry)
        self._check_time(entry)
        if entry.kind not in KINDS:
            raise _fault(entry, f"is of the unknown kind {entry.kind!r}")
        if not self._entries:
            _check_opening(entry)
        elif entry.kind == "POLICY":
            cap = self._policy(entry)
            self._caps[cap.unit] = cap
        elif entry.kind == "RESERVE":
            self._reserve(entry)
        elif entry.kind in _SETTLES:
            self._settle(entry)
        else:
            self._note(entry)
        self._entries.append(entry)

    def _check_link(self, entry: Entry) -> None:
        last = self.last
        if entry.seq != len(self._entries):
            raise _fault(entry, f"stands where entry {len(self._entries)} belongs", code="ledger-chain")
        if entry.prev_hash != (ZERO_HASH if last is None else last.entry_hash):
            raise _fault(entry, "does not follow the entry before it", code="ledger-chain")
        if entry.entry_hash != entry.digest():
            raise _fault(entry, "is not what was hashed", code="ledger-chain")
        if last is not None and (entry.site, entry.dataset) != (last.site, last.dataset):
            raise _fault(entry, "is of another site or data set")

    def _check_time(self, entry: Entry) -> None:
        try:
            sound = datetime.fromisoformat(entry.time).utcoffset() == timedelta(0)
        except ValueError:
            sound = False
        if not sound:
            raise _fault(entry, "has a time that is no UTC time", code="ledger-entry")
        if self.last is not None and datetime.fromisoformat(entry.time) < datetime.fromisoformat(
            self.last.time
        ):
            raise _fault(entry, "is earlier than the entry before it")

    def _policy(self, entry: Entry) -> Cap:
        _absent(entry, (*_SILENT, "run"))
        return Cap.from_event(entry.data)

    def _reserve(self, entry: Entry) -> None:
        _present(entry, _CHARGING)
        _absent(entry, ("reservation",))
        _ = entry.data
        relation = self.relation(str(entry.unit))
        if relation not in {None, entry.relation}:
            raise _fault(
                entry,
                f"is under the relation '{entry.relation}', and what was charged before under '{relation}'",
            )
        key = (str(entry.run), entry.round or 0, str(entry.unit))
        attempts = self._keys.get(key, {})
        if entry.attempt is None or entry.attempt in attempts:
            raise _fault(entry, "reserves what was reserved before")
        self._keys[key] = {**attempts, entry.attempt: entry.seq}
        self._holdings[entry.seq] = Holding(reserve=entry)
        self._charged.setdefault(str(entry.unit), Counter())[entry.event] += 1

    def _settle(self, entry: Entry) -> None:
        _present(entry, (*_CHARGING, "reservation"))
        holding = self._holdings.get(entry.reservation or 0)
        if holding is None or holding.state != "open":
            raise _fault(entry, f"settles entry {entry.reservation}, which is no open reservation")
        if any(getattr(entry, name) != getattr(holding.reserve, name) for name in REPEATED):
            raise _fault(entry, f"is not about what entry {entry.reservation} reserved")
        data = entry.data
        if entry.kind == "COMMIT":
            fits = set(data) == {"output", "event"} and (
                data["event"] is None or isinstance(data["event"], dict)
            )
        else:
            fits = set(data) == {"reason"}
        if not fits:
            raise _fault(entry, "does not say what its kind must say", code="ledger-entry")
        settled = Holding(reserve=holding.reserve, settled=entry)
        self._holdings[holding.reserve.seq] = settled
        charged = self._charged[str(entry.unit)]
        charged -= Counter([holding.reserve.event])
        charged += Counter([settled.charge] if settled.charge is not None else [])

    def _note(self, entry: Entry) -> None:
        _absent(entry, _SILENT)
        if entry.kind == "WITNESS":
            try:
                self.expect(witnessed_head(entry))
            except IntegrityError as error:
                raise _fault(entry, f"is about no head of this ledger: {error.message}") from None
        _ = entry.data


def witnessed_head(entry: Entry) -> Head:
    """Return the head that a WITNESS is about.

    Raises:
        IntegrityError: (``ledger-entry``) it names none.
    """
    data: dict[str, Any] = entry.data
    if set(data) != {"by", "public_key", "signature", "head"}:
        raise _fault(entry, "does not say what its kind must say", code="ledger-entry")
    return Head.from_dict(data["head"])


def _check_opening(entry: Entry) -> None:
    _absent(entry, (*_SILENT, "run"))
    data = entry.data
    if (
        entry.kind != "POLICY"
        or set(data) != {"policy", "format", "public_key"}
        or (data["policy"], data["format"]) != ("open", 1)
    ):
        raise _fault(entry, "does not open a ledger of this version")


def _present(entry: Entry, names: Sequence[str]) -> None:
    missing = [name for name in names if getattr(entry, name) is None]
    if missing:
        raise _fault(entry, f"lacks {', '.join(missing)}", code="ledger-entry")


def _absent(entry: Entry, names: Sequence[str]) -> None:
    surplus = [name for name in names if getattr(entry, name) is not None]
    if surplus:
        raise _fault(entry, f"must not have {', '.join(surplus)}", code="ledger-entry")


def _fault(entry: Entry, what: str, *, code: str = "ledger-order") -> IntegrityError:
    return IntegrityError(
        f"entry {entry.seq} ({entry.kind if entry.kind in KINDS else '?'}) {what}",
        remedy="keep this file as it is, and restore the newest copy; heads that others witnessed tell whether it is the newest",
        code=code,
    )
