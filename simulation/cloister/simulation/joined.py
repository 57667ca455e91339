"""Several owners' records read as one, without copying them: the pooled data of a simulation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cloister.core.data import Data, Rows
from cloister.core.errors import DataError

__all__ = ["JoinedData", "join"]


def join(parts: Sequence[Data]) -> Data:
    """Return ``parts`` as one: the only part itself, or `JoinedData`. Parts without a record are left out where another has one.

    Raises:
        DataError: ``parts`` is empty.
    """
    if not parts:
        raise DataError(
            "there is no data to join", remedy="give at least one owner's records", code="data-empty"
        )
    filled = [part for part in parts if len(part)] or list(parts[:1])
    return filled[0] if len(filled) == 1 else JoinedData(filled)


class JoinedData:
    """The rows of several `Data`, one part after the other.

    Inputs may be tensors, or tuples, lists and mappings of them; a batch holds them in the order asked for, wherever they lie.

    Attributes:
        targets: (n,) the parts' targets, one after the other.
    """

    def __init__(self, parts: Sequence[Data]) -> None:
        self._parts = list(parts)
        self._starts = torch.from_numpy(np.cumsum([0, *(len(part) for part in parts)]))
        self.targets = torch.cat([part.targets for part in parts])

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Tensor) -> tuple[Any, Tensor]:
        """Return the inputs and targets of ``rows`` ((k,) int64), in that order.

        Raises:
            DataError: two owners' records have different shapes or forms.
        """
        owner = torch.searchsorted(self._starts, rows, right=True) - 1
        inputs, where = [], []
        for part in torch.unique(owner).tolist():
            places = torch.nonzero(owner == part).reshape(-1)
            found, _ = self._parts[part].batch(rows.index_select(0, places) - self._starts[part])
            inputs.append(found)
            where.append(places)
        if len(inputs) == 1:
            return inputs[0], self.targets.index_select(0, rows)
        order = torch.argsort(torch.cat(where))
        return _gather(inputs, order), self.targets.index_select(0, rows)

    def subset(self, rows: Rows) -> Data:
        """Return these rows, read through the same parts (no copy)."""
        return _JoinedSubset(self, torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)))


class _JoinedSubset:
    def __init__(self, data: JoinedData, rows: Tensor) -> None:
        self._data = data
        self._rows = rows
        self.targets = data.targets.index_select(0, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Tensor) -> tuple[Any, Tensor]:
        return self._data.batch(self._rows.index_select(0, rows))

    def subset(self, rows: Rows) -> Data:
        return _JoinedSubset(
            self._data,
            self._rows.index_select(0, torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))),
        )


def _gather(inputs: list[Any], order: Tensor) -> Any:
    """Join the parts' inputs and put them in ``order``."""
    first = inputs[0]
    if isinstance(first, Tensor):
        if not all(isinstance(part, Tensor) and part.shape[1:] == first.shape[1:] for part in inputs):
            raise DataError(
                "the owners' records have different shapes",
                remedy="prepare every owner's records alike",
                code="data-shape",
            )
        return torch.cat(inputs).index_select(0, order)
    if isinstance(first, Mapping):
        return {key: _gather([part[key] for part in inputs], order) for key in first}
    if isinstance(first, tuple | list):
        return type(first)(_gather(list(members), order) for members in zip(*inputs, strict=True))
    raise DataError(
        f"inputs of type {type(first).__name__} cannot be joined",
        remedy="give tensors, or tuples or mappings of them",
        code="data-shape",
    )
