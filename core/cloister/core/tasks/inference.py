"""A first schema, guessed from the data: to try a table out, and to start a public schema from.

Its ranges and its lists of values are statistics of the records that it was guessed from. Over real sites
they would tell something of each record, and differ from site to site; so a task that uses a guessed schema
says so in its ``notes``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from cloister.core.errors import DataError
from cloister.core.tasks.columns import (
    BooleanColumn,
    CategoricalColumn,
    Column,
    MissingPolicy,
    NumericColumn,
    Schema,
)
from cloister.core.tasks.tables import RawTable, Texts

__all__ = ["MOST_CLASSES", "MOST_VALUES", "NUMERIC_SHARE", "infer_column", "infer_schema"]

#: A text column with more different values than this is left out: it names or describes records.
MOST_VALUES = 50
#: A column of which at least this share are numbers is meant to hold numbers.
NUMERIC_SHARE = 0.9
#: A whole-number target with more different values than this is a quantity, not a class.
MOST_CLASSES = 20
_TRUTHS = ({"0", "1"}, {"false", "true"}, {"no", "yes"}, {"f", "t"}, {"n", "y"})


def infer_schema(tables: Sequence[RawTable]) -> Schema:
    """Guess a schema from all rows of all tables (every owner's: the guess is for one machine).

    Raises:
        DataError: the tables' columns differ, or a few texts stand in a column of numbers.
    """
    names = tables[0].names
    for table in tables[1:]:
        if set(table.names) != set(names):
            odd = min(set(table.names) ^ set(names))
            raise DataError(
                f"'{table.where}' and '{tables[0].where}' differ: column '{odd}' stands in one of them only",
                remedy="declare a schema of the columns that all of them have",
                code="data-missing-column",
            )
    columns = {name: infer_column([table.texts(name) for table in tables]) for name in names}
    for name in (name for name in names if not isinstance(columns[name], NumericColumn | BooleanColumn)):
        _refuse_stray_text(tables, name)
    return Schema(
        columns={name: column for name, column in columns.items() if column is not None},
        missing_values=tables[0].missing_values,
    )


def infer_column(parts: Sequence[Texts]) -> Column | None:
    """Guess what a column means; ``None``: it is empty, constant, or names records."""
    texts = np.concatenate(parts)
    present = texts[texts != ""]
    values = sorted({str(text) for text in present})
    missing: MissingPolicy = "indicator" if len(present) < len(texts) else "drop"
    if len(values) < 2:
        return None
    if {value.lower() for value in values} in _TRUTHS:
        return BooleanColumn(missing=missing)
    numbers = pd.to_numeric(pd.Series(values, dtype=object), errors="coerce").to_numpy(dtype=np.float64)
    if np.isfinite(numbers).all():
        return NumericColumn(low=float(numbers.min()), high=float(numbers.max()), missing=missing)
    if len(values) <= MOST_VALUES:
        return CategoricalColumn(values=tuple(values), missing=missing)
    return None


def _refuse_stray_text(tables: Sequence[RawTable], name: str) -> None:
    """Refuse a column of numbers in which a few cells hold text: a slip, and not a category."""
    parts = [table.texts(name) for table in tables]
    numeric = [
        np.isfinite(pd.to_numeric(pd.Series(part, dtype=object), errors="coerce").to_numpy(np.float64))
        for part in parts
    ]
    present = [part != "" for part in parts]
    cells, numbers = sum(int(part.sum()) for part in present), sum(int(part.sum()) for part in numeric)
    if not NUMERIC_SHARE * cells <= numbers < cells:
        return
    for table, is_number, is_there in zip(tables, numeric, present, strict=True):
        strange = is_there & ~is_number
        if strange.any():
            raise DataError(
                f"'{table.where}', column '{name}', row {int(strange.argmax()) + 1}: text in a column of numbers",
                remedy="mend the cell or leave it empty, or declare the column as categorical in a schema",
                code="data-not-a-number",
            )
