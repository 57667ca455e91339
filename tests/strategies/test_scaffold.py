"""SCAFFOLD: the algorithm's lines by hand, its invariant, and its reason: no drift where sites disagree."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.core.errors import IntegrityError
from cloister.core.update import Vector
from cloister.strategies.mean import StreamingMean
from cloister.strategies.scaffold import (
    ScaffoldState,
    client_control,
    correction,
    server_control,
    server_step,
)


def f32(*values: float) -> Vector:
    return np.array(values, dtype=np.float32)


def test_the_correction_is_the_servers_control_minus_the_clients() -> None:
    assert np.array_equal(correction(f32(1, 2), f32(0.5, -1)), f32(0.5, 3))


def test_the_clients_control_by_hand() -> None:
    # c_i - c + (x - y) / (K lr) = 1 - 0.25 + (2 - 1) / (4 * 0.5) = 1.25
    following, change = client_control(
        client=f32(1), server=f32(0.25), start=f32(2), end=f32(1), steps=4, lr=0.5
    )
    assert following[0] == 1.25
    assert change[0] == 0.25
    assert following.dtype == change.dtype == np.float32


def test_with_full_gradients_option_two_recovers_the_mean_gradient_of_the_path() -> None:
    # y = x - lr Σ (g_k - c_i + c), so c_i⁺ = mean of g_k: for a linear loss, exactly the gradient.
    gradient, client, server = f32(3, -1), f32(0.5, 2), f32(1, 1)
    start = end = f32(0, 0)
    for _ in range(5):
        end = end - np.float32(0.1) * (gradient + correction(server, client))
    following, _ = client_control(client=client, server=server, start=start, end=end, steps=5, lr=0.1)
    assert np.allclose(following, gradient, atol=1e-5)


def test_the_server_step_by_hand() -> None:
    state = ScaffoldState(control=np.array([1.0]))
    model, following = server_step(
        f32(2), np.array([0.5]), state, np.array([4.0]), cohort=2, population=8, lr=0.5
    )
    assert model[0] == 2.25
    assert following.control[0] == 1 + 2 / 8 * 4
    assert state.control[0] == 1.0


def quadratic_sites(seed: int) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Two sites with losses ½ h_i (w - t_i)² of different curvature: local steps drift to their own optima."""
    rng = np.random.default_rng(seed)
    return rng.uniform(0.5, 3, size=(2, 3)), rng.uniform(-2, 2, size=(2, 3))


def federate(
    curvature: npt.NDArray[np.float64], target: npt.NDArray[np.float64], *, scaffold: bool, rounds: int = 300
) -> Vector:
    sites, size, steps, lr = *curvature.shape, 10, 0.05
    model, state = np.zeros(size, np.float32), ScaffoldState.start(size)
    controls = [np.zeros(size, np.float32) for _ in range(sites)]
    for _ in range(rounds):
        updates, changes = StreamingMean(size), StreamingMean(size)
        for site in range(sites):
            local = model.copy()
            pull = correction(state.sent(), controls[site]) if scaffold else np.zeros(size, np.float32)
            for _ in range(steps):
                local = local - np.float32(lr) * (
                    (curvature[site] * (local - target[site])).astype(np.float32) + pull
                )
            controls[site], change = client_control(
                client=controls[site], server=state.sent(), start=model, end=local, steps=steps, lr=lr
            )
            updates.add(local - model)
            changes.add(change)
        model, state = server_step(
            model, updates.result(), state, changes.result(), cohort=sites, population=sites
        )
    return model


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_scaffold_reaches_the_optimum_that_plain_averaging_misses(seed: int) -> None:
    curvature, target = quadratic_sites(seed)
    optimum = (curvature * target).sum(axis=0) / curvature.sum(axis=0)
    drift = np.abs(federate(curvature, target, scaffold=False) - optimum).max()
    ours = np.abs(federate(curvature, target, scaffold=True) - optimum).max()
    assert ours < 1e-4
    assert drift > 1e-2


