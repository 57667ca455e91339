"""A site's log: one file that only grows, written by the runner and by the commands beside it.

Formal guarantees:

- When `SiteLog.append` returns, the line and then the head file are on the disk.
- Every writer reads what others wrote before it writes, under one lock: no two lines follow the same one.
- A line that a crash tore is removed before the next is written, and a line says so. The head file is never ahead of the log, so that
  a log which ends before it has lost lines: it is refused.

==============================================  =====================================================
case                                            outcome
==============================================  =====================================================
a torn last line                                removed; a ``mended`` line says how many bytes it had
the log ends before its head                    ``IntegrityError`` (log-rollback)
replaced or cut while it is open                ``IntegrityError`` (log-changed)
signed by another key than the site's           ``IntegrityError`` (log-key)
the disk is full                                ``IntegrityError`` (log-unwritable): nothing leaves
==============================================  =====================================================
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.client.gate.log_entry import LogEntry, follow, read_entry, seal_entry
from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole
from cloister.privacy.identity import Identity, Purpose
from cloister.privacy.ledger.entry import canonical_json
from cloister.privacy.ledger.heads import Head, head_of
from cloister.privacy.ledger.keys import load_key, load_or_create_key, public_key_of

__all__ = ["LOG", "SiteLog", "head_path", "log_key", "read_head", "utc_now", "vouched_key"]

#: The log's name in a site's state folder.
LOG = "log.jsonl"
#: Takes the place of a data set's name in the log's head.
_LINEAGE = "(site log)"
Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time, UTC."""
    return datetime.now(UTC)


