"""Run folders for a watcher: written event by event, with hostile names where a test asks for them."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    'a" onmouseover="alert(3)',
    "evil\u202egnp.exe\x1b[31m",
    "n" * 3000,
    "javascript:alert(4)",
)
SPEC = """
[federation]
name = "heart"
rounds = {rounds}
[task]
use = "heart"
[cohort]
sites = {sites}
min_sites = 2
[privacy]
unit = "{unit}"
"""


class Script:
    """Writes the events of a run as the coordinator would."""

    def __init__(self, folder: Path, names: tuple[str, ...] = ("a", "b", "c"), *, rounds: int = 4) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.path, self.names, self.rounds = folder / "events.jsonl", names, rounds
        self.time = datetime.now(UTC).timestamp() - 60
        (folder / "federation.toml").write_text(SPEC.format(rounds=rounds, sites=len(names), unit="none"))

    def emit(self, kind: str, number: int, **fields: Any) -> None:
        self.time += 0.5
        at = datetime.fromtimestamp(self.time, UTC).isoformat(timespec="milliseconds")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"time": at, "round": number, "kind": kind, **fields}) + "\n")

    def begin(self, **more: Any) -> None:
        facts: Mapping[str, Any] = {
            "task": {"name": "heart"},
            "protection": "plain",
            "rule": "mean",
            "engine": "local",
        }
        names = list(self.names)
        self.emit(
            "run", 0, name="heart", rounds=self.rounds, sites=len(names), site_names=names, **facts, **more
        )

    def site(
        self,
        number: int,
        name: str,
        status: str = "answered",
        *,
        phase: str = "train",
        reason: str | None = None,
    ) -> None:
        self.emit(
            "site",
            number,
            site=name,
            phase=phase,
            status=status,
            reason=reason,
            seconds=0.2,
            loss=0.5,
            bytes_down=100,
            bytes_up=50,
        )

    def round(
        self, number: int, *, refused: Mapping[str, str] | None = None, missing: tuple[str, ...] = ()
    ) -> None:
        refused = refused or {}
        for name in self.names:
            status = "refused" if name in refused else "missing" if name in missing else "answered"
            self.site(number, name, status, reason=refused.get(name))
        accuracy = 0.5 + 0.04 * number
        for where, shift in (
            ("central", 0.0),
            *((f"site:{name}", 0.01) for name in self.names),
            ("sites", 0.01),
        ):
            self.emit(
                "evaluation",
                number,
                where=where,
                loss=1 / number,
                metrics={"accuracy": accuracy + shift},
                records=100,
            )
        used = len(self.names) - len(refused) - len(missing)
        told = [{"site": name, "reason": reason} for name, reason in refused.items()]
        seconds = {"train": 0.4, "aggregate": 0.01, "evaluate": 0.1}
        self.emit(
            "round", number, cohort=len(self.names), answered=used, missing=list(missing), refused=told, loss=0.5, update_norm=1.0,
            bytes_down=300, bytes_up=150, seconds=seconds,
        )  # fmt: skip

    def end(self, status: str = "done", message: str = "") -> None:
        self.emit("end", self.rounds, status=status, code=status, message=message, model=None)

    def hold(self) -> int:
        """Hold the run's lock as the process that works on it does; closing the descriptor lets go."""
        file = os.open(self.path.parent / ".lock", os.O_CREAT | os.O_RDWR, 0o600)
        fcntl.lockf(file, fcntl.LOCK_EX)
        return file


def hostile_run(folder: Path) -> Script:
    """A failed run whose sites are named, and speak, as an attacker would have them."""
    script = Script(folder, HOSTILE, rounds=6)
    script.begin()
    for number in range(1, 5):
        script.round(number, refused={HOSTILE[1]: f"not-finite: {HOSTILE[0]}"}, missing=(HOSTILE[3],))
    script.emit(
        "signals", 4, direction={"norm": 1.0, "cosine": 0.5, "last_layer": 0.2}, toward="median",
        rows=[{"who": name, "norm": 1.0, "cosine": 0.4, "agreement": 0.6, "weight": 1.0} for name in HOSTILE],
        alerts=[{"who": HOSTILE[0], "signal": "norm", "value": 9.0, "middle": 1.0, "of": 6}],
    )  # fmt: skip
    script.emit("warning", 4, text=f"warned of {HOSTILE[1]}")
    script.emit("audit", 4, check=HOSTILE[0], verdict=HOSTILE[1], reason=HOSTILE[2])
    script.end("failed", f"it broke: {HOSTILE[0]}")
    audits = folder / "audits"
    audits.mkdir()
    finding = {"name": "fit", "verdict": "pass", "sentence": HOSTILE[1], "power": HOSTILE[0]}
    (audits / "fit.json").write_text(json.dumps({"finding": finding}))
    (audits / "bad.json").write_text('{"finding": 3}')
    return script
