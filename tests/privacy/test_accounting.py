"""ε of compositions: the figures of the design, merging, tuning, what is refused, and the edges."""

import math
import time

import dp_accounting.dp_event as dp  # type: ignore[import-untyped]  # dp-accounting ships no types
import pytest
from dp_accounting import NeighboringRelation
from dp_accounting.rdp import RdpAccountant  # type: ignore[import-untyped]  # as above
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.core.errors import IntegrityError, SpecError
from cloister.privacy.accounting import account, delta_at, spent, spent_by_round
from cloister.privacy.events import (
    CohortGaussian,
    Composed,
    Event,
    FixedSizeGaussian,
    Gaussian,
    Laplace,
    NonPrivate,
    PoissonGaussian,
    Relation,
    Repeated,
    Selected,
    SeveralRecords,
    Skellam,
    to_json,
)

DELTA = 1e-5
RUN = PoissonGaussian(noise_multiplier=1.0, sampling_rate=0.01, steps=1000)
ROUND = PoissonGaussian(noise_multiplier=1.0, sampling_rate=0.01, steps=100)


def rdp_by_hand(event: object, relation: NeighboringRelation, delta: float) -> float:
    return float(RdpAccountant(neighboring_relation=relation).compose(event).get_epsilon(delta))


# ------------------------------------------------------------------ figures of the design


def test_the_figures_of_the_design_for_dp_sgd() -> None:
    found = spent(RUN, DELTA)
    assert found.pld == pytest.approx(1.83, abs=0.005)
    assert found.rdp == pytest.approx(2.10, abs=0.005)
    assert (found.epsilon, found.bound_used) == (found.pld, "pld")
    assert spent(RUN, DELTA, relation=Relation.REPLACE_ONE).epsilon == pytest.approx(2.84, abs=0.005)


def test_a_batch_of_fixed_size_is_billed_with_half_the_noise_and_never_as_poisson() -> None:
    """1000 steps of 100 in 10,000: 3.58 if σ were taken as it stands, 1.83 if it were Poisson; 20.99 is the truth."""
    fixed = FixedSizeGaussian(noise_multiplier=1.0, sample_size=100, population=10_000, steps=1000)
    for relation in (Relation.ZERO_OUT, Relation.REPLACE_ONE):
        found = spent(fixed, DELTA, relation=relation)
        assert found.epsilon == pytest.approx(20.99, abs=0.005)
        assert found.pld is None
        assert "fixed-size" in found.left_out["pld"]
    naive = dp.SelfComposedDpEvent(
        dp.SampledWithoutReplacementDpEvent(10_000, 100, dp.GaussianDpEvent(1.0)), 1000
    )
    assert rdp_by_hand(naive, NeighboringRelation.REPLACE_ONE, DELTA) == pytest.approx(3.58, abs=0.005)


def test_a_cohort_amplifies_only_where_the_caller_states_that_it_is_hidden() -> None:
    """200 rounds with q = .1 at σ = 2, δ = 1e-3, of which the site was in 20."""
    cohort = CohortGaussian(noise_multiplier=2.0, rate=0.1, rounds=200, participations=20)
    known, hidden = spent(cohort, 1e-3), spent(cohort, 1e-3, hidden_cohort=True)
    assert known.epsilon == pytest.approx(8.79, abs=0.005)
    assert hidden.epsilon == pytest.approx(2.30, abs=0.005)
    assert (known.hidden_cohort, hidden.hidden_cohort) == (False, True)


# ------------------------------------------------------------------ composition


def test_ten_rounds_are_billed_as_the_composition_of_all_their_steps() -> None:
    ten = spent([ROUND] * 10, DELTA)
    assert ten == spent(RUN, DELTA)
    assert ten.epsilon < 0.5 * 10 * spent(ROUND, DELTA).epsilon  # far from a sum over rounds
    assert ten.epsilon > 2 * spent(ROUND, DELTA).epsilon  # and far from a fresh account for each


