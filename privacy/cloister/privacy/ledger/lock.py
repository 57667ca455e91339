"""One writer: a lock on a file beside the ledger.

Formal guarantees:

- At most one `WriterLock` of one ledger is held at a time, in whatever process or thread (``flock``, which also keeps two
  openings within one process apart).
- The lock ends with the process, however it ends: nothing has to be removed after a crash.
- Who waits gets it, or is refused after the time it said, with the number of the process that holds it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from pathlib import Path

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.ledger.entry import checked_number

__all__ = ["WriterLock"]

_POLL_S = 0.02


class WriterLock:
    """The right to append to a ledger; a context manager."""

    def __init__(self, ledger: Path, *, wait_s: float) -> None:
        """Take the lock of ``ledger``, waiting up to ``wait_s`` seconds.

        Raises:
            PolicyError: (``ledger-busy``) somebody else held it all the time.
            IntegrityError: (``ledger-unwritable``) the lock's file cannot be made.
        """
        wait_s = checked_number("wait_s", wait_s)
        path = ledger.with_name(ledger.name + ".lock")
        try:
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        except OSError as error:
            raise IntegrityError(
                f"the lock file '{path}' cannot be made: {error.strerror}",
                remedy="a ledger can only be written where its folder can be written to",
                code="ledger-unwritable",
            ) from None
        try:
            self._take(ledger, wait_s)
        except BaseException:
            self.release()
            raise
        with contextlib.suppress(
            OSError
        ):  # on a full disk: the number is only for the message of who waits in vain
            os.ftruncate(self._descriptor, 0)
            os.pwrite(self._descriptor, str(os.getpid()).encode(), 0)

    @property
    def held(self) -> bool:
        """Whether it was not given back."""
        return self._descriptor >= 0

    def release(self) -> None:
        """Give the lock back; a second call does nothing."""
        if self._descriptor >= 0:
            os.close(self._descriptor)
            self._descriptor = -1

    def _take(self, ledger: Path, wait_s: float) -> None:
        end = time.monotonic() + wait_s
        while not self._taken():
            if time.monotonic() >= end:
                raise self._busy(ledger, wait_s)
            time.sleep(_POLL_S)

    def _taken(self) -> bool:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True

    def _busy(self, ledger: Path, wait_s: float) -> PolicyError:
        holder = os.pread(self._descriptor, 20, 0).decode("ascii", "replace")
        who = f"process {holder}" if holder.isdigit() else "another process"
        return PolicyError(
            f"the ledger '{ledger}' is being written by {who}, and a ledger has one writer (waited {wait_s:g} s)",
            remedy="wait until the other run of this data set has ended, or give a longer time to wait",
            code="ledger-busy",
        )
