"""A site's records as a task hands them over: rows that can be taken in batches.

`TensorData` holds everything in memory and is the fast path; `LazyData` wraps any map-style ``torch`` data set whose items
are ``(input, target)`` pairs, and reads an item when it is asked for.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from cloister.core.errors import DataError, TaskError

__all__ = ["Data", "LazyData", "Rows", "Split", "TensorData", "move"]

#: Row numbers, shape (n,), int64.
Rows = npt.NDArray[np.int64]


@runtime_checkable
class Data(Protocol):
    """Rows of (input, target)."""

    @property
    def targets(self) -> Tensor:
        """(n,) targets: int64 class numbers, or float32 values."""
        ...

    def __len__(self) -> int:
        """Return the number of rows."""
        ...

    def batch(self, rows: Tensor) -> tuple[Any, Tensor]:
        """Return the inputs and targets of ``rows`` ((k,) int64), in that order."""
        ...

    def subset(self, rows: Rows) -> Data:
        """Return these rows as data of their own."""
        ...


@dataclass(frozen=True, eq=False)
class TensorData:
    """Records in memory.

    Attributes:
        inputs: (n, …) one row a record.
        targets: (n,) int64 class numbers, or float32 values.

    Raises:
        TaskError: one of the two is no tensor with a row a record.
        DataError: they do not have the same number of rows.
    """

    inputs: Tensor
    targets: Tensor

    def __post_init__(self) -> None:
        for what, given in (("inputs", self.inputs), ("targets", self.targets)):
            if not isinstance(given, Tensor) or given.ndim == 0:
                kind = "0-d tensor" if isinstance(given, Tensor) else type(given).__name__
                raise TaskError(
                    f"TensorData was given a {kind} as its {what}, not a tensor with one row a record",
                    remedy=f"give torch.as_tensor({what})",
                    code="task-data",
                )
        if len(self.inputs) != len(self.targets):
            raise DataError(
                f"{len(self.inputs)} inputs do not go with {len(self.targets)} targets",
                remedy="give one target a record",
            )

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Return the inputs and targets of ``rows`` ((k,) int64), in that order."""
        return self.inputs.index_select(0, rows), self.targets.index_select(0, rows)

    def subset(self, rows: Rows) -> Data:
        """Return these rows, read through the same tensors (no copy)."""
        return _Subset(self, torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)))


class LazyData:
    """Any map-style ``torch`` data set of (input, target) pairs; an item is read when it is asked for.

    Args:
        dataset: the pairs. Of an item only the input is used.
        targets: (n,) the targets of all items: whole numbers become int64, others float32.

    Raises:
        DataError: the data set knows its length and it is not the targets'.
    """

    def __init__(
        self, dataset: Dataset[tuple[Any, Any]], targets: Sequence[int] | Sequence[float] | Tensor
    ) -> None:
        self.dataset = dataset
        given = torch.as_tensor(targets)
        self.targets = given.to(torch.float32 if given.is_floating_point() else torch.int64)
        items = len(dataset) if isinstance(dataset, Sized) else len(self.targets)
        if items != len(self.targets):
            raise DataError(
                f"{items} items do not go with {len(self.targets)} targets", remedy="give one target an item"
            )

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, rows: Tensor) -> tuple[Any, Tensor]:
        """Return the inputs and targets of ``rows`` ((k,) int64), in that order."""
        return default_collate([self.dataset[row][0] for row in rows.tolist()]), self.targets.index_select(
            0, rows
        )

    def subset(self, rows: Rows) -> Data:
        """Return these rows as data of their own."""
        return _Subset(self, torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64)))


class _Subset:
    def __init__(self, data: TensorData | LazyData, rows: Tensor) -> None:
        self._data = data
        self._rows = rows
        self.targets = data.targets.index_select(0, rows)

    def __len__(self) -> int:
        return len(self._rows)

    def batch(self, rows: Tensor) -> tuple[Any, Tensor]:
        return self._data.batch(self._rows.index_select(0, rows))

    def subset(self, rows: Rows) -> Data:
        return _Subset(
            self._data,
            self._rows.index_select(0, torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))),
        )


@dataclass(frozen=True, eq=False)
class Split:
    """One owner's records: those to train on and those kept for testing.

    Raises:
        TaskError: one of the two is no `Data`.
    """

    train: Data
    test: Data

    def __post_init__(self) -> None:
        for part, given in (("train", self.train), ("test", self.test)):
            if not isinstance(given, Data):
                raise TaskError(
                    f"Split was given a {type(given).__name__} as '{part}', which is no Data",
                    remedy="give TensorData(inputs, targets) or LazyData; for no test records, one without rows",
                    code="task-data",
                )


def move(inputs: Any, device: torch.device | str) -> Any:
    """Return what a batch's inputs hold on ``device``: a tensor, or tuples, lists and mappings of them, however nested.

    What has a ``to`` of its own (a packed sequence, say) is asked; what is no tensor (a text) stays as it is.
    """
    if callable(getattr(inputs, "to", None)):
        return inputs.to(device)
    if isinstance(inputs, Mapping):
        return {key: move(value, device) for key, value in inputs.items()}
    if isinstance(inputs, tuple) and hasattr(inputs, "_fields"):  # a named tuple takes its fields one by one
        return type(inputs)(*(move(value, device) for value in inputs))
    if isinstance(inputs, list | tuple):
        return type(inputs)(move(value, device) for value in inputs)
    return inputs
