"""Findings about a table: its columns against the schema, who can be told from it, and what is wrong with its numbers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pandas as pd

from cloister.client.data_check.finding import Finding, Severity, called, of
from cloister.client.data_check.identifiers import by_name, by_values
from cloister.core.errors import CloisterError
from cloister.core.tasks.columns import CategoricalColumn, Column, NumericColumn
from cloister.core.tasks.encoding import encode
from cloister.core.tasks.tables import RawTable

__all__ = ["Reading", "table_findings"]

Texts = npt.NDArray[np.object_]

#: Shares of records from which on something is told, or warned of.
_SOME, _MUCH = 0.05, 0.3
#: More values than this are quantities or names, and not categories.
_CATEGORIES = 50
#: Words in column names that describe a person without naming one.
_QUASI = frozenset(
    [
        "age",
        "sex",
        "gender",
        "zip",
        "zipcode",
        "postcode",
        "plz",
        "postal",
        "ethnicity",
        "race",
        "nationality",
        "religion",
        "occupation",
        "job",
        "profession",
        "marital",
        "married",
        "birthyear",
        "yob",
        "alter",
        "geschlecht",
        "beruf",
        "education",
        "income",
        "region",
        "county",
        "country",
        "district",
    ]
)
_OLDEST = 89  # HIPAA's safe harbour: ages above it are to be put together


@dataclass(frozen=True, kw_only=True)
class Reading:
    """What is read of a table, and what the check goes by.

    Attributes:
        columns: what the task reads; ``None``: not known.
        target: the column that is predicted; ``None``: not known.
        quasi_identifiers: the columns that together may tell who somebody is; ``None``: guessed from their names.
        smallest_group: k: fewer records than this in a group are few.
    """

    columns: Mapping[str, Column] | None = None
    target: str | None = None
    quasi_identifiers: Sequence[str] | None = None
    smallest_group: int = 5

    def reads(self, column: str) -> bool | None:
        """Whether the task reads a column; ``None``: not known."""
        return None if self.columns is None else column in self.columns or column == self.target


def table_findings(table: RawTable, reading: Reading) -> list[Finding]:
    """Return what is to be said of one table.

    Args:
        table: as it was read.
        reading: what of it the task reads.
    """
    texts = {name: table.texts(name) for name in table.names}
    found = [*_header(table), *_schema(table, reading)]
    for place, (name, column) in enumerate(texts.items()):
        what = called(name, place)
        found += _identity(name, what, column, reading.reads(name))
        found += _quality(name, what, column, reading)
    return [*found, *_groups(texts, reading), *_duplicates(texts, reading)]


def _header(table: RawTable) -> Iterator[Finding]:
    odd = [place for place, name in enumerate(table.names) if called(name, place) == f"column {place + 1}"]
    if len(odd) > len(table.names) / 2:
        yield Finding(
            code="no-header",
            severity="error",
            what="most column names look like values: the file seems to have no header, and its first record would be lost",
            remedy="put a line with the columns' names above the records",
        )


def _schema(table: RawTable, reading: Reading) -> Iterator[Finding]:
    for name, column in (reading.columns or {}).items():
        try:
            encode(table, {name: column})
        except CloisterError as error:
            yield Finding(
                code=error.code, severity="error", what=error.message, remedy=error.remedy, column=name
            )
            continue
        if isinstance(column, NumericColumn):
            yield from _range(name, table.numbers(name), column)


def _range(name: str, numbers: npt.NDArray[np.float64], column: NumericColumn) -> Iterator[Finding]:
    present = numbers[~np.isnan(numbers)]
    outside = int(((present < column.low) | (present > column.high)).sum())
    if outside:
        severity: Severity = "warning" if outside > _SOME * len(present) else "note"
        yield Finding(
            code="out-of-range",
            severity=severity,
            what=f"column '{name}': {of(outside, len(present))} lie outside the schema's range {column.low:g} to {column.high:g} and count as its ends",
            remedy="check the unit of measure; if the values are right, ask for a wider public range",
            column=name,
        )
    for extreme in (present.min(), present.max()) if len(present) else ():
        same = int((present == extreme).sum())
        if same > _SOME * len(present) and len(np.unique(present)) > _CATEGORIES / 2:
            yield Finding(
                code="code-for-missing",
                severity="note",
                what=f"column '{name}': {of(same, len(present))} hold the same value at the end of what occurs",
                remedy="if it is a code for 'not measured' (such as 0 or 999), leave it empty in the export",
                column=name,
            )


def _identity(name: str, what: str, texts: Texts, reads: bool | None) -> Iterator[Finding]:
    kinds = by_values(texts)
    named = by_name(name)
    if named is not None and named[1] not in {kind[1] for kind in kinds}:
        kinds = [named, *[kind for kind in kinds if kind[1] != "identifier-unique"]]
    for holds, code, severity in kinds:
        if code == "identifier-date" and named is not None and named[1] == "identifier-birth":
            continue
        yield Finding(
            code=code,
            severity=severity if reads else "warning" if reads is None or severity == "error" else "note",
            what=f"{what} holds {holds}, and " + _READS[reads],
            remedy="leave the column out of the export" if not reads else "take the column out of the schema",
            column=name,
        )
    if "age" in name.lower().split("_") and not kinds:
        ages = pd.to_numeric(pd.Series(texts, dtype=object), errors="coerce")
        old = int((ages > _OLDEST).sum())
        if old:
            yield Finding(
                code="high-age",
                severity="note",
                what=f"{what}: {of(old, len(texts))} have an age above {_OLDEST}, which few people share",
                remedy=f"count ages above {_OLDEST} as {_OLDEST + 1} in the export",
                column=name,
            )


_READS = {True: "the task reads it", False: "the task does not read it", None: "may be read"}


def _quality(name: str, what: str, texts: Texts, reading: Reading) -> Iterator[Finding]:
    if reading.reads(name) is False or not len(texts):
        return
    absent, present = int((texts == "").sum()), texts[texts != ""]
    if absent > _SOME * len(texts):
        column = (reading.columns or {}).get(name)
        lost = column is not None and column.missing == "drop"
        yield Finding(
            code="missing-values",
            severity="error"
            if absent == len(texts)
            else "warning"
            if absent > _MUCH * len(texts) or lost
            else "note",
            what=f"{what}: {of(absent, len(texts))} have no value" + (", and are left out" if lost else ""),
            remedy="complete the export, or ask for missing = 'indicator' in the schema",
            column=name,
        )
    values, counts = np.unique(present.astype(str), return_counts=True)
    if len(values) == 1:
        yield Finding(
            code="constant",
            severity="warning",
            what=f"{what} has one value only: nothing can be learned from it here",
            remedy="check the export's filter",
            column=name,
        )
    column = (reading.columns or {}).get(name)
    categorical = isinstance(column, CategoricalColumn) or (
        column is None and 2 <= len(values) <= _CATEGORIES
    )
    rare = int((counts < reading.smallest_group).sum())
    if categorical and rare and len(values) > 1:
        yield Finding(
            code="rare-values",
            severity="warning" if isinstance(column, CategoricalColumn) else "note",
            what=f"{what}: {rare} of its {len(values)} values stand in fewer than {reading.smallest_group} records",
            remedy="put rare values together into one, such as 'other'",
            column=name,
        )


def _groups(texts: Mapping[str, Texts], reading: Reading) -> Iterator[Finding]:
    if reading.quasi_identifiers is None:
        names = [name for name in texts if _QUASI & set(name.lower().replace("-", "_").split("_"))]
        declared = ""
    else:
        unknown = [name for name in reading.quasi_identifiers if name not in texts]
        for name in unknown:
            yield Finding(
                code="data-missing-column",
                severity="error",
                what=f"there is no column '{name}', which quasi_identifiers names",
                remedy="check quasi_identifiers in site.toml",
                column=name,
            )
        names, declared = [name for name in reading.quasi_identifiers if name in texts], "declared "
    if len(names) < 1 or not len(next(iter(texts.values()))):
        return
    sizes = pd.DataFrame({name: texts[name].astype(str) for name in names}).value_counts().to_numpy()
    few = sizes[sizes < reading.smallest_group]
    if not len(few):
        return
    total, alone = int(sizes.sum()), int((sizes == 1).sum())
    yield Finding(
        code="small-groups",
        severity="note" if reading.quasi_identifiers is None else "warning",
        what=f"by the {declared}columns {', '.join(names)} together, {of(int(few.sum()), total)} share their values with fewer than "
        f"{reading.smallest_group - 1} others, and {alone:,} with nobody; the smallest group has {int(sizes.min())}",
        remedy="coarsen these columns (age in tens of years, the first digits of a postcode), or rely on differential privacy and not on the data's form",
    )


def _duplicates(texts: Mapping[str, Texts], reading: Reading) -> Iterator[Finding]:
    names = [name for name in texts if reading.reads(name) is not False]
    if not names:
        return
    frame = pd.DataFrame({name: texts[name].astype(str) for name in names})
    again = int(frame.duplicated().sum())
    if again:
        yield Finding(
            code="duplicates",
            severity="warning" if again > _SOME * len(frame) else "note",
            what=f"{of(again, len(frame))} repeat another one in every column"
            + (" that is read" if reading.columns else ""),
            remedy="remove repeated rows; if they are several visits of one person, set privacy.max_records_per_person to how many one can have",
        )
