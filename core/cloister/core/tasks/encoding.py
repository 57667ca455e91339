"""From a table to a model's inputs, by a public schema."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from cloister.core.errors import DataError
from cloister.core.task import Bounds
from cloister.core.tasks.columns import BooleanColumn, CategoricalColumn, Column, NumericColumn
from cloister.core.tasks.tables import RawTable

__all__ = ["Encoded", "bounds", "encode", "input_names", "numeric_places", "places", "scaled", "width"]

Values = npt.NDArray[np.float64]
Mask = npt.NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class Encoded:
    """A table as numbers.

    Attributes:
        inputs: (n, width) float32.
        complete: (n,) whether a row has every value that the schema asks for; the others are to be left out.
    """

    inputs: npt.NDArray[np.float32]
    complete: Mask


def width(columns: Mapping[str, Column]) -> int:
    """Return how many inputs these columns make."""
    return sum(_width(column) for column in columns.values())


def places(columns: Mapping[str, Column]) -> dict[str, int]:
    """Return the place of each column's first input among a record's."""
    found, place = {}, 0
    for name, column in columns.items():
        found[name] = place
        place += _width(column)
    return found


def numeric_places(columns: Mapping[str, Column]) -> dict[str, int]:
    """Return the place of each numeric column among a record's inputs."""
    return {
        name: place for name, place in places(columns).items() if isinstance(columns[name], NumericColumn)
    }


def input_names(columns: Mapping[str, Column]) -> tuple[str, ...]:
    """Return the name of each input: the column's, ``column=value`` for one of its values, ``column?`` for a value that is missing."""
    found: list[str] = []
    for name, column in columns.items():
        if isinstance(column, CategoricalColumn):
            found += [f"{name}={value}" for value in column.values]
            found += [f"{name}=other"] if column.other else []
        else:
            found.append(name)
        found += [f"{name}?"] if column.missing == "indicator" else []
    return tuple(found)


def bounds(columns: Mapping[str, Column]) -> Bounds:
    """Return the least and the greatest value of each input, each (width,): the ends of the columns' public ranges."""
    low = torch.zeros(width(columns))
    for name, place in numeric_places(columns).items():
        column = columns[name]
        if isinstance(column, NumericColumn) and column.scale == "centred":
            low[place] = -1.0
    return low, torch.ones(width(columns))


def encode(table: RawTable, columns: Mapping[str, Column]) -> Encoded:
    """Turn a table into inputs, column by column in the order of ``columns``.

    Raises:
        DataError: a column is missing, or a value is not of its column's kind.
    """
    pieces: list[Values] = []
    complete = np.ones(len(table), dtype=np.bool_)
    for name, column in columns.items():
        values, absent = _values(table, name, column)
        pieces.append(values)
        if column.missing == "indicator":
            pieces.append(absent.astype(np.float64)[:, None])
        else:
            complete &= ~absent
    inputs = np.concatenate(pieces, axis=1) if pieces else np.empty((len(table), 0))
    return Encoded(inputs=np.ascontiguousarray(inputs, dtype=np.float32), complete=complete)


def scaled(numbers: Values, column: NumericColumn) -> Values:
    """Return numbers clipped to the column's public range and scaled by it; NaN stays."""
    share = (np.clip(numbers, column.low, column.high) - column.low) / (column.high - column.low)
    return share if column.scale == "unit" else 2 * share - 1


def _values(table: RawTable, name: str, column: Column) -> tuple[Values, Mask]:
    """Return (n, k) inputs and (n,) whether the value is missing."""
    if isinstance(column, NumericColumn):
        numbers = scaled(table.numbers(name), column)
        middle = 0.5 if column.scale == "unit" else 0.0
    elif isinstance(column, BooleanColumn):
        numbers, middle = table.truths(name), 0.5
    else:
        return _one_hot(table, name, column)
    absent = np.isnan(numbers)
    return np.where(absent, middle, numbers)[:, None], absent


def _one_hot(table: RawTable, name: str, column: CategoricalColumn) -> tuple[Values, Mask]:
    texts = table.texts(name)
    known = (texts[:, None] == np.array(column.values, dtype=object)).astype(np.float64)
    absent: Mask = texts == ""
    strange = ~absent & ~known.any(axis=1)
    if column.other:
        return np.concatenate([known, strange.astype(np.float64)[:, None]], axis=1), absent
    if strange.any():
        raise DataError(
            f"'{table.where}', column '{name}', row {int(strange.argmax()) + 1}: not one of the schema's {len(column.values)} values",
            remedy="mend the value, add it to the column's values, or set other = true",
            code="data-unknown-category",
        )
    return known, absent


def _width(column: Column) -> int:
    own = len(column.values) + column.other if isinstance(column, CategoricalColumn) else 1
    return own + (column.missing == "indicator")
