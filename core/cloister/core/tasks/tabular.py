"""Any table with a target column: CSV or Parquet, one file or one for each owner, or a query of a database."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tomli_w
import torch
from pydantic import Field
from torch import nn

from cloister.core.data import Split, TensorData
from cloister.core.errors import DataError, TaskError
from cloister.core.models import ModelChoice, build, read_model
from cloister.core.task import Task
from cloister.core.tasks.columns import (
    MISSING,
    BooleanColumn,
    CategoricalColumn,
    Column,
    NumericColumn,
    Schema,
    canonical,
    read_schema,
)
from cloister.core.tasks.encoding import bounds, encode, numeric_places, scaled, width
from cloister.core.tasks.inference import MOST_CLASSES, infer_column, infer_schema
from cloister.core.tasks.sources import Source, may_have_owners, read_source, where_is
from cloister.core.tasks.splitting import split_rows
from cloister.core.tasks.tables import RawTable, Texts

__all__ = ["INFERRED", "Tabular"]

#: What `Tabular.notes` says where the schema is a guess.
INFERRED = (
    "the schema was inferred from the data: ranges and categories are statistics of it; declare a schema before using it over real "
    "sites (Tabular.inferred_schema() writes one to start from)"
)
_INFERRED_TARGET = (
    "the target's classes or range were inferred from the data: declare `classes`, or the target in the schema, before using it "
    "over real sites"
)


class Tabular(Task):
    """A target column of a table, predicted from its other columns.

    Inputs are made by a public schema (`cloister.core.tasks.columns`). Where the schema, the kind and the
    classes are declared, a party without any data (a server) builds the very same model; where they are not,
    they are guessed from the data and `notes` says so.

    Args:
        data: a CSV, TSV or Parquet file; or a folder of them: then each file is one owner's, named like the
            file; or a table that describes a query of a database (`SqlSource`).
        target: the column to predict.
        model: a model's name, or a table with its name and options.
        kind: what the target is; ``auto`` follows its declaration in the schema, then `classes`, then the
            data.
        schema: a TOML or JSON file, or a table. The target may be declared in it too: categorical or boolean
            gives the classes, numeric the public range that targets are scaled by, so that errors are in
            units of half that range (``unit``: of the whole range).
        classes: the target's values, in the order of their numbers.
        test_fraction: share of each owner's records kept for testing.
        split_seed: seed of that split; a federation's own seed does not change it.
        allow_single_class: whether a site may train on records of one class only.
    """

    places = ("data",)

    def __init__(
        self,
        *,
        data: Source,
        target: str,
        model: ModelChoice = "mlp",
        kind: Literal["auto", "classification", "regression"] = "auto",
        schema: Path | dict[str, Any] | None = None,
        classes: list[str | int | bool] | None = None,
        test_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25,
        split_seed: Annotated[int, Field(ge=0)] = 0,
        allow_single_class: bool = False,
    ) -> None:
        read_model(model)
        self._data, self._model = data, model
        self._test_fraction, self._split_seed = test_fraction, split_seed
        self.allows_single_class = allow_single_class
        #: What a user should know before running it; empty where everything was declared.
        self.notes: list[str] = []
        #: How many rows of each owner lack a value that is needed; known once `data` was called. It stays
        #: with the owner.
        self.dropped: dict[str, int] = {}
        declared = None if schema is None else read_schema(schema)
        self._missing_values = declared.missing_values if declared else MISSING
        if declared is None:
            self.notes.append(INFERRED)
        self._schema = declared or infer_schema(list(self._tables.values()))
        self._target = self._read_target(
            target, kind, None if classes is None else [canonical(name) for name in classes], declared
        )
        self._columns = self._schema.inputs(self._target.name)
        self.columns = self._columns
        if not self._columns:
            raise TaskError(
                f"there is no column to predict '{target}' from",
                remedy="declare the columns that the model reads",
                code="task-schema",
            )
        self.bounds, self.features = bounds(self._columns), numeric_places(self._columns)
        self.kind = self._target.kind
        self.classes = self._target.classes

    def model(self) -> nn.Module:
        """Return a new model for the schema's inputs."""
        return build(self._model, input_shape=(width(self._columns),), outputs=len(self.classes) or 1)

    def data(self) -> Split | dict[str, Split]:
        """Return each owner's records, split by the task's own seed (by class, for classification).

        Raises:
            DataError: a file is missing or unreadable, a column is missing, a value is not of its column's
                kind, or no row is left.
        """
        splits = {owner: self._split(owner, table) for owner, table in self._tables.items()}
        return splits if may_have_owners(self._data) else next(iter(splits.values()))

    def inferred_schema(self, out: Path | None = None) -> dict[str, Any]:
        """Return a schema guessed from the data; write it to ``out`` (TOML) as a start for a public one."""
        document = infer_schema(list(self._tables.values())).as_document()
        if out is not None:
            head = "# Guessed from data: its ranges and values are statistics of it. Replace them by public ones before use over real sites.\n\n"
            out.write_text(head + tomli_w.dumps(document), encoding="utf-8")
        return document

    @property
    def target(self) -> str:
        """The column that is predicted."""
        return self._target.name

    def tables(self) -> dict[str, RawTable]:
        """Return each owner's table as it was read."""
        return self._tables

    def describe(self) -> dict[str, Any]:
        """Return what a model card says of the task."""
        what = "one of " + ", ".join(self.classes) if self.classes else "a number"
        return {
            "title": f"{self._target.name} from a table",
            "description": f"Predicts the column '{self._target.name}' ({what}) from {len(self._columns)} columns: {', '.join(self._columns)}.",
            "source": "tables of the participating sites",
            "licence": "as the sites' own data",
            "intended_use": "records of the kind that the schema declares, at the participating sites",
            "columns": {name: column.model_dump(mode="json") for name, column in self._columns.items()},
        }

    @cached_property
    def _tables(self) -> dict[str, RawTable]:
        return read_source(self._data, self._missing_values).by_owner

    def _read_target(
        self, name: str, kind: str, classes: list[str] | None, declared: Schema | None
    ) -> _Target:
        column = declared.columns.get(name) if declared else None
        if classes is not None:
            if kind == "regression":
                raise TaskError(
                    "task.classes goes with a classification, not with kind = 'regression'",
                    remedy="remove one of them",
                    code="task-option",
                )
            if len(set(classes)) < len(classes):
                raise TaskError(
                    "task.classes names a class twice", remedy="list each class once", code="task-option"
                )
            return _Target(name=name, kind="classification", classes=tuple(classes))
        if column is None:
            self.notes.append(_INFERRED_TARGET)
            column = self._guess_target(name, kind)
        if kind == "regression" and not isinstance(column, NumericColumn):
            raise TaskError(
                f"the target '{name}' is {column.kind}, which a regression cannot predict",
                remedy="declare it numeric",
                code="task-option",
            )
        if isinstance(column, NumericColumn) and kind != "classification":
            return _Target(name=name, kind="regression", column=column)
        if isinstance(column, CategoricalColumn):
            return _Target(name=name, kind="classification", classes=column.values)
        if isinstance(column, BooleanColumn):
            return _Target(name=name, kind="classification", classes=("false", "true"), column=column)
        raise TaskError(
            f"the target '{name}' is declared numeric, not a class",
            remedy="list its values in task.classes",
            code="task-classes",
        )

    def _guess_target(self, name: str, kind: str) -> Column:
        parts = [table.texts(name) for table in self._tables.values()]
        column = infer_column(parts)
        values = sorted({str(text) for text in np.concatenate(parts) if text != ""}, key=_by_number)
        whole = len(values) <= MOST_CLASSES and all(value.lstrip("+-").isdigit() for value in values)
        if (
            kind != "regression"
            and (column is None or isinstance(column, NumericColumn))
            and (whole or kind == "classification")
            and values
        ):
            return CategoricalColumn(values=tuple(values))
        if column is None:
            raise DataError(
                f"'{where_is(self._data)}': the target column '{name}' has fewer than two values, or none but names",
                remedy="check task.target",
                code="data-target",
            )
        return column

    def _split(self, owner: str, table: RawTable) -> Split:
        encoded = encode(table, self._columns)
        targets, labelled = self._target.read(table)
        kept = encoded.complete & labelled
        self.dropped[owner] = int((~kept).sum())
        if not kept.any():
            why = "has no record" if len(table) == 0 else "has no row with every value that is needed"
            raise DataError(
                f"'{table.where}' {why}",
                remedy='give it records, leave it out, or set missing = "indicator" for columns with gaps',
                code="data-empty",
            )
        inputs, wanted = torch.from_numpy(encoded.inputs[kept]), torch.from_numpy(targets[kept])
        strata = (
            targets[kept]
            if self._target.kind == "classification"
            else np.zeros(int(kept.sum()), dtype=np.int64)
        )
        train, test = split_rows(
            strata, test_fraction=self._test_fraction, seed=self._split_seed, owner=owner
        )
        return Split(
            *(
                TensorData(inputs[torch.from_numpy(rows)], wanted[torch.from_numpy(rows)])
                for rows in (train, test)
            )
        )


