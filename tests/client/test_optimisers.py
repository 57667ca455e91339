"""Local optimisers: plain SGD is torch's own to the bit, and none carries anything into the next round."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

from cloister.client.optimisers import make_optimiser
from cloister.core.spec import Optimizer

TABLES: list[dict[str, Any]] = [
    {"name": "sgd"},
    {"name": "sgd", "momentum": 0.9, "nesterov": True},
    {"name": "sgd", "weight_decay": 0.1},
    {"name": "adam"},
    {"name": "adamw", "weight_decay": 0.1},
    {"name": "rmsprop", "momentum": 0.5},
]


def model() -> nn.Sequential:
    torch.manual_seed(3)
    made = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Flatten(), nn.Linear(12, 2), nn.Linear(2, 2))
    list(made.parameters())[-1].requires_grad_(False)  # noqa: FBT003
    return made


def gradients(made: nn.Module, step: int) -> None:
    """Leave a gradient at every trainable parameter but one."""
    for number, parameter in enumerate(made.parameters()):
        if parameter.requires_grad and number != 2:
            generator = torch.Generator().manual_seed(10 * step + number)
            parameter.grad = torch.randn(parameter.shape, generator=generator)


def values(made: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in made.parameters()]


def test_plain_sgd_is_torchs_to_the_bit() -> None:
    ours, theirs = model(), model()
    optimiser = make_optimiser(Optimizer(name="sgd", lr=0.3), ours.parameters())
    oracle = torch.optim.SGD(theirs.parameters(), lr=0.07)
    optimiser.begin_round(0.07)
    for step in range(5):
        optimiser.zero_grad()
        assert all(parameter.grad is None for parameter in ours.parameters())
        for made in (ours, theirs):
            gradients(made, step)
        optimiser.step()
        oracle.step()
    assert all(torch.equal(a, b) for a, b in zip(values(ours), values(theirs), strict=True))
    assert not torch.equal(values(ours)[0], values(model())[0])


@pytest.mark.parametrize("table", TABLES, ids=str)
def test_a_round_begins_as_new(table: dict[str, Any]) -> None:
    fresh, used = model(), model()
    optimisers = [make_optimiser(Optimizer(**table), made.parameters()) for made in (fresh, used)]
    optimisers[1].begin_round(0.9)
    for step in range(3):
        gradients(used, step)
        optimisers[1].step()
    used.load_state_dict(model().state_dict())
    for made, optimiser in zip((fresh, used), optimisers, strict=True):
        optimiser.begin_round(0.05)
        for step in range(3):
            gradients(made, 7 + step)
            optimiser.step()
    assert all(torch.equal(a, b) for a, b in zip(values(fresh), values(used), strict=True))