@given(seed=st.integers(0, 1000), population=st.integers(1, 6), rounds=st.integers(1, 5))
def test_the_servers_control_stays_the_mean_of_all_the_clients(
    seed: int, population: int, rounds: int
) -> None:
    rng = np.random.default_rng(seed)
    state = ScaffoldState.start(4)
    controls = [np.zeros(4, np.float32) for _ in range(population)]
    for _ in range(rounds):
        cohort = rng.choice(population, size=rng.integers(1, population + 1), replace=False)
        changes = StreamingMean(4)
        start = rng.standard_normal(4).astype(np.float32)
        for site in cohort:
            end = rng.standard_normal(4).astype(np.float32)
            controls[site], change = client_control(
                client=controls[site], server=state.sent(), start=start, end=end, steps=3, lr=0.5
            )
            changes.add(change)
        state = server_control(state, changes.result(), cohort=len(cohort), population=population)
    assert np.allclose(state.control, np.mean(controls, axis=0), atol=1e-5)


def test_the_functions_work_on_arrays_of_any_shape() -> None:
    rng = np.random.default_rng(0)
    client, server, start, end = (rng.standard_normal((2, 3)).astype(np.float32) for _ in range(4))
    whole = client_control(client=client, server=server, start=start, end=end, steps=2, lr=0.1)
    flat = client_control(
        client=client.ravel(), server=server.ravel(), start=start.ravel(), end=end.ravel(), steps=2, lr=0.1
    )
    assert all(np.array_equal(one.ravel(), two) for one, two in zip(whole, flat, strict=True))
    assert correction(server, client).shape == (2, 3)


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"steps": 0}, "steps = 0"),
        ({"lr": 0.0}, "lr = 0"),
        ({"lr": -1.0}, "lr = -1"),
        ({"lr": np.nan}, "lr = nan"),
        ({"end": f32(1, 2, 3)}, "one shape"),
        ({"end": f32(np.nan, 0)}, "diverged"),
        ({"end": f32(3e38, 0), "lr": 1e-9}, "diverged"),
    ],
)
def test_a_control_that_cannot_be_computed_is_refused(change: dict[str, Any], word: str) -> None:
    good: dict[str, Any] = {
        "client": f32(0, 0),
        "server": f32(0, 0),
        "start": f32(0, 0),
        "end": f32(0, 0),
        "steps": 1,
        "lr": 1.0,
    }
    with pytest.raises(ValueError, match=word):
        client_control(**(good | change))


@pytest.mark.parametrize(("cohort", "population"), [(0, 5), (6, 5), (-1, 5)])
def test_a_cohort_larger_than_its_population_is_refused(cohort: int, population: int) -> None:
    with pytest.raises(ValueError, match="cohort"):
        server_control(ScaffoldState.start(1), np.ones(1), cohort=cohort, population=population)


def test_a_poisoned_change_is_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        server_control(ScaffoldState.start(1), np.array([np.nan]), cohort=1, population=1)
    with pytest.raises(ValueError, match="one shape"):
        server_control(ScaffoldState.start(1), np.ones(2), cohort=1, population=1)
    with pytest.raises(ValueError, match="one shape"):
        correction(f32(1), f32(1, 2))


def test_a_stored_control_comes_back_and_another_is_refused() -> None:
    state = ScaffoldState(control=np.array([1.0, 2.0]))
    assert np.array_equal(ScaffoldState.from_arrays(state.arrays(), 2).control, state.control)
    stored: list[dict[str, Any]] = [
        {},
        {"momentum": np.zeros(2)},
        {"control": np.zeros(3)},
        {"control": np.zeros(2, np.float32)},
        {"control": np.array([np.inf, 0])},
    ]
    for arrays in stored:
        with pytest.raises(IntegrityError) as refused:
            ScaffoldState.from_arrays(arrays, 2)
        assert refused.value.remedy