def test_epsilon_by_round_is_the_account_of_everything_up_to_that_round() -> None:
    series = spent_by_round([ROUND, [], [ROUND, Gaussian(noise_multiplier=8.0)]], DELTA, before=[ROUND])
    assert [found.epsilon for found in series] == [
        spent([ROUND] * 2, DELTA).epsilon,
        spent([ROUND] * 2, DELTA).epsilon,
        spent([ROUND] * 3 + [Gaussian(noise_multiplier=8.0)], DELTA).epsilon,
    ]
    assert series[0].epsilon == series[1].epsilon < series[2].epsilon


def test_the_account_of_a_ledger_is_the_account_of_its_events() -> None:
    assert account([to_json(ROUND)] * 10, DELTA) == spent(RUN, DELTA).epsilon
    with pytest.raises(IntegrityError, match="poison"):
        account([{**to_json(ROUND), "type": "poison"}], DELTA)


parts = st.lists(
    st.sampled_from(
        [
            ROUND,
            PoissonGaussian(noise_multiplier=2.0, sampling_rate=0.05, steps=13),
            Gaussian(noise_multiplier=7.0, count=3),
            Gaussian(noise_multiplier=11.0),
            Laplace(noise_multiplier=20.0, count=2),
        ]
    ),
    min_size=1,
    max_size=6,
)


@settings(max_examples=15)
@given(parts, st.randoms(use_true_random=False))
def test_neither_order_nor_grouping_changes_the_account(events: list[Event], random: object) -> None:
    shuffled = list(events)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    half = len(events) // 2
    grouped = Composed(events=(Composed(events=tuple(shuffled[:half])), *shuffled[half:]))
    assert spent(grouped, DELTA) == spent(events, DELTA)
    assert spent(Repeated(event=grouped, times=2), DELTA) == spent(events * 2, DELTA)


@settings(max_examples=15)
@given(parts, parts)
def test_more_events_never_cost_less(events: list[Event], more: list[Event]) -> None:
    assert spent(events + more, DELTA).epsilon >= spent(events, DELTA).epsilon * (1 - 1e-9)


def test_ten_thousand_equal_rounds_cost_hardly_more_time_than_one() -> None:
    spent(RUN, 1.1e-5)  # imports
    start = time.perf_counter()
    once = spent(PoissonGaussian(noise_multiplier=1.003, sampling_rate=0.01, steps=10_000), DELTA)
    middle = time.perf_counter()
    many = spent([PoissonGaussian(noise_multiplier=1.003, sampling_rate=0.01)] * 10_000, DELTA)
    assert many == once
    assert time.perf_counter() - middle < 10 * (middle - start) + 1.0


# ------------------------------------------------------------------ tuning and mixed compositions


def test_tuning_is_charged_more_than_one_run_and_a_grid_for_all_its_runs() -> None:
    one = spent(ROUND, DELTA)
    selected = spent(Selected(event=ROUND, mean_runs=20.0), DELTA)
    grid = spent(Repeated(event=ROUND, times=20), DELTA)
    assert one.rdp is not None
    assert one.rdp < selected.epsilon < 3.5 * one.rdp
    assert grid == spent([ROUND] * 20, DELTA)


def test_a_hidden_cohort_inside_a_selection_amplifies_too_and_a_known_one_does_not() -> None:
    cohort = CohortGaussian(noise_multiplier=2.0, rate=0.1, rounds=100, participations=10)
    chosen = Selected(event=cohort, mean_runs=3.0)
    known = Selected(event=Gaussian(noise_multiplier=2.0, count=10), mean_runs=3.0)
    assert spent(chosen, DELTA).epsilon == pytest.approx(spent(known, DELTA).epsilon, rel=1e-9)
    assert spent(chosen, DELTA, hidden_cohort=True).epsilon < 0.7 * spent(chosen, DELTA).epsilon


def test_fixed_size_and_poisson_runs_on_one_dataset_compose_under_zero_out_by_adding_divergences() -> None:
    fixed = FixedSizeGaussian(noise_multiplier=6.0, sample_size=100, population=10_000, steps=300)
    shares = [
        RdpAccountant(neighboring_relation=relation).compose(event.dp_event())
        for event, relation in (
            (RUN, NeighboringRelation.REPLACE_SPECIAL),
            (fixed, NeighboringRelation.REPLACE_ONE),
            (Gaussian(noise_multiplier=5.0), NeighboringRelation.REPLACE_SPECIAL),
        )
    ]
    orders, total = shares[0].orders, sum(share.rdp for share in shares)
    by_hand = min(
        r + math.log1p(-1 / a) - math.log(DELTA * a) / (a - 1) for a, r in zip(orders, total, strict=True)
    )
    found = spent([RUN, fixed, Gaussian(noise_multiplier=5.0)], DELTA)
    assert found.epsilon == pytest.approx(by_hand, rel=1e-6)
    assert found.bound_used == "rdp"


