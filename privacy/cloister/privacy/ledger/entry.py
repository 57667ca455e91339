"""One entry of a ledger: its columns, its one canonical form, its hash and its signature.

Formal guarantees:

- Two entries that differ in any column other than hash and signature have different canonical bytes (every column is
  named, floats are written exactly by `float.hex`, and each column has one type).
- ``entry_hash`` is SHA-256 over these bytes, which include ``prev_hash``: it commits to the whole chain up to here.
- ``signature`` is Ed25519 (RFC 8032) over a tag and ``entry_hash``; the tag keeps it apart from signatures of heads.

==============================================  =======================================================
value                                           outcome
==============================================  =======================================================
NaN or an infinity within an event or a figure  refused: ``PolicyError`` (ledger-input)
ε after = ∞                                     kept: a release without noise is recorded as what it is
an empty name, or one with control characters   refused: ``PolicyError`` (ledger-input)
a stored value of another type than its column  ``IntegrityError`` (ledger-entry)
==============================================  =======================================================
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.ledger.keys import signature_holds

__all__ = [
    "COLUMNS",
    "KINDS",
    "REPEATED",
    "Entry",
    "Figures",
    "canonical_json",
    "checked_integer",
    "checked_name",
    "checked_number",
    "seal",
]

KINDS = ("RESERVE", "COMMIT", "ABORT", "AUDIT", "POLICY", "WITNESS")
#: What a COMMIT or an ABORT repeats of its RESERVE.
REPEATED = ("run", "round", "attempt", "unit", "relation", "delta", "code_hash")
_TAG = b"cloister ledger entry 1\n"
_LARGEST = 2**63 - 1

#: Every column in order: name, type, whether it may be absent.
COLUMNS: tuple[tuple[str, type, bool], ...] = (
    ("seq", int, False),
    ("time", str, False),
    ("prev_hash", str, False),
    ("entry_hash", str, False),
    ("signature", str, False),
    ("site", str, False),
    ("dataset", str, False),
    ("kind", str, False),
    ("unit", str, True),
    ("relation", str, True),
    ("run", str, True),
    ("round", int, True),
    ("attempt", int, True),
    ("reservation", int, True),
    ("event", str, False),
    ("steps", int, True),
    ("noise_multiplier", float, True),
    ("clip", float, True),
    ("sampling_rate", float, True),
    ("survivors", int, True),
    ("delta", float, True),
    ("code_hash", str, True),
    ("at_delta", float, True),
    ("epsilon_after", float, True),
)


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a mechanism ran with, for a reader of the ledger; ε is computed from the event alone.

    Attributes:
        steps: noised steps of this charge.
        noise_multiplier: σ/C, dimensionless.
        clip: C, in the units of the clipped vector's norm.
        sampling_rate: q, the probability that a record (or a site) takes part in a step.
        survivors: sites whose noise is in the sum (distributed noise).
    """

    steps: int | None = None
    noise_multiplier: float | None = None
    clip: float | None = None
    sampling_rate: float | None = None
    survivors: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "survivors"):
            if getattr(self, name) is not None:
                checked_integer(name, getattr(self, name))
        for name in ("noise_multiplier", "clip", "sampling_rate"):
            value = getattr(self, name)
            if value is not None:
                object.__setattr__(self, name, checked_number(name, value))

    def as_dict(self) -> dict[str, int | float | None]:
        """Return the figures by column."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One line of the ledger.

    Attributes:
        seq: 0, 1, 2, … without a gap.
        time: UTC, ISO 8601 with microseconds; never before the entry before.
        prev_hash: the hash of the entry before, in hex; zeros for the first.
        entry_hash: SHA-256 over all columns but this and the next, in hex.
        signature: Ed25519 over the hash, in hex.
        site: whose ledger.
        dataset: the lineage of the records that are charged: the same name for every version of one data set.
        kind: one of `KINDS`.
        unit: whose privacy the charge is about: ``record``, ``site``, …
        relation: the neighbouring relation, for example ``zero-out``.
        run: the run that asked.
        round: its round.
        attempt: 1, 2, …: a round that is computed anew is charged anew.
        reservation: the ``seq`` of the RESERVE that a COMMIT or an ABORT settles.
        event: canonical JSON: a mechanism (RESERVE), or what the kind has to say.
        steps: as of `Figures`.
        noise_multiplier: as of `Figures`.
        clip: as of `Figures`.
        sampling_rate: as of `Figures`.
        survivors: as of `Figures`.
        delta: the δ that the run stated.
        code_hash: the code that computed.
        at_delta: the δ at which ``epsilon_after`` holds: the cap's, or without a cap the run's.
        epsilon_after: ε of everything charged to this unit after this entry.
    """

    seq: int
    time: str
    prev_hash: str
    entry_hash: str
    signature: str
    site: str
    dataset: str
    kind: str
    event: str
    unit: str | None = None
    relation: str | None = None
    run: str | None = None
    round: int | None = None
    attempt: int | None = None
    reservation: int | None = None
    steps: int | None = None
    noise_multiplier: float | None = None
    clip: float | None = None
    sampling_rate: float | None = None
    survivors: int | None = None
    delta: float | None = None
    code_hash: str | None = None
    at_delta: float | None = None
    epsilon_after: float | None = None

    @classmethod
    def from_row(cls, row: Sequence[Any]) -> Entry:
        """Read a stored row, its values in the order of `COLUMNS`.

        Raises:
            IntegrityError: (``ledger-entry``) a value has not its column's type.
        """
        if len(row) != len(COLUMNS):
            raise IntegrityError(f"an entry has {len(row)} columns, not {len(COLUMNS)}", code="ledger-entry")
        for (name, kind, optional), value in zip(COLUMNS, row, strict=True):
            if type(value) is not kind and not (value is None and optional):
                raise IntegrityError(
                    f"entry {row[0]!r}: {name} is {type(value).__name__}, not {kind.__name__}",
                    code="ledger-entry",
                )
        return cls(**{name: value for (name, _, _), value in zip(COLUMNS, row, strict=True)})

    def row(self) -> tuple[Any, ...]:
        """Return the values in the order of `COLUMNS`."""
        return tuple(getattr(self, name) for name, _, _ in COLUMNS)

    def as_dict(self) -> dict[str, Any]:
        """Return the columns by name, with the event as plain data; an infinite ε is ``"inf"``, since JSON has none."""
        columns = {name: getattr(self, name) for name, _, _ in COLUMNS} | {"event": self.data}
        return {name: "inf" if value == math.inf else value for name, value in columns.items()}

    @cached_property
    def data(self) -> dict[str, Any]:
        """The event as plain data.

        Raises:
            IntegrityError: (``ledger-entry``) it is not one JSON object in canonical form.
        """
        try:
            value = json.loads(self.event)
            canonical = isinstance(value, dict) and canonical_json(value) == self.event
        except (ValueError, RecursionError, PolicyError):
            canonical = False
        if not canonical:
            raise IntegrityError(
                f"entry {self.seq}: the event is no canonical JSON object", code="ledger-entry"
            )
        return value  # type: ignore[no-any-return]  # json gives Any; it was checked to be a dict

    def digest(self) -> str:
        """Return what ``entry_hash`` must be (hex)."""
        return _digest({name: getattr(self, name) for name, _, _ in COLUMNS})

    def signature_holds(self, public_key: str) -> bool:
        """Return whether the owner of ``public_key`` (hex) signed ``entry_hash``."""
        return signature_holds(public_key, self.signature, _message(self.entry_hash))


