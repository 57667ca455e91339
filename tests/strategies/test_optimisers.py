"""Server optimisers: hand-computed steps, a slow scalar loop, and Flower's own strategies where the two agree."""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
from flwr.app import ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdagrad as FlowerFedAdagrad
from flwr.serverapp.strategy import FedAdam as FlowerFedAdam
from flwr.serverapp.strategy import FedAvg as FlowerFedAvg
from flwr.serverapp.strategy import FedAvgM as FlowerFedAvgM
from flwr.serverapp.strategy import FedYogi as FlowerFedYogi
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloister.core.errors import IntegrityError, SpecError
from cloister.core.spec import ServerOptimizer
from cloister.core.update import Vector
from cloister.strategies.mean import Direction
from cloister.strategies.optimisers import (
    FedAdagrad,
    FedAdam,
    FedAvg,
    FedAvgM,
    FedYogi,
    OptimiserState,
    ServerOptimiser,
    optimiser_from,
)

ALL: list[ServerOptimiser] = [
    FedAvg(lr=0.7),
    FedAvgM(lr=0.7, momentum=0.5),
    FedAdagrad(lr=0.7, beta1=0.5, tau=0.1),
    FedAdam(lr=0.7, beta1=0.5, beta2=0.75, tau=0.1),
    FedYogi(lr=0.7, beta1=0.5, beta2=0.75, tau=0.1),
]
by_name = pytest.mark.parametrize("optimiser", ALL, ids=lambda optimiser: optimiser.name)


def scalar_run(
    name: str, x: float, deltas: list[float], *, lr: float, b1: float, b2: float, tau: float
) -> float:
    """One coordinate by plain Python floats, written from the paper's Algorithm 2 and rounded to float32 once a round."""
    m, v = 0.0, tau * tau
    for delta in deltas:
        if name == "fedavg":
            x = x + lr * delta
        elif name == "fedavgm":
            m = b1 * m + delta
            x = x + lr * m
        else:
            m = b1 * m + (1 - b1) * delta
            square = delta * delta
            if name == "fedadagrad":
                v = v + square
            elif name == "fedadam":
                v = b2 * v + (1 - b2) * square
            elif v > square:
                v = v - (1 - b2) * square
            elif v < square:
                v = v + (1 - b2) * square
            x = x + lr * m / (math.sqrt(v) + tau)
        x = float(np.float32(x))
    return x


def run(
    optimiser: ServerOptimiser, model: Vector, deltas: npt.NDArray[np.float64]
) -> tuple[Vector, OptimiserState]:
    state = optimiser.start(len(model))
    for delta in deltas:
        model, state = optimiser.step(model, delta, state)
    return model, state


def test_hand_computed_second_steps() -> None:
    # x = 1, Δ = 0.5 then 1; η = 1, β = β1 = 0.5, β2 = 0.75, τ = 0.5 (v starts at 0.25).
    model, deltas = np.ones(1, np.float32), np.array([[0.5], [1.0]])
    expected = {
        "fedavg": 1 + 0.5 + 1,
        "fedavgm": 1 + 0.5 + (0.25 + 1),
        # m: 0.25, 0.625; v: 0.5, 1.5
        "fedadagrad": 1 + 0.25 / (math.sqrt(0.5) + 0.5) + 0.625 / (math.sqrt(1.5) + 0.5),
        # v: 0.75 * 0.25 + 0.25 * 0.25 = 0.25, then 0.75 * 0.25 + 0.25 = 0.4375
        "fedadam": 1 + 0.25 / (0.5 + 0.5) + 0.625 / (math.sqrt(0.4375) + 0.5),
        # v: equal to Δ², so sign is 0 and v stays 0.25; then 0.25 + 0.25 = 0.5
        "fedyogi": 1 + 0.25 / (0.5 + 0.5) + 0.625 / (math.sqrt(0.5) + 0.5),
    }
    optimisers: list[ServerOptimiser] = [
        FedAvg(lr=1.0),
        FedAvgM(lr=1.0, momentum=0.5),
        FedAdagrad(lr=1.0, beta1=0.5, tau=0.5),
        FedAdam(lr=1.0, beta1=0.5, beta2=0.75, tau=0.5),
        FedYogi(lr=1.0, beta1=0.5, beta2=0.75, tau=0.5),
    ]
    for optimiser in optimisers:
        following, _ = run(optimiser, model, deltas)
        assert following[0] == pytest.approx(expected[optimiser.name], rel=1e-6)
    assert len({round(value, 6) for value in expected.values()}) == len(expected)


