"""What a run's folder says that its ledgers must hold: which site was asked in which round, and what each round costs."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cloister.core.errors import IntegrityError, UsageError
from cloister.core.spec import load_federation
from cloister.privacy.plan import Plan, plan_from
from cloister.server.events import read_events

__all__ = ["ChargedRun", "read_run"]

#: Survivors of a round without a sum: the plan then charges the fewest.
_UNKNOWN = 0


@dataclass(frozen=True, kw_only=True)
class ChargedRun:
    """One private run, as its folder tells it.

    Attributes:
        name: what names it in ledgers.
        folder: where it lies.
        plan: what each round is.
        asked: site → rounds in which it was asked to train.
        answered: site → rounds in which its update came.
        survivors: round → how many updates its sum holds.
        last: the last round that the events speak of.
        done: whether the run came to its end.
        stated: site → what the run says that it spent (ε, and what it heard of the site's ledger).
        keeps: whether its sites keep ledgers.
        faults: what is wrong with the folder itself: code → sentence.
    """

    name: str
    folder: Path
    plan: Plan
    asked: Mapping[str, frozenset[int]]
    answered: Mapping[str, frozenset[int]]
    survivors: Mapping[int, int]
    last: int
    done: bool
    stated: Mapping[str, Mapping[str, Any]]
    keeps: bool
    faults: Mapping[str, str] = field(default_factory=dict)

    def spent(self, site: str) -> float:
        """Return ε that ``site`` spent in this run, from the events alone."""
        rounds = Counter(self.survivors.get(number, _UNKNOWN) for number in self.asked.get(site, ()))
        return self.plan.spent_by(rounds).epsilon


def read_run(folder: Path) -> ChargedRun | None:
    """Return what a run's folder says; ``None`` where the run promised nothing, so that no ledger can hold it.

    Raises:
        UsageError: it is no run's folder.
        IntegrityError: its events cannot be read, or it does not say its name.
        SpecError: its federation file is refused.
    """
    if not (folder / "federation.toml").is_file() or not (folder / "events.jsonl").is_file():
        raise UsageError(
            f"'{folder}' is no run: it has no federation.toml or no events.jsonl",
            remedy="name a folder under runs/",
        )
    loaded = load_federation(folder / "federation.toml")
    story = _Story()
    for event in read_events(folder / "events.jsonl"):
        story.take(event)
    plan = plan_from(loaded.spec, story.size) if story.size else None
    if plan is None:
        return None
    faults = {}
    if story.digest != loaded.digest():
        faults["run-federation"] = "its federation file is not the one that its events speak of"
    ledgers = folder / "ledgers.txt"
    return ChargedRun(
        name=_name(folder),
        folder=folder,
        plan=plan,
        asked={site: frozenset(rounds) for site, rounds in story.asked.items()},
        answered={site: frozenset(rounds) for site, rounds in story.answered.items()},
        survivors=story.survivors,
        last=max((max(rounds) for rounds in story.asked.values()), default=0),
        done=story.done,
        stated=story.stated,
        keeps=story.deployed or (ledgers.is_file() and ledgers.stat().st_size > 0),
        faults=faults,
    )


@dataclass
class _Story:
    """What the events say, one after the other."""

    size: int = 0
    digest: str = ""
    deployed: bool = False
    done: bool = False
    asked: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    answered: defaultdict[str, set[int]] = field(default_factory=lambda: defaultdict(set))
    survivors: dict[int, int] = field(default_factory=dict)
    stated: dict[str, Mapping[str, Any]] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> None:
        number = event["round"]
        match event["kind"]:
            case "run":
                self.size, self.digest = int(event.get("parameters") or 0), str(event.get("digest"))
                self.deployed = event.get("engine") == "superlink"  # each site keeps its own
            case "site" if event["phase"] == "train":
                self.asked[event["site"]].add(number)
                if event["status"] == "answered":
                    self.answered[event["site"]].add(number)
            case "round":
                self.survivors[number] = int(event["answered"])
            case "privacy" if event.get("site"):
                self.stated[event["site"]] = event
            case "end":
                self.done = event["status"] == "done"


def _name(folder: Path) -> str:
    try:
        return (folder / "run-id.txt").read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        raise IntegrityError(
            f"the run '{folder}' does not say its name: 'run-id.txt' cannot be read",
            remedy="restore that file",
            code="run-folder",
        ) from None
