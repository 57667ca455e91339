"""A folder of runs: which there are and how each stands, from the first lines and the last of its events."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloister.server.report.words import shown
from cloister.server.watching.book import when
from cloister.server.watching.standing import is_held, state_of
from cloister.server.watching.tail import event_of

__all__ = ["MOST", "Listing", "is_run"]

#: Of more runs than these, the newest are listed.
MOST = 300
_HEAD, _END = 1 << 18, 1 << 16


def is_run(path: Path) -> bool:
    """Whether a folder is a run's."""
    return (path / "federation.toml").is_file() or (path / "events.jsonl").is_file()


class Listing:
    """Follows a folder of runs.

    Args:
        path: the folder; it need not be there yet.
        clock: seconds since 1970.
    """

    def __init__(self, path: Path, *, clock: Callable[[], float] = time.time) -> None:
        self.path = path
        self._clock = clock
        self._known: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}
        self._cut = 0

    def run(self, name: str) -> Path | None:
        """Return the folder of the run ``name``, where this folder holds one: never one elsewhere."""
        if not name or name.startswith(".") or "/" in name or "\0" in name:
            return None
        path = self.path / name
        try:
            return path if stat.S_ISDIR(path.lstat().st_mode) and is_run(path) else None
        except (OSError, ValueError):
            return None

    def refresh(self) -> bool:
        """Look again; there is never more to read at once."""
        try:
            with os.scandir(self.path) as entries:
                found = [
                    (entry.stat(follow_symlinks=False).st_mtime, entry.name)
                    for entry in entries
                    if entry.is_dir(follow_symlinks=False)
                    and not entry.name.startswith(".")
                    and is_run(Path(entry.path))
                ]
        except OSError:
            found = []
        found.sort(reverse=True)
        self._cut = max(0, len(found) - MOST)
        kept: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}
        for _, name in found[:MOST]:
            mark = self._mark(name)
            known = self._known.get(name)
            kept[name] = known if known is not None and known[0] == mark else (mark, self._look(name))
        self._known = kept
        return False

    def sections(self, *, wait_s: float = 0.0) -> dict[str, Any]:
        """Return the runs, the newest first, each with its state."""
        del wait_s
        rows = []
        for name, (_, facts) in self._known.items():
            held = is_held(self.path / name) if facts["begun"] is not None and facts["end"] is None else None
            newest = facts["newest"]
            silent = None if newest is None else max(0.0, self._clock() - newest)
            state = state_of(begun=facts["begun"] is not None, end=facts["end"], held=held, silent_s=silent)
            rows.append({**facts, "state": state})
        rows.sort(key=lambda row: -(row["begun"] or float("inf")))
        return {"runs": {"folder": shown(self.path, 200), "rows": rows, "cut": self._cut}}

    def _mark(self, name: str) -> tuple[int, int, int]:
        try:
            about = (self.path / name / "events.jsonl").stat()
        except OSError:
            return (0, 0, 0)
        return (about.st_ino, about.st_mtime_ns, about.st_size)

    def _look(self, name: str) -> dict[str, Any]:
        head, last = _ends(self.path / name / "events.jsonl")
        first = next((event for event in head if event["kind"] == "run"), {})
        rounds = [event["round"] for event in last if event["kind"] == "round"]
        ends = [event.get("status") for event in last[-3:] if event["kind"] == "end"]
        newest = last[-1] if last else {}
        central = [
            event for event in last if event["kind"] == "evaluation" and event.get("where") == "central"
        ]
        metrics = central[-1].get("metrics") if central else None
        planned, accuracy = (
            first.get("rounds"),
            metrics.get("accuracy") if isinstance(metrics, dict) else None,
        )
        return {
            "key": name,
            "name": shown(first.get("name") or name),
            "folder": shown(name, 100),
            "round": max(rounds, default=0),
            "rounds": planned if isinstance(planned, int) else None,
            "sites": first.get("sites") if isinstance(first.get("sites"), int) else None,
            "begun": when(head[0].get("time")) if head else None,
            "newest": when(newest.get("time")),
            "end": str(ends[-1]) if ends else None,
            "accuracy": accuracy if isinstance(accuracy, int | float) else None,
        }


def _ends(path: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The events of the first line and of the last whole lines."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return [], []
    try:
        about = os.fstat(file)
        if not stat.S_ISREG(about.st_mode):
            return [], []
        first, _, _ = os.pread(file, _HEAD, 0).partition(b"\n")
        start = max(0, about.st_size - _END)
        data = os.pread(file, _END, start)
    except OSError:
        return [], []
    finally:
        os.close(file)
    lines = data[: data.rfind(b"\n") + 1].split(b"\n")[(1 if start else 0) : -1]
    head, last = event_of(first), [event_of(line) for line in lines]
    return [] if head is None else [head], [event for event in last if event is not None]