@by_name
@given(
    deltas=hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(4)), elements=st.floats(-10, 10)),
    start=st.floats(-5, 5, width=32),
)
def test_every_optimiser_is_the_slow_loop(
    optimiser: ServerOptimiser, deltas: npt.NDArray[np.float64], start: float
) -> None:
    following, _ = run(optimiser, np.full(4, start, np.float32), deltas)
    expected = [
        scalar_run(optimiser.name, start, list(column), lr=0.7, b1=0.5, b2=0.75, tau=0.1)
        for column in deltas.T
    ]
    assert following == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_on_one_fixture_every_optimiser_answers_differently() -> None:
    deltas = np.array([[0.5, -0.1], [0.2, 0.3], [-0.4, 0.1]])
    answers = [run(optimiser, np.zeros(2, np.float32), deltas)[0] for optimiser in ALL]
    for column in range(2):
        assert len({round(float(answer[column]), 5) for answer in answers}) == len(ALL)


@given(
    model=hnp.arrays(np.float32, 7, elements=st.floats(-1e3, 1e3, width=32)),
    delta=hnp.arrays(np.float64, 7, elements=st.floats(-1e3, 1e3)),
)
def test_fedavg_with_lr_one_is_exactly_the_model_plus_the_mean_update(
    model: Vector, delta: Direction
) -> None:
    following, _ = FedAvg(lr=1.0).step(model, delta, OptimiserState())
    assert np.array_equal(following, (model.astype(np.float64) + delta).astype(np.float32))


def test_fedavgm_without_momentum_is_fedavg() -> None:
    model, deltas = np.ones(3, np.float32), np.random.default_rng(0).standard_normal((4, 3))
    assert np.array_equal(
        run(FedAvgM(lr=0.3, momentum=0.0), model, deltas)[0], run(FedAvg(lr=0.3), model, deltas)[0]
    )


def test_a_zero_direction_moves_only_what_has_momentum() -> None:
    model, deltas = np.ones(1, np.float32), np.array([[0.5], [0.0]])
    for optimiser in ALL:
        after_one = optimiser.step(model, deltas[0], optimiser.start(1))[0]
        assert (run(optimiser, model, deltas)[0][0] != after_one[0]) == (optimiser.name != "fedavg")


@by_name
def test_a_step_leaves_its_arguments_as_they_are(optimiser: ServerOptimiser) -> None:
    model, delta = np.ones(3, np.float32), np.array([1.0, 2.0, 3.0])
    _, state = optimiser.step(model, delta, optimiser.start(3))
    copies = {name: array.copy() for name, array in state.arrays().items()}
    optimiser.step(model, delta, state)
    assert np.array_equal(model, np.ones(3))
    assert np.array_equal(delta, [1, 2, 3])
    assert all(np.array_equal(array, copies[name]) for name, array in state.arrays().items())


@by_name
def test_a_stored_state_goes_on_to_the_same_bits(optimiser: ServerOptimiser) -> None:
    deltas = np.random.default_rng(1).standard_normal((6, 5))
    whole, _ = run(optimiser, np.ones(5, np.float32), deltas)
    half, state = run(optimiser, np.ones(5, np.float32), deltas[:3])
    restored = optimiser.from_arrays({name: array.copy() for name, array in state.arrays().items()}, 5)
    for delta in deltas[3:]:
        half, restored = optimiser.step(half, delta, restored)
    assert whole.tobytes() == half.tobytes()


@by_name
def test_the_state_starts_as_the_paper_says(optimiser: ServerOptimiser) -> None:
    state = optimiser.start(2)
    if state.momentum is not None:
        assert np.array_equal(state.momentum, np.zeros(2))
    if state.variance is not None:
        assert np.array_equal(state.variance, np.full(2, 0.1**2))
    names = {"fedavg": set(), "fedavgm": {"momentum"}}.get(optimiser.name, {"momentum", "variance"})
    assert set(state.arrays()) == names


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"momentum": None}, "arrays"),
        ({"extra": np.zeros(3)}, "arrays"),
        ({"momentum": np.zeros(4)}, "'momentum'"),
        ({"momentum": np.zeros(3, np.float32)}, "'momentum'"),
        ({"variance": np.array([0.0, np.nan, 0.0])}, "'variance'"),
        ({"variance": np.array([0.0, -1e-9, 0.0])}, "negative"),
    ],
)
def test_a_stored_state_that_does_not_fit_is_refused(change: dict[str, Any], word: str) -> None:
    optimiser = FedAdam()
    arrays = {
        name: array for name, array in (optimiser.start(3).arrays() | change).items() if array is not None
    }
    with pytest.raises(IntegrityError, match=word) as refused:
        optimiser.from_arrays(arrays, 3)
    assert refused.value.remedy


