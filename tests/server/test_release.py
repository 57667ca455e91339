"""The released model: whatever trains can be written, and what cannot is refused before it trains."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from cloister.core.errors import TaskError
from cloister.core.update import Layout
from cloister.server.release import try_model, write_model


class ExtraState(nn.Linear):
    """A module that keeps something that is no tensor."""

    def __init__(self) -> None:
        super().__init__(2, 2)

    def get_extra_state(self) -> dict[str, int]:
        return {"seen": 1}

    def set_extra_state(self, state: object) -> None:
        """Take it back."""


class Views(nn.Linear):
    """A module whose second buffer is a part of the first."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("full", torch.arange(4.0))
        self.register_buffer("part", self.full[:2])  # type: ignore[index]  # a buffer is a tensor


class Tied(nn.Module):
    """Two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(2, 2), nn.Linear(2, 2)
        self.b.weight = self.a.weight


class Expanded(nn.Linear):
    """A buffer of five numbers in the place of one: it cannot be written back."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("e", torch.ones(1).expand(5))


class Sparse(nn.Linear):
    """A buffer that safetensors has no place for."""

    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("s", torch.eye(2, dtype=torch.int64).to_sparse())


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (ExtraState, {"weight", "bias"}),
        (Views, {"weight", "bias", "full", "part"}),
        (Tied, {"a.weight", "a.bias", "b.bias"}),
    ],
)
def test_a_model_that_can_be_trained_can_be_written_and_read(
    tmp_path: Path, make: Callable[[], nn.Module], names: set[str]
) -> None:
    model = make()
    layout = Layout.of(model)
    try_model(model, layout)
    vector = layout.read(model)
    write_model(tmp_path / "m.safetensors", model, layout, vector, {"rounds": 1})
    found = load_file(tmp_path / "m.safetensors")
    assert set(found) == names
    for name, tensor in found.items():
        assert torch.equal(tensor, model.state_dict()[name])


def test_trying_a_model_does_not_change_it() -> None:
    model = Views()
    layout = Layout.of(model)
    before = layout.read(model)
    try_model(model, layout)
    np.testing.assert_array_equal(layout.read(model), before)


@pytest.mark.parametrize("make", [Expanded, Sparse])
def test_a_model_that_cannot_be_written_is_refused_before_training(make: Callable[[], nn.Module]) -> None:
    model = make()
    layout = Layout(Layout.of(nn.Linear(2, 2)).entries, "") if make is Sparse else Layout.of(model)
    with pytest.raises(TaskError, match="cannot be written") as refused:
        try_model(model, layout)
    assert refused.value.remedy
