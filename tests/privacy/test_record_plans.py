"""What ``unit = "record-distributed"`` costs, against dp-accounting called directly on events that are written by hand here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dp_accounting  # type: ignore[import-untyped]
import pytest
from dp_accounting import dp_event
from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]
from scipy.stats import binom

from cloister.core.errors import SpecError
from cloister.core.spec import FederationSpec, parse_federation
from cloister.privacy.events import PoissonGaussian
from cloister.privacy.plan import plan_from, predict
from cloister.privacy.record_plans import DistributedRecordPlan

ZERO_OUT = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
PRIVACY: dict[str, Any] = {
    "unit": "record-distributed",
    "noise_multiplier": 1.4,
    "delta": 1e-5,
    "clip": 0.5,
    "sampling_rate": 0.05,
}
TABLES: dict[str, dict[str, Any]] = {
    "federation": {"name": "x", "rounds": 200},
    "task": {"use": "heart"},
    "cohort": {"sites": 12, "min_sites": 8},
    "training": {"local_steps": 1, "batch_size": 10},
    "aggregation": {"protection": "plain"},
    "privacy": PRIVACY,
}


def spec_of(**tables: dict[str, Any]) -> FederationSpec:
    merged = {name: {**TABLES.get(name, {}), **tables.get(name, {})} for name in TABLES | tables}
    return parse_federation(
        {name: {k: v for k, v in table.items() if v is not None} for name, table in merged.items()},
        base=Path(),
    ).spec


def plan_of(**tables: dict[str, Any]) -> DistributedRecordPlan:
    plan = plan_from(spec_of(**tables), 100)
    assert isinstance(plan, DistributedRecordPlan)
    return plan


def central(*parts: tuple[float, int]) -> float:
    """ε of a central run: (noise multiplier, steps) each, Poisson batches of rate 0.05."""
    accountant = PLDAccountant(ZERO_OUT, 1e-4)
    for sigma, steps in parts:
        step = dp_accounting.PoissonSampledDpEvent(0.05, dp_accounting.GaussianDpEvent(sigma))
        accountant.compose(dp_accounting.SelfComposedDpEvent(step, steps))
    return float(accountant.get_epsilon(1e-5))


@pytest.mark.parametrize("rounds", [1, 60, 200])
def test_with_the_fewest_survivors_a_run_costs_what_a_central_one_costs(rounds: int) -> None:
    plan = plan_of()
    assert plan.spent(rounds).epsilon == pytest.approx(central((1.4, rounds)), rel=0.01)
    assert plan.spent_by({8: rounds}).epsilon == pytest.approx(plan.spent(rounds).epsilon)


def test_more_survivors_add_noise_and_fewer_than_the_least_are_charged_as_the_least() -> None:
    plan = plan_of()
    mixed = central((1.4, 80), (1.4 * math.sqrt(12 / 8), 120))
    assert plan.spent_by({0: 50, 8: 30, 12: 120}).epsilon == pytest.approx(mixed, rel=0.01)
    assert mixed < 0.9 * central((1.4, 200))


def test_colluders_shares_count_for_nothing_and_the_others_make_it_good() -> None:
    """Three of eight collude: five shares make σ, so each is larger; twelve survivors are nine honest ones."""
    plan = plan_of(privacy={"colluders": 3})
    assert plan.honest == 5
    assert plan.share == pytest.approx(1.4 / math.sqrt(5))
    assert plan_of().share == pytest.approx(1.4 / math.sqrt(8))
    assert plan.spent(200).epsilon == pytest.approx(central((1.4, 200)), rel=0.01)
    found = plan.spent_by({12: 200}).epsilon
    assert found == pytest.approx(central((1.4 * math.sqrt(9 / 5), 200)), rel=0.01)


def test_colluders_are_made_good_under_the_site_level_unit_too() -> None:
    privacy = {"unit": "site-distributed", "noise_multiplier": 6.0, "sampling_rate": None}
    plain, guarded = (
        plan_from(spec_of(privacy={**privacy, "colluders": n}, training={"local_steps": None}), 1000)
        for n in (0, 3)
    )
    assert plain is not None
    assert guarded is not None
    assert guarded.spent(9).epsilon == pytest.approx(plain.spent(9).epsilon, rel=0.02)
    shares = [plan.code.share / plan.code.scale**2 for plan in (plain, guarded)]  # type: ignore[attr-defined]
    assert shares[1] / shares[0] == pytest.approx(8 / 5)
    more = plain.spent_by({12: 9}).epsilon
    assert guarded.spent_by({12: 9}).epsilon < more, "nine honest of five needed, against twelve of eight"


def test_the_event_in_a_sites_own_ledger_is_that_of_the_fewest_survivors() -> None:
    plan = plan_of()
    assert plan.event() == PoissonGaussian(noise_multiplier=1.4, sampling_rate=0.05, steps=1)
    assert plan.event(7, survivors=12) == PoissonGaussian(
        noise_multiplier=1.4 * math.sqrt(12 / 8), sampling_rate=0.05, steps=7
    )
    figures = plan.figures()
    assert (figures.steps, figures.noise_multiplier, figures.sampling_rate) == (1, 1.4, 0.05)
    assert figures.survivors == 8


def test_noise_is_calibrated_to_the_whole_run() -> None:
    wanted = {"privacy": {"noise_multiplier": None, "epsilon": 2.0}}
    plan = plan_of(**wanted)
    assert 1.98 <= plan.spent(200).epsilon <= 2.0
    assert central((plan.noise_multiplier, 200)) == pytest.approx(2.0, rel=0.01)
    said = predict(spec_of(**wanted), 100)
    assert (said["unit"], said["epsilon"]) == ("record-distributed", plan.spent(200).epsilon)
    assert (said["survivors"], said["colluders"], said["divisor"]) == (8, 0, 120.0)


@pytest.mark.slow
def test_a_person_may_have_records_at_several_sites() -> None:
    plan = plan_of(privacy={"max_records_per_person": 3})
    accountant = PLDAccountant(ZERO_OUT, 1e-3)
    chances = [float(binom.pmf(i, 3, 0.05)) for i in range(4)]
    step = dp_event.MixtureOfGaussiansDpEvent(1.4, [0.0, 1.0, 2.0, 3.0], chances)
    accountant.compose(dp_accounting.SelfComposedDpEvent(step, 200))
    assert plan.spent(200).epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)


def test_the_divisor_is_public_and_does_not_follow_who_answers() -> None:
    assert plan_of(cohort={"per_round": 9}).divisor == 90
    assert plan_of(cohort={"sites": 40, "per_round": {"poisson": 0.5}}).divisor == 200


def test_what_is_not_covered_is_said() -> None:
    open_, guarded = plan_of(), plan_of(privacy={"colluders": 2})
    assert any("in clear with 1/8 of the noise" in sentence for sentence in open_.not_covered)
    assert any("in clear with 1/6 of the noise" in sentence for sentence in guarded.not_covered)
    assert any("knows its own share" in sentence for sentence in open_.not_covered)
    assert not any("knows its own share" in sentence for sentence in guarded.not_covered)


def test_where_thirty_two_bits_do_not_suffice_the_run_is_refused_with_the_reason() -> None:
    with pytest.raises(SpecError, match="32 bits do not suffice") as refused:
        plan_of(privacy={"noise_multiplier": 0.05}, training={"batch_size": 10**6})
    assert refused.value.code == "privacy-bits"


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"training": {"local_steps": 2}}, "local_steps must be 1"),
        ({"training": {"local_steps": None}}, "local_steps must be"),
        ({"training": {"optimizer": {"name": "adam"}}}, "plain sgd"),
        ({"training": {"optimizer": {"momentum": 0.9}}}, "plain sgd"),
        ({"training": {"optimizer": {"weight_decay": 0.1}}}, "plain sgd"),
        ({"training": {"proximal_mu": 0.1}}, "proximal_mu"),
        ({"training": {"l1": 0.1}}, "l1"),
        ({"training": {"l2": 0.1}}, "l2"),
        ({"training": {"gradient_clip": 1.0}}, "gradient_clip"),
        ({"training": {"scaffold": True}}, "scaffold"),
        ({"training": {"precision": "mixed"}}, "mixed"),
        ({"training": {"local_steps": None, "early_stop": {}}}, "early_stop"),
        ({"aggregation": {"weighting": {"records_cap": 5}}}, "records_cap"),
        ({"evaluation": {"sites": True}}, "evaluation.sites"),
        ({"evaluation": {"baselines": ["pooled"]}}, "baselines"),
        ({"cohort": {"sites": None}}, "public number of sites"),
        ({"privacy": {"colluders": 8}}, "leaves no honest site"),
        ({"privacy": {"sampling_rate": None}}, "sampling_rate"),
        ({"privacy": {"adaptive_clip": {}}}, "adaptive_clip"),
        ({"privacy": {"unit": "record", "colluders": 1}}, "colluders"),
        ({"privacy": {"unit": "site", "sampling_rate": None, "colluders": 1}}, "colluders"),
    ],
)
def test_what_would_void_the_guarantee_or_is_not_the_sites_to_do_is_refused(
    tables: dict[str, dict[str, Any]], says: str
) -> None:
    spec_of()
    with pytest.raises(SpecError, match=says) as refused:
        spec_of(**tables)
    assert refused.value.exit_code == 3
