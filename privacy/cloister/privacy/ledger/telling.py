"""What sites and server tell each other about ledgers, each round: heads, signatures of heads, what was spent.

A head that others hold and show again is what stops a rollback (`cloister.privacy.ledger.heads`). The server keeps the newest head of
each site, signs it, and shows it to the site before the next round; another site of the cohort signs it too. Nothing of it tells
anything of a record: a head is a number and a hash.

What is read is checked whole: other keys, other types, a head that its owner did not sign, a number that is none, more than `MOST`
entries or `LONGEST` characters → ``IntegrityError`` (ledger-telling, ledger-head).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from cloister.core.errors import IntegrityError
from cloister.privacy.ledger.heads import Head, witness_holds

__all__ = ["LONGEST", "MOST", "FromSite", "ToSite", "Witness"]

#: Most entries of a list, most characters of a text.
MOST, LONGEST = 16, 1 << 16

_Read = TypeVar("_Read")


@dataclass(frozen=True, kw_only=True)
class Witness:
    """Somebody's signature of a head: "I have seen it".

    Attributes:
        by: who.
        public_key: theirs, 32 bytes.
        signature: 64 bytes.
        head: what they saw.
    """

    by: str
    public_key: bytes
    signature: bytes
    head: Head

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return {
            "by": self.by,
            "public_key": self.public_key.hex(),
            "signature": self.signature.hex(),
            "head": self.head.as_dict(),
        }

    @classmethod
    def from_dict(cls, value: object) -> Witness:
        """Read it from plain data.

        Raises:
            IntegrityError: it is none, or the signature does not hold.
        """
        data = _fields(value, {"by": str, "public_key": str, "signature": str, "head": dict})
        head = Head.from_dict(data["head"])
        if not 1 <= len(data["by"]) <= 64 or not data["by"].isprintable():
            raise _unfit("a witness without a name")
        if not witness_holds(head, data["signature"], data["public_key"]):
            raise _unfit(f"a witness's signature under entry {head.seq} does not hold")
        return cls(
            by=data["by"],
            public_key=bytes.fromhex(data["public_key"]),
            signature=bytes.fromhex(data["signature"]),
            head=head,
        )


@dataclass(frozen=True, kw_only=True)
class ToSite:
    """What a site is told with a job.

    Attributes:
        heads: heads of its own ledger that others saw: it must hold each.
        witnesses: signatures of them, for its ledger.
        peers: heads of other sites' ledgers, to be signed.
    """

    heads: tuple[Head, ...] = ()
    witnesses: tuple[Witness, ...] = ()
    peers: tuple[Head, ...] = ()

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(
            {
                "heads": [head.as_dict() for head in self.heads],
                "witnesses": [witness.as_dict() for witness in self.witnesses],
                "peers": [head.as_dict() for head in self.peers],
            }
        )

    @classmethod
    def from_json(cls, text: object) -> ToSite:
        """Read it.

        Raises:
            IntegrityError: it is none.
        """
        data = _fields(_parsed(text), {"heads": list, "witnesses": list, "peers": list})
        return cls(
            heads=_each(data["heads"], Head.from_dict),
            witnesses=_each(data["witnesses"], Witness.from_dict),
            peers=_each(data["peers"], Head.from_dict),
        )


@dataclass(frozen=True, kw_only=True)
class FromSite:
    """What a site tells with an update.

    Attributes:
        head: its ledger's head after the update was committed.
        epsilon: of everything charged to the data set so far, by whatever run (infinite: nothing bounds it).
        delta: at which δ.
        cap: the most that the site allows, or ``None``.
        signed: signatures of the peers' heads.
    """

    head: Head
    epsilon: float
    delta: float
    cap: float | None
    signed: tuple[Witness, ...] = ()

    def to_json(self) -> str:
        """Return it as text."""
        return json.dumps(
            {
                "head": self.head.as_dict(),
                "epsilon": self.epsilon if math.isfinite(self.epsilon) else None,
                "delta": self.delta,
                "cap": self.cap,
                "signed": [witness.as_dict() for witness in self.signed],
            }
        )

    @classmethod
    def from_json(cls, text: object) -> FromSite:
        """Read it.

        Raises:
            IntegrityError: it is none.
        """
        data = _fields(
            _parsed(text),
            {
                "head": dict,
                "epsilon": (float, int, None),
                "delta": float,
                "cap": (float, int, None),
                "signed": list,
            },
        )
        epsilon, cap = _number("epsilon", data["epsilon"]), _number("cap", data["cap"])
        if not 0 < data["delta"] < 1:
            raise _unfit("delta is no number that it can be")
        return cls(
            head=Head.from_dict(data["head"]),
            epsilon=math.inf if epsilon is None else epsilon,
            delta=data["delta"],
            cap=cap,
            signed=_each(data["signed"], Witness.from_dict),
        )


def _number(name: str, value: float | None) -> float | None:
    """Return a number of JSON, which may be an integer too large for a float, as a float of at least 0."""
    try:
        number = None if value is None else float(value)
    except OverflowError:
        number = math.inf
    if number is not None and not 0 <= number < math.inf:
        raise _unfit(f"{name} is no number that it can be")
    return number


def _parsed(text: object) -> object:
    if not isinstance(text, str) or len(text) > LONGEST:
        raise _unfit(f"no text of at most {LONGEST} characters")
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        raise _unfit("it is no JSON") from None


def _fields(value: object, kinds: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(value, dict) or set(value) != set(kinds):
        raise _unfit("expected " + ", ".join(kinds))
    for name, kind in kinds.items():
        allowed = kind if isinstance(kind, tuple) else (kind,)
        found = value[name]
        if type(found) not in allowed and not (found is None and None in allowed):
            raise _unfit(f"'{name}' is of another type")
    return value


def _each(values: list[object], read: Callable[[object], _Read]) -> tuple[_Read, ...]:
    if len(values) > MOST:
        raise _unfit(f"more than {MOST} entries")
    return tuple(read(value) for value in values)


def _unfit(what: str) -> IntegrityError:
    return IntegrityError(
        f"what was said about a ledger cannot be used: {what}",
        remedy="install the same version of cloister at the server and at every site",
        code="ledger-telling",
    )
