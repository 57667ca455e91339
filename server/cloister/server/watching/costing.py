"""What a private run has spent and will spend, worked out beside the page: an accountant may take seconds for a figure.

One thread, which rests nine times as long as it worked (once as long after the first time, which loads the accountant), so that watching takes
about a tenth of a core from the run for it. `Costing.at` says of which round its figures are.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from typing import Any

from cloister.core.errors import CloisterError
from cloister.server.history import History
from cloister.server.report.spent import SpentSoFar, spent_so_far

__all__ = ["Costing"]

_REST = 9.0


class Costing:
    """Works out `SpentSoFar` for the newest history that it was given."""

    def __init__(self) -> None:
        self.found: SpentSoFar | None = None
        #: The round after which they hold.
        self.at = 0
        #: Why there is no figure, where there is none.
        self.refused = ""
        self._of: object = None
        self._rest_until = 0.0
        self._thread: threading.Thread | None = None

    def ask(self, spec: Mapping[str, Any], history: History, *, of: object) -> None:
        """Have it worked out for ``of`` (what makes it another figure), unless it is, or that is being done, or it rests."""
        busy = self._thread is not None and self._thread.is_alive()
        if busy or of == self._of or time.monotonic() < self._rest_until:
            return
        self._thread = threading.Thread(target=self._work, args=(spec, history, of), daemon=True)
        self._thread.start()

    def wait(self, seconds: float) -> None:
        """Wait until it is done with what it was asked for."""
        if self._thread is not None:
            self._thread.join(seconds)

    def _work(self, spec: Mapping[str, Any], history: History, of: object) -> None:
        begun = time.monotonic()
        try:
            self.found, self.refused = spent_so_far(spec, history), ""
            self.at = max((one.round for one in history.rounds), default=0)
        except (CloisterError, ValueError, KeyError, TypeError, ArithmeticError) as error:
            # Only our own errors are shown: another's text may quote the file.
            self.refused = error.message if isinstance(error, CloisterError) else type(error).__name__
        now = time.monotonic()
        rest = 1.0 if self._of is None else _REST
        self._of, self._rest_until = of, now + rest * (now - begun)
