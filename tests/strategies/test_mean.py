"""The streaming mean: exact on hand-computed values, equal to a slow loop, refusing what would poison it, constant in memory."""

from __future__ import annotations

import tracemalloc
from fractions import Fraction

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloister.core.errors import SpecError
from cloister.core.spec import Aggregation
from cloister.strategies.mean import BLOCK, StreamingMean, weighted_mean
from cloister.strategies.rules import Accumulator, Mean, Rule, rule_from

Rows = npt.NDArray[np.float32]
# On this matrix the weighted mean, the plain mean, the median, the trimmed mean and the sum all differ in every column.
DISCRIMINATING = np.array([[1.0, -2.0], [2.0, 0.5], [4.0, 7.0], [100.0, -50.0], [9.0, 1.0]], dtype=np.float32)
WEIGHTS = [1.0, 2.0, 3.0, 0.5, 4.0]


def stream(rows: Rows, weights: list[float]) -> npt.NDArray[np.float64]:
    mean = StreamingMean(rows.shape[1])
    for row, weight in zip(rows, weights, strict=True):
        mean.add(row, weight)
    return mean.result()


def exact(rows: Rows, weights: list[float]) -> list[float]:
    """Weighted mean in rational numbers: an oracle without rounding."""
    total = sum(map(Fraction, weights))
    return [
        float(
            sum(
                Fraction(weight) * Fraction(float(row[column]))
                for row, weight in zip(rows, weights, strict=True)
            )
            / total
        )
        for column in range(rows.shape[1])
    ]


finite = st.floats(-1e6, 1e6, width=32)
matrices = hnp.arrays(np.float32, st.tuples(st.integers(1, 8), st.integers(1, 5)), elements=finite)


def test_the_mean_of_a_hand_computed_table() -> None:
    # column 0: (1 + 4 + 12 + 50 + 36) / 10.5; column 1: (-2 + 1 + 21 - 25 + 4) / 10.5
    assert stream(DISCRIMINATING, WEIGHTS) == pytest.approx([103 / 10.5, -1 / 10.5], rel=1e-15)


def test_the_table_tells_the_weighted_mean_from_other_centres() -> None:
    answers = [
        stream(DISCRIMINATING, WEIGHTS),
        DISCRIMINATING.mean(axis=0),
        np.median(DISCRIMINATING, axis=0),
        np.sort(DISCRIMINATING, axis=0)[1:-1].mean(axis=0),
        DISCRIMINATING.sum(axis=0),
    ]
    for column in range(2):
        assert len({round(float(answer[column]), 6) for answer in answers}) == len(answers)


@given(rows=matrices, data=st.data())
def test_the_streaming_mean_is_the_rational_mean_to_float64_rounding(rows: Rows, data: st.DataObject) -> None:
    weights = data.draw(st.lists(st.floats(1e-3, 1e3), min_size=len(rows), max_size=len(rows)))
    largest = max(1.0, float(np.abs(rows).max()))
    assert stream(rows, weights) == pytest.approx(exact(rows, weights), abs=1e-14 * largest)
    assert weighted_mean(rows, np.array(weights)) == pytest.approx(exact(rows, weights), abs=1e-14 * largest)


def test_every_element_counts_where_the_vector_spans_blocks() -> None:
    size = 2 * BLOCK + 7
    rng = np.random.default_rng(3)
    rows = rng.standard_normal((3, size)).astype(np.float32)
    assert np.allclose(
        stream(rows, [1.0, 2.0, 3.5]), weighted_mean(rows, np.array([1.0, 2.0, 3.5])), rtol=0, atol=1e-15
    )


@given(rows=matrices, seed=st.integers(0, 99))
def test_the_order_of_updates_matters_only_to_rounding(rows: Rows, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(rows))
    weights = np.linspace(1, 2, len(rows))
    assert np.allclose(
        stream(rows, list(weights)), stream(rows[order], list(weights[order])), rtol=1e-13, atol=1e-8
    )


@given(rows=matrices, shift=st.integers(-1000, 1000))
def test_the_mean_moves_with_its_updates(rows: Rows, shift: int) -> None:
    small = np.round(rows).astype(np.float32)  # whole numbers: adding a whole shift is exact in float32
    weights = list(np.linspace(1, 2, len(rows)))
    assert np.allclose(
        stream(small + np.float32(shift), weights), stream(small, weights) + shift, rtol=1e-12, atol=1e-8
    )


@given(rows=matrices, power=st.integers(-10, 10))
def test_the_mean_scales_with_its_updates(rows: Rows, power: int) -> None:
    # A power of two scales without rounding, so the answer is equal to the bit (but for float32's subnormal numbers).
    rows = np.where(np.abs(rows) < 1e-30, np.float32(0), rows)
    weights = list(np.linspace(1, 2, len(rows)))
    assert np.array_equal(stream(rows * np.float32(2.0**power), weights), stream(rows, weights) * 2.0**power)


@given(rows=matrices, scale=st.floats(1e-50, 1e50))
def test_only_the_ratio_of_the_weights_counts(rows: Rows, scale: float) -> None:
    weights = np.linspace(1, 2, len(rows))
    assert np.allclose(
        stream(rows, list(weights * scale)), stream(rows, list(weights)), rtol=1e-12, atol=1e-8
    )