def seal(columns: Mapping[str, Any], key: Ed25519PrivateKey) -> Entry:
    """Hash and sign an entry.

    Args:
        columns: every column that has a value, without ``entry_hash`` and ``signature``.
        key: the ledger's.
    """
    names = {field.name for field in fields(Entry)}
    entry_hash = _digest({name: columns.get(name) for name in names})
    return Entry(**columns, entry_hash=entry_hash, signature=key.sign(_message(entry_hash)).hex())


def _digest(columns: Mapping[str, Any]) -> str:
    exact = {
        name: value.hex() if isinstance(value, float) else value
        for name, value in columns.items()
        if name not in {"entry_hash", "signature"}
    }
    return hashlib.sha256(_TAG + canonical_json(exact).encode()).hexdigest()


def _message(entry_hash: str) -> bytes:
    return _TAG + entry_hash.encode()


def canonical_json(value: Any) -> str:
    """Return ``value`` as JSON in its one form: sorted keys, no spaces, strict numbers.

    Raises:
        PolicyError: (``ledger-input``) it is not plain data: mappings with text for keys, sequences, text, finite
            numbers, booleans and nothing.
    """
    return json.dumps(
        _plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False
    )


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        if not all(isinstance(key, str) for key in value):
            raise _unfit("an event's keys must be text")
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if value is None or isinstance(value, bool | str | int):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise _unfit(f"an event holds the number {value}")
        return float(value)
    raise _unfit(f"an event holds a {type(value).__name__}, which is no plain data")


def checked_name(what: str, value: object) -> str:
    """Return ``value`` if it is a name: 1 to 200 printable characters.

    Raises:
        PolicyError: (``ledger-input``) it is none.
    """
    if not isinstance(value, str) or not 1 <= len(value) <= 200 or not value.isprintable():
        raise _unfit(f"{what} = {value!r} is no name of 1 to 200 printable characters")
    return value


def checked_integer(what: str, value: object, *, least: int = 0) -> int:
    """Return ``value`` if it is an integer of at least ``least`` that a column can hold.

    Raises:
        PolicyError: (``ledger-input``) it is none.
    """
    if type(value) is not int or not least <= value <= _LARGEST:
        raise _unfit(f"{what} = {value!r} is no integer from {least}")
    return value


def checked_number(
    what: str, value: object, *, above: float = 0.0, below: float = math.inf, open_end: bool = False
) -> float:
    """Return ``value`` as a float if it is finite, at least ``above`` and less than ``below``.

    Args:
        what: its name, for the message.
        value: the number.
        above: the least.
        below: what it must stay under.
        open_end: whether ``above`` itself is refused too.

    Raises:
        PolicyError: (``ledger-input``) it is none.
    """
    fit = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    if not fit or not above <= float(value) < below or (open_end and float(value) == above):  # type: ignore[arg-type]  # fit
        raise _unfit(
            f"{what} = {value!r} is no number {'above' if open_end else 'from'} {above:g} to below {below:g}"
        )
    return float(value)  # type: ignore[arg-type]  # checked above


def _unfit(message: str) -> PolicyError:
    return PolicyError(message, remedy="correct what is handed to the ledger", code="ledger-input")