@pytest.mark.parametrize(
    ("events", "relation"),
    [
        ([SeveralRecords(records=2, event=RUN), Skellam(variance=100.0, l2=1.0, l1=1.0)], Relation.ZERO_OUT),
        ([SeveralRecords(records=2, event=RUN), Selected(event=RUN, mean_runs=2.0)], Relation.ZERO_OUT),
        ([SeveralRecords(records=2, event=RUN)], Relation.REPLACE_ONE),
        ([FixedSizeGaussian(noise_multiplier=1.0, sample_size=1, population=2)], Relation.ADD_OR_REMOVE),
        ([Selected(event=RUN, mean_runs=2.0)], Relation.REPLACE_ONE),
    ],
)
def test_what_no_bound_covers_is_an_error_that_names_it_and_never_a_guess(
    events: list[Event], relation: Relation
) -> None:
    for ask in (
        lambda: spent(events, DELTA, relation=relation),
        lambda: delta_at(events, 1.0, relation=relation),
    ):
        with pytest.raises(
            SpecError, match=r"no bound covers .*(several-records|fixed-size|selected)"
        ) as refusal:
            ask()
        assert refusal.value.code == "privacy-unbounded"


def test_something_that_is_no_event_is_refused() -> None:
    with pytest.raises(SpecError, match="GaussianDpEvent"):
        spent([dp.GaussianDpEvent(1.0)], DELTA)


# ------------------------------------------------------------------ edges


def test_nothing_costs_nothing_and_a_release_without_a_bound_costs_everything() -> None:
    nothing = spent([PoissonGaussian(noise_multiplier=1.0, sampling_rate=0.1, steps=0)], DELTA)
    assert (nothing.epsilon, nothing.pld, nothing.rdp) == (0.0, 0.0, 0.0)
    assert spent([], 1e-12).rdp == delta_at([], 0.0) == 0.0
    open_book = [RUN, NonPrivate(what="the raw mean of one column")]
    assert spent(open_book, DELTA).epsilon == math.inf
    assert spent(open_book, DELTA).as_dict()["epsilon"] is None
    assert delta_at(open_book, 5.0) == 1.0


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan, math.inf, True, "1e-5"])
def test_a_delta_outside_zero_to_one_is_refused(delta: float) -> None:
    with pytest.raises(SpecError, match="delta must be"):
        spent(RUN, delta)


def test_an_epsilon_or_a_relation_that_is_none_is_refused() -> None:
    for epsilon in (-0.1, math.nan, math.inf):
        with pytest.raises(SpecError, match="epsilon must be"):
            delta_at(RUN, epsilon)
    with pytest.raises(SpecError, match="swap") as refusal:
        spent(RUN, DELTA, relation="swap")  # type: ignore[arg-type]
    assert "zero-out, replace-one, add-or-remove" in refusal.value.remedy


def test_delta_at_the_epsilon_that_was_spent_is_the_delta_it_was_spent_at() -> None:
    for events in (RUN, Skellam(variance=1e4, l2=60.0, l1=900.0), [ROUND, Laplace(noise_multiplier=9.0)]):
        assert delta_at(events, spent(events, DELTA).epsilon) == pytest.approx(DELTA, rel=1e-6)


def test_what_is_stated_as_json_shows_both_bounds_and_why_one_is_missing() -> None:
    stated = spent(Selected(event=ROUND, mean_runs=2.0), DELTA).as_dict()
    assert (stated["pld"], stated["bound_used"], stated["relation"]) == (None, "rdp", "zero-out")
    assert stated["epsilon"] == stated["rdp"]
    assert "selected" in stated["left_out"]["pld"]
