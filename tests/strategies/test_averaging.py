"""A running mean of the rounds' models, against NumPy's mean and a loop."""

from __future__ import annotations

import numpy as np
import pytest

from cloister.strategies.averaging import RunningMean

MODELS = np.random.default_rng(1).standard_normal((12, 5)).astype(np.float32)


def mean_of(rounds: int, count: int = len(MODELS)) -> RunningMean:
    mean = RunningMean.start(np.full(5, 1e6, dtype=np.float32))
    for number, model in enumerate(MODELS[:count], start=1):
        mean = mean.after(model, round_number=number, rounds=rounds)
    return mean


def test_until_round_k_it_is_the_plain_mean_and_what_the_model_began_as_has_no_weight() -> None:
    for count in range(1, 9):
        np.testing.assert_allclose(
            mean_of(8, count).mean, MODELS[:count].mean(axis=0, dtype=float), atol=1e-9
        )
    np.testing.assert_allclose(mean_of(99).mean, MODELS.mean(axis=0, dtype=float), atol=1e-9)


def test_from_then_on_it_forgets_by_one_over_k_a_round() -> None:
    weights = np.array([0.75**8] * 1 + [0.25 * 0.75 ** (11 - t) for t in range(4, 12)])
    first = MODELS[:4].mean(axis=0, dtype=float)
    expected = weights[0] * first + weights[1:] @ MODELS[4:].astype(float)
    np.testing.assert_allclose(mean_of(4).mean, expected, atol=1e-9)


def test_over_one_round_it_is_the_round_s_model() -> None:
    assert np.array_equal(mean_of(1).model(), MODELS[-1])


def test_it_leaves_as_float32_and_is_kept_as_float64() -> None:
    assert mean_of(3).model().dtype == np.float32
    assert mean_of(3).mean.dtype == np.float64


@pytest.mark.parametrize("rounds", [1, 3])
def test_the_mean_before_is_left_as_it_was(rounds: int) -> None:
    before = mean_of(rounds, 5)
    kept = before.mean.copy()
    before.after(MODELS[6], round_number=6, rounds=rounds)
    assert np.array_equal(before.mean, kept)
