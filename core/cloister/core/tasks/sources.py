"""Where tables come from: a file, a folder with one file for each owner, or a query of a database.

The seam is one function, `read_source`: whatever a source is, what comes of it is a `RawTable` for each owner. What a task needs to
know more is whether the source can have several owners at all (a folder can).

A database is given as a table::

    data = { sql = "postgresql://reader@db.hospital.example/registry", query = "SELECT age, chol, num FROM visits" }
    data = { sql_env = "CLOISTER_DB_URL", table = "visits" }
    data = { url_file = "database.url", table = "clinic.visits" }
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator

from cloister.core.errors import DataError
from cloister.core.spec.base import Table
from cloister.core.tasks.columns import MISSING
from cloister.core.tasks.tables import SUFFIXES, RawTable, read_table

__all__ = ["Source", "SqlSource", "Tables", "may_have_owners", "read_source", "where_is"]

_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"
_TABLE = r"^[A-Za-z_][A-Za-z0-9_$]{0,62}(\.[A-Za-z_][A-Za-z0-9_$]{0,62})?$"


class SqlSource(Table):
    """A query of a database: one of ``sql``, ``sql_env`` and ``url_file``, and one of ``query`` and ``table``.

    Attributes:
        sql: the database's URL, without a password.
        sql_env: the environment variable that holds the URL; it may have a password.
        url_file: a file that holds the URL, which only its owner may read (0600); it may have a password.
        query: one SELECT.
        table: a table or view, all of it: ``name`` or ``schema.name``.
        name: whose records these are, where the task tells owners apart; the table's name, or ``sql``, if left out.
        timeout_s: seconds that the database may take.
        row_limit: refuse a result with more rows.
    """

    sql: str | None = None
    sql_env: Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")] | None = None
    url_file: Path | None = None
    query: Annotated[str, Field(min_length=1, max_length=1 << 16)] | None = None
    table: Annotated[str, Field(pattern=_TABLE)] | None = None
    name: Annotated[str, Field(pattern=_NAME)] | None = None
    timeout_s: Annotated[float, Field(gt=0, le=86400)] = 60.0
    row_limit: Annotated[int, Field(ge=1, le=100_000_000)] = 1_000_000

    @field_validator("sql")
    @classmethod
    def _no_password(cls, url: str | None) -> str | None:
        """Refuse a URL with a password, here already: a later message may show the option's value."""
        authority = (url or "").partition("://")[2].partition("/")[0]
        user = authority.rpartition("@")[0]
        if ":" in user or "password" in (url or "").lower():
            raise ValueError(
                "a URL in this file must not hold a password; use sql_env, or url_file with a file of mode 0600"
            )
        return url

    @property
    def owner(self) -> str:
        """Whose records these are."""
        return self.name or (self.table or "sql").rpartition(".")[2]


#: What an option that names tables may be.
Source = Path | SqlSource


@dataclass(frozen=True, kw_only=True)
class Tables:
    """What a source holds.

    Attributes:
        by_owner: each owner's table.
        several: whether the source tells owners apart.
    """

    by_owner: dict[str, RawTable]
    several: bool


def read_source(source: Source, missing_values: tuple[str, ...] = MISSING) -> Tables:
    """Read all tables of a source.

    Raises:
        DataError: it is missing, unreadable or not of its kind; the message holds no value of it.
        TaskError: (task-option, task-extra) a database is described wrongly, or its driver is not installed.
    """
    if isinstance(source, SqlSource):
        from cloister.core.tasks.sql import read_sql

        return Tables(by_owner={source.owner: read_sql(source, missing_values)}, several=False)
    read = {path.stem: read_table(path, missing_values) for path in _files(source)}
    return Tables(by_owner=read, several=may_have_owners(source))


def may_have_owners(source: Source) -> bool:
    """Whether the source tells owners apart: only a folder does, by its files' names."""
    return isinstance(source, Path) and source.is_dir()


def where_is(source: Source) -> str:
    """Return what messages call the source; never a URL or a query."""
    return f"sql:{source.owner}" if isinstance(source, SqlSource) else str(source)


def _files(data: Path) -> list[Path]:
    if not data.is_dir():
        return [data]
    found = sorted(
        path for path in data.iterdir() if path.suffix in SUFFIXES and not path.name.startswith(".")
    )
    if not found:
        raise DataError(
            f"the folder '{data}' holds no table ({', '.join(SUFFIXES)})",
            remedy="put one file for each owner in it",
            code="data-missing-file",
        )
    if len({path.stem for path in found}) < len(found):
        raise DataError(
            f"the folder '{data}' has two files of one name: each names an owner",
            remedy="rename one of them",
            code="data-unreadable",
        )
    return found
