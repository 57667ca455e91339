"""What a site's log says as a whole: what is paused, which runs asked, what was decided of them, and what left last."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

from cloister.client.gate.log_entry import LogEntry
from cloister.core import protocol

__all__ = ["LogState", "RunState"]

_RECENT = 20
_DECIDED = {
    "asked": "asked",
    "allowed": "allowed",
    "held": "held",
    "approved": "approved",
    "denied": "denied",
}


@dataclass(kw_only=True)
class RunState:
    """One run, as the log has it.

    Attributes:
        run: its name.
        state: ``asked``, ``allowed``, ``held``, ``approved``, ``denied`` or ``refused``: the newest of them; one that was denied stays so, and one that
            was approved, until it is held again on other terms.
        said: what it asked for, and of a held one what it costs.
        since: when it came to that state.
        by: who approved or denied it.
        terms: digest of what was approved (`cloister.client.gate.decision.Allowed`).
        trained: the last round that an update of this site left in; 0: none did.
        opened: whether the coins of its canaries left.
    """

    run: str
    state: str = "asked"
    said: dict[str, Any] = field(default_factory=dict)
    since: str = ""
    by: str = ""
    terms: str = ""
    trained: int = 0
    opened: bool = False


@dataclass(kw_only=True)
class LogState:
    """What the lines so far come to.

    Attributes:
        paused: since when, by whom and why; ``None``: not paused.
        runs: by name, the newest last.
        grounds: of every run that was approved, what it was approved for.
        policy: digest of the policy that was last in force.
        left: the newest messages that left.
        refused: the newest refusals.
    """

    paused: dict[str, str] | None = None
    runs: dict[str, RunState] = field(default_factory=dict)
    grounds: set[str] = field(default_factory=set)
    policy: str = ""
    left: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=_RECENT))
    refused: deque[LogEntry] = field(default_factory=lambda: deque(maxlen=_RECENT))

    def take(self, entry: LogEntry) -> None:
        """Take the next line."""
        said = entry.said
        if entry.kind == "paused":
            self.paused = {
                "since": entry.time,
                "by": str(said.get("by", "")),
                "reason": str(said.get("reason", "")),
            }
        elif entry.kind == "resumed":
            self.paused = None
        elif entry.kind == "policy":
            self.policy = str(said.get("sha256", ""))
        elif entry.kind == "left":
            self.left.append(entry)
            self._leave(entry)
        elif entry.kind == "refused":
            self.refused.append(entry)
        elif entry.kind in _DECIDED:
            self._decide(entry)

    def held(self) -> list[RunState]:
        """Return the runs that wait for somebody to approve them."""
        return [run for run in self.runs.values() if run.state == "held"]

    def _leave(self, entry: LogEntry) -> None:
        run, kind = self.runs.get(str(entry.said.get("run", ""))), str(entry.said.get("message", ""))
        if run is not None and _holds_update(run, kind, str(entry.said.get("step", ""))):
            run.trained = max(run.trained, int(entry.said.get("round", 0)))
        elif run is not None and kind == protocol.OPEN_QUERY:
            run.opened = True

    def _decide(self, entry: LogEntry) -> None:
        name = str(entry.said.get("run", ""))
        run = self.runs.setdefault(name, RunState(run=name))
        if entry.kind in ("asked", "held"):
            run.said = {**run.said, **entry.said}
        if entry.kind in ("approved", "denied"):
            run.by = str(entry.said.get("by", ""))
            grounds = str(run.said.get("grounds", ""))
            if entry.kind == "approved":
                run.terms = str(run.said.get("terms", ""))
                if grounds:
                    self.grounds.add(grounds)
        elif run.state == "denied" or (run.state == "approved" and entry.kind != "held"):
            return
        run.state, run.since = _DECIDED[entry.kind], entry.time


def _holds_update(run: RunState, kind: str, step: str) -> bool:
    """Whether an answer of this kind holds a site's update: under encryption the answer to ``train`` only binds the site to its ciphertext."""
    if run.said.get("protection") in ("bfv", "ckks", "threshold-bfv"):
        return kind == protocol.SECURE_QUERY and step == protocol.SEAL
    return kind.startswith("train")
