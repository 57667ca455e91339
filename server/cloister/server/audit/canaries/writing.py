"""``audit-privacy.json`` and ``audit-privacy.html`` in the folder of an audited run, and the coins that its events vouch for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole
from cloister.core.spec import FederationSpec
from cloister.privacy.audit.coins import Coins, opened
from cloister.privacy.audit.judging import Judgement
from cloister.privacy.audit.scores import Scores
from cloister.server.audit.canaries.claiming import CHECK, Case, in_run_case, scores_of
from cloister.server.audit.canaries.watching import Watch
from cloister.server.events import EventBus, read_events

__all__ = [
    "FIGURES",
    "PAGE",
    "figures_of",
    "sealed_and_opened",
    "verdict_event",
    "write_in_run",
    "write_page",
]

PAGE, FIGURES = "audit-privacy.html", "audit-privacy.json"


def figures_of(
    run: str,
    spec: FederationSpec,
    case: Case,
    judgement: Judgement,
    scores: Scores,
    *,
    seal: str,
    federation: str,
    site: str | None,
    ledgers: bool,
    in_run: bool,
    rounds_seen: int,
) -> dict[str, Any]:
    """Return what ``audit-privacy.json`` holds.

    Args:
        run: the name of the run's folder.
        spec: the federation file of the audited run.
        case: what was settled before it.
        judgement: the verdict.
        scores: of the canaries.
        seal: of the coins, as the events hold it.
        federation: the name of the federation whose promise was audited.
        site: at which site canary records were; ``None``: each canary was a site.
        ledgers: whether the run was charged to ledgers.
        in_run: whether the canaries were planted in a run whose model is for use, and not in one made for the audit.
        rounds_seen: in how many rounds all canaries were seen.
    """
    claim = judgement.claim
    return {
        "check": CHECK,
        "run": run,
        **judgement.as_dict(),
        "seal": seal,
        "set_up": {
            "federation": federation,
            "unit": spec.privacy.unit,
            "seed": spec.federation.seed,
            "noise_multiplier": claim.noise_multiplier,
            "sampling_rate": claim.sampling_rate,
            "steps": claim.steps,
            "dilution": claim.dilution,
            "space": case.space,
            "sees": case.sees,
            "site": site,
            "plain": case.plain,
            "ledgers": ledgers,
            "in_run": in_run,
            "rounds": spec.federation.rounds,
            "rounds_seen": rounds_seen,
        },
        "scores": scores.values.tolist(),
        "coins": scores.included.astype(int).tolist(),
    }


def verdict_event(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return the ``audit`` event of a verdict."""
    return {
        "check": found["check"],
        "verdict": found["verdict"],
        "reason": found["reason"],
        "evidence": {
            "lower_bound": found["lower_bound"],
            "confidence": found["confidence"],
            "claim": found["claim"],
        },
        "power": {one["name"]: one["refutable"] for one in found["estimators"]},
    }


def write_page(found: Mapping[str, Any], folder: Path) -> dict[str, str]:
    """Write page and figures into ``folder``; return their paths.

    Raises:
        StorageError: the disk is full or refuses.
    """
    from cloister.server.audit.canaries.page import render_page

    page, data = folder / PAGE, folder / FIGURES
    write_whole(page, render_page(found), mode=0o600)
    write_whole(data, json.dumps(found, ensure_ascii=False, allow_nan=False) + "\n", mode=0o600)
    return {"page": str(page), "figures": str(data)}


def write_in_run(
    folder: Path, spec: FederationSpec, *, size: int, sites: int, watch: Watch, ledgers: bool, bus: EventBus
) -> None:
    """Judge the canaries that a run planted, and write page, figures and verdict; nothing where their coins were not opened.

    Args:
        folder: the run's.
        spec: its federation file.
        size: length of the model's vector, with the canaries.
        sites: how many sites there are.
        watch: what was seen.
        ledgers: whether the sites keep ledgers.
        bus: where the verdict goes.
    """
    try:
        seal, coins = sealed_and_opened(folder / "events.jsonl")
    except IntegrityError:  # an event says why
        return
    case, scores = in_run_case(spec, size=size, sites=sites), scores_of(watch, coins)
    judgement = case.judged(scores, whole=watch.rounds == spec.federation.rounds)
    found = figures_of(
        folder.name,
        spec,
        case,
        judgement,
        scores,
        seal=seal,
        federation=spec.federation.name,
        site=spec.audit.canary_site,
        ledgers=ledgers,
        in_run=True,
        rounds_seen=watch.rounds,
    )
    write_page(found, folder)
    bus.emit("audit", spec.federation.rounds, **verdict_event(found))


def sealed_and_opened(path: Path) -> tuple[str, Coins]:
    """Return the seal in a run's events and the coins that were opened after training.

    Raises:
        IntegrityError: (audit-coins) there was no seal before the first round, or other coins were opened.
    """
    seal: str | None = None
    for event in read_events(path):
        if event["kind"] in ("round", "site") and seal is None:
            break
        if event["kind"] == "audit" and event.get("check") == CHECK:
            if event["verdict"] == "sealed" and seal is None:
                seal = str(event["seal"])
            elif event["verdict"] == "opened" and seal is not None:
                return seal, opened(seal, event["opening"])
    raise IntegrityError(
        "the run's events hold no coins that were sealed before its first round and opened after its last",
        remedy="run the audit again",
        code="audit-coins",
    )
