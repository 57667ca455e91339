"""What audits found of a run, from ``audits/<name>.json``: read again when a file changes, never more than `MOST` of them."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from cloister.server.audit.verdicts import SUMMARY
from cloister.server.report.words import shown

__all__ = ["MOST", "Findings"]

#: At most so many findings, and so many bytes of each, are read.
MOST, _BYTES = 64, 8 << 20
_SENTENCE = 600


def _may_be_finding(name: str) -> bool:
    """Whether a file is named as a check's: not the summary of all, nor what a check keeps beside its finding."""
    return name.endswith(".json") and name != SUMMARY and "." not in name.removesuffix(".json")


class Findings:
    """Follows the folder of a run's audits."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._known: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}

    def read(self) -> list[dict[str, Any]]:
        """Return each finding's ``check``, ``verdict``, ``sentence``, ``power`` and ``file``, by name; a file that holds none says so."""
        try:
            names = sorted(entry.name for entry in os.scandir(self._folder) if _may_be_finding(entry.name))
        except OSError:
            names = []
        kept: dict[str, tuple[tuple[int, int, int], dict[str, Any]]] = {}
        for name in names[:MOST]:
            try:
                about = (self._folder / name).stat()
            except OSError:
                continue
            mark = (about.st_ino, about.st_mtime_ns, about.st_size)
            known = self._known.get(name)
            kept[name] = (
                known if known is not None and known[0] == mark else (mark, self._finding(name, about))
            )
        self._known = kept
        return [found for _, found in kept.values()]

    def _finding(self, name: str, about: os.stat_result) -> dict[str, Any]:
        try:
            if not stat.S_ISREG(about.st_mode) or about.st_size > _BYTES:
                raise ValueError(name)  # noqa: TRY301 - told like any other file that holds none
            value = json.loads((self._folder / name).read_bytes())["finding"]
            return {
                "check": shown(value["name"]),
                "verdict": shown(value["verdict"]),
                "sentence": shown(value["sentence"], _SENTENCE),
                "power": shown(value["power"], _SENTENCE),
                "file": shown(f"audits/{name}", 120),
            }
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return {
                "check": shown(name.removesuffix(".json")),
                "verdict": "unreadable",
                "sentence": "This file holds no finding.",
                "power": "",
                "file": shown(f"audits/{name}", 120),
            }
