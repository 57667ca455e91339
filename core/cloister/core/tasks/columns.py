"""What a table's columns mean, declared in public, so that no statistic of the data is needed to read them.

A schema is a TOML or JSON file (or an inline table) with one table a column::

    [columns.age]
    kind = "numeric"        # low is read as -1 and high as 1; what lies outside is clipped
    low = 20
    high = 80

    [columns.cp]
    kind = "categorical"    # one input for each value, and one for any other
    values = ["1", "2", "3", "4"]
    missing = "indicator"   # one more input that says so; "drop" (the default) leaves the record out

    [columns.smoker]
    kind = "boolean"

A column that the schema does not name is not read. Inputs follow the columns' names in alphabetical order,
whatever the order of the file, so that every site means the same by the same number.
"""

from __future__ import annotations

import json
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
from pydantic import BeforeValidator, Field, ValidationError, model_validator

from cloister.core.errors import TaskError
from cloister.core.spec.base import Table
from cloister.core.spec.refusals import nearest, refusals

__all__ = [
    "MISSING",
    "BooleanColumn",
    "CategoricalColumn",
    "Column",
    "IgnoredColumn",
    "NumericColumn",
    "Schema",
    "canonical",
    "read_schema",
]

#: Texts that stand for a missing value, unless the schema lists its own.
MISSING = ("", "?", "NA", "N/A", "NaN", "nan", "NULL", "null")
_MAX_BYTES = 1 << 22
_WHOLE = re.compile(r"^([+-]?\d+)\.0+$")

MissingPolicy = Literal["drop", "indicator"]
Finite = Annotated[float, Field(allow_inf_nan=False)]


def canonical(value: Any) -> str:
    """Return a category as text: the same for 1, "1", " 1" and 1.0, which 1 becomes where others are missing."""
    if isinstance(value, bool | np.bool_):
        return "true" if value else "false"
    return _WHOLE.sub(r"\1", str(value).strip())


class NumericColumn(Table):
    """A number with a public range."""

    kind: Literal["numeric"] = "numeric"
    low: Finite = Field(description="lower end of the public range; what lies below counts as it")
    high: Finite = Field(description="upper end of the public range; what lies above counts as it")
    scale: Literal["centred", "unit"] = Field(
        default="centred", description="centred: the range becomes -1 to 1; unit: 0 to 1"
    )
    missing: MissingPolicy = Field(
        default="drop",
        description="drop: leave the record out; indicator: read the range's middle, and one more input says so",
    )

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low >= self.high:
            raise ValueError(
                f"low = {self.low} is not below high = {self.high}; give the public range of the column"
            )
        return self


class CategoricalColumn(Table):
    """One of a public list of values."""

    kind: Literal["categorical"] = "categorical"
    values: Annotated[tuple[Annotated[str, BeforeValidator(canonical)], ...], Field(min_length=1)] = Field(
        strict=False, description="the values, one input each"
    )
    other: bool = Field(
        default=True, description="one more input for any other value; without it such a value is refused"
    )
    missing: MissingPolicy = Field(
        default="drop", description="drop: leave the record out; indicator: one more input says so"
    )

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        if len(set(self.values)) < len(self.values):
            raise ValueError("a value stands twice in values; list each once")
        return self


class BooleanColumn(Table):
    """Yes or no: 1/0, true/false, yes/no, t/f or y/n in any case."""

    kind: Literal["boolean"] = "boolean"
    missing: MissingPolicy = Field(
        default="drop",
        description="drop: leave the record out; indicator: read one half, and one more input says so",
    )


class IgnoredColumn(Table):
    """A column that is not read."""

    kind: Literal["ignore"] = "ignore"


Column = NumericColumn | CategoricalColumn | BooleanColumn
_KINDS: dict[str, type[NumericColumn | CategoricalColumn | BooleanColumn | IgnoredColumn]] = {
    "numeric": NumericColumn,
    "categorical": CategoricalColumn,
    "boolean": BooleanColumn,
    "ignore": IgnoredColumn,
}


