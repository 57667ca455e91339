"""The learning rate's factor: torch's own schedulers are the oracle, stepped one round at a time."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim import Optimizer, lr_scheduler

from cloister.core.schedule import learning_rate_factor
from cloister.core.spec import Schedule

ROUNDS = 23
SCHEDULES = {
    "constant": Schedule(name="constant"),
    "step": Schedule(name="step", every=4, gamma=0.5),
    "exponential": Schedule(name="exponential", gamma=0.9),
    "cosine": Schedule(name="cosine", floor=0.1),
    "cosine to nothing": Schedule(name="cosine"),
}


# The same schedules in torch's words: n is the number of rounds after the warm-up.
TORCH: dict[str, Callable[[Optimizer, int], lr_scheduler.LRScheduler]] = {
    "constant": lambda optimizer, n: lr_scheduler.LambdaLR(optimizer, lambda _: 1.0),
    "step": lambda optimizer, n: lr_scheduler.StepLR(optimizer, 4, 0.5),
    "exponential": lambda optimizer, n: lr_scheduler.ExponentialLR(optimizer, 0.9),
    "cosine": lambda optimizer, n: lr_scheduler.CosineAnnealingLR(optimizer, n, eta_min=0.1),
    "cosine to nothing": lr_scheduler.CosineAnnealingLR,
}


def torch_factors(name: str, warmup: int) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = TORCH[name](optimizer, ROUNDS - warmup)
    if warmup:
        warm = lr_scheduler.LinearLR(optimizer, 1 / (warmup + 1), 1.0, warmup)
        scheduler = lr_scheduler.SequentialLR(optimizer, [warm, scheduler], [warmup])
    factors = []
    for _ in range(ROUNDS):
        factors.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        with warnings.catch_warnings():
            warnings.filterwarnings(
                "ignore", message="The epoch parameter", category=UserWarning
            )  # torch's own SequentialLR
            scheduler.step()
    return factors


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("name", SCHEDULES)
def test_every_schedule_is_torchs_round_by_round(name: str, warmup: int) -> None:
    schedule = SCHEDULES[name].model_copy(update={"warmup": warmup})
    ours = [learning_rate_factor(schedule, number, ROUNDS) for number in range(1, ROUNDS + 1)]
    assert ours == pytest.approx(torch_factors(name, warmup), rel=1e-12)


def test_the_schedules_differ_from_one_another() -> None:
    answers = {name: learning_rate_factor(schedule, 7, ROUNDS) for name, schedule in SCHEDULES.items()}
    assert len(set(answers.values())) == len(answers)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_first_round_after_the_warm_up_has_factor_one(name: str) -> None:
    for warmup in (0, 3):
        schedule = SCHEDULES[name].model_copy(update={"warmup": warmup})
        assert learning_rate_factor(schedule, warmup + 1, ROUNDS) == 1.0


def test_the_warm_up_rises_in_equal_steps() -> None:
    schedule = Schedule(warmup=4)
    assert [learning_rate_factor(schedule, number, 9) for number in range(1, 7)] == pytest.approx(
        [0.2, 0.4, 0.6, 0.8, 1.0, 1.0]
    )


def test_a_warm_up_longer_than_the_run_never_reaches_one() -> None:
    assert [learning_rate_factor(Schedule(warmup=9), number, 3) for number in (1, 2, 3)] == pytest.approx(
        [0.1, 0.2, 0.3]
    )


def test_a_step_drops_after_every_so_many_rounds() -> None:
    schedule = Schedule(name="step", every=2, gamma=0.1)
    assert [learning_rate_factor(schedule, number, 5) for number in range(1, 6)] == pytest.approx(
        [1, 1, 0.1, 0.1, 0.01]
    )


def test_cosine_ends_just_above_its_floor_and_wastes_no_round() -> None:
    factors = [learning_rate_factor(Schedule(name="cosine"), number, 3) for number in (1, 2, 3)]
    assert factors == pytest.approx([1.0, 0.75, 0.25])
    last = learning_rate_factor(Schedule(name="cosine", floor=0.2), 500, 500)
    assert 0.2 < last < 0.2001


@pytest.mark.parametrize(
    "schedule",
    [
        Schedule(name="cosine", floor=1.0),
        Schedule(name="step", every=1, gamma=1.0),
        Schedule(name="exponential", gamma=1.0),
        Schedule(),
    ],
)
def test_a_schedule_that_cannot_fall_stays_at_one(schedule: Schedule) -> None:
    assert {learning_rate_factor(schedule, number, 6) for number in range(1, 7)} == {1.0}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_run_of_one_round_has_factor_one(name: str) -> None:
    assert learning_rate_factor(SCHEDULES[name], 1, 1) == 1.0


@pytest.mark.parametrize("number", [0, -1, 6])
def test_a_round_outside_the_run_is_refused_by_number(number: int) -> None:
    with pytest.raises(ValueError, match=rf"round {number} does not lie between 1 and 5"):
        learning_rate_factor(Schedule(), number, 5)


@given(
    name=st.sampled_from(["constant", "step", "exponential", "cosine"]),
    rounds=st.integers(1, 200),
    warmup=st.integers(0, 20),
    gamma=st.floats(0.1, 1),
    floor=st.floats(0, 1),
    data=st.data(),
)
def test_the_factor_is_positive_at_most_one_and_never_rises_after_the_warm_up(
    name: Literal["constant", "step", "exponential", "cosine"],
    rounds: int,
    warmup: int,
    gamma: float,
    floor: float,
    data: st.DataObject,
) -> None:
    schedule = Schedule(
        name=name,
        warmup=warmup,
        every=3 if name == "step" else None,
        gamma=gamma if name in ("step", "exponential") else None,
        floor=floor,
    )
    number = data.draw(st.integers(1, rounds))
    factor = learning_rate_factor(schedule, number, rounds)
    assert 0 < factor <= 1
    if warmup < number < rounds:
        assert learning_rate_factor(schedule, number + 1, rounds) <= factor
