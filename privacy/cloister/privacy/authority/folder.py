"""The key authority's folder: what `cloister authority init` makes and `run` reads.

::

    keys/             secret keys of sessions that wait for their sum      (0700, files 0600)
    decrypted.jsonl   what was decrypted                                   (0600)
    identity.key      the authority's Ed25519 key, PKCS #8 PEM             (0600)
    identity.der      its certificate: put here by hand
    consortium.der    the consortium's certificate: put here by hand
    tls/              of the channel; root.pem, server.pem and server.key go to the server

==========================================  =====================================
case                                        outcome
==========================================  =====================================
a key that others may read, or is none      ``IntegrityError`` (authority-key)
a certificate is missing                    ``IntegrityError`` (authority-identity)
the certificate is of another key           ``IntegrityError`` (authority-identity)
of another role, revoked, expired           ``IntegrityError`` (identity)
==========================================  =====================================
"""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole
from cloister.privacy.authority.tls import make_tls
from cloister.privacy.homomorphic.record import authority_refused, read_private
from cloister.privacy.homomorphic.vault import Vault
from cloister.privacy.identity import Consortium, Identity, Role

__all__ = ["CERTIFICATE", "CONSORTIUM", "IDENTITY", "TLS", "load_identity", "make_folder"]

IDENTITY, CERTIFICATE, CONSORTIUM, TLS = "identity.key", "identity.der", "consortium.der", "tls"
_LONGEST = 1 << 16


def make_folder(folder: Path, host: str) -> str:
    """Make an authority's folder, and return its public key (hex), which the consortium certifies.

    Args:
        folder: where; it may exist, and must not be an authority's already.
        host: the name or address that the server reaches it as.
    """
    Vault.create(folder).close()
    key = Ed25519PrivateKey.generate()
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_whole(folder / IDENTITY, pem, mode=0o600)
    make_tls(folder / TLS, host)
    return key.public_key().public_bytes_raw().hex()


def load_identity(key: Path, certificate: Path, consortium: Path) -> tuple[Identity, Consortium]:
    """Return who the authority is, and its consortium.

    Raises:
        IntegrityError: (authority-key, authority-identity, identity) see the table.
    """
    members = Consortium(_read(consortium))
    der = _read(certificate)
    member = members.member(der, role=Role.AUTHORITY)
    secret = _key(key)
    if secret.public_key().public_bytes_raw() != member.public_key:
        raise _unfit(f"'{certificate}' certifies another key than the one in '{key}'")
    return Identity(member=member, certificate=der, key=secret), members


def _key(path: Path) -> Ed25519PrivateKey:
    raw = read_private(path, most=_LONGEST)
    try:
        key = load_pem_private_key(raw, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise authority_refused(
            f"'{path}' holds no Ed25519 key", "key", "restore it from the authority's backup"
        )
    return key


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise _unfit(f"'{path}' cannot be read: {error.strerror}") from None


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        why,
        remedy="have the consortium certify the public key that 'cloister authority init' printed, as an authority",
        code="authority-identity",
    )