class SiteLog:
    """The log, open for reading and writing.

    Args:
        path: the file; beside it lie ``log.head`` and ``log.lock``.
        key: signs every line.
        identity: whose log it is to be, which vouches for the key in the first line; ``None``: only one that was begun is opened.
        took: is given every line, the first time that it is read or written here.
        durable: whether a line survives a power cut.
        now: the time.

    Raises:
        IntegrityError: see the table.
    """

    def __init__(
        self,
        path: Path,
        *,
        key: Ed25519PrivateKey,
        identity: Identity | None = None,
        took: Callable[[LogEntry], None] = lambda _: None,
        durable: bool = True,
        now: Clock = utc_now,
    ) -> None:
        self.path = path
        self._site = "" if identity is None else identity.name
        self._key = key
        self._took = took
        self._durable = durable
        self._now = now
        self._last: LogEntry | None = None
        self._offset = 0
        self._file: tuple[int, int] | None = None
        with self._alone():
            if self._last is not None:
                self._site = self._last.site
            elif identity is not None:
                self._write("opened", {"format": 1, **_vouched(key, identity)})
            else:
                raise IntegrityError(
                    f"there is no log '{path}'",
                    remedy="it is begun when the site first runs: cloister site run",
                    code="log-absent",
                )

    @property
    def last(self) -> LogEntry:
        """The newest line that was read or written here."""
        if self._last is None:
            raise RuntimeError("a log that is open has a first line")
        return self._last

    def refresh(self) -> None:
        """Read what others wrote since."""
        with self._alone():
            pass

    def append(self, kind: str, said: Mapping[str, Any]) -> LogEntry:
        """Add a line and return it, on the disk.

        Raises:
            IntegrityError: (log-unwritable) it could not be written; see also the table above.
        """
        with self._alone():
            return self._write(kind, said)

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        """Hold the lock; what others wrote has been read."""
        with self._writing():
            lock = os.open(self.path.with_suffix(".lock"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._catch_up()
            yield
        finally:
            os.close(lock)

    def _catch_up(self) -> None:
        try:
            status = self.path.stat()
        except FileNotFoundError:
            if self._last is not None or head_path(self.path).exists():
                raise _gone(self.path) from None
            return
        if self._file not in {None, (status.st_dev, status.st_ino)} or status.st_size < self._offset:
            raise _gone(self.path)
        self._file = (status.st_dev, status.st_ino)
        if status.st_size == self._offset and self._last is not None:
            return
        head = read_head(self.path)
        torn = self._read(head)
        if head is not None and (self._last is None or head.seq > self._last.seq):
            raise _lost(self.path, head)
        if head is None and self._last is not None and self._last.seq:
            raise IntegrityError(
                f"the head file beside the site's log '{self.path}' is missing",
                remedy="restore it together with the log; it says how many lines the log must hold",
                code="log-head",
            )
        if torn:
            with self._writing():
                os.truncate(self.path, self._offset)
            if self._last is not None:
                self._write("mended", {"bytes": torn})

    def _read(self, head: Head | None) -> int:
        """Read the lines that are new here; return how many bytes of a torn line follow them."""
        with self.path.open("rb") as file:
            file.seek(self._offset)
            for line in file:
                if not line.endswith(b"\n"):
                    return len(line)
                number = 0 if self._last is None else self._last.seq + 1
                entry = read_entry(line[:-1], number)
                follow(self._last, entry, number)
                if head is not None and entry.seq == head.seq and entry.hash != head.entry_hash:
                    raise _lost(self.path, head)
                self._take(entry, len(line))
        if self._last is not None and not self._last.signed_by(public_key_of(self._key)):
            raise IntegrityError(
                f"the site's log '{self.path}' is not signed by the key in the site's state folder",
                remedy="restore the log together with its key",
                code="log-key",
            )
        return 0

    def _take(self, entry: LogEntry, size: int) -> None:
        self._last = entry
        self._offset += size
        self._took(entry)

    def _write(self, kind: str, said: Mapping[str, Any]) -> LogEntry:
        entry = seal_entry(self._last, time=self._now(), site=self._site, kind=kind, said=said, key=self._key)
        line = entry.line()
        with self._writing():
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            try:
                status = os.fstat(descriptor)
                self._file = (status.st_dev, status.st_ino)
                _write_all(descriptor, line)
                if self._durable:
                    os.fsync(descriptor)
            finally:
                os.close(descriptor)
            head = head_of(
                site=self._site, dataset=_LINEAGE, seq=entry.seq, entry_hash=entry.hash, key=self._key
            )
            text = canonical_json(head.as_dict()) + "\n"
            write_whole(head_path(self.path), text, mode=0o600, durable=self._durable)
        self._take(entry, len(line))
        return entry

    @contextlib.contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise IntegrityError(
                f"the site's log '{self.path}' cannot be written: {error.strerror}",
                remedy="make room on the disk or give the right to write there; nothing leaves that is not in the log",
                code="log-unwritable",
            ) from None


def log_key(log: Path) -> Ed25519PrivateKey:
    """Return the key that signs ``log``: made with the log, and never replaced, while certificates are.

    Raises:
        IntegrityError: (ledger-key) it is gone, or is none.
    """
    path = log.with_suffix(".pem")
    return load_key(path) if log.exists() or head_path(log).exists() else load_or_create_key(path)


def head_path(log: Path) -> Path:
    """Return the file beside ``log`` that holds its newest head."""
    return log.with_suffix(".head")


def read_head(log: Path) -> Head | None:
    """Read the head beside ``log``; ``None`` where there is none.

    Raises:
        IntegrityError: (log-head) it cannot be read, or is not signed by the key that it names.
    """
    path = head_path(log)
    try:
        raw = path.read_bytes()
        head = Head.from_dict(json.loads(raw))
        if raw != canonical_json(head.as_dict()).encode() + b"\n" or head.dataset != _LINEAGE:
            raise ValueError  # noqa: TRY301 - one answer for all that is wrong with it
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError, IntegrityError):
        raise IntegrityError(
            f"the head file '{path}' is damaged",
            remedy="restore it together with the log; it says how many lines the log must hold",
            code="log-head",
        ) from None
    return head


def vouched_key(said: Mapping[str, Any]) -> tuple[str, bytes, bytes]:
    """Return the log's key (hex), the certificate and the signature that vouch for it, as an ``opened`` line says.

    Raises:
        IntegrityError: (log-line) it says nothing of the kind.
    """
    try:
        return str(said["public_key"]), bytes.fromhex(said["certificate"]), bytes.fromhex(said["vouched"])
    except (KeyError, TypeError, ValueError):
        raise IntegrityError(
            "the first line of the site's log names no key",
            remedy="restore the log",
            code="log-line",
        ) from None


def _vouched(key: Ed25519PrivateKey, identity: Identity) -> dict[str, str]:
    public = public_key_of(key)
    return {
        "public_key": public,
        "certificate": identity.certificate.hex(),
        "vouched": identity.sign(Purpose.LOG, bytes.fromhex(public)).hex(),
    }


def _write_all(descriptor: int, line: bytes) -> None:
    rest = memoryview(line)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _gone(path: Path) -> IntegrityError:
    return IntegrityError(
        f"the site's log '{path}' was cut or replaced while it was in use, or is gone",
        remedy="stop the site, find out who did it, and restore the log: cloister site log --verify",
        code="log-changed",
    )


def _lost(path: Path, head: Head) -> IntegrityError:
    return IntegrityError(
        f"the site's log '{path}' does not hold line {head.seq + 1}, which its head file names: lines were lost",
        remedy="keep both files as they are, and restore the newest copy of the log",
        code="log-rollback",
    )
