"""A member's kit: the folder that holds who it is, under fixed names.

::

    identity.key     its Ed25519 key, PKCS #8 PEM                                     (0600)
    identity.der     its certificate
    consortium.der   the consortium's certificate
    tls/root.pem     whose TLS certificates are accepted
    tls/own.pem      its TLS certificate, EC P-256
    tls/own.key      the key of that                                                  (0600)
    node.key         a site's: its key as a Flower node, EC P-384, OpenSSH            (0600)
    members.json     who is a member now, signed by the consortium's authority
    revoked.json     whose certificates it took back, signed; none where it is missing

A key that others than its owner may read is refused: somebody may have it.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
a key that others may read, or is none      ``IntegrityError`` (kit-key)
a file is missing                           ``IntegrityError`` (kit-file)
the certificate is of another key           ``IntegrityError`` (kit-file)
of another role, expired                    ``IntegrityError`` (identity)
revoked                                     ``IntegrityError`` (identity-revoked)
``revoked.json`` changed, another's         ``IntegrityError`` (document, signature)
==========================================  =====================================
"""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from cloister.core.errors import IntegrityError
from cloister.core.files import stamp
from cloister.privacy.identity.members import Consortium, Identity, Role
from cloister.privacy.identity.register import REVOKED, Register, read_register, read_revoked

__all__ = ["Believed", "Kit", "load_consortium", "load_kit", "read_secret"]

_LONGEST = 1 << 16


@dataclass(frozen=True, kw_only=True)
class Kit:
    """A member's kit, read and checked.

    Attributes:
        folder: where it lies.
        identity: its key and certificate.
        consortium: whom it believes.
    """

    folder: Path
    identity: Identity
    consortium: Consortium

    @property
    def root(self) -> Path:
        """Whose TLS certificates are accepted, PEM."""
        return self.folder / "tls" / "root.pem"

    @property
    def certificate(self) -> Path:
        """Its own TLS certificate, PEM."""
        return self.folder / "tls" / "own.pem"

    @property
    def key(self) -> Path:
        """The key of that, PEM."""
        return self.folder / "tls" / "own.key"

    def members(self) -> Register:
        """Return who is a member now.

        Raises:
            IntegrityError: (document, signature) the register is missing, or does not hold.
        """
        return read_register(self.folder, self.consortium)

    @property
    def node_key(self) -> Path:
        """A site's key as a Flower node, OpenSSH."""
        return self.folder / "node.key"


class Believed:
    """Whom a kit believes at this moment: its list of those who were revoked is read again when it changes. Threads may share it.

    Args:
        kit: the kit.
    """

    def __init__(self, kit: Kit) -> None:
        self._path = kit.folder / REVOKED
        self._now: tuple[tuple[int, ...], Consortium] = (
            (),
            kit.consortium,
        )  # a list is read at the first call

    def __call__(self) -> Consortium:
        """Return the consortium.

        Raises:
            IntegrityError: (document, signature) the list was changed, and does not hold.
        """
        now, consortium = self._now
        found = stamp(self._path)
        if found != now:
            consortium = load_consortium(self._path.parent)
            self._now = (found, consortium)
        return consortium


def load_kit(folder: Path, role: Role) -> Kit:
    """Read the kit in ``folder``; its consortium refuses whom ``revoked.json`` beside it names.

    Raises:
        IntegrityError: (kit-key, kit-file, identity, …) see the table.
    """
    consortium = load_consortium(folder)
    certificate = _read(folder / "identity.der")
    member = consortium.member(certificate, role=role)
    key = _key(folder / "identity.key")
    if key.public_key().public_bytes_raw() != member.public_key:
        raise _unfit(f"'{folder / 'identity.der'}' certifies another key than the one beside it")
    return Kit(
        folder=folder,
        identity=Identity(member=member, certificate=certificate, key=key),
        consortium=consortium,
    )


def load_consortium(folder: Path) -> Consortium:
    """Return whom a kit believes, less those who were revoked.

    Raises:
        IntegrityError: (kit-file, identity, document, signature) see the table.
    """
    certificate = _read(folder / "consortium.der")
    revoked = read_revoked(folder, Consortium(certificate))
    return Consortium(certificate, revoked=frozenset() if revoked is None else revoked.serials)


def read_secret(path: Path, *, most: int = _LONGEST) -> bytes:
    """Return the bytes of a file that nobody but its owner may read, at most ``most`` of them.

    Raises:
        IntegrityError: (kit-key) it cannot be read, or others may read it.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            raw = file.read(most)
    except OSError as error:
        raise _bad_key(
            f"the key file '{path}' cannot be read: {error.strerror}",
            "restore it, or have a new one certified",
        ) from None
    if mode & 0o077:
        raise _bad_key(
            f"'{path}' has mode {mode:04o}: others than its owner may use it",
            "find out who could have read it; if nobody did: chmod 600, else have a new key certified",
        )
    return raw


def _key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise _bad_key(f"'{path}' holds no Ed25519 key", "restore it, or have a new one certified")
    return key


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST)
    except OSError as error:
        raise _unfit(f"'{path}' cannot be read: {error.strerror}") from None


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        why,
        remedy="take the kit that the consortium made for this member: cloister provision",
        code="kit-file",
    )


def _bad_key(why: str, remedy: str) -> IntegrityError:
    return IntegrityError(why, remedy=remedy, code="kit-key")