def test_another_optimisers_state_is_refused() -> None:
    with pytest.raises(ValueError, match="fedadam"):
        FedAdam().step(np.ones(2, np.float32), np.ones(2), FedAvgM().start(2))
    with pytest.raises(
        IntegrityError, match=r"fedavg has the arrays \['momentum', 'variance'\], not \[\]"
    ) as refused:
        FedAvg().from_arrays(FedAdam().start(2).arrays(), 2)
    assert "began with" in refused.value.remedy


@by_name
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e39])
def test_a_direction_that_no_mean_of_float32_can_have_is_refused(
    optimiser: ServerOptimiser, bad: float
) -> None:
    with pytest.raises(ValueError, match="direction"):
        optimiser.step(np.ones(2, np.float32), np.array([0.0, bad]), optimiser.start(2))


@pytest.mark.parametrize(
    ("model", "direction"),
    [
        (np.ones(2), np.ones(2)),
        (np.ones((2, 1), np.float32), np.ones((2, 1))),
        (np.ones(2, np.float32), np.ones(3)),
        (np.ones(2, np.float32), np.ones(2, np.float32)),
    ],
)
def test_another_shape_or_type_is_refused(model: Vector, direction: Direction) -> None:
    with pytest.raises(ValueError, match="expected"):
        FedAvg().step(model, direction, OptimiserState())


def test_a_step_out_of_float32s_range_names_the_remedy() -> None:
    with pytest.raises(SpecError, match="left float32's range") as refused:
        FedAvg(lr=1e300).step(np.ones(2, np.float32), np.ones(2), OptimiserState())
    assert refused.value.code == "diverged"
    assert "lr" in refused.value.remedy


