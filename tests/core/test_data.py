"""Records that can be taken in batches."""

from collections import OrderedDict
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from cloister.core.data import Data, LazyData, Split, TensorData, move
from cloister.core.errors import DataError, TaskError


class Pairs(Dataset[tuple[Any, Any]]):
    """Item i is ([i, 2i], i mod 3); counts what is read."""

    def __init__(self, items: int) -> None:
        self.items = items
        self.read: list[int] = []

    def __len__(self) -> int:
        return self.items

    def __getitem__(self, index: int) -> tuple[Any, Any]:
        self.read.append(index)
        return torch.tensor([index, 2 * index]), index % 3


def in_memory(items: int = 10) -> TensorData:
    rows = torch.arange(items)
    return TensorData(torch.stack([rows, 2 * rows], 1), rows % 3)


def lazy(items: int = 10) -> LazyData:
    return LazyData(Pairs(items), [row % 3 for row in range(items)])


both = pytest.mark.parametrize("make", [in_memory, lazy])


@both
def test_both_kinds_are_data(make: Any) -> None:
    assert isinstance(make(), Data)
    assert isinstance(make().subset(np.array([1])), Data)


@both
def test_a_batch_keeps_the_order_and_the_repetitions_of_its_rows(make: Any) -> None:
    inputs, targets = make().batch(torch.tensor([7, 2, 2, 0]))
    assert inputs.tolist() == [[7, 14], [2, 4], [2, 4], [0, 0]]
    assert targets.tolist() == [1, 2, 2, 0]


@pytest.mark.parametrize("make", [in_memory, lazy])
@given(data=st.data())
def test_a_subset_of_a_subset_is_the_composition_of_the_rows(make: Any, data: st.DataObject) -> None:
    outer = data.draw(st.lists(st.integers(0, 9), min_size=1, max_size=12))
    inner = data.draw(st.lists(st.integers(0, len(outer) - 1), min_size=1, max_size=12))
    part = make().subset(np.array(outer)).subset(np.array(inner))
    rows = [outer[row] for row in inner]
    assert len(part) == len(rows)
    assert part.targets.tolist() == [row % 3 for row in rows]
    inputs, targets = part.batch(torch.arange(len(rows)))
    assert inputs[:, 0].tolist() == rows
    assert targets.tolist() == part.targets.tolist()


@both
def test_an_empty_subset_has_no_rows(make: Any) -> None:
    part = make().subset(np.array([], dtype=np.int64))
    assert len(part) == 0
    assert part.targets.shape == (0,)


def test_a_subset_in_memory_copies_no_input() -> None:
    whole = in_memory()
    part = whole.subset(np.array([1, 2]))
    whole.inputs[1] = 99
    assert part.batch(torch.tensor([0]))[0].tolist() == [[99, 99]]


def test_lazy_data_reads_an_item_only_when_it_is_asked_for() -> None:
    pairs = Pairs(10)
    data = LazyData(pairs, [row % 3 for row in range(10)])
    part = data.subset(np.array([4, 5, 6]))
    assert pairs.read == []
    part.batch(torch.tensor([2]))
    assert pairs.read == [6]


@pytest.mark.parametrize(
    ("given_targets", "dtype"),
    [
        ([0, 1], torch.int64),
        ([0.5, 1.5], torch.float32),
        (torch.tensor([0, 1], dtype=torch.uint8), torch.int64),
    ],
)
def test_lazy_targets_are_class_numbers_or_float32(given_targets: Any, dtype: torch.dtype) -> None:
    data = LazyData(Pairs(2), given_targets)
    assert data.targets.dtype == dtype
    assert data.batch(torch.tensor([0, 1]))[1].dtype == dtype


def test_inputs_of_any_structure_are_collated() -> None:
    class Texts(Dataset[tuple[Any, Any]]):
        def __getitem__(self, index: int) -> tuple[Any, Any]:
            return {"tokens": torch.tensor([index]), "length": 1}, 0

    inputs, _ = LazyData(Texts(), [0, 0, 0]).batch(torch.tensor([2, 1]))
    assert inputs["tokens"].tolist() == [[2], [1]]
    assert inputs["length"].tolist() == [1, 1]


def test_inputs_and_targets_of_different_number_are_refused_by_their_numbers() -> None:
    with pytest.raises(DataError, match="3 inputs do not go with 2 targets") as caught:
        TensorData(torch.zeros(3, 1), torch.zeros(2))
    assert caught.value.exit_code == 4
    with pytest.raises(DataError, match="3 items do not go with 2 targets"):
        LazyData(Pairs(3), [0, 1])


def test_data_and_splits_are_told_apart_by_identity() -> None:
    # By value, == would compare tensors and raise.
    one, other = in_memory(), in_memory()
    assert one == one
    assert one != other
    assert Split(one, other) != Split(one, other)
    assert len({one, other}) == 2


def test_rows_may_be_any_integer_array() -> None:
    strided: Any = np.arange(10, dtype=np.int32)[::2]
    assert in_memory().subset(strided).targets.tolist() == [0, 2, 1, 0, 2]


def test_a_tensor_is_not_data() -> None:
    assert not isinstance(Tensor(), Data)


NOT_TENSORS: list[Any] = [np.zeros(3), [0, 1, 1], None, torch.tensor(3)]


@pytest.mark.parametrize("given", NOT_TENSORS, ids=["array", "list", "none", "0-d"])
def test_records_in_memory_that_are_no_tensors_are_refused_with_the_way_out(given: Any) -> None:
    rows = torch.zeros(3)
    for inputs, targets in ((given, rows), (rows, given)):
        with pytest.raises(TaskError, match="not a tensor with one row a record") as caught:
            TensorData(inputs, targets)
        assert (caught.value.code, caught.value.exit_code) == ("task-data", 3)
        assert "torch.as_tensor" in caught.value.remedy


@pytest.mark.parametrize("given", [None, torch.zeros(3), [1, 2]], ids=["none", "tensor", "list"])
def test_a_split_of_something_else_than_data_is_refused(given: Any) -> None:
    for parts in ((given, in_memory()), (in_memory(), given)):
        with pytest.raises(TaskError, match="which is no Data") as caught:
            Split(*parts)
        assert caught.value.code == "task-data"


class Pair(NamedTuple):
    left: Tensor
    right: Tensor


def test_inputs_of_any_shape_are_moved_and_keep_it() -> None:
    one = torch.ones(2)
    batch = {"a": [one, (one, "text")], "b": Pair(one, one), "c": OrderedDict(d=one)}
    moved = move(batch, "meta")
    assert [
        tensor.device.type for tensor in (moved["a"][0], moved["a"][1][0], *moved["b"], moved["c"]["d"])
    ] == ["meta"] * 5
    assert isinstance(moved["b"], Pair)
    assert isinstance(moved["a"][1], tuple)
    assert moved["a"][1][1] == "text"
    packed = torch.nn.utils.rnn.pack_sequence([torch.ones(2), torch.ones(1)])
    assert torch.equal(move(packed, "cpu").data, packed.data)
