"""One line of a site's log: what happened, chained to the line before it and signed.

Formal guarantees:

- A line has one form (`canonical_json`): a line in which any byte differs is not read.
- A line's hash covers everything in it and the hash of the line before, and so all lines before.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
not JSON, another form, other keys          ``IntegrityError`` (log-line)
a hash that is not the line's               ``IntegrityError`` (log-line)
another number, another line before         ``IntegrityError`` (log-chain)
earlier than the line before                ``IntegrityError`` (log-chain)
a signature that does not hold              ``IntegrityError`` (log-signature)
==========================================  =====================================
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, get_type_hints

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import IntegrityError
from cloister.privacy.ledger.chain import ZERO_HASH
from cloister.privacy.ledger.entry import canonical_json
from cloister.privacy.ledger.keys import signature_holds

__all__ = ["KINDS", "LogEntry", "follow", "read_entry", "seal_entry"]

#: What a line can be about.
KINDS = (
    "opened",
    "started",
    "stopped",
    "policy",
    "asked",
    "allowed",
    "refused",
    "held",
    "approved",
    "denied",
    "paused",
    "resumed",
    "left",
    "mended",
)
_TAG = b"cloister site log 1\n"


@dataclass(frozen=True, kw_only=True)
class LogEntry:
    """One line.

    Attributes:
        seq: its number, from 0.
        time: UTC, ISO 8601.
        site: whose log.
        kind: one of `KINDS`.
        said: what happened: plain data, and nothing of a record.
        prev: hash of the line before, hex.
        hash: of all of the above, hex.
        signature: of the hash, by the log's key, hex.
    """

    seq: int
    time: str
    site: str
    kind: str
    said: dict[str, Any]
    prev: str
    hash: str
    signature: str

    @property
    def at(self) -> datetime:
        """When it was written."""
        return datetime.fromisoformat(self.time)

    def line(self) -> bytes:
        """Return it as the log holds it."""
        return canonical_json(asdict(self)).encode() + b"\n"

    def signed_by(self, public_key: str) -> bool:
        """Whether the owner of ``public_key`` (hex) signed it."""
        return signature_holds(public_key, self.signature, _TAG + self.hash.encode())


_FIELDS = get_type_hints(LogEntry)


def seal_entry(
    before: LogEntry | None,
    *,
    time: datetime,
    site: str,
    kind: str,
    said: Mapping[str, Any],
    key: Ed25519PrivateKey,
) -> LogEntry:
    """Return the next line, signed; its time is never before the last line's.

    Raises:
        PolicyError: (ledger-input) ``said`` is not plain data.
    """
    now = time.astimezone(UTC)
    body = {
        "seq": 0 if before is None else before.seq + 1,
        "time": (now if before is None else max(now, before.at)).isoformat(timespec="microseconds"),
        "site": site,
        "kind": kind,
        "said": json.loads(canonical_json(said)),
        "prev": ZERO_HASH if before is None else before.hash,
    }
    digest = _digest(body)
    return LogEntry(**body, hash=digest, signature=key.sign(_TAG + digest.encode()).hex())


def read_entry(line: bytes, number: int) -> LogEntry:
    """Read one line, without its end.

    Args:
        line: the line.
        number: which it is, from 0: for the message.

    Raises:
        IntegrityError: (log-line) it was changed.
    """
    try:
        data = json.loads(line)
        holds = (
            isinstance(data, dict)
            and set(data) == set(_FIELDS)
            and all(type(data[name]) is (dict if name == "said" else kind) for name, kind in _FIELDS.items())
            and canonical_json(data).encode() == line
            and data["kind"] in KINDS
            and datetime.fromisoformat(data["time"]).utcoffset() is not None
        )
    except (ValueError, RecursionError):
        holds = False
    if not holds:
        raise _fault(number, "is not what was written")
    entry = LogEntry(**data)
    if entry.hash != _digest({name: data[name] for name in _FIELDS if name not in ("hash", "signature")}):
        raise _fault(number, "is not what was hashed")
    return entry


def follow(before: LogEntry | None, entry: LogEntry, number: int) -> None:
    """Check that ``entry``, which stands at ``number``, follows the line ``before``.

    Raises:
        IntegrityError: (log-chain) it does not: a line was removed, put in or moved.
    """
    if entry.seq != number:
        raise _fault(
            number, f"has the number {entry.seq}: a line was removed, put in or moved", code="log-chain"
        )
    if entry.prev != (ZERO_HASH if before is None else before.hash):
        raise _fault(number, "does not follow the line before it", code="log-chain")
    if before is not None and (entry.at < before.at or entry.site != before.site):
        raise _fault(number, "is earlier than the line before it, or of another site", code="log-chain")
    if (before is None) != (entry.kind == "opened"):
        raise _fault(number, "opens a log in its middle, or the log is not opened", code="log-chain")


def _digest(body: Mapping[str, Any]) -> str:
    return hashlib.sha256(canonical_json(body).encode()).hexdigest()


def _fault(number: int, what: str, *, code: str = "log-line") -> IntegrityError:
    return IntegrityError(
        f"line {number + 1} of the site's log {what}",
        remedy="keep the file as it is, find out who could write to it, and restore the newest copy",
        code=code,
    )
