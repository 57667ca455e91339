"""Privacy events: checked values, an exact round trip through JSON, and the accountant's events that they stand for."""

import json
import math

import dp_accounting.dp_event as dp  # type: ignore[import-untyped]  # dp-accounting ships no types
import numpy as np
import pytest
from dp_accounting import NeighboringRelation
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.core.errors import IntegrityError, SpecError
from cloister.privacy.events import (
    NOISE_RANGE,
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
    from_json,
    joint_noise_multiplier,
    to_json,
)

noises = st.floats(*NOISE_RANGE)
rates = st.floats(1e-12, 1.0)
counts = st.integers(0, 10**12)

poisson = st.builds(PoissonGaussian, noise_multiplier=noises, sampling_rate=rates, steps=counts)
gaussian = st.builds(Gaussian, noise_multiplier=noises, count=counts)
laplace = st.builds(Laplace, noise_multiplier=noises, count=counts)
fixed = st.integers(1, 10**9).flatmap(
    lambda n: st.builds(
        FixedSizeGaussian,
        noise_multiplier=noises,
        sample_size=st.integers(1, n),
        population=st.just(n),
        steps=counts,
    )
)
cohort = st.integers(0, 10**6).flatmap(
    lambda n: st.builds(
        CohortGaussian,
        noise_multiplier=noises,
        rate=rates,
        rounds=st.just(n),
        participations=st.none() | st.integers(0, n),
    )
)
skellam = st.floats(1e-3, 1e6).flatmap(
    lambda l2: st.builds(
        Skellam, variance=st.floats(1e-3, 1e12), l2=st.just(l2), l1=st.floats(l2, 1e9), count=counts
    )
)
several = st.builds(SeveralRecords, records=st.integers(1, 256), event=poisson | gaussian | laplace)
simple = (
    poisson
    | gaussian
    | laplace
    | fixed
    | cohort
    | skellam
    | several
    | st.just(NonPrivate(what="a raw histogram"))
)
events = st.recursive(
    simple,
    lambda inner: (
        st.builds(Repeated, event=inner, times=counts)
        | st.builds(
            Selected,
            event=inner,
            mean_runs=st.floats(1, 1e6),
            distribution=st.sampled_from(["poisson", "geometric", "logarithmic"]),
        )
        | st.builds(Composed, events=st.lists(inner, max_size=3))
    ),
    max_leaves=6,
)

STEP = PoissonGaussian(noise_multiplier=1.1, sampling_rate=0.02, steps=7)
ONE_OF_EACH: list[Event] = [
    STEP,
    Gaussian(noise_multiplier=2.0, count=3),
    FixedSizeGaussian(noise_multiplier=1.0, sample_size=10, population=100, steps=2),
    CohortGaussian(noise_multiplier=2.0, rate=0.1, rounds=20, participations=3),
    Skellam(variance=1e4, l2=30.0, l1=400.0, count=2),
    Laplace(noise_multiplier=3.0, count=2),
    SeveralRecords(records=3, event=STEP),
    Repeated(event=STEP, times=4),
    Selected(event=STEP, mean_runs=10.0, distribution="geometric"),
    Composed(events=(STEP, Laplace(noise_multiplier=3.0))),
    NonPrivate(what="a raw histogram"),
]


@settings(max_examples=150, deadline=None)
@given(events)
def test_an_event_survives_json_to_the_last_bit(event: Event) -> None:
    assert from_json(json.loads(json.dumps(to_json(event), allow_nan=False))) == event


def test_the_json_of_every_type_is_frozen() -> None:
    """These texts lie in ledgers: a change of one of them makes old ledgers unreadable."""
    step = '{"noise_multiplier": 1.1, "sampling_rate": 0.02, "steps": 7, "type": "poisson-gaussian"}'
    assert [json.dumps(to_json(event), sort_keys=True) for event in ONE_OF_EACH] == [
        step,
        '{"count": 3, "noise_multiplier": 2.0, "type": "gaussian"}',
        '{"noise_multiplier": 1.0, "population": 100, "sample_size": 10, "steps": 2, "type": "fixed-size-gaussian"}',
        '{"noise_multiplier": 2.0, "participations": 3, "rate": 0.1, "rounds": 20, "type": "cohort-gaussian"}',
        '{"count": 2, "l1": 400.0, "l2": 30.0, "type": "skellam", "variance": 10000.0}',
        '{"count": 2, "noise_multiplier": 3.0, "type": "laplace"}',
        f'{{"event": {step}, "records": 3, "type": "several-records"}}',
        f'{{"event": {step}, "times": 4, "type": "repeated"}}',
        f'{{"distribution": "geometric", "event": {step}, "mean_runs": 10.0, "type": "selected"}}',
        f'{{"events": [{step}, {{"count": 1, "noise_multiplier": 3.0, "type": "laplace"}}], "type": "composed"}}',
        '{"type": "non-private", "what": "a raw histogram"}',
    ]


