"""Reading a file of events while somebody else writes it: each read returns what is new since the last.

==============================  ================================================================================
the file                        what a read returns
==============================  ================================================================================
is not there, or no file        nothing, ``there`` is false; what was read before no longer counts
has grown                       the events of the new whole lines; a torn last line waits for its end
was cut and written anew        everything from its beginning, with ``restarted``: a resume does that
was replaced by another         the same
holds a line that is no event   the other lines; such lines are counted and passed over
holds a line without an end     nothing of it: a line longer than a read is counted and passed over
==============================  ================================================================================

Formal guarantees: one read takes at most ``most`` bytes from the disk, and between reads a `Tail` keeps a few hundred bytes, however long the
file is. It opens the file for reading only, and never waits for a pipe or a device of that name.
"""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

__all__ = ["Read", "Tail", "event_of"]

_MOST = 4 << 20
_MARK = 256


@dataclass(frozen=True, kw_only=True)
class Read:
    """What one read brought.

    Attributes:
        events: of the new lines, oldest first.
        restarted: what was read before is not in the file any more; ``events`` begin anew.
        there: whether there is such a file.
        more: whether there is more to read at once.
        unreadable: lines of this read that are no event.
        offset: bytes read so far.
        size: bytes of the file.
    """

    events: tuple[dict[str, Any], ...] = ()
    restarted: bool = False
    there: bool = True
    more: bool = False
    unreadable: int = 0
    offset: int = 0
    size: int = 0


class Tail:
    """Follows one file of events.

    Args:
        path: the file; it need not be there yet.
        most: bytes of one read, and so of the longest line that is read.
    """

    def __init__(self, path: Path, *, most: int = _MOST) -> None:
        self._path = path
        self._most = most
        self.restart()

    def restart(self) -> None:
        """Begin anew at the next read."""
        self._offset = 0
        self._identity: tuple[int, int] | None = None
        self._mark = b""
        self._skipping = False

    def read(self) -> Read:
        """Return what is new."""
        had = self._offset > 0
        try:
            file = os.open(self._path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            self.restart()
            return Read(restarted=had, there=False)
        try:
            about = os.fstat(file)
            if not stat.S_ISREG(about.st_mode):
                self.restart()
                return Read(restarted=had, there=False)
            if restarted := had and not self._same(file, about):
                self.restart()
            self._identity = (about.st_dev, about.st_ino)
            data = os.pread(file, self._most, self._offset)
        except OSError:
            return Read(there=False)
        finally:
            os.close(file)
        return self._taken(data, about.st_size, restarted=restarted)

    def _same(self, file: int, about: os.stat_result) -> bool:
        """Whether the bytes before our place are those that were read."""
        return (
            self._identity == (about.st_dev, about.st_ino)
            and about.st_size >= self._offset
            and os.pread(file, len(self._mark), self._offset - len(self._mark)) == self._mark
        )

    def _taken(self, data: bytes, size: int, *, restarted: bool) -> Read:
        whole = data.rfind(b"\n") + 1
        unreadable = 0
        if not whole and len(data) == self._most:  # one line fills the read: pass it over, to its end
            whole = len(data)
            unreadable += not self._skipping
            self._skipping, lines = True, []
        else:
            lines = data[:whole].split(b"\n")[:-1]
            if self._skipping and lines:
                self._skipping, lines = False, lines[1:]
        found = [event_of(line) for line in lines]
        events = tuple(event for event in found if event is not None)
        self._offset += whole
        self._mark = (self._mark + data[:whole])[-_MARK:]
        return Read(
            events=events,
            restarted=restarted,
            more=whole > 0 and self._offset < size,
            unreadable=unreadable + len(found) - len(events),
            offset=self._offset,
            size=size,
        )


def event_of(line: bytes) -> dict[str, Any] | None:
    """Return the event that a line holds; ``None`` where it holds none."""
    try:
        event = json.loads(line, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        return None
    if not isinstance(event, dict) or not isinstance(event.get("kind"), str):
        return None
    number = event.get("round")
    return event if isinstance(number, int) and not isinstance(number, bool) else None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(name)
