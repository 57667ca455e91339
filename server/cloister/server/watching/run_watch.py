"""One run, watched: reads what is new in its folder and says what there is, in parts.

Nothing in the folder is written or locked. The folder need not be there yet, and may be cut, replaced or removed at any time.
"""

from __future__ import annotations

import stat
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from cloister.core.errors import CloisterError
from cloister.server.report.seen import who_sees
from cloister.server.report.words import shown
from cloister.server.watching import telling
from cloister.server.watching.book import Book
from cloister.server.watching.costing import Costing
from cloister.server.watching.findings import Findings
from cloister.server.watching.standing import is_held, state_of
from cloister.server.watching.tail import Tail

__all__ = ["RunWatch"]

_SENTENCE, _BYTES = 400, 4 << 20


class RunWatch:
    """Follows one run folder.

    Args:
        path: the folder.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._tail = Tail(path / "events.jsonl")
        self._findings = Findings(path / "audits")
        self._cuts: list[tuple[int, int]] = []
        self._spec_mark: tuple[int, int] | None = None
        self._forget()
        self.spec: dict[str, Any] | None = None
        self._seen: list[dict[str, Any]] = []

    def _forget(self) -> None:
        self.book = Book()
        self.costing = Costing()
        self._index = 0
        self._place = (0, 0)

    def refresh(self) -> bool:
        """Read what is new; return whether there is more to read at once."""
        read = self._tail.read()
        if read.restarted:
            self._cuts = []
            self._forget()
        self._place = (read.offset, read.size)
        self.book.unreadable += read.unreadable
        for event in read.events:
            resumed = event.get("resumed_from") if event["kind"] == "run" else None
            if isinstance(resumed, int) and resumed < self.book.number:
                # Rounds after it are taken back though they still stand in the file: read it again without them.
                self._cuts.append((self._index, resumed))
                self._tail.restart()
                self._forget()
                return True
            if not any(self._index < at and event["round"] > after for at, after in self._cuts):
                self.book.add(event)
            self._index += 1
        return read.more

    def sections(self, *, wait_s: float = 0.0) -> dict[str, Any]:
        """Return all there is to show, by part; each part is plain data for JSON.

        Args:
            wait_s: how long to wait for the accountant, whose figures otherwise come when they are there.
        """
        self._read_spec()
        book, spec, now = self.book, self.spec, self._clock()
        silent = None if book.newest is None else max(0.0, now - book.newest)
        end = book.fold.end
        begun = book.begun is not None
        state = state_of(
            begun=begun,
            end=None if end is None else end.status,
            held=is_held(self.path) if begun and end is None else None,
            silent_s=silent,
        )
        private = telling.table(spec, "privacy").get("unit", "none") != "none"
        if spec is not None and private and book.fold.run is not None:
            of = (book.ended, book.fold.end is not None, len(book.fold.privacy), book.asked)
            self.costing.ask(spec, book.history(), of=of)
            self.costing.wait(wait_s)
        spent = self.costing.found if private else None
        return {
            "head": telling.head(self.path, book, spec, state=state, place=self._place),
            "progress": telling.progress(book, spec, state=state, now=now),
            "sites": telling.sites(book, spec, spent, state=state),
            "curves": telling.curves(book),
            "privacy": telling.privacy(book, spec, spent, at=self.costing.at, refused=self.costing.refused)
            if private
            else None,
            "refused": telling.refused(book),
            "signals": telling.signals(book),
            "traffic": telling.traffic(book),
            "seen": self._seen,
            "audits": telling.audits(book, self._findings.read()),
            "warnings": telling.warnings(book),
        }

    def _read_spec(self) -> None:
        path = self.path / "federation.toml"
        try:
            about = path.stat()
            mark = (about.st_mtime_ns, about.st_ino)
            if mark == self._spec_mark:
                return
            if not stat.S_ISREG(about.st_mode) or about.st_size > _BYTES:
                raise ValueError(path)  # noqa: TRY301 - no federation file of ours
            spec = tomllib.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            self.spec, self._spec_mark, self._seen = None, None, []
            return
        self.spec, self._spec_mark, self._seen = spec, mark, []
        try:
            self._seen = [
                {
                    "who": seer.who,
                    "sees": [shown(text, _SENTENCE) for text in seer.sees],
                    "hidden": shown(seer.hidden, _SENTENCE),
                }
                for seer in who_sees(spec)
            ]
        except (CloisterError, ValidationError, ValueError):
            self._seen = []  # a file of another version
