"""Tables, and how CSV and Parquet files become some. Messages name the file, the column and the row, never what stands there.

Rows are counted from 1 at the first record, below the header.
"""

from __future__ import annotations

import csv
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt
import pandas as pd

from cloister.core.errors import DataError
from cloister.core.spec.refusals import nearest
from cloister.core.tasks.columns import MISSING, canonical

__all__ = ["SUFFIXES", "OverTables", "RawTable", "read_table"]

#: The endings of the files that `read_table` reads.
SUFFIXES = (".csv", ".parquet", ".tsv")
_TRUE, _FALSE = ("1", "true", "yes", "t", "y"), ("0", "false", "no", "f", "n")

Numbers = npt.NDArray[np.float64]
Texts = npt.NDArray[np.object_]


@runtime_checkable
class OverTables(Protocol):
    """A task whose records are rows of tables: what a check of the data looks at beside the records themselves."""

    @property
    def target(self) -> str:
        """The column that is predicted."""
        ...

    def tables(self) -> Mapping[str, RawTable]:
        """Return each owner's table as it was read, with the columns that no model reads."""
        ...


@dataclass(frozen=True, kw_only=True)
class RawTable:
    """A table's columns before anybody says what they mean.

    Attributes:
        where: the file or the query, for messages.
        frame: its rows; a column is text, numbers or truth values.
        missing_values: texts that stand for a missing value.
    """

    where: str
    frame: pd.DataFrame
    missing_values: tuple[str, ...] = MISSING

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def names(self) -> list[str]:
        """The columns' names."""
        return [str(name) for name in self.frame.columns]

    def texts(self, column: str) -> Texts:
        """Return (n,) a column as text, '' where a value is missing.

        Raises:
            DataError: there is no such column.
        """
        series = self._series(column)
        found = series.map(canonical, na_action="ignore").to_numpy(dtype=object, na_value="")
        absent = np.isin(found.astype(str), self.missing_values)
        return np.where(absent, "", found)

    def numbers(self, column: str) -> Numbers:
        """Return (n,) a column as numbers, NaN where a value is missing.

        Raises:
            DataError: there is no such column, or a value is no finite number (the message names its row).
        """
        series = self._series(column)
        if pd.api.types.is_numeric_dtype(series.dtype):
            found: Numbers = series.to_numpy(dtype=np.float64, na_value=np.nan)
            wrong = np.isinf(found)
        else:
            texts = self.texts(column)
            found = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce").to_numpy(
                dtype=np.float64, na_value=np.nan
            )
            wrong = ~np.isfinite(found) & (texts != "")
        if wrong.any():
            raise DataError(
                f"'{self.where}', column '{column}', row {int(wrong.argmax()) + 1}: not a finite number",
                remedy="mend the value, leave it empty, or declare the column categorical in the schema",
                code="data-not-a-number",
            )
        return found

    def truths(self, column: str) -> Numbers:
        """Return (n,) a column of yes and no as 1 and 0, NaN where a value is missing.

        Raises:
            DataError: there is no such column, or a value is neither (the message names its row).
        """
        texts = np.char.lower(self.texts(column).astype(str))
        found = np.where(np.isin(texts, _TRUE), 1.0, np.where(np.isin(texts, _FALSE), 0.0, np.nan))
        wrong = np.isnan(found) & (texts != "")
        if wrong.any():
            raise DataError(
                f"'{self.where}', column '{column}', row {int(wrong.argmax()) + 1}: neither yes nor no",
                remedy="write 1/0, true/false or yes/no, or declare the column categorical in the schema",
                code="data-not-a-boolean",
            )
        return found

    def _series(self, column: str) -> pd.Series[Any]:
        if column not in self.frame.columns:
            raise DataError(
                f"'{self.where}' has no column '{column}'{nearest(column, self.names)}",
                remedy="check the file's header against the schema and task.target",
                code="data-missing-column",
            )
        return self.frame[column]


def read_table(path: Path, missing_values: tuple[str, ...] = MISSING) -> RawTable:
    """Read a CSV (comma, semicolon or tab; UTF-8), TSV or Parquet file.

    Raises:
        DataError: the file is missing, unreadable or not of its kind.
    """
    if path.suffix not in SUFFIXES:
        raise DataError(
            f"'{path}' is not one of {', '.join(SUFFIXES)}",
            remedy="convert the file to CSV or Parquet",
            code="data-unreadable",
        )
    if not path.is_file():
        raise DataError(
            f"there is no file '{path}'",
            remedy="check task.data; paths are taken from the federation file's folder",
            code="data-missing-file",
        )
    try:
        frame = pd.read_parquet(path) if path.suffix == ".parquet" else _read_text(path)
    except OSError as error:
        raise DataError(
            f"cannot read '{path}': {error.strerror or type(error).__name__}",
            remedy="check the file and its permissions",
            code="data-unreadable",
        ) from None
    except UnicodeError:
        raise DataError(
            f"'{path}' is not UTF-8 text", remedy="save the file as UTF-8", code="data-unreadable"
        ) from None
    except (ValueError, pd.errors.ParserWarning) as error:
        line = re.search(
            r"line (\d+)", str(error)
        )  # of the parser's message only the line number is kept: the rest may quote data
        where = f": see line {line[1]}" if line else ""
        raise DataError(
            f"'{path}' is not a table that can be read{where}",
            remedy="give every row as many fields as the header",
            code="data-unreadable",
        ) from None
    return RawTable(where=str(path), frame=frame.reset_index(drop=True), missing_values=missing_values)


def _read_text(path: Path) -> pd.DataFrame:
    with path.open(encoding="utf-8-sig", newline="") as file:
        header = file.readline()
    separator = next(
        (mark for mark in ("\t", ";") if path.suffix == ".tsv" or (mark in header and "," not in header)), ","
    )
    names = next(csv.reader([header], delimiter=separator), [])
    if len(set(names)) < len(names):
        raise DataError(
            f"'{path}' has two columns of one name", remedy="rename one of them", code="data-unreadable"
        )
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas would cut a row that is too long
        return pd.read_csv(
            path, sep=separator, dtype=str, keep_default_na=False, index_col=False, encoding="utf-8-sig"
        )