@dataclass(frozen=True, kw_only=True)
class Schema:
    """The columns that are read, by name.

    Attributes:
        columns: what each column means; ignored ones are left out.
        missing_values: texts that stand for a missing value.
    """

    columns: Mapping[str, Column]
    missing_values: tuple[str, ...] = MISSING

    def inputs(self, target: str) -> dict[str, Column]:
        """Return the columns that a model reads, in their order: all but ``target``, by name."""
        return {name: self.columns[name] for name in sorted(self.columns) if name != target}

    def as_document(self) -> dict[str, Any]:
        """Return the schema as plain data that `read_schema` reads back."""
        document: dict[str, Any] = {
            "columns": {name: column.model_dump(mode="json") for name, column in self.columns.items()}
        }
        if self.missing_values != MISSING:
            document["missing_values"] = list(self.missing_values)
        return document


def read_schema(source: Path | Mapping[str, Any]) -> Schema:
    """Read a schema from a TOML or JSON file, or from a table.

    Raises:
        TaskError: the file is missing or not TOML or JSON, or a column's declaration is refused.
    """
    document = _document(source) if isinstance(source, Path) else dict(source)
    where = f"the schema '{source}'" if isinstance(source, Path) else "task.schema"
    for key in document:
        if key not in ("columns", "missing_values"):
            raise TaskError(
                f"{where}: unknown key '{key}'{nearest(key, ['columns', 'missing_values'])}",
                remedy="declare columns under [columns]",
                code="task-schema",
            )
    columns = document.get("columns")
    if not isinstance(columns, Mapping) or not columns:
        raise TaskError(
            f"{where} declares no columns",
            remedy="declare each column that the model reads under [columns.<name>]",
            code="task-schema",
        )
    missing = document.get("missing_values", MISSING)
    if not isinstance(missing, list | tuple) or not all(isinstance(text, str) for text in missing):
        raise TaskError(
            f"{where}: missing_values is not a list of texts",
            remedy='write for example missing_values = ["", "?"]',
            code="task-schema",
        )
    found = {name: _column(where, name, table) for name, table in columns.items()}
    read = {name: column for name, column in found.items() if not isinstance(column, IgnoredColumn)}
    return Schema(columns=read, missing_values=tuple(text.strip() for text in missing))


def _column(where: str, name: str, table: Any) -> Column | IgnoredColumn:
    kind = table.get("kind") if isinstance(table, Mapping) else None
    if not isinstance(kind, str) or kind not in _KINDS:
        offer = (
            nearest(kind, _KINDS) if isinstance(kind, str) else "; known here: " + ", ".join(sorted(_KINDS))
        )
        raise TaskError(
            f"{where}: column '{name}' has no known kind{offer}",
            remedy="give the column a kind",
            code="task-schema",
        )
    try:
        return _KINDS[kind].model_validate(dict(table))
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in refusals(error, _KINDS[kind]))
        raise TaskError(
            f"{where}: column '{name}' was refused:\n{lines}",
            remedy="change these keys and try again",
            code="task-schema",
        ) from None


def _document(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise TaskError(
            f"cannot read the schema '{path}': {error.strerror}",
            remedy="check task.schema",
            code="task-schema",
        ) from None
    if len(raw) > _MAX_BYTES:
        raise TaskError(
            f"the schema '{path}' has {len(raw)} bytes, more than {_MAX_BYTES}",
            remedy="check task.schema",
            code="task-schema",
        )
    try:
        document = json.loads(raw) if path.suffix == ".json" else tomllib.loads(raw.decode())
    except (ValueError, RecursionError):
        kind = "JSON" if path.suffix == ".json" else "TOML"
        raise TaskError(
            f"the schema '{path}' is not {kind}", remedy="mend the file", code="task-schema"
        ) from None
    if not isinstance(document, dict):
        raise TaskError(
            f"the schema '{path}' is not a table",
            remedy="declare columns under [columns]",
            code="task-schema",
        )
    return document
