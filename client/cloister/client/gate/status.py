"""What is going on at a site, for its operator: from its log, its policy and its ledgers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cloister.client.gate.log_entry import LogEntry
from cloister.client.gate.log_state import LogState, RunState
from cloister.client.gate.policy import Policy
from cloister.core.errors import CloisterError

__all__ = ["site_status"]

_SHOWN = 5


def site_status(state: Path, log: LogState, policy: Policy) -> dict[str, Any]:
    """Return what ``cloister site status --json`` prints.

    Args:
        state: the site's state folder.
        log: what its log comes to.
        policy: what is in force.
    """
    datasets = dict.fromkeys([rule.dataset for rule in policy.allow])
    return {
        "paused": log.paused,
        "held": [_run(run) for run in log.held()],
        "runs": [_run(run) for run in list(log.runs.values())[-_SHOWN:]],
        "left": [_left(entry) for entry in list(log.left)[-_SHOWN:]],
        "refused": [{"time": entry.time, **entry.said} for entry in list(log.refused)[-_SHOWN:]],
        "budgets": {name: _budgets(state / "ledgers" / f"{name}.sqlite") for name in datasets},
        "policy": log.policy,
    }


def _run(run: RunState) -> dict[str, Any]:
    return {**run.said, "run": run.run, "state": run.state, "since": run.since, "by": run.by}


def _left(entry: LogEntry) -> dict[str, Any]:
    said = entry.said
    return {
        "time": entry.time,
        "run": said["run"],
        "round": said["round"],
        "message": said["message"],
        "step": said["step"],
        "records": [record["record"] for record in said["records"]],
        "bytes": sum(
            one["bytes"]
            for record in said["records"]
            for one in (*record.get("arrays", ()), *record.get("fields", ()))
        ),
        "after": said["after"],
        "ledger": said["ledger"],
    }


def _budgets(ledger: Path) -> list[dict[str, Any]] | dict[str, str]:
    """Return every unit's account; of a ledger that does not hold, why."""
    from datetime import UTC, datetime

    from cloister.privacy.accounting import account
    from cloister.privacy.ledger.budget import Composer
    from cloister.privacy.ledger.inspection import inspect
    from cloister.privacy.ledger.spending import budget_of

    if not ledger.exists():
        return []
    try:
        found = inspect(ledger)
        found.require()
    except CloisterError as error:
        return {"code": error.code, "message": error.message}
    chain, composer = found.chain, Composer(account)
    budgets = [budget_of(chain, unit, composer, now=datetime.now(UTC)) for unit in chain.units]
    return [budget.as_dict() for budget in budgets if budget is not None]
