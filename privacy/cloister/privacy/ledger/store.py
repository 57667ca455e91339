"""The file of a ledger: an SQLite database of one table to which rows are only added.

Formal guarantees:

- `Store.append` returns after the row is on the disk, or raises and the file is as it was. The journal is a rollback journal
  that is truncated and synced at each commit (``journal_mode=TRUNCATE``, ``synchronous=EXTRA``): a power cut after the return
  does not take the row back. https://www.sqlite.org/pragma.html#pragma_synchronous
- A row is added only behind the row that the caller believes to be the last: whoever changed the file meanwhile is noticed.
- Updating or deleting a row is refused by the schema.
- `snapshot` reads a copy and never changes the ledger. It refuses a file whose format, schema, size or inner structure is not
  what `Store` writes.

==================================================  ==================================================================
file                                                outcome
==================================================  ==================================================================
absent, or empty                                    `snapshot` gives ``None``
left by a crash within a commit (a hot journal)     rolled back: in a copy for `snapshot`, in place for `Store`
cut short, or bytes added at the end                ``IntegrityError`` (ledger-file)
in WAL mode, another schema, a damaged page         ``IntegrityError`` (ledger-file)
read only, disk full                                ``IntegrityError`` (ledger-unwritable); nothing half-written
==================================================  ==================================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.core.errors import IntegrityError
from cloister.privacy.ledger.entry import COLUMNS, KINDS, Entry

__all__ = ["Snapshot", "Store", "snapshot"]

_APPLICATION = 0x436C4C67  # "ClLg"
_FORMAT = 1
_PAGE = 4096
_TYPES = {int: "INTEGER", str: "TEXT", float: "REAL"}
_COLUMNS = ", ".join(
    f"{name} {_TYPES[kind]}" + (" PRIMARY KEY" if name == "seq" else "" if optional else " NOT NULL")
    for name, kind, optional in COLUMNS
)
_KINDS = ", ".join(f"'{kind}'" for kind in KINDS)
_SCHEMA = {
    "entry": f"CREATE TABLE entry ({_COLUMNS}, CHECK (kind IN ({_KINDS})))",
    "no_update": "CREATE TRIGGER no_update BEFORE UPDATE ON entry BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END",
    "no_delete": "CREATE TRIGGER no_delete BEFORE DELETE ON entry BEGIN SELECT RAISE(ABORT, 'a ledger is append-only'); END",
}
_NAMES = ", ".join(name for name, _, _ in COLUMNS)
_INSERT = f"INSERT INTO entry ({_NAMES}) VALUES ({', '.join('?' * len(COLUMNS))})"  # noqa: S608 - names of this module's own
_SELECT = f"SELECT {_NAMES} FROM entry ORDER BY seq"  # noqa: S608 - as above


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A ledger's file at one moment.

    Attributes:
        rows: every row, in order, its values in the order of `COLUMNS`.
        size: bytes of the file.
        sha256: of the file, hex.
    """

    rows: list[tuple[Any, ...]]
    size: int
    sha256: str


class Store:
    """The open file of a ledger, for its one writer (who holds the `WriterLock`)."""

    def __init__(self, path: Path, *, durable: bool) -> None:
        """Open ``path``, making an empty file of mode 0600 where there is none.

        Args:
            path: the file; it was read by `snapshot` before, which checks it.
            durable: whether a row must survive a power cut; without it, it survives a killed process only.

        Raises:
            IntegrityError: (``ledger-unwritable``) it cannot be opened for writing.
        """
        self._path = path
        with _writing(path), contextlib.ExitStack() as stack:
            # Held open as long as the connection: closing any descriptor of the file would drop SQLite's own locks (POSIX).
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            stack.callback(os.close, self._descriptor)
            self._identity = _identity(os.fstat(self._descriptor))
            self._connection = sqlite3.connect(
                path, isolation_level=None, timeout=10.0, check_same_thread=False
            )
            stack.callback(self._connection.close)
            for pragma in (
                f"page_size={_PAGE}",
                "auto_vacuum=NONE",
                "journal_mode=TRUNCATE",
                f"synchronous={'EXTRA' if durable else 'OFF'}",
                "trusted_schema=OFF",
                "cell_size_check=ON",
            ):
                self._connection.execute(f"PRAGMA {pragma}")
            stack.pop_all()  # all went well: `close` is for later

    def append(self, entry: Entry, *, after: Entry | None) -> None:
        """Add ``entry`` behind ``after``; with ``after=None`` also make the table, in one transaction.

        Raises:
            IntegrityError: (``ledger-changed``) ``after`` is not the last row, or the file was replaced, so that somebody else
                changed it; (``ledger-unwritable``) it cannot be written. Nothing was added.
        """
        self._same_file()
        with _writing(self._path), self._transaction():
            if after is None:
                if self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
                    raise self._changed()
                self._connection.execute(f"PRAGMA application_id={_APPLICATION}")
                self._connection.execute(f"PRAGMA user_version={_FORMAT}")
                for statement in _SCHEMA.values():
                    self._connection.execute(statement)
            else:
                last = self._connection.execute(
                    "SELECT seq, entry_hash FROM entry ORDER BY seq DESC LIMIT 1"
                ).fetchone()
                if last != (after.seq, after.entry_hash):
                    raise self._changed()
            self._connection.execute(_INSERT, entry.row())
        self._same_file()

    def digest(self) -> tuple[int, str]:
        """Return the file's size in bytes and its SHA-256 (hex)."""
        with _writing(self._path):
            size = os.fstat(self._descriptor).st_size
            data = os.pread(self._descriptor, size, 0)
        return len(data), hashlib.sha256(data).hexdigest()

    def close(self) -> None:
        """Close the file; a second call does nothing."""
        if self._descriptor >= 0:
            self._connection.close()
            os.close(self._descriptor)
            self._descriptor = -1

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    def _same_file(self) -> None:
        try:
            identity = _identity(self._path.stat())
        except OSError:
            identity = None
        if identity != self._identity:
            raise self._changed()

    def _changed(self) -> IntegrityError:
        return IntegrityError(
            f"the ledger '{self._path}' was changed or replaced by somebody else while it was open",
            remedy=f"stop this site's runs and look at it: cloister ledger verify {self._path}",
            code="ledger-changed",
        )