POISSON = {"type": "poisson-gaussian", "noise_multiplier": 1.0, "sampling_rate": 0.1, "steps": 3}
DEEP: dict[str, object] = dict(POISSON)
for _ in range(40):
    DEEP = {"type": "repeated", "event": DEEP, "times": 1}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        (None, "NoneType"),
        ([POISSON], "list"),
        ({}, "None"),
        ({**POISSON, "type": "poisson"}, "'poisson'"),
        ({**POISSON, "type": ["poisson-gaussian"]}, "poisson-gaussian"),
        ({**POISSON, "clip": 1.0}, "clip"),
        ({key: value for key, value in POISSON.items() if key != "steps"}, "steps"),
        ({**POISSON, "steps": 3.0}, "steps"),
        ({**POISSON, "steps": True}, "steps"),
        ({**POISSON, "steps": -1}, "steps"),
        ({**POISSON, "steps": "3"}, "steps"),
        ({**POISSON, "steps": {**POISSON}}, "steps"),
        ({**POISSON, "noise_multiplier": 0.0}, "noise_multiplier"),
        ({**POISSON, "noise_multiplier": -1.0}, "noise_multiplier"),
        ({**POISSON, "noise_multiplier": math.nan}, "noise_multiplier"),
        ({**POISSON, "noise_multiplier": math.inf}, "noise_multiplier"),
        ({**POISSON, "noise_multiplier": None}, "noise_multiplier"),
        ({**POISSON, "sampling_rate": 0.0}, "sampling_rate"),
        ({**POISSON, "sampling_rate": 1.5}, "sampling_rate"),
        ({**POISSON, "sampling_rate": [POISSON]}, "sampling_rate"),
        ({"type": "composed", "events": POISSON}, "sequence"),
        ({"type": "composed", "events": None}, "sequence"),
        ({"type": "composed", "events": [1.0]}, "float"),
        ({"type": "composed", "events": "events"}, "composed"),
        (
            {"type": "several-records", "records": 2, "event": {"type": "non-private", "what": "x"}},
            "several-records",
        ),
        ({"type": "several-records", "records": 0, "event": POISSON}, "records"),
        ({"type": "selected", "event": POISSON, "mean_runs": 0.5, "distribution": "geometric"}, "mean_runs"),
        ({"type": "selected", "event": POISSON, "mean_runs": 5, "distribution": "fixed"}, "fixed"),
        (
            {
                "type": "fixed-size-gaussian",
                "noise_multiplier": 1,
                "sample_size": 11,
                "population": 10,
                "steps": 1,
            },
            "size",
        ),
        (
            {"type": "cohort-gaussian", "noise_multiplier": 1, "rate": 0.1, "rounds": 5, "participations": 6},
            "parti",
        ),
        ({"type": "skellam", "variance": 1.0, "l2": 2.0, "l1": 1.0, "count": 1}, "l1"),
        ({"type": "non-private", "what": " "}, "what"),
        ({"type": "non-private", "what": 3}, "what"),
        (DEEP, "deep"),
    ],
)
def test_what_cannot_be_read_is_an_integrity_error_that_names_it(value: object, named: str) -> None:
    with pytest.raises(IntegrityError, match=named):
        from_json(value)


def test_what_is_written_can_be_read_however_deep_and_what_is_too_deep_is_not_written() -> None:
    event: Event = STEP
    for _ in range(15):
        event = Repeated(event=event, times=1)
    assert from_json(to_json(event)) == event
    with pytest.raises(SpecError, match="16 deep"):
        to_json(Repeated(event=event, times=1))


def test_a_written_value_is_refused_as_a_spec_error_that_names_the_field_and_the_value() -> None:
    with pytest.raises(SpecError, match=r"noise_multiplier .*not -2\.0"):
        Gaussian(noise_multiplier=-2.0)
    with pytest.raises(SpecError, match="inner event must be"):
        SeveralRecords(records=2, event=Skellam(variance=1.0, l2=1.0, l1=1.0))
    with pytest.raises(SpecError, match="not float"):
        Repeated(event=1.0, times=3)  # type: ignore[arg-type]


def test_numpy_numbers_become_plain_ones() -> None:
    event = PoissonGaussian(noise_multiplier=np.float32(2), sampling_rate=np.float64(0.5), steps=np.int64(3))  # type: ignore[arg-type]
    assert json.dumps(to_json(event)) == json.dumps(
        to_json(PoissonGaussian(noise_multiplier=2.0, sampling_rate=0.5, steps=3))
    )


