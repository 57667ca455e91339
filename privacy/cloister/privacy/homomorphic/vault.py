"""Where the key authority keeps its secret key and the record of what it decrypted.

A folder with two files, both of mode 0600: ``secret.key`` (the scheme, the secret context and the public one) and ``decrypted.jsonl``, a line
for each session that was decrypted, which is also what a privacy officer reads. In a simulation both are in memory.

Formal guarantees:

- `Vault.spend` returns once for each (run, serial), whatever dies in between: the line is on the disk before it returns.
- One process at a time has a folder open.
- The old key is gone after `Vault.renew`: what was encrypted under it can be decrypted no more (but from a copy or a backup).

==========================================  ========================================================
case                                        outcome
==========================================  ========================================================
a file that others may read                 ``IntegrityError`` (authority-key)
no such file, or not of this form           ``IntegrityError`` (authority-key)
the folder holds a key when one is made     ``IntegrityError`` (authority-key)
a second process                            ``IntegrityError`` (authority-busy)
the record is missing, or a line is broken  ``IntegrityError`` (authority-record)
the last line was cut off by a crash        removed: that session's sum never left
a session that was decrypted before         ``IntegrityError`` (decryption-twice)
==========================================  ========================================================
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Self

from cloister.core.errors import IntegrityError, StorageError
from cloister.core.files import write_whole
from cloister.privacy.homomorphic.codec import key_of
from cloister.privacy.homomorphic.frames import framed, unframed
from cloister.privacy.homomorphic.parameters import HomomorphicScheme, Parameters, parameters_of
from cloister.privacy.homomorphic.vectors import new_key
from cloister.privacy.manifest import Manifest

__all__ = ["KEY_FILE", "RECORD_FILE", "Vault"]

KEY_FILE = "secret.key"
RECORD_FILE = "decrypted.jsonl"

_LABEL = b"cloister secret key 1"
_MOST = 1 << 21


class Vault:
    """A key and a record; make one with `in_memory`, `create` or `open`.

    Args:
        parameters: of the key's scheme.
        secret: the secret context, serialised.
        public: the public one.
        folder: where both are kept; in memory if left out.
    """

    def __init__(
        self, parameters: Parameters, secret: bytes, public: bytes, folder: Path | None = None
    ) -> None:
        self.parameters = parameters
        self.secret = secret
        self.public = public
        self._folder = folder
        self._lock = threading.Lock()
        self._record = None if folder is None else _opened_record(folder / RECORD_FILE)
        self._spent = set() if self._record is None else _read_record(self._record, str(folder))

    @classmethod
    def in_memory(cls, scheme: HomomorphicScheme = "bfv") -> Self:
        """Return a vault with a new key that no file holds."""
        parameters = parameters_of(scheme)
        return cls(parameters, *new_key(parameters))

    @classmethod
    def create(cls, folder: Path, scheme: HomomorphicScheme = "bfv") -> Self:
        """Make ``folder`` with a new key.

        Raises:
            IntegrityError: (authority-key) it holds one already.
            StorageError: it cannot be written.
        """
        parameters = parameters_of(scheme)
        if (folder / KEY_FILE).exists() or (folder / RECORD_FILE).exists():
            raise _unfit(
                f"'{folder}' holds a key already",
                "key",
                "name another folder, or use: cloister authority rotate",
            )
        secret, public = new_key(parameters)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StorageError.of(folder, error) from None
        write_whole(folder / RECORD_FILE, b"", mode=0o600)
        _write_key(folder, parameters, secret, public)
        return cls(parameters, secret, public, folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """Open a folder that `create` made.

        Raises:
            IntegrityError: (authority-key, authority-busy, authority-record) it cannot be used; see the table.
        """
        raw = _read_private(folder / KEY_FILE)
        try:
            label, scheme, secret, public = unframed(raw, count=4, most=_MOST)
            name = scheme.decode("ascii")
        except ValueError:
            label = b""
        if label != _LABEL:
            raise _unfit(
                f"'{folder / KEY_FILE}' holds no key", "key", "restore it from the authority's backup"
            )
        return cls(parameters_of(name), secret, public, folder)

    @property
    def key_id(self) -> str:
        """The id of the key."""
        return key_of(self.public)

    @property
    def sessions(self) -> int:
        """How many sessions were decrypted."""
        return len(self._spent)

    def check_unspent(self, manifest: Manifest) -> None:
        """Check that a session was not decrypted yet.

        Raises:
            IntegrityError: (decryption-twice) it was.
        """
        if (manifest.run, manifest.serial) in self._spent:
            raise _spent(manifest)

    def spend(self, manifest: Manifest, *, sites: int) -> None:
        """Record that a session is decrypted, before it is.

        Args:
            manifest: of the session.
            sites: how many are in its sum.

        Raises:
            IntegrityError: (decryption-twice) it was decrypted before.
            StorageError: the record cannot be written: nothing may be decrypted.
        """
        with self._lock:
            self.check_unspent(manifest)
            if self._record is not None:
                line = {
                    "run": manifest.run,
                    "serial": manifest.serial,
                    "round": manifest.round_number,
                    "kind": manifest.kind,
                    "group": manifest.group,
                    "sites": sites,
                    "key": manifest.key,
                    "manifest": manifest.digest.hex(),
                    "time": datetime.now(UTC).isoformat(timespec="seconds"),
                }
                try:
                    _append(self._record, json.dumps(line, sort_keys=True).encode() + b"\n")
                except OSError as error:
                    raise StorageError.of(f"{self._folder}/{RECORD_FILE}", error) from None
            self._spent.add((manifest.run, manifest.serial))

    def renew(self) -> None:
        """Put a new key in the place of the old one."""
        secret, public = new_key(self.parameters)
        if self._folder is not None:
            _write_key(self._folder, self.parameters, secret, public)
        self.secret, self.public = secret, public

    def close(self) -> None:
        """Let another process open the folder."""
        if self._record is not None:
            os.close(self._record)
            self._record = None

    def __repr__(self) -> str:
        return f"Vault({self.parameters.scheme}, key {self.key_id[:16]})"


def _write_key(folder: Path, parameters: Parameters, secret: bytes, public: bytes) -> None:
    whole = framed([_LABEL, parameters.scheme.encode(), secret, public])
    write_whole(folder / KEY_FILE, whole, mode=0o600)


def _read_private(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            _refuse_shared(os.fstat(file.fileno()), path)
            return file.read(_MOST + 1)
    except OSError as error:
        raise _unfit(
            f"the key file '{path}' cannot be read: {error.strerror}",
            "key",
            "name the folder that 'cloister authority init' made",
        ) from None


def _refuse_shared(found: os.stat_result, path: Path) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise _unfit(
            f"'{path}' has mode {mode:04o}: others than its owner may use it",
            "key",
            "find out who could have read it; if nobody did: chmod 600, else make a new key: cloister authority rotate",
        )


def _opened_record(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
    except OSError as error:
        raise _unfit(
            f"the record '{path}' cannot be opened: {error.strerror}",
            "record",
            "restore it; without it nothing says what was decrypted already, so otherwise make a new folder with a new key",
        ) from None
    try:
        _refuse_shared(os.fstat(descriptor), path)
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise _unfit(
            f"another process has '{path.parent}' open", "busy", "stop the authority that runs first"
        ) from None
    except IntegrityError:
        os.close(descriptor)
        raise
    return descriptor


def _read_record(descriptor: int, name: str) -> set[tuple[str, int]]:
    raw = os.pread(descriptor, os.fstat(descriptor).st_size, 0)
    whole, newline, _ = raw.rpartition(b"\n")
    if len(whole) + len(newline) != len(raw):
        os.ftruncate(descriptor, len(whole) + len(newline))
        os.fsync(descriptor)
    try:
        lines = [json.loads(line) for line in whole.splitlines()]
        return {(str(line["run"]), int(line["serial"])) for line in lines}
    except (ValueError, KeyError, TypeError, RecursionError):
        os.close(descriptor)
        raise _unfit(
            f"a line of the record in '{name}' cannot be read",
            "record",
            "restore it; without it nothing says what was decrypted already, so otherwise make a new folder with a new key",
        ) from None


def _append(descriptor: int, line: bytes) -> None:
    """Write a line and see it on the disk; on a failure nothing of it stays."""
    before = os.fstat(descriptor).st_size
    try:
        written = os.write(descriptor, line)
        os.fsync(descriptor)
    except OSError:
        os.ftruncate(descriptor, before)
        raise
    if written != len(line):
        os.ftruncate(descriptor, before)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _spent(manifest: Manifest) -> IntegrityError:
    return IntegrityError(
        f"session {manifest.serial} of run '{manifest.run}' was decrypted before, and each is decrypted once",
        remedy="run the round again: it is a new session",
        code="decryption-twice",
    )


def _unfit(why: str, part: str, remedy: str) -> IntegrityError:
    return IntegrityError(why, remedy=remedy, code=f"authority-{part}")
