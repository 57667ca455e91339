"""Several owners' records read as one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils.data import Dataset

from cloister.core.data import Data, LazyData, TensorData
from cloister.core.errors import DataError
from cloister.simulation.joined import JoinedData, join


def numbered(start: int, count: int) -> TensorData:
    """Record i has the inputs (i, -i) and the target i, so that every mix-up shows."""
    values = torch.arange(start, start + count)
    return TensorData(torch.stack([values, -values], dim=1).float(), values)


class Items(Dataset[tuple[Any, Any]]):
    """Items whose input is a tensor, a mapping of tensors or a pair of them."""

    def __init__(self, start: int, count: int, form: str) -> None:
        self.start, self.count, self.form = start, count, form

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: int) -> tuple[Any, int]:
        value = torch.tensor([float(self.start + row)])
        return {"tensor": value, "mapping": {"a": value, "b": -value}, "pair": (value, -value), "text": "x"}[
            self.form
        ], self.start + row


def lazy(start: int, count: int, form: str = "tensor") -> LazyData:
    return LazyData(Items(start, count, form), list(range(start, start + count)))


@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=5).filter(any), data=st.data())
def test_any_rows_come_in_the_order_asked_for(sizes: list[int], data: st.DataObject) -> None:
    starts = np.cumsum([0, *sizes])
    joined = join([numbered(int(start), size) for start, size in zip(starts, sizes, strict=False)])
    assert len(joined) == sum(sizes)
    assert joined.targets.tolist() == list(range(sum(sizes)))
    rows = data.draw(st.lists(st.integers(0, sum(sizes) - 1), min_size=1, max_size=12))
    inputs, targets = joined.batch(torch.tensor(rows))
    assert targets.tolist() == rows
    assert inputs.tolist() == [[row, -row] for row in rows]


@given(rows=st.lists(st.integers(0, 9), min_size=1, max_size=20), data=st.data())
def test_a_subset_of_a_subset_names_the_same_records(rows: list[int], data: st.DataObject) -> None:
    joined: Data = join([numbered(0, 3), numbered(3, 7)])
    inner = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1))
    subset = joined.subset(np.array(rows)).subset(np.array(inner))
    inputs, targets = subset.batch(torch.arange(len(subset)))
    expected = [rows[place] for place in inner]
    assert targets.tolist() == subset.targets.tolist() == expected
    assert inputs[:, 0].tolist() == expected


def test_one_part_is_itself_and_empty_parts_are_left_out() -> None:
    part, empty = numbered(0, 3), numbered(0, 0)
    assert join([part]) is part
    assert join([empty, part, empty]) is part
    assert len(join([empty, empty])) == 0
    assert isinstance(join([part, numbered(3, 1)]), JoinedData)


def test_nothing_to_join_is_refused() -> None:
    with pytest.raises(DataError, match="no data to join"):
        join([])


def test_memory_and_lazy_parts_mix() -> None:
    first = TensorData(torch.tensor([[0.0], [1.0]]), torch.tensor([0, 1]))
    inputs, targets = join([first, lazy(2, 3)]).batch(torch.tensor([4, 0, 2]))
    assert inputs.tolist() == [[4.0], [0.0], [2.0]]
    assert targets.tolist() == [4, 0, 2]


def test_mappings_and_pairs_are_joined_member_by_member() -> None:
    rows = torch.tensor([3, 0, 4])
    mapping, _ = join([lazy(0, 2, "mapping"), lazy(2, 3, "mapping")]).batch(rows)
    assert {key: value.reshape(-1).tolist() for key, value in mapping.items()} == {
        "a": [3, 0, 4],
        "b": [-3, 0, -4],
    }
    pair, _ = join([lazy(0, 2, "pair"), lazy(2, 3, "pair")]).batch(rows)
    assert [member.reshape(-1).tolist() for member in pair] == [[3, 0, 4], [-3, 0, -4]]


def test_records_of_different_shapes_are_refused_without_a_value() -> None:
    wide = TensorData(torch.zeros(2, 3), torch.tensor([0, 1]))
    with pytest.raises(DataError, match="different shapes") as refused:
        join([numbered(0, 2), wide]).batch(torch.tensor([0, 3]))
    assert refused.value.remedy


def test_inputs_that_cannot_be_joined_are_refused_by_type() -> None:
    with pytest.raises(DataError, match="inputs of type str cannot be joined"):
        join([lazy(0, 1, "text"), lazy(1, 1, "text")]).batch(torch.tensor([0, 1]))


def test_a_batch_of_one_part_reads_only_that_part() -> None:
    class Closed(TensorData):
        def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
            raise AssertionError("read")

    closed = Closed(torch.zeros(2, 2), torch.tensor([8, 9]))
    assert join([numbered(0, 2), closed]).batch(torch.tensor([1, 0]))[1].tolist() == [1, 0]
