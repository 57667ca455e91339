"""Audits of transcripts that were edited: every line changed as a test wants it, and the chain made anew."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from cloister.core.spec import load_federation
from cloister.server.transcript import MESSAGES, digest_of
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import simulate

__all__ = [
    "LIAR",
    "ROUNDS",
    "VICTIM",
    "Line",
    "failed",
    "fields",
    "heart_run",
    "is_reply",
    "put",
    "rewritten",
]

ROUNDS = 2
VICTIM, LIAR = "cleveland", "hungarian"
Line = dict[str, Any]


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


def heart_run(repository: Path, out: Path, scheme: str) -> Path:
    settings = [f"federation.rounds={ROUNDS}", "evaluation.baselines=[]", "evaluation.central=false"]
    loaded = load_federation(
        repository / "examples" / "heart" / "federation.toml",
        [*settings, f"aggregation.protection={scheme}"],
    )
    return simulate(loaded, out=out, engine=LocalEngine(0)).run


def is_reply(line: Line, step: str, site: str = LIAR, number: int = 2, phase: str = "train") -> bool:
    found = (line["kind"], line.get("step"), line.get("site"), line.get("round"), line.get("phase"))
    return found == ("received", step, site, number, phase)


def fields(line: Line) -> dict[str, Line]:
    return {one["name"]: one for record in line["records"] for one in record["fields"]}


def put(field: Line, value: bytes) -> None:
    field |= {"value": base64.b64encode(value).decode(), "bytes": len(value)}
    field["sha256"] = digest_of("bytes", [value])
