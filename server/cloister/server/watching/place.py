"""What lies at a path: a run, a folder of runs, or nothing yet; looked at anew with every read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloister.server.watching.listing import Listing, is_run
from cloister.server.watching.run_watch import RunWatch

__all__ = ["PlaceWatch"]


class PlaceWatch:
    """Follows whatever lies at a path; where nothing does yet, it is a run that is waited for, until runs turn up in it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._run = RunWatch(path)
        self._listing = Listing(path)
        self._runs = False

    def refresh(self) -> bool:
        """Read what is new; return whether there is more to read at once."""
        if is_run(self._path):
            self._runs = False
        elif self._path.is_dir():
            self._runs = True
        return self._listing.refresh() if self._runs else self._run.refresh()

    def sections(self, *, wait_s: float = 0.0) -> dict[str, Any]:
        """Return all there is to show, by part: ``runs`` of a folder of runs, the parts of a run else."""
        if self._runs:
            return self._listing.sections(wait_s=wait_s)
        return self._run.sections(wait_s=wait_s) | {"runs": None}
