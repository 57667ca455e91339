"""What a run computes with is told apart: its data, its task's code, its versions; and nothing else changes it."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cloister.core.data import LazyData, Split, TensorData
from cloister.core.spec import load_federation
from cloister.simulation.fingerprint import data_digest
from cloister.simulation.sites import SimulatedSites

TASK = """
import torch
from torch import nn
from cloister.core import Split, Task, TensorData

class T(Task):
    classes = ("a", "b")

    def __init__(self, shift: float = 0.0) -> None:
        self.shift = shift

    def model(self):
        return nn.Linear(2, 2)

    def data(self):
        x = torch.arange(40.0).reshape(20, 2) + self.shift
        data = TensorData(x, torch.arange(20) % 2)
        return Split(data, data)
"""

Array = npt.NDArray[Any]

FILE = '[federation]\nname = "small"\nrounds = 1\n[task]\nuse = "t.py:T"\n[cohort]\nsites = 2\npartition = { by = "iid" }\n'


def parts(folder: Path, shift: float = 0.0) -> dict[str, str]:
    (folder / "f.toml").write_text(FILE)
    loaded = load_federation(folder / "f.toml", [f"task.shift={shift}"])
    text = SimulatedSites(json.dumps(loaded.effective()), loaded.base).fingerprint
    return dict(part.split("=", 1) for part in text.split())


def test_a_fingerprint_names_data_code_and_versions_and_stays_the_same(tmp_path: Path) -> None:
    (tmp_path / "t.py").write_text(TASK)
    first = parts(tmp_path)
    assert parts(tmp_path) == first
    assert set(first) == {"data", "code", "versions"}
    assert torch.__version__ in first["versions"]
    moved = parts(tmp_path, shift=1.0)
    assert moved["data"] != first["data"]
    assert moved["code"] == first["code"]
    (tmp_path / "t.py").write_text(TASK + "# a word\n")
    edited = parts(tmp_path)
    assert edited["code"] != first["code"]
    assert edited["data"] == first["data"]


class Own:
    """Data of a user's own make, over a NumPy array."""

    def __init__(self, values: Array, targets: Tensor) -> None:
        self.values, self.targets = values, targets

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        return torch.from_numpy(self.values)[rows], self.targets[rows]

    def subset(self, rows: Array) -> Own:
        return Own(self.values[rows], self.targets[rows])


X, Y = torch.arange(24.0).reshape(12, 2), torch.arange(12) % 3


def changed(value: Tensor, at: int) -> Tensor:
    other = value.clone()
    other.view(-1)[at] += 1
    return other


def test_every_value_count_target_and_owner_is_part_of_the_datas_digest() -> None:
    base = TensorData(X, Y)
    seen = [
        data_digest({"a": Split(base, base)}),
        data_digest({"b": Split(base, base)}),
        data_digest({"a": Split(TensorData(changed(X, 23), Y), base)}),
        data_digest({"a": Split(base, TensorData(changed(X, 0), Y))}),
        data_digest({"a": Split(TensorData(X, changed(Y, 5)), base)}),
        data_digest({"a": Split(TensorData(X.double(), Y), base)}),
        data_digest({"a": Split(TensorData(X.reshape(12, 1, 2), Y), base)}),
        data_digest({"a": Split(TensorData(X[:11], Y[:11]), base)}),
        data_digest({"a": Split(base.subset(np.arange(11)), base)}),
        data_digest({"a": Split(base.subset(np.array([1, 0, *range(3, 12)])), base)}),
        data_digest({"a": Split(Own(X.numpy(), Y), base)}),
        data_digest({"a": Split(Own(changed(X, 3).numpy(), Y), base)}),
        data_digest({"a": Split(base, base), "b": Split(base, base)}),
    ]
    assert len(set(seen)) == len(seen)
    under = TensorData(changed(X, 3), Y)
    assert data_digest({"a": Split(under.subset(np.arange(11)), base)}) not in seen


def test_the_digest_reads_no_order_of_owners_no_address_and_no_lazy_item() -> None:
    one, two = (
        Split(TensorData(X, Y), TensorData(X, Y)),
        Split(TensorData(X.clone(), Y.clone()), TensorData(X, Y)),
    )
    assert data_digest({"a": one, "b": two}) == data_digest({"b": one, "a": two})
    strided = TensorData(torch.stack([X, X + 1], 2)[..., 0], Y)
    assert data_digest({"a": Split(strided, strided)}) == data_digest({"a": one})

    class Closed(Dataset[tuple[Tensor, Tensor]]):
        def __len__(self) -> int:
            return len(Y)

        def __getitem__(self, _: int) -> tuple[Tensor, Tensor]:
            raise AssertionError("an item was read")

    lazy = LazyData(Closed(), Y)
    other = LazyData(Closed(), changed(Y, 2))
    assert data_digest({"a": Split(lazy, lazy)}) != data_digest({"a": Split(other, lazy)})


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.bool, torch.complex64, torch.uint8])
def test_tensors_of_any_type_have_a_digest(dtype: torch.dtype) -> None:
    data = TensorData(X.to(dtype), Y)
    assert len(data_digest({"a": Split(data, TensorData(X[:0], Y[:0]))})) == 64


def test_a_tensor_that_many_owners_share_is_read_once() -> None:
    whole = TensorData(torch.zeros(4000, 1000), torch.zeros(4000, dtype=torch.int64))
    parts = [whole.subset(np.arange(at, at + 40)) for at in range(0, 4000, 40)]
    started = time.perf_counter()
    data_digest({str(at): Split(part, part) for at, part in enumerate(parts)})
    assert time.perf_counter() - started < 1.0, "16 MB once, not two hundred times"
