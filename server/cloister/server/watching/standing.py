"""Whether somebody works on a run, asked without a lock of our own: a watcher must not stand in a run's way.

===================================  ==========================================================
the run                              state
===================================  ==========================================================
has no event yet                     ``waiting``
its last event says how it ended     ``done``, ``interrupted`` or ``failed``
has no end, and is written to        ``running``
has no end, and nobody has its lock  ``stopped``: killed, or the machine went down
has no end, and the lock is not      ``running`` where its last event is younger than
ours to ask for                      `QUIET_S`, else ``quiet``
===================================  ==========================================================
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
from contextlib import suppress
from pathlib import Path

__all__ = ["QUIET_S", "STATES", "is_held", "state_of"]

STATES = ("waiting", "running", "quiet", "stopped", "done", "interrupted", "failed")
#: Seconds without an event after which a run that nothing else is known of is called quiet.
QUIET_S = 900.0

_FLOCK = "hhqqi4x"  # struct flock of Linux on 64 bits: type, whence, start, length, process


def is_held(folder: Path) -> bool | None:
    """Return whether a process on this machine holds a run's lock; ``None``: it cannot be known. No lock is taken."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        file = os.open(folder / ".lock", os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        return False if (folder / "events.jsonl").is_file() else None
    except OSError:
        return None
    try:
        asked = struct.pack(_FLOCK, fcntl.F_WRLCK, os.SEEK_SET, 0, 0, 0)
        return bool(struct.unpack(_FLOCK, fcntl.fcntl(file, fcntl.F_GETLK, asked))[0] != fcntl.F_UNLCK)
    except (OSError, struct.error):
        return None
    finally:
        with suppress(OSError):
            os.close(file)


def state_of(*, begun: bool, end: str | None, held: bool | None, silent_s: float | None) -> str:
    """Return the state of a run.

    Args:
        begun: whether it has an event.
        end: the status of its end, where its events say one.
        held: what `is_held` says.
        silent_s: seconds since its last event.
    """
    if not begun:
        return "waiting"
    if end is not None:
        return end if end in ("done", "interrupted") else "failed"
    if held is None:
        return "quiet" if silent_s is not None and silent_s > QUIET_S else "running"
    return "running" if held else "stopped"
