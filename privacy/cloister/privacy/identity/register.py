"""``members.json`` and ``revoked.json``: what the consortium's authority says of its members now, signed.

Both carry a number that only grows; a member takes a file only in place of one with a lower number (`take_document`), so that nobody
brings back a member that was struck off by handing round an older list.

Formal guarantees:

- `read_register` and `read_revoked` return only what the authority of this consortium signed, and only for this consortium.
- `take_document` never replaces a file by one with a lower number.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
no such file                                members: ``IntegrityError`` (document); revoked: none are
changed, or of another consortium           ``IntegrityError`` (signature, document)
older than the one that is there            ``IntegrityError`` (document-old)
==========================================  =====================================
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Literal, TypeVar

from pydantic import Field, model_validator

from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole
from cloister.privacy.identity.documents import Content, read_document, unsealed
from cloister.privacy.identity.members import Consortium, Purpose, Role

__all__ = [
    "MEMBERS",
    "REVOKED",
    "Entry",
    "Register",
    "Revoked",
    "UserRole",
    "check_newer",
    "read_register",
    "read_revoked",
    "take_document",
    "unseal_register",
    "unseal_revoked",
]

#: The files' names in a kit.
MEMBERS, REVOKED = "members.json", "revoked.json"

UserRole = Literal["submit", "watch", "admin"]
_Hex = Annotated[str, Field(pattern=r"^[0-9a-f]{1,64}$")]
_Time = Annotated[str, Field(pattern=r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$")]


class Entry(Content):
    """One member.

    Attributes:
        name: unique within the role.
        role: what it is.
        roles: what a user may do at the server; empty for others.
        identity: its public identity key, Ed25519, hexadecimal.
        node: a site's public key as a Flower node: PEM, as Flower writes it.
        tls: SHA-256 (hex) of its TLS certificate.
        expires: when its certificates end.
    """

    name: str = Field(min_length=1, max_length=64)
    role: Literal["site", "server", "authority", "user"]
    roles: list[UserRole] = Field(default=[])
    identity: str = Field(pattern=r"^[0-9a-f]{64}$")
    node: str | None = Field(default=None, max_length=1024)
    tls: str | None = Field(default=None, pattern=r"^[0-9a-f]{64}$")
    expires: _Time

    @property
    def node_key(self) -> bytes | None:
        """A site's public key as Flower's SuperLink keeps it."""
        return None if self.node is None else self.node.encode()


class Register(Content):
    """``members.json``: who is a member now. Who was struck off is not in it.

    Attributes:
        version: of the format.
        number: grows with whatever the authority does.
        consortium: SHA-256 (hex) of its certificate.
        at: when it was signed.
        members: sorted by role and name.
    """

    version: Literal[1] = 1
    number: int = Field(ge=1)
    consortium: _Hex
    at: _Time
    members: list[Entry]

    @model_validator(mode="after")
    def _each_once(self) -> Register:
        for what in (
            [(entry.role, entry.name) for entry in self.members],
            [entry.identity for entry in self.members],
            [entry.node for entry in self.members if entry.node],
        ):
            if len(set(what)) != len(what):
                raise ValueError("a name or a key stands twice")
        return self

    def of(self, role: Role) -> dict[str, Entry]:
        """Return the members of a role, by name."""
        return {entry.name: entry for entry in self.members if entry.role == role}


class Revoked(Content):
    """``revoked.json``: which certificates the authority took back before their end.

    Attributes:
        version: of the format.
        number: grows with whatever the authority does.
        consortium: SHA-256 (hex) of its certificate.
        at: when it was signed.
        identities: serial numbers of certificates of identities, hexadecimal.
        tls: of TLS certificates.
        nodes: public keys of Flower nodes, PEM.
    """

    version: Literal[1] = 1
    number: int = Field(ge=1)
    consortium: _Hex
    at: _Time
    identities: list[_Hex]
    tls: list[_Hex]
    nodes: list[Annotated[str, Field(max_length=1024)]]

    @property
    def serials(self) -> frozenset[int]:
        """What `Consortium` takes as ``revoked``."""
        return frozenset(int(one, 16) for one in self.identities)


_List = TypeVar("_List", Register, Revoked)


def unseal_register(raw: bytes, consortium: Consortium) -> Register:
    """Read ``members.json``.

    Raises:
        IntegrityError: (document, signature) see the table.
    """
    found = unsealed(
        raw,
        Register,
        lambda _, signed, signature: consortium.check(Purpose.REGISTER, signed, signature),
        what="the register of members",
    )
    return _of(found, consortium)


def unseal_revoked(raw: bytes, consortium: Consortium) -> Revoked:
    """Read ``revoked.json``.

    Raises:
        IntegrityError: (document, signature) see the table.
    """
    found = unsealed(
        raw,
        Revoked,
        lambda _, signed, signature: consortium.check(Purpose.REVOKED, signed, signature),
        what="the list of revoked certificates",
    )
    return _of(found, consortium)


def read_register(folder: Path, consortium: Consortium) -> Register:
    """Return the register in a kit.

    Raises:
        IntegrityError: (document, signature) it is missing, or does not hold.
    """
    raw = _there(folder / MEMBERS)
    if raw is None:
        raise IntegrityError(
            f"'{folder / MEMBERS}' is missing",
            remedy="take it from the consortium's: cloister kit update",
            code="document",
        )
    return unseal_register(raw, consortium)


def read_revoked(folder: Path, consortium: Consortium) -> Revoked | None:
    """Return the list in a kit, or ``None`` where there is none.

    Raises:
        IntegrityError: (document, signature) it does not hold.
    """
    raw = _there(folder / REVOKED)
    return None if raw is None else unseal_revoked(raw, consortium)


def take_document(folder: Path, raw: bytes, consortium: Consortium) -> Register | Revoked:
    """Put a register or a list of revoked certificates into a kit, in place of an older one.

    Raises:
        IntegrityError: (document, signature, document-old) see the table.
        StorageError: it cannot be written.
    """
    found, name = check_newer(folder, raw, consortium)
    write_whole(folder / name, raw)
    return found


def check_newer(folder: Path, raw: bytes, consortium: Consortium) -> tuple[Register | Revoked, str]:
    """Return a register or a list of revoked certificates and its file's name, if it is no older than the one in ``folder``.

    Raises:
        IntegrityError: (document, signature, document-old) see the table.
    """
    name = REVOKED if _is_revoked(raw) else MEMBERS
    read: Callable[[bytes, Consortium], Register | Revoked]
    read = unseal_revoked if name == REVOKED else unseal_register
    found, there = read(raw, consortium), _there(folder / name)
    before = None if there is None else read(there, consortium)
    if before is not None and found.number < before.number:
        raise IntegrityError(
            f"'{name}' number {found.number} is older than number {before.number}, which is here already",
            remedy="ask the consortium for its newest one; whoever handed you this may want a member back",
            code="document-old",
        )
    return found, name


def _of(found: _List, consortium: Consortium) -> _List:
    if found.consortium != consortium.fingerprint:
        raise IntegrityError(
            "a list is of another consortium", remedy="take this consortium's", code="document"
        )
    return found


def _is_revoked(raw: bytes) -> bool:
    """Whether a document looks like a list of revoked certificates; what it is, its signature says."""
    try:
        return "identities" in json.loads(raw)["content"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def _there(path: Path) -> bytes | None:
    return read_document(path) if path.is_file() else None
