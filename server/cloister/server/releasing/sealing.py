"""A file encrypted for whoever holds a key or a passphrase: AES-256-GCM over pieces, in a container of its own.

::

    8 bytes       CLSEAL 00 01               format and version
    4 bytes       length of the header, big-endian, at most `LONGEST_HEADER`
    header        JSON: kdf ("hkdf" | "scrypt"), salt (32 hex digits), n, r, p (scrypt), size (of the file inside), piece
    pieces        each `PIECE` bytes of the file (the last one: the rest), encrypted, with its tag of 16 bytes

The key of a container is derived from the key file (HKDF-SHA-256) or the passphrase (scrypt, RFC 7914) and its own salt, so no two containers share one.
A piece's nonce is its number (11 bytes) and whether it is the last (1 byte), after the STREAM construction (Hoang et al. 2015): a piece that is moved,
repeated or missing, and an end cut off, do not decrypt. Format, header and length are authenticated with every piece.

Formal guarantees:

- `unseal` gives back the very bytes that `seal` was given, or refuses: there is no part of a file.
- Nothing of what is inside is in the header but its size.
- What a header asks for is bounded before anything is computed: memory for scrypt, the size of a piece, of the file.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
no container, of another version, too long  ``IntegrityError`` (sealed)
another key, a changed byte, a cut end      ``IntegrityError`` (sealed-key)
a key file that others may read             ``IntegrityError`` (kit-key)
a key file of less than 32 bytes            ``UsageError``
an empty passphrase                         ``UsageError``
==========================================  =====================================
"""

from __future__ import annotations

import json
import os
import secrets
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from cloister.core.errors import IntegrityError, StorageError, UsageError
from cloister.core.files import write_whole
from cloister.privacy.identity.kit import read_secret

__all__ = ["LARGEST", "LONGEST_HEADER", "MAGIC", "PIECE", "Secret", "is_sealed", "seal", "unseal"]

MAGIC = b"CLSEAL\x00\x01"
LONGEST_HEADER, PIECE = 1024, 1 << 20
#: Largest file inside: 16 GiB.
LARGEST = 1 << 34
_TAG = 16
_SALT = 16
_KEY = 32
#: scrypt: 128 MiB of memory; a header may ask for less, down to 16 MiB, and for no more.
_N, _R, _P = 1 << 17, 8, 1
_LEAST_N = 1 << 14
_INFO = b"cloister sealed file 1"


@dataclass(frozen=True, kw_only=True)
class Secret:
    """What opens a container; never printed.

    Attributes:
        kdf: ``hkdf`` for the bytes of a key file, ``scrypt`` for a passphrase.
        value: those bytes.
    """

    kdf: str
    value: bytes = field(repr=False)

    @classmethod
    def of_file(cls, path: Path) -> Secret:
        """Return the secret in a key file that nobody but its owner may read.

        Raises:
            IntegrityError: (kit-key) others may read it.
            UsageError: it holds less than 32 bytes.
        """
        value = read_secret(path)
        if len(value.strip()) < _KEY:
            raise UsageError(
                f"the key file '{path}' holds less than {_KEY} bytes",
                remedy="have one made: name a file that does not exist yet",
            )
        return cls(kdf="hkdf", value=value)

    @classmethod
    def made(cls, path: Path) -> Secret:
        """Write a new key file, of mode 0600, and return its secret.

        Raises:
            UsageError: there is something in its place.
            StorageError: the disk refuses.
        """
        if os.path.lexists(path):
            raise UsageError(f"'{path}' exists", remedy="name another file for the key")
        value = secrets.token_hex(_KEY).encode() + b"\n"
        write_whole(path, value, mode=0o600)
        return cls(kdf="hkdf", value=value)

    @classmethod
    def of_passphrase(cls, text: str) -> Secret:
        """Return the secret of a passphrase.

        Raises:
            UsageError: it is empty.
        """
        if not text:
            raise UsageError("the passphrase is empty", remedy="give one in CLOISTER_PASSPHRASE, or type it")
        return cls(kdf="scrypt", value=text.encode())


