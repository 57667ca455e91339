"""The key authority's record: one line of JSON for each session that it decrypted, on the disk before the sum leaves.

Formal guarantees: see `vault`. A line is appended whole or not at all, and the file is held by one process (``flock``).
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.core.errors import IntegrityError, StorageError
from cloister.privacy.homomorphic.rounds import OpenedSum

__all__ = ["Record", "authority_refused", "read_private"]

_RESTORE = (
    "restore it: without it nothing says what was decrypted already; else begin with: cloister authority init"
)


class Record:
    """An open record; close it.

    Args:
        path: the file.

    Raises:
        IntegrityError: (authority-record, authority-key, authority-busy) it is missing, others may read it, or another process holds it.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        except OSError as error:
            raise authority_refused(
                f"the record '{path}' cannot be opened: {error.strerror}", "record", _RESTORE
            ) from None
        try:
            _refuse_shared(os.fstat(self._descriptor), path)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self.close()
            raise authority_refused(
                f"another process has '{path.parent}' open", "busy", "stop the authority that runs first"
            ) from None
        except IntegrityError:
            self.close()
            raise

    def sums(self) -> list[OpenedSum]:
        """Return what every line says, and remove a last line that a crash cut off.

        Raises:
            IntegrityError: (authority-record) a line cannot be read; the record is closed.
        """
        raw = os.pread(self._descriptor, os.fstat(self._descriptor).st_size, 0)
        whole = raw[: raw.rfind(b"\n") + 1]
        if len(whole) != len(raw):
            os.ftruncate(self._descriptor, len(whole))
            os.fsync(self._descriptor)
        try:
            return [OpenedSum.read(json.loads(line)) for line in whole.splitlines()]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.close()
            raise authority_refused(
                f"a line of the record '{self._path}' cannot be read", "record", _RESTORE
            ) from None

    def append(self, line: Mapping[str, Any]) -> None:
        """Write a line and see it on the disk; on a failure nothing of it stays.

        Raises:
            StorageError: it cannot be written.
        """
        raw = json.dumps(line, sort_keys=True).encode() + b"\n"
        before = os.fstat(self._descriptor).st_size
        try:
            written = os.write(self._descriptor, raw)
            os.fsync(self._descriptor)
        except OSError as error:
            os.ftruncate(self._descriptor, before)
            raise StorageError.of(self._path, error) from None
        if written != len(raw):
            os.ftruncate(self._descriptor, before)
            raise StorageError.of(self._path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))

    def close(self) -> None:
        """Let another process have it."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1


def read_private(path: Path, *, most: int) -> bytes:
    """Return a file's bytes, at most ``most`` and one.

    Raises:
        IntegrityError: (authority-key) it cannot be read, or others may read it.
    """
    try:
        with path.open("rb") as file:
            _refuse_shared(os.fstat(file.fileno()), path)
            return file.read(most + 1)
    except OSError as error:
        raise authority_refused(
            f"the key file '{path}' cannot be read: {error.strerror}", "key", "look at its owner and its disk"
        ) from None


def authority_refused(why: str, part: str, remedy: str) -> IntegrityError:
    """Return a refusal about the authority's folder."""
    return IntegrityError(why, remedy=remedy, code=f"authority-{part}")


def _refuse_shared(found: os.stat_result, path: Path) -> None:
    mode = stat.S_IMODE(found.st_mode)
    if mode & 0o077:
        raise authority_refused(
            f"'{path}' has mode {mode:04o}: others than its owner may use it",
            "key",
            "find out who could have read it; if nobody did: chmod 600, else: cloister authority rotate",
        )