def test_one_update_of_weight_one_comes_back_to_the_bit() -> None:
    row = np.random.default_rng(5).standard_normal(1000).astype(np.float32)
    mean = StreamingMean(1000)
    mean.add(row)
    assert np.array_equal(mean.result(), row.astype(np.float64))


def test_the_same_calls_give_the_same_bits() -> None:
    rows = np.random.default_rng(6).standard_normal((20, 333)).astype(np.float32)
    weights = list(np.random.default_rng(7).uniform(1, 2, 20))
    assert stream(rows, weights).tobytes() == stream(rows, weights).tobytes()


def test_sums_are_float64_where_float32_would_lose_an_update() -> None:
    # In float32, 1e8 + 1 is 1e8.
    rows = np.array([[1e8], [1.0], [-1e8]], dtype=np.float32)
    assert stream(rows, [1.0, 1.0, 1.0]) == pytest.approx([1 / 3], rel=1e-9)


def test_float32s_largest_values_do_not_overflow() -> None:
    largest = np.finfo(np.float32).max
    rows = np.full((4, 1), largest, dtype=np.float32)
    assert stream(rows, [1e90] * 4) == pytest.approx([float(largest)])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, BLOCK + 4])
def test_a_value_that_is_not_finite_is_refused_and_nothing_is_added(bad: float, place: int) -> None:
    mean = StreamingMean(BLOCK + 5)
    mean.add(np.ones(BLOCK + 5, dtype=np.float32))
    poisoned = np.full(BLOCK + 5, 7, dtype=np.float32)
    poisoned[place] = bad
    with pytest.raises(ValueError, match="not finite"):
        mean.add(poisoned)
    assert mean.count == 1
    assert np.array_equal(mean.result(), np.ones(BLOCK + 5))


@pytest.mark.parametrize("weight", [0.0, -1.0, np.nan, np.inf, -np.inf, 1e-101, 1e101, 5e-324])
def test_a_weight_that_is_not_a_positive_number_is_refused_by_value(weight: float) -> None:
    mean = StreamingMean(2)
    with pytest.raises(ValueError, match="weight = "):
        mean.add(np.ones(2, dtype=np.float32), weight)
    assert mean.count == 0


@pytest.mark.parametrize(
    "vector",
    [
        np.ones(3, np.float32),
        np.ones((2, 1), np.float32),
        np.ones(2),
        np.ones(2, np.float16),
        np.ones(2, np.int32),
    ],
)
def test_another_shape_or_type_is_refused(vector: npt.NDArray[np.float32]) -> None:
    with pytest.raises(ValueError, match=r"expected a float32 vector of shape \(2,\)"):
        StreamingMean(2).add(vector)


def test_no_update_has_no_mean() -> None:
    with pytest.raises(ValueError, match="no update"):
        StreamingMean(2).result()


@pytest.mark.parametrize("size", [0, -1])
def test_a_vector_without_elements_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match=f"size = {size}"):
        StreamingMean(size)


def test_the_result_does_not_change_when_more_is_added() -> None:
    mean = StreamingMean(2)
    mean.add(np.zeros(2, np.float32))
    before = mean.result()
    mean.add(np.full(2, 4, np.float32))
    assert np.array_equal(before, [0, 0])
    assert np.array_equal(mean.result(), [2, 2])


def test_memory_does_not_grow_with_the_number_of_updates() -> None:
    size = 8 * BLOCK
    row = np.ones(size, dtype=np.float32)
    mean = StreamingMean(size)
    mean.add(row, 1.5)
    tracemalloc.start()
    for _ in range(30):
        mean.add(row, 1.5)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < BLOCK * 8  # not even one block's worth, let alone a vector


@pytest.mark.parametrize(
    ("updates", "weights"),
    [
        (np.empty((0, 2), np.float32), np.empty(0)),
        (np.ones(2, np.float32), np.ones(2)),
        (np.ones((2, 2), np.float32), np.ones(3)),
        (np.array([[np.nan]], np.float32), np.ones(1)),
        (np.ones((1, 1), np.float32), np.zeros(1)),
        (np.ones((1, 1), np.float32), np.array([np.inf])),
    ],
)
def test_the_plain_formula_refuses_the_same(updates: Rows, weights: npt.NDArray[np.float64]) -> None:
    with pytest.raises(ValueError):
        weighted_mean(updates, weights)


def test_the_federation_file_names_the_rule() -> None:
    rule = rule_from(Aggregation(rule="mean"))
    assert isinstance(rule, Rule)
    assert isinstance(rule, Mean)
    accumulator = rule.start(2)
    assert isinstance(accumulator, Accumulator)
    accumulator.add(np.array([1, 3], np.float32), 1.0)
    accumulator.add(np.array([5, 5], np.float32), 3.0)
    assert np.array_equal(accumulator.result(), [4, 4.5])


def test_a_rule_that_slipped_past_the_federation_file_is_refused_by_name() -> None:
    with pytest.raises(SpecError, match="'men'"):
        rule_from(Aggregation.model_construct(rule="men"))
