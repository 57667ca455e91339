"""The head of a ledger: what others witness, and what is anchored in a file beside it.

A hash chain by itself does not stop a rollback: an older copy of the file is a sound chain. Two things do:

- the **anchor**, a file beside the ledger, written after each entry: a ledger that is behind its anchor lost entries;
- **witnesses**: the server and the other sites sign each other's heads every round and show them again later; a ledger that
  does not hold a head that somebody witnessed is an older copy, or another history.

Formal guarantees:

- A head names site, data set, number and hash of an entry, and is signed by the ledger's key: nobody else can make one.
- The anchor is written whole or not at all, with mode 0600, and is signed too: a change of any byte of it is found.
- The anchor holds the SHA-256 of the whole ledger file, so that a changed byte is found even where SQLite would not read it.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole
from cloister.privacy.ledger.entry import Entry, canonical_json
from cloister.privacy.ledger.keys import public_key_of, signature_holds

__all__ = [
    "Anchor",
    "Head",
    "anchor_path",
    "head_of",
    "read_anchor",
    "sign_head",
    "sign_witness",
    "witness_holds",
    "write_anchor",
]

_NAME = 200
_HEAD_TAG = b"cloister ledger head 1\n"
_WITNESS_TAG = b"cloister ledger witness 1\n"
_ANCHOR_TAG = b"cloister ledger anchor 1\n"


@dataclass(frozen=True, kw_only=True)
class Head:
    """One entry of a ledger, by number and hash, as the ledger's owner signed it.

    Attributes:
        site: whose ledger.
        dataset: which lineage.
        seq: the entry's number.
        entry_hash: its hash, hex; it commits to all entries before.
        public_key: the ledger's, 32 bytes in hex.
        signature: the owner's, over all of the above, hex.
    """

    site: str
    dataset: str
    seq: int
    entry_hash: str
    public_key: str
    signature: str

    def as_dict(self) -> dict[str, Any]:
        """Return the head as plain data."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: object) -> Head:
        """Read a head from plain data.

        Raises:
            IntegrityError: (``ledger-head``) it is none, or its owner's signature does not hold.
        """
        names = {
            "site": str,
            "dataset": str,
            "seq": int,
            "entry_hash": str,
            "public_key": str,
            "signature": str,
        }
        if (
            not isinstance(value, Mapping)
            or set(value) != set(names)
            or any(type(value[name]) is not kind for name, kind in names.items())
        ):
            raise IntegrityError(
                "a head of a ledger does not hold " + ", ".join(names),
                remedy="hand over the head as it was given",
                code="ledger-head",
            )
        head = cls(**value)
        if not head.plausible():
            raise IntegrityError(
                "a head of a ledger has a name, number, hash or key that none has",
                remedy="hand over the head as it was given",
                code="ledger-head",
            )
        if not head.holds():
            raise IntegrityError(
                f"the head of the ledger of '{head.site}' at entry {head.seq} is not signed by the key that it names",
                remedy="hand over the head as it was given",
                code="ledger-head",
            )
        return head

    def plausible(self) -> bool:
        """Whether every field is as long and as large as a head's can be."""
        return (
            all(1 <= len(name) <= _NAME and name.isprintable() for name in (self.site, self.dataset))
            and 0 <= self.seq < 1 << 63
            and (len(self.entry_hash), len(self.public_key), len(self.signature)) == (64, 64, 128)
        )

    def message(self) -> bytes:
        """Return what is signed: everything but the signature."""
        return canonical_json(
            {name: value for name, value in asdict(self).items() if name != "signature"}
        ).encode()

    def holds(self) -> bool:
        """Return whether the owner of ``public_key`` signed this head."""
        return signature_holds(self.public_key, self.signature, _HEAD_TAG + self.message())


@dataclass(frozen=True, kw_only=True)
class Anchor:
    """What the file beside the ledger says.

    Attributes:
        head: the newest entry.
        size: bytes of the ledger file after it.
        sha256: of that file, hex.
    """

    head: Head
    size: int
    sha256: str


def sign_head(entry: Entry, key: Ed25519PrivateKey) -> Head:
    """Return ``entry`` as a head, signed with the ledger's key."""
    return head_of(
        site=entry.site, dataset=entry.dataset, seq=entry.seq, entry_hash=entry.entry_hash, key=key
    )


def head_of(*, site: str, dataset: str, seq: int, entry_hash: str, key: Ed25519PrivateKey) -> Head:
    """Return the head of a chain of entries, signed with the chain's key."""
    head = Head(
        site=site,
        dataset=dataset,
        seq=seq,
        entry_hash=entry_hash,
        public_key=public_key_of(key),
        signature="",
    )
    return Head(**{**asdict(head), "signature": key.sign(_HEAD_TAG + head.message()).hex()})


def sign_witness(head: Head, key: Ed25519PrivateKey) -> bytes:
    """Sign somebody else's head: "I have seen it". Keep the head, and show it again later.

    Returns:
        64 bytes.

    Raises:
        IntegrityError: (``ledger-head``) the head is not signed by its owner; a forged head is not witnessed.
    """
    Head.from_dict(head.as_dict())
    return key.sign(_WITNESS_TAG + head.message())


def witness_holds(head: Head, signature: str, public_key: str) -> bool:
    """Return whether the owner of ``public_key`` (hex) witnessed ``head`` by ``signature`` (hex)."""
    return signature_holds(public_key, signature, _WITNESS_TAG + head.message())


def anchor_path(ledger: Path) -> Path:
    """Return the file beside ``ledger`` that holds its newest head."""
    return ledger.with_name(ledger.name + ".head")


def write_anchor(ledger: Path, anchor: Anchor, key: Ed25519PrivateKey, *, durable: bool) -> None:
    """Write ``anchor`` beside ``ledger``, whole or not at all, with mode 0600.

    Args:
        ledger: the ledger's file.
        anchor: what to write.
        key: the ledger's.
        durable: whether it must survive a power cut (and not only a killed process).

    Raises:
        OSError: it could not be written; the old one stands.
    """
    body = asdict(anchor)
    text = (
        canonical_json({**body, "signature": key.sign(_ANCHOR_TAG + canonical_json(body).encode()).hex()})
        + "\n"
    )
    path = anchor_path(ledger)
    if durable:
        write_whole(path, text, mode=0o600)
        return
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of mode 0600
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as file:
            file.write(text)
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def read_anchor(ledger: Path, *, public_key: str) -> Anchor | None:
    """Read the anchor of ``ledger``; ``None`` where there is none.

    Raises:
        IntegrityError: (``ledger-anchor``) a byte of it was changed, or the owner of ``public_key`` did not sign it.
    """
    path = anchor_path(ledger)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _broken(path, f"cannot be read: {error.strerror}") from None
    try:
        body = json.loads(raw)
        if raw != canonical_json(body).encode() + b"\n":
            raise ValueError  # noqa: TRY301 - one answer for all that is wrong with it
        signature = body.pop("signature")
        anchor = Anchor(head=Head.from_dict(body["head"]), size=int(body["size"]), sha256=str(body["sha256"]))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, IntegrityError):
        raise _broken(path, "is damaged") from None
    if asdict(anchor) != body or not signature_holds(
        public_key, str(signature), _ANCHOR_TAG + canonical_json(body).encode()
    ):
        raise _broken(path, "is not signed by the ledger's key")
    return anchor


def _broken(path: Path, what: str) -> IntegrityError:
    return IntegrityError(
        f"the head file '{path}' {what}",
        remedy="restore the ledger's folder as it was; the head file says how many entries the ledger must hold",
        code="ledger-anchor",
    )
