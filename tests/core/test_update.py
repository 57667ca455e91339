"""A model as one flat vector."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from cloister.core.errors import TaskError
from cloister.core.update import Layout, Update


class Everything(nn.Module):
    """One tensor of every kind that the layout tells apart."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.arange(6.0).reshape(2, 3))
        self.tied = self.weight
        self.brain = nn.Parameter(torch.tensor([0.5, 0.25], dtype=torch.bfloat16))
        self.wide = nn.Parameter(torch.tensor([1 / 3], dtype=torch.float64))
        self.scalar = nn.Parameter(torch.tensor(7.0))
        self.empty = nn.Parameter(torch.zeros(0, 4))
        self.frozen = nn.Parameter(torch.tensor([8.0, 9.0]), requires_grad=False)
        self.register_buffer("mean", torch.tensor(10.0))
        self.register_buffer("counter", torch.tensor(11))
        self.register_buffer("mask", torch.tensor([True, False]))
        self.register_buffer("scratch", torch.tensor([12.0]), persistent=False)


def kinds(model: nn.Module) -> dict[str, str]:
    return {entry.name: entry.kind for entry in Layout.of(model).entries}


class TestWhatIsInTheVector:
    def test_each_tensor_is_averaged_or_fixed_on_purpose(self) -> None:
        assert kinds(Everything()) == {
            "weight": "averaged",
            "brain": "averaged",
            "wide": "averaged",
            "scalar": "averaged",
            "empty": "averaged",
            "frozen": "fixed",
            "mean": "averaged",
            "counter": "fixed",
            "mask": "fixed",
        }

    def test_the_vector_holds_the_averaged_tensors_in_the_model_s_order_as_float32(self) -> None:
        model = Everything()
        layout = Layout.of(model)
        vector = layout.read(model)
        assert vector.dtype == np.float32
        assert vector.tolist() == [0, 1, 2, 3, 4, 5, 0.5, 0.25, np.float32(1 / 3), 7, 10]
        assert layout.size == 11

    def test_a_tied_parameter_is_held_once_and_stays_tied(self) -> None:
        model = nn.Sequential(nn.Linear(3, 3, bias=False), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        layout = Layout.of(model)
        assert layout.size == 9
        layout.write(model, np.arange(9, dtype=np.float32))
        assert model[1].weight is model[0].weight
        assert layout.read(model).tolist() == list(range(9))

    def test_a_zero_dimensional_buffer_is_one_number(self) -> None:
        layout = Layout.of(Everything())
        entry = next(entry for entry in layout.entries if entry.name == "mean")
        assert (entry.shape, entry.size) == ((), 1)

    def test_a_buffer_that_is_not_saved_is_not_sent(self) -> None:
        assert "scratch" not in kinds(Everything())

    def test_split_gives_each_averaged_tensor_by_name_in_its_shape_without_a_copy(self) -> None:
        model = Everything()
        layout = Layout.of(model)
        vector = layout.read(model)
        pieces = layout.split(vector)
        assert {name: piece.shape for name, piece in pieces.items()} == {
            "weight": (2, 3),
            "brain": (2,),
            "wide": (1,),
            "scalar": (),
            "empty": (0, 4),
            "mean": (),
        }
        pieces["weight"][0, 0] = 42
        assert vector[0] == 42


class TestRoundTrip:
    @given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=11, max_size=11))
    def test_what_is_written_is_read_again_to_the_bit_where_the_type_holds_float32(
        self, values: list[float]
    ) -> None:
        model = Everything()
        layout = Layout.of(model)
        vector = np.array(values, dtype=np.float32)
        layout.write(model, vector)
        again = layout.read(model)
        exact = np.ones(11, dtype=bool)
        exact[6:8] = False
        assert np.array_equal(again[exact], vector[exact])
        rounded = torch.from_numpy(vector[6:8].copy()).to(torch.bfloat16).to(torch.float32).numpy()
        assert np.array_equal(again[6:8], rounded)

    def test_writing_changes_values_in_place_and_no_type_and_no_fixed_tensor(self) -> None:
        model = Everything()
        layout = Layout.of(model)
        weight, types = model.weight, {name: tensor.dtype for name, tensor in model.state_dict().items()}
        layout.write(model, np.full(11, 3, dtype=np.float32))
        assert model.weight is weight
        assert {name: tensor.dtype for name, tensor in model.state_dict().items()} == types
        assert model.frozen.tolist() == [8, 9]
        assert model.state_dict()["counter"].item() == 11
        assert model.state_dict()["mask"].tolist() == [True, False]

    def test_reading_gives_a_new_vector(self) -> None:
        model = Everything()
        layout = Layout.of(model)
        layout.read(model)[:] = 0
        assert model.weight.flatten().tolist() == [0, 1, 2, 3, 4, 5]

    def test_a_channels_last_tensor_is_the_same_vector(self) -> None:
        model = nn.Conv2d(3, 4, 2)
        layout = Layout.of(model)
        vector = layout.read(model)
        turned = nn.Conv2d(3, 4, 2).to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stub lacks it
        layout.write(turned, vector)
        assert np.array_equal(layout.read(turned), vector)
        assert torch.equal(turned.weight, model.weight)

    @pytest.mark.parametrize(
        "make", [lambda v: np.frombuffer(v.tobytes(), dtype=np.float32), lambda v: v.copy()]
    )
    def test_a_read_only_vector_can_be_written_without_a_warning_and_is_not_changed(self, make: Any) -> None:
        model = nn.Linear(2, 1)
        vector = make(np.array([1, 2, 3], dtype=np.float32))
        vector.flags.writeable = False
        Layout.of(model).write(model, vector)
        assert model.weight.tolist() == [[1, 2]]
        model.weight.data.fill_(9)
        assert vector.tolist() == [1, 2, 3]
        assert not vector.flags.writeable

    @pytest.mark.parametrize(
        "vector",
        [
            np.zeros(2, np.float32),
            np.zeros(4, np.float32),
            np.zeros(3, np.float64),
            np.zeros((3, 1), np.float32),
        ],
    )
    def test_a_vector_of_another_shape_or_type_is_refused_before_anything_is_written(
        self, vector: Any
    ) -> None:
        model = nn.Linear(2, 1)
        layout = Layout.of(model)
        before = layout.read(model)
        with pytest.raises(ValueError, match=r"expected a float32 vector of shape \(3,\)"):
            layout.write(model, vector)
        assert np.array_equal(layout.read(model), before)


