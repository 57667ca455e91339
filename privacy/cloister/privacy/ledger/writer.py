"""The one writer of a ledger's files: lock, check, append, anchor.

Formal guarantees:

- A writer holds the lock as long as it is open, and begins only with files that are sound and complete.
- `Writer.append` returns after the entry and then the anchor are on the disk. The file is never more than one entry ahead of its
  anchor and never behind it, whenever the process dies.
- After an append that failed or was interrupted, nothing is taken for granted: the files are read and checked again before
  anything else happens.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.ledger.chain import ZERO_HASH, Chain
from cloister.privacy.ledger.entry import Entry, canonical_json, checked_name, seal
from cloister.privacy.ledger.heads import Anchor, Head, anchor_path, sign_head, write_anchor
from cloister.privacy.ledger.inspection import inspect
from cloister.privacy.ledger.keys import public_key_of
from cloister.privacy.ledger.lock import WriterLock
from cloister.privacy.ledger.store import Store

__all__ = ["Clock", "Writer", "utc_now"]

Clock = Callable[[], datetime]


def utc_now() -> datetime:
    """Return the time, UTC."""
    return datetime.now(UTC)


class Writer:
    """The files of one ledger, open for writing.

    Attributes:
        path: the ledger's file.
        public_key: what signs it, hex.
        mutex: held by whoever reads and then writes.
    """

    def __init__(
        self,
        path: Path,
        *,
        site: str,
        dataset: str,
        key: Ed25519PrivateKey,
        wait_s: float,
        create: bool,
        durable: bool,
        clock: Clock,
    ) -> None:
        """Open or make the ledger; the arguments and errors are those of ``Ledger.open``."""
        self.path = path.absolute()
        self.public_key = public_key_of(key)
        self.mutex = threading.RLock()
        self._site, self._dataset = str(checked_name("site", site)), str(checked_name("dataset", dataset))
        self._key = key
        self._durable = durable
        self._clock = clock
        self._chain = Chain()
        self._store: Store | None = None
        self._anchored = -1  # the newest entry that the anchor holds
        self._stale = False
        self._process = os.getpid()
        self._lock = WriterLock(self.path, wait_s=wait_s)
        try:
            self._load(create=create)
        except BaseException:
            self.close()
            raise

    @property
    def chain(self) -> Chain:
        """What is in the file.

        Raises:
            IntegrityError: it had to be read again and is not sound any more.
        """
        if self._stale:
            if self._store is not None:
                self._store.close()
                self._store = None
            self._load(create=False)
            self._stale = False
        return self._chain

    def now(self) -> datetime:
        """Return the time, never before the last entry's."""
        now, last = self._clock().astimezone(UTC), self._chain.last
        return now if last is None else max(now, datetime.fromisoformat(last.time))

    def head(self) -> Head:
        """Return the newest entry, signed."""
        return sign_head(self.chain.entries[-1], self._key)

    def append(
        self,
        kind: str,
        event: Mapping[str, Any],
        columns: Mapping[str, Any] | None = None,
        *,
        now: datetime | None = None,
    ) -> Entry:
        """Add an entry and return it, on the disk.

        Raises:
            IntegrityError: (``ledger-unwritable``, ``ledger-changed``) it could not be written; (``ledger-order``) it cannot come here.
            PolicyError: (``ledger-process``) this is a forked copy of the writer; (``ledger-closed``) it was closed.
        """
        with self.mutex:
            self._refuse_copies()
            chain = self.chain
            self._write_anchor()  # where that failed the last time
            with self._rereading():
                last = chain.entries[-1]
                entry = self._seal(kind, event, columns or {}, now or self.now())
                chain.add(entry)
                self._opened().append(entry, after=last)
                self._write_anchor()
            return entry

    def close(self) -> None:
        """Close the file and let the next writer in; a second call does nothing."""
        with self.mutex:
            if self._store is not None:
                self._store.close()
                self._store = None
            self._lock.release()

    def _refuse_copies(self) -> None:
        if os.getpid() != self._process:
            raise PolicyError(
                f"the ledger '{self.path}' was opened by process {self._process}, and this is a copy of it",
                remedy="write to a ledger from the process that opened it",
                code="ledger-process",
            )
        if not self._lock.held:
            raise PolicyError(
                f"the ledger '{self.path}' was closed", remedy="open it again", code="ledger-closed"
            )

    @contextlib.contextmanager
    def _rereading(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self._stale = True  # what is in the file now, only the file knows
            raise

    def _load(self, *, create: bool) -> None:
        found = inspect(self.path, trusted=True)
        found.require()
        if found.empty:
            if not create:
                raise IntegrityError(
                    f"there is no ledger in '{self.path}'",
                    remedy="restore it; a site that has been in a run before has one, and without it would forget what was spent",
                    code="ledger-absent",
                )
            self._begin()
            return
        first = found.chain.entries[0]
        if (first.site, first.dataset) != (self._site, self._dataset):
            raise PolicyError(
                f"'{self.path}' is the ledger of '{first.site}' for '{first.dataset}', not of '{self._site}' for '{self._dataset}'",
                remedy="give each site and each data set its own ledger, always the same one",
                code="ledger-other",
            )
        if found.chain.public_key != self.public_key:
            raise IntegrityError(
                f"the ledger '{self.path}' is signed by the key {found.chain.public_key[:16]}…, not by the one given, {self.public_key[:16]}…",
                remedy="give the ledger's own key",
                code="ledger-key",
            )
        self._chain = found.chain
        self._anchored = -1 if found.anchor is None else found.anchor.head.seq
        for left in self.path.parent.glob(
            f".{anchor_path(self.path).name}.*"
        ):  # by a process killed while it wrote one
            with contextlib.suppress(OSError):
                left.unlink()
        self._opened()
        self._write_anchor()

    def _begin(self) -> None:
        event = {"policy": "open", "format": 1, "public_key": self.public_key}
        entry = self._seal("POLICY", event, {}, self.now())
        self._chain.add(entry)
        self._opened().append(entry, after=None)
        self._write_anchor()

    def _seal(self, kind: str, event: Mapping[str, Any], columns: Mapping[str, Any], now: datetime) -> Entry:
        last = self._chain.last
        return seal(
            {
                "seq": 0 if last is None else last.seq + 1,
                "time": now.isoformat(timespec="microseconds"),
                "prev_hash": ZERO_HASH if last is None else last.entry_hash,
                "site": self._site,
                "dataset": self._dataset,
                "kind": kind,
                "event": canonical_json(event),
                **columns,
            },
            self._key,
        )

    def _opened(self) -> Store:
        if self._store is None:
            self._store = Store(self.path, durable=self._durable)
        return self._store

    def _write_anchor(self) -> None:
        last = self._chain.entries[-1]
        if self._anchored == last.seq:
            return
        size, sha256 = self._opened().digest()
        anchor = Anchor(head=sign_head(last, self._key), size=size, sha256=sha256)
        try:
            write_anchor(self.path, anchor, self._key, durable=self._durable)
        except OSError as error:
            raise IntegrityError(
                f"the head file of the ledger '{self.path}' cannot be written: {error.strerror}",
                remedy="make room on the disk or give the right to write there; nothing may leave that is not recorded",
                code="ledger-unwritable",
            ) from None
        self._anchored = last.seq
