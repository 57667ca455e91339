"""Noise for a promise, and steps under a cap: always on the safe side of it, and close."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.core.errors import SpecError
from cloister.privacy import calibration
from cloister.privacy.accounting import spent
from cloister.privacy.calibration import (
    MOST_STEPS,
    NOISE_SEARCHED,
    PRECISION,
    noise_multiplier_for,
    steps_left,
)
from cloister.privacy.events import (
    Event,
    Gaussian,
    NonPrivate,
    PoissonGaussian,
    Relation,
    SeveralRecords,
    Skellam,
)

DELTA = 1e-5


def run(noise: float) -> Event:
    return PoissonGaussian(noise_multiplier=noise, sampling_rate=0.034, steps=400)


def gaussian(noise: float) -> Event:
    return Gaussian(noise_multiplier=noise, count=10)


@pytest.mark.parametrize("target", [0.5, 3.0, 8.0])
def test_the_noise_keeps_to_the_target_and_hardly_more_would_do(target: float) -> None:
    noise = noise_multiplier_for(target, DELTA, run)
    assert spent(run(noise), DELTA).epsilon <= target
    assert spent(run(noise / (1 + 2 * PRECISION)), DELTA).epsilon > target


@pytest.mark.slow
@settings(max_examples=6)
@given(st.floats(0.02, 40.0), st.sampled_from([1e-3, 1e-5, 1e-7]))
def test_any_reachable_target_is_met_from_the_safe_side(target: float, delta: float) -> None:
    noise = noise_multiplier_for(target, delta, gaussian)
    assert target * 0.985 <= spent(gaussian(noise), delta).epsilon <= target


def test_the_noise_for_dp_sgd_is_what_reproduces_the_figures_of_the_design() -> None:
    """σ = 1 was measured to cost 1.829 at q = .01 over 1000 steps: so 1.829 asks for σ = 1."""
    noise = noise_multiplier_for(
        1.829, DELTA, lambda z: PoissonGaussian(noise_multiplier=z, sampling_rate=0.01, steps=1000)
    )
    assert noise == pytest.approx(1.0, rel=2 * PRECISION)


@pytest.mark.slow
def test_what_was_spent_before_takes_its_part_of_the_target() -> None:
    before = run(1.5)
    alone, after = (noise_multiplier_for(4.0, DELTA, make) for make in (run, lambda z: [before, run(z)]))
    assert after > 1.05 * alone
    assert spent([before, run(after)], DELTA).epsilon <= 4.0


def test_several_records_a_person_and_skellam_are_calibrated_as_well() -> None:
    def person(noise: float) -> Event:
        return SeveralRecords(
            records=2, event=PoissonGaussian(noise_multiplier=noise, sampling_rate=0.02, steps=20)
        )

    def sites(noise: float) -> Event:
        return Skellam(variance=(noise * 100.0) ** 2, l2=100.0, l1=900.0, count=20)

    for make in (person, sites):
        noise = noise_multiplier_for(1.0, DELTA, make)
        assert 0.98 <= spent(make(noise), DELTA).epsilon <= 1.0


def test_relation_and_secrecy_of_the_cohort_reach_the_accountant() -> None:
    zero_out, replaced = (
        noise_multiplier_for(2.0, DELTA, gaussian, relation=relation) for relation in list(Relation)[:2]
    )
    assert replaced == pytest.approx(2 * zero_out, rel=3 * PRECISION)


def test_a_calibration_asks_the_accountant_a_dozen_times_at_most() -> None:
    asked: list[float] = []

    def counted(noise: float) -> Event:
        asked.append(noise)
        return run(noise)

    noise_multiplier_for(3.0, DELTA, counted)
    assert len(asked) <= 12


@pytest.mark.slow
def test_a_target_out_of_reach_is_refused_with_what_is_spent_whatever_the_noise() -> None:
    with pytest.raises(SpecError, match=r"out of reach.*still costs 4\.897") as refusal:
        noise_multiplier_for(3.0, DELTA, lambda z: [run(0.95), run(z)])
    assert refusal.value.code == "privacy-target"
    with pytest.raises(SpecError, match="still costs inf"):
        noise_multiplier_for(3.0, DELTA, lambda z: [NonPrivate(what="a mean"), run(z)])


def test_a_target_that_hardly_any_noise_meets_is_refused() -> None:
    with pytest.raises(SpecError, match="protects nobody"):
        noise_multiplier_for(1e9, DELTA, gaussian)


@pytest.mark.parametrize("target", [0.0, -1.0, math.nan, math.inf, True, "3"])
def test_a_target_or_a_cap_that_is_no_epsilon_is_refused(target: float) -> None:
    with pytest.raises(SpecError, match="target_epsilon must be positive"):
        noise_multiplier_for(target, DELTA, run)
    with pytest.raises(SpecError, match="cap must be positive"):
        steps_left(target, [], run(1.0), DELTA)


def test_events_that_cost_more_with_more_noise_are_refused() -> None:
    with pytest.raises(SpecError, match=r"costs epsilon = .*, and the smaller"):
        noise_multiplier_for(3.0, DELTA, lambda z: gaussian(8.0 / z if z > 0.5 else z))


@pytest.mark.parametrize("batch", [1, 40])
def test_the_steps_left_fit_and_one_more_does_not(batch: int) -> None:
    before = PoissonGaussian(noise_multiplier=1.0, sampling_rate=0.01, steps=1000)
    step = PoissonGaussian(noise_multiplier=1.2, sampling_rate=0.02, steps=batch)
    left = steps_left(3.0, before, step, DELTA)
    assert left > 1
    for times, fits in ((left, True), (left + 1, False)):
        assert (spent([before, *[step] * times], DELTA).epsilon <= 3.0) is fits


def test_the_steps_left_of_a_round_with_several_events_count_rounds() -> None:
    one_round = [Gaussian(noise_multiplier=10.0), Gaussian(noise_multiplier=20.0, count=2)]
    left = steps_left(2.0, [], one_round, DELTA)
    assert spent(one_round * left, DELTA).epsilon <= 2.0 < spent(one_round * (left + 1), DELTA).epsilon


def test_a_cap_that_is_spent_leaves_no_step_and_a_step_that_is_free_leaves_any_number() -> None:
    assert steps_left(1.0, run(1.0), run(50.0), DELTA) == 0
    assert steps_left(1.0, [], Gaussian(noise_multiplier=0.5), DELTA) == 0
    assert steps_left(1.0, [], Gaussian(noise_multiplier=1e9), DELTA) == MOST_STEPS
    assert steps_left(1.0, [], NonPrivate(what="a mean"), DELTA) == 0
    assert 0.6 * MOST_STEPS < steps_left(5.0, [], Gaussian(noise_multiplier=2400.0), DELTA) < MOST_STEPS


def test_the_range_that_is_searched_is_within_what_an_event_may_state() -> None:
    assert all(Gaussian(noise_multiplier=noise) for noise in NOISE_SEARCHED)
    assert calibration.__doc__ is not None