class Small(nn.Module):
    def __init__(
        self,
        name: str = "weight",
        shape: tuple[int, ...] = (2, 3),
        dtype: torch.dtype = torch.float32,
        frozen: float = 1.0,
        counter: float = 0,
        trained: bool = True,
    ) -> None:
        super().__init__()
        self.register_parameter(name, nn.Parameter(torch.zeros(shape, dtype=dtype), trained))
        self.bias = nn.Parameter(torch.zeros(1))
        self.frozen = nn.Parameter(torch.tensor([frozen]), requires_grad=False)
        self.register_buffer("counter", torch.tensor(counter))


class TestDigest:
    @pytest.mark.parametrize(
        "changed",
        [
            {"name": "weights"},
            {"shape": (3, 2)},
            {"shape": (6,)},
            {"dtype": torch.float64},
            {"dtype": torch.bfloat16},
            {"frozen": 1.5},
            {"counter": 1},
            {"counter": 0.0},
            {"trained": False},
        ],
        ids=str,
    )
    def test_the_digest_changes_with_every_name_shape_type_kind_and_fixed_value(
        self, changed: dict[str, Any]
    ) -> None:
        assert Layout.of(Small(**changed)).digest != Layout.of(Small()).digest

    def test_the_digest_does_not_change_with_the_values_of_averaged_tensors(self) -> None:
        model = Small()
        model.bias.data.fill_(5)
        assert Layout.of(model).digest == Layout.of(Small()).digest
        assert Layout.of(model) == Layout.of(Small())

    def test_fixed_values_of_two_tensors_cannot_be_exchanged_unnoticed(self) -> None:
        def of(first: float, second: float) -> str:
            model = nn.Linear(1, 1)
            model.a, model.b = (
                nn.Parameter(torch.tensor(first), False),
                nn.Parameter(torch.tensor(second), False),
            )
            return Layout.of(model).digest

        assert of(1, 2) != of(2, 1)

    def test_the_digest_is_the_same_in_every_version(self) -> None:
        model = nn.Linear(2, 1)
        model.register_buffer("counter", torch.tensor(3))
        assert Layout.of(model).digest == "704679e3553cb2da7e2a756f5f72bd7879335417673ba7eace24180aaae27216"


class TestRefusals:
    def test_a_complex_parameter_is_refused_by_name(self) -> None:
        model = nn.Linear(1, 1)
        model.phase = nn.Parameter(torch.zeros(2, dtype=torch.complex64))
        with pytest.raises(TaskError, match="'phase' is complex") as caught:
            Layout.of(model)
        assert caught.value.exit_code == 3

    def test_a_frozen_complex_tensor_is_refused_too(self) -> None:
        model = nn.Linear(1, 1)
        model.register_buffer("phase", torch.zeros(2, dtype=torch.complex64))
        with pytest.raises(TaskError, match="'phase' is complex"):
            Layout.of(model)

    def test_a_lazy_layer_is_refused_by_name(self) -> None:
        with pytest.raises(TaskError, match=r"'0\.weight' has no shape yet"):
            Layout.of(nn.Sequential(nn.LazyLinear(3)))

    def test_a_model_of_averaged_buffers_alone_has_nothing_to_train(self) -> None:
        model = nn.Linear(2, 2).requires_grad_(requires_grad=False)
        model.register_buffer("scale", torch.ones(2))
        with pytest.raises(TaskError, match="no trainable parameter"):
            Layout.of(model)

    def test_a_tensor_without_values_is_refused_by_name(self) -> None:
        with pytest.raises(TaskError, match=r"'weight' has no values \(device 'meta'\)"):
            Layout.of(nn.Linear(2, 2, device="meta"))

    @pytest.mark.parametrize("model", [nn.ReLU(), nn.Linear(2, 2).requires_grad_(requires_grad=False)])
    def test_a_model_with_nothing_to_train_is_refused(self, model: nn.Module) -> None:
        with pytest.raises(TaskError, match="no trainable parameter"):
            Layout.of(model)


def test_updates_are_told_apart_by_identity() -> None:
    layout = Layout.of(nn.Linear(2, 1))
    vector = np.zeros(3, dtype=np.float32)
    assert Update(vector, layout) != Update(vector, layout)


class _Drifting(nn.Module):
    """Replaces its buffer at every call, as an exponential mean written without care does."""

    mean: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(2))

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        self.mean = 0.5 * self.mean + 0.5 * inputs.mean(0)
        out: torch.Tensor = self.layer(inputs - self.mean)
        return out


def test_a_buffer_that_the_model_replaces_is_read_where_it_is_now() -> None:
    model = _Drifting()
    tensors = Layout.of(model).of_model(model)
    before = tensors.read()
    model(torch.ones(4, 2))
    np.testing.assert_array_equal(tensors.read()[-2:], [0.5, 0.5])
    tensors.write(before)
    np.testing.assert_array_equal(model.mean.numpy(), [0.0, 0.0])
