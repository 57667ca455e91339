"""Audits of transcripts that were edited: every line changed as a test wants it, and the chain made anew."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloister.server.transcript import MESSAGES

__all__ = ["failed", "rewritten"]


def failed(found: dict[str, Any]) -> dict[str, str]:
    return {check["name"]: check["reason"] for check in found["checks"] if check["verdict"] == "failed"}


def rewritten(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any] | None]) -> None:
    """Change or leave out lines, number and chain all lines anew, and take out of the events what they say of the chain."""
    path = folder / "transcript" / MESSAGES
    previous = "0" * 64
    made: list[bytes] = []
    for raw in path.read_bytes().splitlines():
        line = change(json.loads(raw))
        if line is not None:
            line |= {"seq": len(made) + 1, "previous": previous}
            made.append(json.dumps(line, separators=(",", ":")).encode())
            previous = hashlib.sha256(made[-1]).hexdigest()
    path.write_bytes(b"".join(line + b"\n" for line in made))
    events = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    for event in events:
        event.pop("transcript", None)
    (folder / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
