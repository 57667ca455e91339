"""``issued.jsonl``: all that the authority ever issued and took back, one line of JSON each, on the disk before a certificate leaves.

The number of its lines is the number of the lists that are signed: it grows with whatever the authority does.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
a line that cannot be read                  ``IntegrityError`` (offline)
a last line that a crash cut off            removed: that certificate never left
others may read it                          ``IntegrityError`` (kit-key)
another command has it open                 ``IntegrityError`` (offline-busy)
a key that is or was somebody's             ``IntegrityError`` (key-known)
==========================================  =====================================
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Literal, Self, get_args

from pydantic import Field, ValidationError

from cloister.core.errors import IntegrityError, StorageError
from cloister.privacy.identity.documents import Content
from cloister.privacy.identity.keys import PublicKeys
from cloister.privacy.identity.kit import read_secret
from cloister.privacy.identity.members import Role
from cloister.privacy.identity.register import UserRole

__all__ = ["REASONS", "IssuedBook", "IssuedLine", "Reason", "RevokedLine", "member_key"]

Reason = Literal["unspecified", "key-compromise", "affiliation-changed", "superseded", "left"]
#: Why certificates are taken back; the words of X.509, with "left" for "cessation of operation".
REASONS: tuple[Reason, ...] = get_args(Reason)
_MOST = 1 << 28


class IssuedLine(Content):
    """A member was certified.

    Attributes:
        event: what happened.
        at: when, ISO 8601, UTC.
        role: the member's.
        name: the member's.
        roles: of a user.
        identity_serial: of the identity's certificate, hexadecimal.
        identity: the identity key, hexadecimal.
        tls_serial: of the TLS certificate, hexadecimal.
        tls_fingerprint: SHA-256 (hex) of the TLS certificate.
        tls: the TLS key, SubjectPublicKeyInfo (DER), hexadecimal.
        node: the public key as a Flower node, PEM.
        expires: when the certificates end, ISO 8601, UTC.
        by: how the keys came about: made here, or by the member itself.
    """

    event: Literal["issued"] = "issued"
    at: str
    role: Literal["site", "server", "authority", "user"]
    name: str
    roles: list[UserRole] = Field(default=[])
    identity_serial: str
    identity: str = Field(pattern=r"^[0-9a-f]{64}$")
    tls_serial: str | None = None
    tls_fingerprint: str | None = None
    tls: str | None = None
    node: str | None = None
    expires: str
    by: Literal["kit", "request"]

    @property
    def public(self) -> PublicKeys:
        """The keys that were certified."""
        return PublicKeys(
            identity=bytes.fromhex(self.identity),
            tls=None if self.tls is None else bytes.fromhex(self.tls),
            node=None if self.node is None else self.node.encode(),
        )

    @property
    def ends(self) -> datetime:
        """When the certificates end."""
        return datetime.fromisoformat(self.expires)


class RevokedLine(Content):
    """Certificates were taken back.

    Attributes:
        event: what happened.
        at: when, ISO 8601, UTC.
        role: the member's.
        name: the member's.
        reason: why.
        identities: serial numbers of its identity's certificates.
        tls: of its TLS certificates.
        nodes: its public keys as a Flower node.
    """

    event: Literal["revoked"] = "revoked"
    at: str
    role: Literal["site", "server", "authority", "user"]
    name: str
    reason: Reason
    identities: list[str]
    tls: list[str]
    nodes: list[str]


class IssuedBook:
    """The open file; use it as a context.

    Args:
        path: the file.

    Raises:
        IntegrityError: see the table.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        read_secret(path, most=0)
        self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._descriptor)
            raise IntegrityError(
                f"another command works on '{path.parent}'",
                remedy="wait until it has ended",
                code="offline-busy",
            ) from None
        try:
            self.lines = self._read()
        except BaseException:
            os.close(self._descriptor)
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._descriptor)

    @property
    def number(self) -> int:
        """The number of the lists that are signed now."""
        return len(self.lines)

    def append(self, line: IssuedLine | RevokedLine) -> None:
        """Write a line and see it on the disk.

        Raises:
            StorageError: the disk refuses.
        """
        raw = (json.dumps(line.model_dump(mode="json", exclude_none=True)) + "\n").encode()
        before = os.fstat(self._descriptor).st_size
        try:
            if os.write(self._descriptor, raw) != len(raw):
                os.ftruncate(self._descriptor, before)
                raise OSError(28, "the line was not written whole")  # noqa: TRY301 - ENOSPC, like write's own
            os.fsync(self._descriptor)
        except OSError as error:
            raise StorageError.of(self._path, error) from None
        self.lines.append(line)

    def current(self) -> dict[tuple[str, str], IssuedLine]:
        """Return the newest line of each member that was not struck off since, by role and name."""
        found: dict[tuple[str, str], IssuedLine] = {}
        for line in self.lines:
            if isinstance(line, IssuedLine):
                found[member_key(line)] = line
            else:
                newest = found.get(member_key(line))
                if newest is not None and newest.identity_serial in line.identities:
                    del found[member_key(line)]
        return dict(sorted(found.items()))

    def standing(self, role: str, name: str) -> list[IssuedLine]:
        """Return all that was issued to a member and not taken back."""
        gone = {serial for line in self.revoked() for serial in line.identities}
        return [
            line
            for line in self._issued()
            if member_key(line) == (role, name) and line.identity_serial not in gone
        ]

    def revoked(self) -> list[RevokedLine]:
        """Return all that was taken back."""
        return [line for line in self.lines if isinstance(line, RevokedLine)]

    def refuse_known_keys(self, role: Role, name: str, keys: PublicKeys) -> None:
        """Refuse keys that another member has or had, or that were this member's and were taken back.

        Raises:
            IntegrityError: (key-known) they are.
        """
        gone = {serial for line in self.revoked() for serial in line.identities}
        for line in self._issued():
            known = line.public
            same = [
                what
                for what in ("identity", "tls", "node")
                if getattr(keys, what) is not None and getattr(keys, what) == getattr(known, what)
            ]
            if same and (member_key(line) != (role.value, name) or line.identity_serial in gone):
                raise IntegrityError(
                    f"the {same[0]} key of {role} '{name}' is known: it was certified for {line.role} '{line.name}'"
                    + (", and taken back" if line.identity_serial in gone else ""),
                    remedy="have the member make new keys in a new folder",
                    code="key-known",
                )

    def _issued(self) -> Iterator[IssuedLine]:
        return (line for line in self.lines if isinstance(line, IssuedLine))

    def _read(self) -> list[IssuedLine | RevokedLine]:
        size = os.fstat(self._descriptor).st_size
        if size > _MOST:
            raise IntegrityError(
                f"'{self._path}' is longer than {_MOST} bytes",
                remedy="restore it from its backup",
                code="offline",
            )
        raw = os.pread(self._descriptor, size, 0)
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) != size:
            os.ftruncate(self._descriptor, len(whole))
            os.fsync(self._descriptor)
        return [self._line(one) for one in whole.splitlines()]

    def _line(self, raw: bytes) -> IssuedLine | RevokedLine:
        try:
            data = json.loads(raw)
            kind = RevokedLine if data.get("event") == "revoked" else IssuedLine
            return kind.model_validate(data)
        except (ValueError, AttributeError, RecursionError, ValidationError):
            raise IntegrityError(
                f"a line of '{self._path}' cannot be read",
                remedy="restore it from its backup: without it nobody knows what was certified",
                code="offline",
            ) from None


def member_key(line: IssuedLine | RevokedLine) -> tuple[str, str]:
    """Return a member's role and name."""
    return line.role, line.name