@dataclass(frozen=True, kw_only=True)
class _Target:
    name: str
    kind: Literal["classification", "regression"]
    classes: tuple[str, ...] = ()
    column: Column | None = None

    def read(self, table: RawTable) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.bool_]]]:
        """Return (n,) targets (int64 class numbers or float32) and (n,) whether a row has one."""
        if isinstance(self.column, NumericColumn):
            numbers = scaled(table.numbers(self.name), self.column)
            return np.nan_to_num(numbers).astype(np.float32), ~np.isnan(numbers)
        if isinstance(self.column, BooleanColumn):
            truths = table.truths(self.name)
            return np.nan_to_num(truths).astype(np.int64), ~np.isnan(truths)
        return self._classes(table, table.texts(self.name))

    def _classes(
        self, table: RawTable, texts: Texts
    ) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, np.dtype[np.bool_]]]:
        matches = texts[:, None] == np.array(self.classes, dtype=object)
        labelled = texts != ""
        strange = labelled & ~matches.any(axis=1)
        if strange.any():
            raise DataError(
                f"'{table.where}', column '{self.name}', row {int(strange.argmax()) + 1}: not one of the {len(self.classes)} classes of the task",
                remedy="declare every class in task.classes or in the schema, or mend the value",
                code="data-target",
            )
        return matches.argmax(axis=1).astype(np.int64), labelled


def _by_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text
