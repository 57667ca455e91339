"""What the site-level units cost, against dp-accounting called directly on events that are written by hand here."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import dp_accounting  # type: ignore[import-untyped]
import pytest
from dp_accounting.pld import PLDAccountant  # type: ignore[import-untyped]
from dp_accounting.rdp import RdpAccountant  # type: ignore[import-untyped]

from cloister.core.errors import SpecError
from cloister.core.spec import FederationSpec, parse_federation
from cloister.privacy.accounting import spent
from cloister.privacy.events import Relation
from cloister.privacy.plan import Plan, plan_from, predict
from cloister.privacy.public_numbers import public_cohort
from cloister.privacy.site_plans import DistributedPlan, LocalPlan, SitePlan

ZERO_OUT = dp_accounting.NeighboringRelation.REPLACE_SPECIAL
SIZE = 1000
COHORT = {"sites": 20, "min_sites": 10}


def spec_of(privacy: dict[str, Any], **tables: dict[str, Any]) -> FederationSpec:
    document: dict[str, Any] = {
        "federation": {"name": "x", "rounds": 12},
        "task": {"use": "heart"},
        "cohort": COHORT,
        "privacy": {"delta": 1e-5, "clip": 0.5, **privacy},
    }
    return parse_federation({**document, **tables}, base=Path()).spec


def plan_of(privacy: dict[str, Any], **tables: dict[str, Any]) -> Plan:
    plan = plan_from(spec_of(privacy, **tables), SIZE)
    assert plan is not None
    return plan


def gaussian(*noises: float, rounds: int) -> float:
    accountant = PLDAccountant(ZERO_OUT, 1e-4)
    for noise in noises:
        accountant.compose(dp_accounting.SelfComposedDpEvent(dp_accounting.GaussianDpEvent(noise), rounds))
    return float(accountant.get_epsilon(1e-5))


@pytest.mark.parametrize("unit", ["site", "site-local"])
@pytest.mark.parametrize(("noise", "rounds"), [(1.0, 1), (4.0, 12), (0.7, 5)])
def test_the_gaussian_units_cost_what_dp_accounting_says(unit: str, noise: float, rounds: int) -> None:
    plan = plan_of({"unit": unit, "noise_multiplier": noise})
    assert plan.spent(rounds).epsilon == pytest.approx(gaussian(noise, rounds=rounds), rel=0.01)
    assert plan.spent_by({0: 1, 9: rounds - 1}).epsilon == plan.spent(rounds).epsilon


def test_adaptive_clipping_is_charged_for_the_bits_and_the_updates() -> None:
    plan = plan_of({"unit": "site", "noise_multiplier": 3.0, "adaptive_clip": {"count_noise": 2.0}})
    assert isinstance(plan, SitePlan)
    assert plan.update_noise > 3.0
    both = gaussian(plan.update_noise, 2 * 2.0, rounds=12)
    assert plan.spent(12).epsilon == pytest.approx(both, rel=0.01)
    assert gaussian(plan.update_noise, rounds=12) < 0.8 * both, "the bits must weigh in this fixture"


def test_count_noise_too_small_for_z_is_refused_before_any_training() -> None:
    with pytest.raises(SpecError, match="count_noise") as refused:
        plan_of({"unit": "site", "noise_multiplier": 3.0, "adaptive_clip": {"count_noise": 1.5}})
    assert refused.value.exit_code == 3


@pytest.mark.parametrize(("survivors", "rounds"), [(10, 12), (20, 12), (13, 3)])
def test_the_distributed_unit_costs_what_its_zcdp_event_says(survivors: int, rounds: int) -> None:
    """Sensitivities and event by hand from the papers; Rényi orders are whole numbers, as the bound asks."""
    noise = 6.0
    plan = plan_of({"unit": "site-distributed", "noise_multiplier": noise})
    assert isinstance(plan, DistributedPlan)
    scaled = plan.code.scale * 0.5
    root = math.sqrt(1024)
    l2 = math.sqrt(min((scaled + root) ** 2, scaled**2 + 1024 / 4 + scaled + root / 2))
    l1 = min(root * l2, l2**2)
    mu = (noise * scaled) ** 2 * survivors / 10
    event = dp_accounting.ZCDpEvent(
        rho=l2**2 / (2 * mu) + l2**2 / (2 * mu**2), xi=max((6 * l1 - l2**2) / (4 * mu**2), 0.0)
    )
    accountant = RdpAccountant(list(range(2, 1000)), ZERO_OUT)
    accountant.compose(dp_accounting.SelfComposedDpEvent(event, rounds))
    assert plan.spent_by({survivors: rounds}).epsilon == pytest.approx(accountant.get_epsilon(1e-5), rel=0.01)


def test_the_distributed_unit_costs_about_what_central_noise_does() -> None:
    """At least as much as a Gaussian of the same z, and little more: 20 bits are enough here."""
    plan = plan_of({"unit": "site-distributed", "noise_multiplier": 6.0})
    central = spent(plan_of({"unit": "site", "noise_multiplier": 6.0}).event(12), 1e-5).rdp
    assert central is not None
    assert 0.99 * central <= plan.spent(12).epsilon <= 1.05 * central


def test_more_survivors_cost_less_and_fewer_than_the_least_are_charged_as_the_least() -> None:
    plan = plan_of({"unit": "site-distributed", "noise_multiplier": 6.0})
    assert plan.spent_by({20: 12}).epsilon < 0.8 * plan.spent_by({10: 12}).epsilon
    assert plan.spent_by({0: 12}).epsilon == pytest.approx(plan.spent(12).epsilon)
    mixed = plan.spent_by({10: 6, 20: 6}).epsilon
    assert plan.spent_by({20: 12}).epsilon < mixed < plan.spent_by({10: 12}).epsilon


@pytest.mark.parametrize("unit", ["site", "site-local", "site-distributed"])
def test_noise_is_calibrated_to_the_whole_run(unit: str) -> None:
    plan = plan_of({"unit": unit, "epsilon": 2.0})
    assert 2.0 * 0.99 <= plan.spent(12).epsilon <= 2.0
    assert plan.spent(6).epsilon < 1.6
    said = predict(spec_of({"unit": unit, "epsilon": 2.0}), SIZE)
    assert said["unit"] == unit
    assert said["epsilon"] == plan.spent(12).epsilon


@pytest.mark.parametrize("unit", ["site", "site-local", "site-distributed"])
def test_a_drawn_cohort_is_not_claimed_as_amplification(unit: str) -> None:
    drawn = plan_of(
        {"unit": unit, "noise_multiplier": 5.0},
        cohort={"sites": 200, "min_sites": 10, "per_round": {"poisson": 0.1}},
    )
    everybody = plan_of({"unit": unit, "noise_multiplier": 5.0}, cohort={"sites": 200, "min_sites": 10})
    assert drawn.spent(12).epsilon == pytest.approx(everybody.spent(12).epsilon, rel=0.05)
    assert "charged in full for every round" in drawn.sampling
    assert not drawn.spent(12).hidden_cohort


def test_under_replace_one_local_noise_costs_what_half_of_it_costs() -> None:
    plan = plan_of({"unit": "site-local", "noise_multiplier": 4.0})
    assert isinstance(plan, LocalPlan)
    replaced = spent(plan.event(12), plan.delta, relation=Relation.REPLACE_ONE).epsilon
    assert replaced == pytest.approx(gaussian(2.0, rounds=12), rel=0.01)


@pytest.mark.parametrize(
    ("cohort", "n"),
    [
        ({"sites": 20}, 20.0),
        ({"per_round": 7}, 7.0),
        ({"sites": 20, "per_round": 7}, 7.0),
        ({"sites": 30, "per_round": {"poisson": 0.25}}, 7.5),
    ],
)
def test_the_divisor_is_a_public_constant_of_the_file(cohort: dict[str, Any], n: float) -> None:
    spec = spec_of({"unit": "site", "noise_multiplier": 1.0}, cohort=cohort)
    assert public_cohort(spec.cohort) == n


def test_where_twenty_bits_do_not_suffice_the_run_is_refused_with_the_reason() -> None:
    crowd = {"sites": 2000, "min_sites": 3}
    with pytest.raises(SpecError, match="20 bits do not suffice") as refused:
        plan_of({"unit": "site-distributed", "noise_multiplier": 100.0}, cohort=crowd)
    assert refused.value.code == "privacy-bits"
    assert "min_sites" in refused.value.remedy
    plan_of({"unit": "site-distributed", "noise_multiplier": 100.0}, cohort={**crowd, "min_sites": 1500})


SITE = {"unit": "site", "noise_multiplier": 1.0}


@pytest.mark.parametrize(
    ("privacy", "tables", "says"),
    [
        (SITE, {"training": {"scaffold": True}}, "second array"),
        (SITE, {"aggregation": {"weighting": {"records_cap": 5}}}, "records_cap"),
        (SITE, {"evaluation": {"sites": True}}, "evaluation.sites"),
        (SITE, {"cohort": {"per_round": "all"}}, "public number of sites"),
        ({**SITE, "sampling_rate": 0.1}, {}, "samples no records"),
        ({**SITE, "unit": "site-local", "adaptive_clip": {}}, {}, "adaptive_clip"),
        ({**SITE, "unit": "site-distributed", "adaptive_clip": {}}, {}, "adaptive_clip"),
        ({**SITE, "unit": "record", "sampling_rate": 0.1, "adaptive_clip": {}}, {}, "adaptive_clip"),
        ({**SITE, "epsilon": 1.0}, {}, "either epsilon"),
        ({**SITE, "adaptive_clip": {"quantile": 1.0}}, {}, "quantile"),
    ],
)
def test_what_would_void_the_guarantee_is_refused(
    privacy: dict[str, Any], tables: dict[str, Any], says: str
) -> None:
    with pytest.raises(SpecError, match=says) as refused:
        spec_of(privacy, **tables)
    assert refused.value.exit_code == 3


def test_a_site_may_train_as_it_likes_since_only_its_update_counts() -> None:
    spec_of(SITE, training={"local_epochs": 3, "early_stop": {}, "gradient_clip": 1.0})
    spec_of(SITE, training={"local_steps": 3})