def is_sealed(path: Path) -> bool:
    """Whether a file begins as a container does."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def seal(source: Path, target: Path, secret: Secret) -> None:
    """Encrypt ``source`` into the container ``target``, whole or not at all.

    Raises:
        UsageError: the file is larger than `LARGEST`, or cannot be read.
        StorageError: the disk is full or refuses.
    """
    size = _size(source)
    header: dict[str, Any] = {
        "kdf": secret.kdf,
        "piece": PIECE,
        "salt": secrets.token_hex(_SALT),
        "size": size,
    }
    if secret.kdf == "scrypt":
        header |= {"n": _N, "r": _R, "p": _P}
    text = json.dumps(header, sort_keys=True).encode()
    front = MAGIC + struct.pack(">I", len(text)) + text
    cipher = AESGCM(_derived(secret, header))

    def pieces() -> Iterator[bytes]:
        yield front
        with source.open("rb") as file:
            for number, last in _numbers(size):
                yield cipher.encrypt(_nonce(number, last), file.read(PIECE), front)

    _stream(target, pieces())


def unseal(source: Path, target: Path, secret: Secret) -> None:
    """Decrypt the container ``source`` into ``target``, whole or not at all.

    Raises:
        IntegrityError: (sealed, sealed-key) see the table.
        StorageError: the disk is full or refuses.
    """
    with source.open("rb") as file:
        front, header = _front(file)
        if header["kdf"] != secret.kdf:
            told = "a passphrase" if header["kdf"] == "scrypt" else "a key file"
            raise _locked(source, f"it was encrypted with {told}")
        cipher, size = AESGCM(_derived(secret, header)), int(header["size"])

        def pieces() -> Iterator[bytes]:
            for number, last in _numbers(size):
                length = (size - number * PIECE if last else PIECE) + _TAG
                try:
                    yield cipher.decrypt(_nonce(number, last), file.read(length), front)
                except (InvalidTag, ValueError):
                    raise _locked(source, "this is another key, or a byte of the file was changed") from None
            if file.read(1):
                raise _locked(source, "something was added to it")

        _stream(target, pieces())


def _front(file: Any) -> tuple[bytes, dict[str, Any]]:
    begin = file.read(len(MAGIC) + 4)
    if len(begin) < len(MAGIC) + 4 or not begin.startswith(MAGIC):
        raise _unfit("it does not begin as one")
    (length,) = struct.unpack(">I", begin[len(MAGIC) :])
    if length > LONGEST_HEADER:
        raise _unfit("its header is too long")
    text = file.read(length)
    try:
        header = json.loads(text)
        names = {"kdf", "piece", "salt", "size"} | ({"n", "r", "p"} if header["kdf"] == "scrypt" else set())
        whole = set(header) == names and header["kdf"] in ("hkdf", "scrypt")
        numbers = all(type(header[name]) is int for name in names - {"kdf", "salt"})
        salt = len(bytes.fromhex(header["salt"])) == _SALT
        bounded = header["piece"] == PIECE and 0 <= header["size"] <= LARGEST
    except (ValueError, KeyError, TypeError, RecursionError):
        raise _unfit("its header cannot be read") from None
    if not (whole and numbers and salt and bounded):
        raise _unfit("its header asks for what no container has")
    if header["kdf"] == "scrypt" and not (
        _LEAST_N <= header["n"] <= _N
        and header["n"] & (header["n"] - 1) == 0
        and (header["r"], header["p"]) == (_R, _P)
    ):
        raise _unfit("its header asks for more work than a passphrase is worth")
    return begin + text, header


def _derived(secret: Secret, header: dict[str, Any]) -> bytes:
    salt = bytes.fromhex(header["salt"])
    if secret.kdf == "scrypt":
        return Scrypt(salt=salt, length=_KEY, n=header["n"], r=header["r"], p=header["p"]).derive(
            secret.value
        )
    return HKDF(algorithm=SHA256(), length=_KEY, salt=salt, info=_INFO).derive(secret.value)


def _numbers(size: int) -> Iterator[tuple[int, bool]]:
    """Yield the number of each piece and whether it is the last; an empty file is one empty piece."""
    count = max(1, -(-size // PIECE))
    yield from ((number, number == count - 1) for number in range(count))


def _nonce(number: int, last: bool) -> bytes:
    return number.to_bytes(11) + bytes([last])


def _size(path: Path) -> int:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}", remedy="name another file") from None
    if size > LARGEST:
        raise UsageError(
            f"'{path}' has {size} bytes, and a container holds {LARGEST}",
            remedy="encrypt it with another tool",
        )
    return size


def _stream(target: Path, pieces: Iterator[bytes]) -> None:
    """Write pieces under a temporary name of mode 0600, and name the file when all are there."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with os.fdopen(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            for piece in pieces:
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        temporary.unlink(missing_ok=True)
        raise StorageError.of(target, error) from None
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        f"this is no sealed file: {why}", remedy="name a file that cloister release made", code="sealed"
    )


def _locked(path: Path, why: str) -> IntegrityError:
    return IntegrityError(
        f"'{path}' cannot be opened: {why}",
        remedy="use the key or passphrase of this very file",
        code="sealed-key",
    )
