"""What the server charges each site: by rounds asked, and by survivors where noise is shared."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cloister.core.spec import FederationSpec, parse_federation
from cloister.privacy.plan import Plan, plan_from
from cloister.server.directory import ComputedDirectory
from cloister.server.events import EventBus, EventLog, read_events
from cloister.server.spending import Spending

SIZE = 100


def spec_of(unit: str) -> FederationSpec:
    more: dict[str, Any] = {"sampling_rate": 0.1} if unit.startswith("record") else {}
    document = {
        "federation": {"name": "x", "rounds": 3},
        "task": {"use": "heart"},
        "cohort": {"sites": 4, "min_sites": 2},
        "training": {"local_steps": 1 if unit == "record-distributed" else 2},
        "aggregation": {"protection": "plain"},
        "privacy": {"unit": unit, "noise_multiplier": 4.0, "delta": 1e-4, "clip": 1.0, **more},
    }
    return parse_federation(document, base=Path()).spec


class Run:
    """A spending with a real event log."""

    def __init__(self, unit: str, folder: Path) -> None:
        self.spec = spec_of(unit)
        self.path = folder / "events.jsonl"
        self.bus = EventBus(EventLog(self.path), [])
        self.directory = ComputedDirectory(size=4, name_of=lambda position: f"s{position}")
        self.spending = self.another()
        plan = plan_from(self.spec, SIZE)
        assert plan is not None
        self.plan: Plan = plan

    def another(self) -> Spending:
        return Spending(self.spec, SIZE, self.bus, self.directory, seeded=True)

    def told(self) -> dict[str | None, float]:
        """Return the newest ε by site (``None``: the most of any)."""
        events = [event for event in read_events(self.path) if event["kind"] == "privacy"]
        return {event["site"]: event["epsilon"] for event in events}


@pytest.mark.parametrize("unit", ["site-distributed", "record-distributed"])
def test_distributed_noise_is_charged_by_the_survivors_there_were(unit: str, tmp_path: Path) -> None:
    run = Run(unit, tmp_path)
    for cohort, survivors in (([0, 1, 2, 3], 4), ([0, 1, 2], 2), ([0, 1, 3], 3)):
        run.spending.ask(cohort)
        run.spending.settle(cohort, survivors)
    run.spending.tell(3)
    told = run.told()
    expected = {"s0": {4: 1, 2: 1, 3: 1}, "s2": {4: 1, 2: 1}, "s3": {4: 1, 3: 1}}
    for site, survivors_of in expected.items():
        assert told[site] == pytest.approx(run.plan.spent_by(survivors_of).epsilon)
    assert told["s3"] < told["s2"] < told["s0"] == told[None]
    assert told["s0"] < run.plan.spent(3).epsilon


@pytest.mark.parametrize("unit", ["record", "record-distributed", "site", "site-local", "site-distributed"])
def test_an_attempt_that_failed_is_charged_as_if_the_fewest_had_answered(unit: str, tmp_path: Path) -> None:
    run = Run(unit, tmp_path)
    run.spending.ask([0, 1])  # too few answered: asked again
    run.spending.ask([0, 1])
    run.spending.settle([0, 1], 2)
    run.spending.tell(3)
    assert run.told()["s0"] == pytest.approx(run.plan.spent(2).epsilon)


@pytest.mark.parametrize("unit", ["site", "site-distributed", "record-distributed"])
def test_a_resumed_run_goes_on_counting_where_it_was(unit: str, tmp_path: Path) -> None:
    run = Run(unit, tmp_path)
    run.spending.ask([0, 2])
    run.spending.settle([0, 2], 2)
    run.spending.ask([0])
    resumed = run.another()
    resumed.restore(run.spending.arrays())
    for spending in (run.spending, resumed):
        spending.ask([0, 1])
        spending.settle([0, 1], 4)
    run.spending.tell(3)
    before = run.told()
    resumed.tell(3)
    assert run.told() == before