@pytest.mark.parametrize(
    "make",
    [
        lambda: FedAvg(lr=0.0),
        lambda: FedAvg(lr=math.nan),
        lambda: FedAvgM(momentum=1.0),
        lambda: FedAvgM(momentum=-0.1),
        lambda: FedAdam(beta1=1.0),
        lambda: FedAdam(beta2=1.0),
        lambda: FedYogi(beta2=-0.1),
        lambda: FedAdagrad(tau=0.0),
        lambda: FedAdagrad(tau=math.inf),
    ],
)
def test_a_setting_out_of_range_is_refused(make: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        make()


def test_the_federation_file_reaches_every_field() -> None:
    def table(name: Literal["fedavg", "fedavgm", "fedadagrad", "fedadam", "fedyogi"]) -> ServerOptimizer:
        return ServerOptimizer(name=name, lr=0.2, momentum=0.3, beta1=0.4, beta2=0.5, tau=0.6)

    assert optimiser_from(table("fedavg")) == FedAvg(lr=0.2)
    assert optimiser_from(table("fedavgm")) == FedAvgM(lr=0.2, momentum=0.3)
    assert optimiser_from(table("fedadagrad")) == FedAdagrad(lr=0.2, beta1=0.4, tau=0.6)
    assert optimiser_from(table("fedadam")) == FedAdam(lr=0.2, beta1=0.4, beta2=0.5, tau=0.6)
    assert optimiser_from(table("fedyogi")) == FedYogi(lr=0.2, beta1=0.4, beta2=0.5, tau=0.6)
    assert optimiser_from(ServerOptimizer()) == FedAvg(lr=1.0)


# Flower's own strategies as second oracle ------------------------------------------------------------------------------------


class _Nodes:
    """The one thing that a Flower strategy asks of its Grid here: who is there."""

    def get_node_ids(self) -> list[int]:
        return [1, 2]


def flower_run(
    strategy: FlowerFedAvg, model: Vector, deltas: npt.NDArray[np.float64]
) -> list[npt.NDArray[np.float64]]:
    """Feed Flower's strategy two equal clients a round whose models are its own plus Δ; return its models, in float64."""
    arrays = ArrayRecord([model.astype(np.float64)])
    models = []
    for number, delta in enumerate(deltas, start=1):
        list(strategy.configure_train(number, arrays, ConfigRecord(), _Nodes()))  # type: ignore[arg-type]  # only asked for node ids
        trained = ArrayRecord([arrays.to_numpy_ndarrays()[0] + delta])
        replies = []
        for node in (1, 2):
            asked = Message(RecordDict(), dst_node_id=node, message_type="train")
            replies.append(
                Message(
                    RecordDict({"arrays": trained, "metrics": MetricRecord({"num-examples": 1})}),
                    reply_to=asked,
                )
            )
        aggregated, _ = strategy.aggregate_train(number, replies)
        assert aggregated is not None
        arrays = aggregated
        models.append(arrays.to_numpy_ndarrays()[0])
    return models


def our_models(
    optimiser: ServerOptimiser,
    model: Vector,
    deltas: npt.NDArray[np.float64],
    *,
    variance: float | None = None,
) -> list[Vector]:
    state = optimiser.start(len(model))
    if variance is not None:
        state = OptimiserState(momentum=state.momentum, variance=np.full(len(model), variance))
    models = []
    for delta in deltas:
        model, state = optimiser.step(model, delta, state)
        models.append(model)
    return models


MODEL = np.array([0.5, -1.0, 2.0], np.float32)
DELTAS = np.random.default_rng(9).standard_normal((5, 3))


@pytest.mark.usefixtures("flower_task")
class TestAgainstFlower:
    """Flower's variance starts at 0, ours at τ²: the oracle runs ours from 0. Its other differences are named in each test."""

    def test_fedavg_agrees(self) -> None:
        assert np.allclose(
            our_models(FedAvg(lr=1.0), MODEL, DELTAS), flower_run(FlowerFedAvg(), MODEL, DELTAS), rtol=1e-6
        )

    def test_fedavgm_agrees(self) -> None:
        theirs = flower_run(FlowerFedAvgM(server_learning_rate=0.5, server_momentum=0.8), MODEL, DELTAS)
        assert np.allclose(our_models(FedAvgM(lr=0.5, momentum=0.8), MODEL, DELTAS), theirs, rtol=1e-5)

    def test_fedadagrad_agrees_without_momentum_which_flower_has_not(self) -> None:
        theirs = flower_run(FlowerFedAdagrad(eta=0.3, tau=0.05), MODEL, DELTAS)
        assert np.allclose(
            our_models(FedAdagrad(lr=0.3, beta1=0.0, tau=0.05), MODEL, DELTAS, variance=0.0),
            theirs,
            rtol=1e-5,
        )

    def test_fedyogi_agrees(self) -> None:
        theirs = flower_run(FlowerFedYogi(eta=0.3, beta_1=0.6, beta_2=0.8, tau=0.05), MODEL, DELTAS)
        assert np.allclose(
            our_models(FedYogi(lr=0.3, beta1=0.6, beta2=0.8, tau=0.05), MODEL, DELTAS, variance=0.0),
            theirs,
            rtol=1e-5,
        )

    def test_fedadam_agrees_once_flowers_bias_correction_is_undone(self) -> None:
        theirs = flower_run(FlowerFedAdam(eta=0.3, beta_1=0.6, beta_2=0.8, tau=0.05), MODEL, DELTAS)
        # Flower scales η in round t by √(1 - β₂^(t+1)) / (1 - β₁^(t+1)); the paper does not. Do so here by hand.
        model, state = MODEL, OptimiserState(momentum=np.zeros(3), variance=np.zeros(3))
        for number, (delta, their) in enumerate(zip(DELTAS, theirs, strict=True), start=1):
            corrected = 0.3 * math.sqrt(1 - 0.8 ** (number + 1)) / (1 - 0.6 ** (number + 1))
            model, state = FedAdam(lr=corrected, beta1=0.6, beta2=0.8, tau=0.05).step(model, delta, state)
            assert np.allclose(model, their, rtol=1e-5)

    def test_the_paper_and_flower_differ_in_fedadams_first_steps(self) -> None:
        theirs = flower_run(FlowerFedAdam(eta=0.3, beta_1=0.6, beta_2=0.8, tau=0.05), MODEL, DELTAS)
        ours = our_models(FedAdam(lr=0.3, beta1=0.6, beta2=0.8, tau=0.05), MODEL, DELTAS)
        assert not np.allclose(ours[0], theirs[0], rtol=1e-3)
