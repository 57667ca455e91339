"""What a site removes of runs that are over for it: what it kept of their sessions, of SCAFFOLD, and of what it had computed.

A run is over when no message of it is let in any more: somebody at the site denied it, or its request is older than the policy's ``request_days``. A run's
files are written after its request was signed, so those that were last written longer ago than that are of such a run.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection
from datetime import datetime, timedelta
from pathlib import Path

from cloister.client.kept import forget_kept
from cloister.client.run_files import forget_runs, short_name
from cloister.core.errors import CloisterError

__all__ = ["Tidying"]

_LOG = logging.getLogger("cloister.client.tidying")
_APART_S = 3600.0


class Tidying:
    """Removes what is not needed any more, at most once an hour.

    Args:
        runs: beside what the site's files of runs are.
        ledgers: the folder of its ledgers.
        durable: whether it must survive a power cut.
    """

    def __init__(self, runs: Path, ledgers: Path, *, durable: bool = True) -> None:
        self._runs, self._ledgers, self._durable = runs, ledgers, durable
        self._next = 0.0

    @property
    def due(self) -> bool:
        """Whether it is time."""
        return time.monotonic() >= self._next

    def tidy(self, *, denied: Collection[str], before: datetime) -> None:
        """Remove what is kept of the runs that were denied, and of those that were not heard of since; what is wrong with it is only logged.

        Args:
            denied: the runs by name.
            before: when the oldest request that is let in was signed.
        """
        self._next = time.monotonic() + _APART_S
        shorts = {short_name(run) for run in denied}
        hour = timedelta(
            hours=1
        )  # clocks are not all alike: a request may be dated a little ahead of its files
        try:
            gone = forget_runs(
                self._runs,
                lambda short, used: short in shorts or used < before - hour,
                durable=self._durable,
            )
        except CloisterError as error:
            _LOG.error("what is kept of runs that are over could not be removed: %s", error)
            return
        forget_kept(self._ledgers, before - hour)
        if gone:
            _LOG.info("what was kept of %d runs that are over was removed", gone)
