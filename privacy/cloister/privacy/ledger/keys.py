"""A ledger's signing key: Ed25519, in a file that only its owner may read.

Formal guarantees:

- A key is 32 bytes of the operating system's randomness (`secrets`), never of a seeded generator.
- A key file is made with mode 0600 in one step; one that the group or others may read is refused, not repaired: whoever
  could read it may hold a copy.
- An existing file is never overwritten.

The file is PKCS #8 PEM without a passphrase (RFC 8410), which OpenSSL reads too.

==========================================  =====================================================
case                                        outcome
==========================================  =====================================================
no such file                                `load_key` refuses; `load_or_create_key` makes one
readable by group or others                 ``IntegrityError`` (ledger-key)
not PEM, or a key of another kind           ``IntegrityError`` (ledger-key)
exists when one is to be created            ``IntegrityError`` (ledger-key)
==========================================  =====================================================
"""

from __future__ import annotations

import os
import secrets
import stat
import tempfile
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from cloister.core.errors import IntegrityError
from cloister.core.files import sync_folder

__all__ = ["create_key", "load_key", "load_or_create_key", "public_key_of", "signature_holds"]


def create_key(path: Path) -> Ed25519PrivateKey:
    """Make a key from the operating system's randomness and write it to ``path`` with mode 0600.

    Raises:
        IntegrityError: (``ledger-key``) the file exists, or cannot be written.
    """
    key = Ed25519PrivateKey.from_private_bytes(secrets.token_bytes(32))
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    try:
        descriptor, written = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # of mode 0600
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(pem)
                file.flush()
                os.fsync(descriptor)
            os.link(written, path)  # whole from its first moment, and never over another
        finally:
            Path(written).unlink()
        sync_folder(path.parent)
    except OSError as error:
        raise IntegrityError(
            f"the key file '{path}' cannot be made: {error.strerror}",
            remedy="name a file that does not exist yet, in a folder that you may write to",
            code="ledger-key",
        ) from None
    return key


def load_key(path: Path) -> Ed25519PrivateKey:
    """Read the key in ``path``.

    Raises:
        IntegrityError: (``ledger-key``) there is none, others may read it, or it is no Ed25519 key.
    """
    try:
        with path.open("rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            pem = file.read(1 << 16)
    except OSError as error:
        raise IntegrityError(
            f"the key file '{path}' cannot be read: {error.strerror}",
            remedy="restore it from where the site keeps its keys; a ledger goes on with its own key only",
            code="ledger-key",
        ) from None
    if mode & 0o077:
        raise IntegrityError(
            f"the key file '{path}' has mode {mode:04o}: others than its owner may use it",
            remedy="find out who could have read it; if nobody did: chmod 600, else begin a new ledger with a new key",
            code="ledger-key",
        )
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise IntegrityError(
            f"the key file '{path}' holds no key ({type(error).__name__})",
            remedy="restore it from where the site keeps its keys",
            code="ledger-key",
        ) from None
    if not isinstance(key, Ed25519PrivateKey):
        raise IntegrityError(
            f"the key file '{path}' holds a key of another kind than Ed25519 ({type(key).__name__})",
            remedy="restore the ledger's own key",
            code="ledger-key",
        )
    return key


def load_or_create_key(path: Path) -> Ed25519PrivateKey:
    """Read the key in ``path``, or make one where there is no file.

    Raises:
        IntegrityError: (``ledger-key``) as of `load_key` and `create_key`.
    """
    if path.exists() or path.is_symlink():
        return load_key(path)
    try:
        return create_key(path)
    except IntegrityError:
        if path.exists():  # somebody made it at the same moment
            return load_key(path)
        raise


def public_key_of(key: Ed25519PrivateKey) -> str:
    """Return the public key, 32 bytes in hex."""
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def signature_holds(public_key: str, signature: str, message: bytes) -> bool:
    """Return whether ``signature`` over ``message`` was made by the owner of ``public_key``; never raises.

    Both are hex in its one form, small letters without spaces: whoever changes a byte of what was written is found.
    """
    try:
        key, signed = bytes.fromhex(public_key), bytes.fromhex(signature)
        Ed25519PublicKey.from_public_bytes(key).verify(signed, message)
    except (InvalidSignature, ValueError):
        return False
    return (key.hex(), signed.hex()) == (public_key, signature)
