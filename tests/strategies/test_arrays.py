"""Named arrays as one flat vector: the way there and back, and what is refused."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from cloister.core.errors import SpecError
from cloister.strategies.arrays import ArrayLayout

Arrays = dict[str, npt.NDArray[Any]]


def state_dict() -> Arrays:
    return {
        "layer.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "norm.steps": np.array(7, dtype=np.int64),
        "layer.bias": np.array([10.0, 11.0]),
        "scale": np.array(0.5, dtype=np.float16),
        "mask": np.array([True, False]),
    }


def test_floating_point_arrays_lie_in_order_and_counters_stay_out() -> None:
    layout = ArrayLayout.of(state_dict())
    assert layout.size == 9
    assert layout.averaged == ("layer.weight", "layer.bias", "scale")
    assert np.array_equal(layout.flatten(state_dict()), np.array([0, 1, 2, 3, 4, 5, 10, 11, 0.5], np.float32))


def test_shapes_types_order_and_counters_come_back() -> None:
    original = state_dict()
    layout = ArrayLayout.of(original)
    back = layout.unflatten(layout.flatten(original), fixed=original)
    assert list(back) == list(original)
    for name, array in original.items():
        assert back[name].dtype == array.dtype
        assert back[name].shape == array.shape
        assert np.array_equal(back[name], array)


def test_the_vector_does_not_depend_on_the_order_of_arrival() -> None:
    layout = ArrayLayout.of(state_dict())
    assert np.array_equal(layout.flatten(dict(reversed(state_dict().items()))), layout.flatten(state_dict()))


@given(
    shapes=st.lists(hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4), min_size=1, max_size=5),
    seed=st.integers(0, 99),
)
def test_flatten_and_unflatten_are_inverse(shapes: list[tuple[int, ...]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays: Arrays = {str(i): rng.standard_normal(shape).astype(np.float32) for i, shape in enumerate(shapes)}
    arrays["last"] = np.ones(1, np.float32)
    layout = ArrayLayout.of(arrays)
    vector = layout.flatten(arrays)
    assert np.array_equal(layout.flatten(layout.unflatten(vector)), vector)


def test_without_the_fixed_arrays_they_are_left_out() -> None:
    layout = ArrayLayout.of(state_dict())
    assert list(layout.unflatten(layout.flatten(state_dict()))) == list(layout.averaged)


def changed(**changes: npt.NDArray[Any] | None) -> Arrays:
    arrays = {**state_dict(), **{name.replace("__", "."): array for name, array in changes.items()}}
    return {name: array for name, array in arrays.items() if array is not None}


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        (changed(scale=None), "array 'scale' is missing"),
        (changed(secret=np.ones(1)), "1 unknown array"),
        (changed(layer__bias=np.ones(3)), r"array 'layer.bias' has shape (3,), expected (2,)"),
        (changed(layer__bias=np.ones(2, np.int64)), "array 'layer.bias' is int64, expected float64"),
        (
            changed(layer__bias=np.ones(2, np.complex128)),
            "array 'layer.bias' is complex128, expected float64",
        ),
        (changed(norm__steps=np.array(7.0)), "array 'norm.steps' is float64, expected int64"),
        (changed(layer__bias=np.ones(2, np.float32)), None),
        (changed(norm__steps=np.array(9)), None),
        (state_dict(), None),
    ],
)
def test_a_mismatch_is_named_without_a_value(arrays: Arrays, reason: str | None) -> None:
    assert ArrayLayout.of(state_dict()).mismatch(arrays) == reason


def test_a_mismatch_never_quotes_a_name_that_only_the_sender_knows() -> None:
    assert "secret" not in str(ArrayLayout.of(state_dict()).mismatch(changed(secret=np.ones(1))))


@pytest.mark.parametrize("array", [np.array([1j]), np.array(["text"]), np.array([b"x"])])
def test_arrays_that_are_no_real_numbers_are_refused_by_name(array: npt.NDArray[Any]) -> None:
    with pytest.raises(SpecError, match="'weights'"):
        ArrayLayout.of({"weights": array})


def test_a_model_without_a_floating_point_array_is_refused() -> None:
    with pytest.raises(SpecError, match="no floating-point array"):
        ArrayLayout.of({"count": np.array(1)})


def test_wrong_arguments_are_refused() -> None:
    layout = ArrayLayout.of(state_dict())
    with pytest.raises(ValueError, match="'scale'"):
        layout.flatten(changed(scale=None))
    with pytest.raises(ValueError, match=r"shape \(9,\)"):
        layout.unflatten(np.ones(8, np.float32))
    with pytest.raises(ValueError, match=r"'norm\.steps' is missing"):
        layout.unflatten(np.ones(9, np.float32), fixed={})


def test_a_value_beyond_float32_becomes_infinite_for_the_finite_check_to_see() -> None:
    layout = ArrayLayout.of({"w": np.ones(1)})
    assert np.isinf(layout.flatten({"w": np.array([1e39])})).all()


def test_a_value_beyond_its_arrays_own_type_is_refused_by_name() -> None:
    layout = ArrayLayout.of({"half": np.ones(1, np.float16)})
    with pytest.raises(SpecError, match="'half' left the range of float16"):
        layout.unflatten(np.array([1e5], np.float32))
