"""Several records a person: the promise is made to persons, costs what their records cost together, and says so."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import dp_accounting  # type: ignore[import-untyped]
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]
from scipy.stats import binom

from cloister.core.errors import SpecError
from cloister.core.spec import load_federation
from cloister.privacy.record_plans import record_plan
from cloister.simulation.engines import LocalEngine
from cloister.simulation.simulate import simulate

pytestmark = pytest.mark.usefixtures("undrawn")

PRIVACY: dict[str, Any] = {
    "unit": "record",
    "noise_multiplier": 2.0,
    "delta": 1e-4,
    "clip": 1.0,
    "sampling_rate": 0.1,
    "max_records_per_person": 3,
}
TABLES: dict[str, dict[str, Any]] = {"training": {"local_steps": 5}, "privacy": PRIVACY}


@pytest.mark.slow
def test_a_person_costs_what_dp_accounting_says_of_the_mixture(make_file: Callable[..., Path]) -> None:
    plan = record_plan(load_federation(make_file(**TABLES)).spec)
    assert plan is not None
    accountant = PLDAccountant(dp_accounting.NeighboringRelation.REPLACE_SPECIAL, 1e-3)
    chances = [float(binom.pmf(i, 3, 0.1)) for i in range(4)]
    step = dp_event.MixtureOfGaussiansDpEvent(2.0, [0.0, 1.0, 2.0, 3.0], chances)
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, 20))
    assert plan.spent(4).epsilon == pytest.approx(accountant.get_epsilon(1e-4), rel=0.01)
    alone = record_plan(load_federation(make_file(**TABLES), ["privacy.max_records_per_person=1"]).spec)
    assert alone is not None
    assert plan.spent(4).epsilon > 1.5 * alone.spent(4).epsilon


def test_noise_is_calibrated_to_persons(make_file: Callable[..., Path]) -> None:
    table = {key: value for key, value in PRIVACY.items() if key != "noise_multiplier"} | {"epsilon": 2.0}
    plan = record_plan(load_federation(make_file(training={"local_steps": 5}, privacy=table)).spec)
    assert plan is not None
    assert plan.records_per_person == 3
    assert 1.98 < plan.spent(plan.rounds).epsilon <= 2.0


@pytest.mark.slow
def test_a_run_charges_persons_and_its_statement_names_them(
    make_file: Callable[..., Path], tmp_path: Path
) -> None:
    loaded = load_federation(make_file(**TABLES))
    made = simulate(loaded, out=tmp_path / "runs", engine=LocalEngine(0), ledgers=tmp_path / "ledgers")
    lines = (made.run / "events.jsonl").read_text().splitlines()
    told = [event for event in map(json.loads, lines) if event["kind"] == "privacy" and event["site"]]
    assert all("up to 3 records" in event["statement"] for event in told)
    assert all(event["ledger"]["epsilon"] <= event["epsilon"] * 1.001 for event in told)


def test_persons_are_refused_where_sites_are_the_unit(make_file: Callable[..., Path]) -> None:
    table = {
        "unit": "site-local",
        "noise_multiplier": 1.0,
        "delta": 1e-3,
        "clip": 1.0,
        "max_records_per_person": 2,
    }
    with pytest.raises(SpecError, match="max_records_per_person"):
        load_federation(make_file(privacy=table))
