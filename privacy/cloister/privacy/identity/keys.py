"""A member's own keys: one that says who it is, one for TLS, and a site's key as a Flower node.

Formal guarantees:

- `MemberKeys.write` leaves key files of mode 0600 in a folder of mode 0700, and never writes over a key that is there.
- What travels is `PublicKeys`: no function here hands a private key to anybody but the member's own folder.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
a key that others may read, or is none      ``IntegrityError`` (kit-key)
a public key of another kind or curve       ``IntegrityError`` (kit-key)
a key file is there when one is written     ``IntegrityError`` (kit-key)
==========================================  =====================================
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_der_public_key,
    load_pem_private_key,
    load_pem_public_key,
    load_ssh_private_key,
)
from cryptography.x509.oid import NameOID

from cloister.core.errors import IntegrityError, StorageError
from cloister.core.files import write_whole
from cloister.privacy.identity.kit import read_secret
from cloister.privacy.identity.members import Role

__all__ = [
    "IDENTITY_KEY",
    "NODE_KEY",
    "TLS_KEY",
    "MemberKeys",
    "PublicKeys",
    "node_public_key",
    "private_folder",
    "tls_public_key",
]

#: Where a member's folder holds them.
IDENTITY_KEY, TLS_KEY, NODE_KEY = "identity.key", "tls/own.key", "node.key"


@dataclass(frozen=True, kw_only=True)
class PublicKeys:
    """The public halves.

    Attributes:
        identity: 32 bytes, Ed25519.
        tls: EC P-256, SubjectPublicKeyInfo in DER; none for a key authority, whose channel has certificates of its own.
        node: a site's, EC P-384, SubjectPublicKeyInfo in PEM: the very bytes by which Flower knows a node.
    """

    identity: bytes
    tls: bytes | None
    node: bytes | None


@dataclass(frozen=True, kw_only=True)
class MemberKeys:
    """The private keys of one member; never printed.

    Attributes:
        identity: signs.
        tls: of its TLS certificate.
        node: a site's key as a Flower node.
    """

    identity: Ed25519PrivateKey = field(repr=False)
    tls: ec.EllipticCurvePrivateKey | None = field(repr=False)
    node: ec.EllipticCurvePrivateKey | None = field(repr=False)

    @classmethod
    def generate(cls, role: Role) -> Self:
        """Return new keys, as many as the role needs."""
        return cls(
            identity=Ed25519PrivateKey.generate(),
            tls=None if role is Role.AUTHORITY else ec.generate_private_key(ec.SECP256R1()),
            node=ec.generate_private_key(ec.SECP384R1()) if role is Role.SITE else None,
        )

    @classmethod
    def read(cls, folder: Path, role: Role) -> Self:
        """Read the keys in a member's folder.

        Raises:
            IntegrityError: (kit-key) one is missing, others may read it, or it is of another kind.
        """
        identity = _loaded(folder / IDENTITY_KEY)
        if not isinstance(identity, Ed25519PrivateKey):
            raise _unlike(folder / IDENTITY_KEY, "Ed25519")
        tls = None if role is Role.AUTHORITY else _curve_key(folder / TLS_KEY, "P-256", ec.SECP256R1)
        node = _curve_key(folder / NODE_KEY, "P-384", ec.SECP384R1) if role is Role.SITE else None
        return cls(identity=identity, tls=tls, node=node)

    @property
    def public(self) -> PublicKeys:
        """The public halves."""
        spki = PublicFormat.SubjectPublicKeyInfo
        return PublicKeys(
            identity=self.identity.public_key().public_bytes_raw(),
            tls=None if self.tls is None else self.tls.public_key().public_bytes(Encoding.DER, spki),
            node=None if self.node is None else self.node.public_key().public_bytes(Encoding.PEM, spki),
        )

    def write(self, folder: Path) -> None:
        """Write them into ``folder``, which must be there.

        Raises:
            IntegrityError: (kit-key) a key is there already.
            StorageError: the disk refuses.
        """
        files: dict[str, bytes] = {
            IDENTITY_KEY: self.identity.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        }
        if self.tls is not None:
            files[TLS_KEY] = self.tls.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
            private_folder(folder / "tls", there=True)
        if self.node is not None:
            files[NODE_KEY] = self.node.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        for name in files:
            if os.path.lexists(folder / name):
                raise _bad(f"'{folder / name}' exists", "make new keys in another folder")
        for name, pem in files.items():
            write_whole(folder / name, pem, mode=0o600)

    def signing_request(self, name: str) -> bytes:
        """Return a certificate signing request (PEM) for the TLS key: proof that its sender holds that key."""
        if self.tls is None:
            raise _bad("there is no TLS key", "enrol as a site or as a user")
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(self.tls, SHA256())
        return made.public_bytes(Encoding.PEM)


def private_folder(path: Path, *, there: bool = False) -> None:
    """Make a folder of mode 0700; with ``there`` it may exist, and is then left as it is.

    Raises:
        StorageError: it exists, or cannot be made.
    """
    try:
        path.mkdir(mode=0o700)
    except FileExistsError as error:
        if not (there and path.is_dir() and not path.is_symlink()):
            raise StorageError.of(path, error) from None
    except OSError as error:
        raise StorageError.of(path, error) from None
    else:
        path.chmod(0o700)  # whatever the process's umask took away


def tls_public_key(der: bytes) -> ec.EllipticCurvePublicKey:
    """Return a TLS key, EC P-256, from its SubjectPublicKeyInfo.

    Raises:
        IntegrityError: (kit-key) it is another kind of key.
    """
    try:
        key = load_der_public_key(der)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP256R1):
        raise _bad("a public key for TLS is not EC P-256", "make the keys with: cloister site enrol")
    return key


def node_public_key(pem: bytes) -> ec.EllipticCurvePublicKey:
    """Return a Flower node's key, EC P-384, in the one form in which it is written.

    Raises:
        IntegrityError: (kit-key) it is another kind of key, or written otherwise.
    """
    try:
        key = load_pem_public_key(pem)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if (
        not isinstance(key, ec.EllipticCurvePublicKey)
        or not isinstance(key.curve, ec.SECP384R1)
        or key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo) != pem
    ):
        raise _bad("a node's public key is not EC P-384", "make the keys with: cloister site enrol")
    return key


def _curve_key(path: Path, name: str, curve: type[ec.EllipticCurve]) -> ec.EllipticCurvePrivateKey:
    key = _loaded(path)
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, curve):
        raise _unlike(path, f"EC {name}")
    return key


def _loaded(path: Path) -> object:
    raw = read_secret(path)
    load = load_ssh_private_key if path.name == NODE_KEY else load_pem_private_key
    try:
        return load(raw, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        return None


def _unlike(path: Path, kind: str) -> IntegrityError:
    return _bad(f"'{path}' holds no {kind} key", "restore it, or have a new one certified")


def _bad(why: str, remedy: str) -> IntegrityError:
    return IntegrityError(why, remedy=remedy, code="kit-key")