def snapshot(path: Path, *, wait_s: float = 10.0) -> Snapshot | None:
    """Read the ledger in ``path`` as it is at one moment; ``None`` where nothing was ever written.

    It may be called while another process writes.

    Raises:
        IntegrityError: (``ledger-file``) the file is damaged; (``ledger-busy``) it could not be read in time.
    """
    with tempfile.TemporaryDirectory(prefix="cloister-ledger-") as folder:
        copy = Path(folder) / "copy.sqlite"
        _copy(path, copy, wait_s=wait_s)
        try:
            return _read(copy)
        except (sqlite3.Error, UnicodeDecodeError, OverflowError, MemoryError) as error:
            raise _damaged(f"{error}") from None


def _copy(path: Path, copy: Path, *, wait_s: float) -> None:
    """Copy the file, and the journal where a crash left one, while no writer is within a commit."""
    journal = path.with_name(path.name + "-journal")
    if not path.exists():
        copy.touch()
        return
    with contextlib.ExitStack() as stack:
        try:
            if _in_rollback_mode(path):  # in WAL mode, SQLite would make files beside it even to read
                connection = sqlite3.connect(
                    f"{path.absolute().as_uri()}?mode=ro", uri=True, isolation_level=None, timeout=wait_s
                )
                stack.callback(connection.close)
                connection.execute("BEGIN")
                connection.execute("SELECT count(*) FROM sqlite_master").fetchone()  # takes the shared lock
        except sqlite3.DatabaseError as error:
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                raise IntegrityError(
                    f"the ledger '{path}' could not be read within {wait_s:g} s: it is being written",
                    remedy="try again",
                    code="ledger-busy",
                ) from None
            # Otherwise it is damaged or holds a hot journal, so that nobody is within a commit: copy it as it is.
        except (OSError, UnicodeDecodeError):
            pass  # not readable, or so damaged that SQLite's own message is no text
        try:
            copy.write_bytes(path.read_bytes())
            if journal.exists():
                copy.with_name(copy.name + "-journal").write_bytes(journal.read_bytes())
        except OSError as error:
            raise IntegrityError(
                f"the ledger '{path}' cannot be read: {error.strerror}",
                remedy="name the ledger's file, and give the right to read it",
                code="ledger-file",
            ) from None


def _read(path: Path) -> Snapshot | None:
    if not _in_rollback_mode(path):
        raise _damaged("it is not in the mode that a ledger is written in")
    connection = sqlite3.connect(path, isolation_level=None)
    try:
        connection.execute("PRAGMA trusted_schema=OFF")
        connection.execute("PRAGMA cell_size_check=ON")

        def pragma(name: str) -> Any:
            return connection.execute(f"PRAGMA {name}").fetchone()[0]

        if pragma("page_count") == 0 and path.stat().st_size == 0:
            return None
        found = {name: pragma(name) for name in ("application_id", "user_version", "encoding", "page_size")}
        if found != {
            "application_id": _APPLICATION,
            "user_version": _FORMAT,
            "encoding": "UTF-8",
            "page_size": _PAGE,
        }:
            raise _damaged("its header is not that of a ledger of this version")
        if pragma("integrity_check") != "ok":
            raise _damaged("its pages are damaged")
        schema = connection.execute("SELECT name, type, tbl_name, sql FROM sqlite_master").fetchall()
        if {row[0]: row[1:] for row in schema} != {
            name: (sql.split()[1].lower(), "entry", sql) for name, sql in _SCHEMA.items()
        }:
            raise _damaged("its schema is not that of a ledger")
        rows = connection.execute(_SELECT).fetchall()
        raw = path.read_bytes()  # after a rollback, where there was a hot journal
        if len(raw) != pragma("page_count") * _PAGE:
            raise _damaged("it is longer or shorter than it says")
    finally:
        connection.close()
    return Snapshot(rows=rows, size=len(raw), sha256=hashlib.sha256(raw).hexdigest())


def _in_rollback_mode(path: Path) -> bool:
    """Return whether the header says so; a file too short for a header may become anything."""
    with path.open("rb") as file:
        header = file.read(20)
    # https://www.sqlite.org/fileformat2.html#file_format_version_numbers
    return len(header) < 20 or header[18:] == b"\x01\x01"


@contextlib.contextmanager
def _writing(path: Path) -> Iterator[None]:
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        raise IntegrityError(
            f"the ledger '{path}' cannot be written: {error}",
            remedy="make room on the disk or give the right to write there; nothing may be computed that is not recorded",
            code="ledger-unwritable",
        ) from None


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


def _damaged(what: str) -> IntegrityError:
    return IntegrityError(
        f"the ledger's file is damaged: {what}",
        remedy="keep this file as it is, and restore the newest copy; heads that others witnessed tell whether it is the newest",
        code="ledger-file",
    )