def test_every_type_stands_for_the_accountants_event_that_was_written_by_hand() -> None:
    step = dp.PoissonSampledDpEvent(0.02, dp.GaussianDpEvent(1.1))
    rho, xi = 30.0**2 / 2e4 + 30.0**2 / 2e8, (6 * 400.0 - 30.0**2) / 4e8
    q = 0.02
    by_hand = [
        dp.SelfComposedDpEvent(step, 7),
        dp.SelfComposedDpEvent(dp.GaussianDpEvent(2.0), 3),
        dp.SelfComposedDpEvent(dp.SampledWithoutReplacementDpEvent(100, 10, dp.GaussianDpEvent(0.5)), 2),
        dp.SelfComposedDpEvent(dp.GaussianDpEvent(2.0), 3),
        dp.SelfComposedDpEvent(dp.ZCDpEvent(rho, xi), 2),
        dp.SelfComposedDpEvent(dp.LaplaceDpEvent(3.0), 2),
        None,
        dp.SelfComposedDpEvent(dp.SelfComposedDpEvent(step, 7), 4),
        dp.RepeatAndSelectDpEvent(dp.SelfComposedDpEvent(step, 7), 10.0, 1.0),
        dp.ComposedDpEvent([dp.SelfComposedDpEvent(step, 7), dp.LaplaceDpEvent(3.0)]),
        dp.NonPrivateDpEvent(),
    ]
    for event, hand in zip(ONE_OF_EACH, by_hand, strict=True):
        if hand is not None:
            assert event.dp_event() == hand, event.kind
    mixture = ONE_OF_EACH[6].dp_event()
    assert mixture.count == 7
    assert (mixture.event.standard_deviation, mixture.event.sensitivities) == (1.1, [0.0, 1.0, 2.0, 3.0])
    expected = [(1 - q) ** 3, 3 * q * (1 - q) ** 2, 3 * q**2 * (1 - q), q**3]
    assert mixture.event.sampling_probs == pytest.approx(expected, rel=1e-12)


def test_every_type_says_what_its_noise_is_measured_against() -> None:
    for event in ONE_OF_EACH:
        assert len(event.sensitivity) > 5, event.kind


def test_skellam_floors_the_additive_part_at_zero() -> None:
    assert Skellam(variance=10.0, l2=30.0, l1=31.0).dp_event().xi == 0.0  # (6·31 - 900)/400 is negative


def test_a_doubled_sensitivity_halves_the_noise_and_scales_skellam() -> None:
    assert Gaussian(noise_multiplier=2.0).dp_event(sensitivity=2.0) == dp.GaussianDpEvent(1.0)
    assert Laplace(noise_multiplier=2.0).dp_event(sensitivity=2.0) == dp.LaplaceDpEvent(1.0)
    doubled = Skellam(variance=1e4, l2=30.0, l1=400.0).dp_event(sensitivity=2.0)
    assert doubled == Skellam(variance=1e4, l2=60.0, l1=800.0).dp_event()


def test_no_steps_stand_for_no_event_and_cost_no_unit() -> None:
    nothing = PoissonGaussian(noise_multiplier=1.0, sampling_rate=0.1, steps=0)
    assert nothing.dp_event() == dp.NoOpDpEvent()
    for event in (
        nothing,
        Repeated(event=STEP, times=0),
        Composed(events=()),
        Selected(event=nothing, mean_runs=2.0),
    ):
        assert list(event.units()) == []


def test_a_cohort_gains_from_sampling_only_where_it_is_hidden() -> None:
    event = CohortGaussian(noise_multiplier=2.0, rate=0.1, rounds=20, participations=3)
    assert list(event.units()) == [(Gaussian(noise_multiplier=2.0), 3)]
    hidden = [(PoissonGaussian(noise_multiplier=2.0, sampling_rate=0.1), 20)]
    assert list(event.units(hidden_cohort=True)) == hidden
    inside = Repeated(event=Composed(events=(event,)), times=5)
    assert list(inside.units(hidden_cohort=True)) == [(hidden[0][0], 100)]


def test_a_cohort_whose_participations_are_unknown_is_charged_for_every_round() -> None:
    event = CohortGaussian(noise_multiplier=2.0, rate=0.1, rounds=20)
    assert list(event.units()) == [(Gaussian(noise_multiplier=2.0), 20)]


def test_one_record_a_person_is_the_plain_event_and_no_sampling_is_a_larger_sensitivity() -> None:
    assert list(SeveralRecords(records=1, event=STEP).units()) == list(STEP.units())
    everything = PoissonGaussian(noise_multiplier=6.0, sampling_rate=1.0, steps=2)
    person = SeveralRecords(records=3, event=everything)
    assert list(person.units()) == [(Gaussian(noise_multiplier=2.0), 2)]
    assert person.dp_event().event.event == dp.GaussianDpEvent(2.0)
    assert SeveralRecords(records=3, event=Laplace(noise_multiplier=6.0)).dp_event() == dp.LaplaceDpEvent(2.0)


def test_joint_queries_cost_what_their_precisions_add_up_to() -> None:
    assert joint_noise_multiplier(2.0) == 2.0
    assert joint_noise_multiplier(3.0, 4.0) == pytest.approx(12 / 5, rel=1e-15)  # 1/√(1/9 + 1/16)
    for wrong in ((), (0.0,), (1.0, math.nan), (math.inf,)):
        with pytest.raises(SpecError, match="joint_noise_multiplier"):
            joint_noise_multiplier(*wrong)


def test_the_platforms_relation_is_replacement_by_a_special_record() -> None:
    assert [relation.dp for relation in Relation] == [
        NeighboringRelation.REPLACE_SPECIAL,
        NeighboringRelation.REPLACE_ONE,
        NeighboringRelation.ADD_OR_REMOVE_ONE,
    ]
