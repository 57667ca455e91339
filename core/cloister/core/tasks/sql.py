"""Tables from a database, through SQLAlchemy (``pip install "cloister[sql]"``): PostgreSQL and SQLite.

Formal guarantees:

- *Nothing is written.* The query runs in a read-only transaction of the database (PostgreSQL), or on a connection that was opened for
  reading only (SQLite). What a function that the query calls does outside the database is the database's business: give a user that
  may read the one view, and no more.
- *One statement.* A query with a semicolon, or that begins with anything but SELECT or WITH, is refused before it is sent; PostgreSQL is
  spoken to in prepared statements, which cannot hold two.
- *It ends.* The database is told to stop after ``timeout_s``, and a result of more than ``row_limit`` rows is refused, never cut.
- *The same records make the same table*, whatever the order in which the database returns them: rows are sorted by what stands in
  them, since a split into records to train and to test on goes by their order.
- *No message holds a value*, the query, the URL or what the database said: it may quote any of them.

=============================================  =====================================
case                                           outcome
=============================================  =====================================
no row                                         an empty table, with its columns
a column of dates or times                     text in ISO format
a column of bytes, arrays, documents           ``DataError`` (data-unreadable)
a number of more digits than a float holds     the nearest float
two columns of one name                        ``DataError`` (data-unreadable)
more rows than ``row_limit``                   ``DataError`` (data-too-large)
=============================================  =====================================
"""

from __future__ import annotations

import datetime as dt
import os
import stat
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from cloister.core.errors import DataError, TaskError
from cloister.core.tasks.columns import MISSING
from cloister.core.tasks.sources import SqlSource, where_is
from cloister.core.tasks.tables import RawTable

if TYPE_CHECKING:
    from sqlalchemy import URL, Connection, Engine, Executable
    from sqlalchemy.exc import SQLAlchemyError

__all__ = ["database_url", "read_sql"]

_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgresql+psycopg": "postgresql+psycopg",
    "sqlite": "sqlite",
    "sqlite+pysqlite": "sqlite",
}
_LONGEST_URL = 4096
_PIECE = 10_000
#: What a PostgreSQL error of this class (the first two, or all five, letters of its code) means.
_MEANINGS = {
    "57014": ("took longer than timeout_s", "raise timeout_s, or ask for less"),
    "25006": ("would write, and nothing may be written", "ask with a SELECT that only reads"),
    "42501": ("is not allowed to this user", "grant SELECT on the table or view"),
    "42P01": ("names a table that is not there", "check the table's name and schema"),
    "42703": ("names a column that is not there", "check the columns' names"),
    "42": ("was not understood by the database", "try the query in the database's own client"),
    "28": ("was not answered: the database refused the login", "check user and password"),
    "22": ("failed on a value", "cast the column in the query"),
    "3D": ("names a database that is not there", "check the URL"),
}
#: What SQLite, or libpq before it has a connection, says without a code.
_SAID = {
    "authentication failed": "28",
    "no password supplied": "28",
    "interrupted": "57014",
    "readonly": "25006",
    "no such table": "42P01",
    "no such column": "42703",
    "syntax error": "42",
}


def read_sql(source: SqlSource, missing_values: tuple[str, ...] = MISSING) -> RawTable:
    """Return the rows of a query.

    Raises:
        TaskError: (task-option, task-extra) the source is described wrongly, or SQLAlchemy or the driver is not installed.
        DataError: the database cannot be reached, refuses, takes too long or returns too much, or what no table can hold.
    """
    try:
        import sqlalchemy
    except ModuleNotFoundError:
        raise _no_driver() from None
    url, statement = database_url(source), _statement(source)
    try:
        engine = _engine(url, source)
    except ModuleNotFoundError:
        raise _no_driver() from None
    try:
        with _reading(engine, source) as connection:
            names, rows = _fetch(connection, statement, source)
    except sqlalchemy.exc.SQLAlchemyError as error:
        raise _refused(error, source) from None
    finally:
        engine.dispose()
    if len(set(names)) < len(names):
        raise _unfit(source, "returns two columns of one name", "give each a name of its own with AS")
    columns = {name: _column([row[place] for row in rows], name, source) for place, name in enumerate(names)}
    table = RawTable(
        where=where_is(source), frame=pd.DataFrame(columns, columns=names), missing_values=missing_values
    )
    return RawTable(where=table.where, frame=_ordered(table), missing_values=missing_values)


def database_url(source: SqlSource) -> URL:
    """Return the database's URL, from wherever it is given.

    Raises:
        TaskError: (task-option) it is given in no way or in two, or is no URL of a database that is known here.
        DataError: (data-secret) the file that it stands in can be read by others.
    """
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    given = {"sql": source.sql, "sql_env": source.sql_env, "url_file": source.url_file}
    named = [name for name, value in given.items() if value is not None]
    if len(named) != 1:
        raise _wrong("a database is given by exactly one of sql, sql_env and url_file")
    if source.sql_env is not None:
        text = os.environ.get(source.sql_env, "")
        if not text:
            raise _wrong(
                f"the environment variable {source.sql_env} is not set", remedy="set it to the database's URL"
            )
    else:
        text = source.sql if source.sql is not None else _secret(source.url_file or Path())
    try:
        url = make_url(text.strip())
    except (ArgumentError, ValueError):
        raise _wrong(
            f"what {named[0]} gives is no URL of a database", remedy="write postgresql://user@host/database"
        ) from None
    if url.drivername not in _DRIVERS:
        raise _wrong(
            f"databases of the kind '{url.drivername[:32]}' are not read: this version knows how to read without writing from "
            "PostgreSQL and SQLite only",
            remedy="export a CSV or Parquet file, or give a PostgreSQL or SQLite URL",
        )
    url = url.set(drivername=_DRIVERS[url.drivername])
    if source.sql is not None and (url.password is not None or "password" in url.query):
        raise _wrong("sql holds a password", remedy="use sql_env or url_file")
    if url.drivername == "sqlite" and not (url.database and Path(url.database).is_absolute()):
        raise _wrong(
            "the URL of an SQLite file has no absolute path", remedy="write sqlite:////folder/file.db"
        )
    return url


def _secret(path: Path) -> str:
    try:
        mode = path.stat().st_mode
        if not stat.S_ISREG(mode) or mode & 0o077:
            raise DataError(
                f"'{path}' can be read by others than its owner, or is no file",
                remedy=f"run: chmod 600 '{path}'",
                code="data-secret",
            )
        return path.read_text(encoding="utf-8")[:_LONGEST_URL]
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise DataError(
            f"cannot read '{path}': {reason}", remedy="check url_file", code="data-missing-file"
        ) from None


def _statement(source: SqlSource) -> Executable:
    from sqlalchemy import select, table, text

    if (source.query is None) == (source.table is None):
        raise _wrong("give exactly one of query and table")
    if source.table is not None:
        schema, _, name = source.table.rpartition(".")
        return select(text("*")).select_from(table(name, schema=schema or None))
    query = (source.query or "").strip()
    if ";" in query or query.split(None, 1)[0].upper() not in ("SELECT", "WITH"):
        raise _wrong(
            "the query is not one SELECT: it holds a ';', or begins with another word than SELECT or WITH",
            remedy="ask one question; for anything else make a view in the database, and name it as `table`",
        )
    return text(query.replace(":", r"\:"))  # SQLAlchemy would take what follows for a parameter


def _engine(url: URL, source: SqlSource) -> Engine:
    from sqlalchemy import create_engine, pool

    if url.drivername == "sqlite":
        import sqlite3

        place = f"file:{quote(url.database or '')}?mode=ro"
        return create_engine(
            "sqlite://",
            creator=lambda: sqlite3.connect(place, uri=True, timeout=source.timeout_s),
            poolclass=pool.NullPool,
            hide_parameters=True,
        )
    milliseconds = max(1, round(1000 * source.timeout_s))
    options = f"-c default_transaction_read_only=on -c statement_timeout={milliseconds} -c lock_timeout={milliseconds}"
    return create_engine(
        url,
        poolclass=pool.NullPool,
        hide_parameters=True,
        connect_args={
            "connect_timeout": max(2, min(30, round(source.timeout_s))),
            "options": options,
            "prepare_threshold": 0,  # always the extended protocol, in which a message is one statement
            "application_name": "cloister",
        },
    )


@contextmanager
def _reading(engine: Engine, source: SqlSource) -> Iterator[Connection]:
    with engine.connect() as connection:
        if engine.dialect.name == "sqlite":
            deadline = time.monotonic() + source.timeout_s
            own: Any = connection.connection.dbapi_connection
            own.execute("PRAGMA query_only = ON")
            own.set_progress_handler(lambda: int(time.monotonic() > deadline), 1000)
            yield connection
        else:
            yield connection.execution_options(
                isolation_level="REPEATABLE READ", postgresql_readonly=True, stream_results=True
            )
        connection.rollback()


def _fetch(
    connection: Connection, statement: Executable, source: SqlSource
) -> tuple[list[str], list[Sequence[Any]]]:
    deadline = time.monotonic() + source.timeout_s
    rows: list[Sequence[Any]] = []
    with connection.execute(statement) as result:
        names = [str(name) for name in result.keys()]  # noqa: SIM118 - a result is no mapping
        while piece := result.fetchmany(min(_PIECE, source.row_limit + 1)):
            rows.extend(piece)
            if len(rows) > source.row_limit:
                raise DataError(
                    f"'{where_is(source)}' has more than row_limit = {source.row_limit} rows",
                    remedy="raise row_limit, or ask for less",
                    code="data-too-large",
                )
            if time.monotonic() > deadline:
                raise _unfit(source, *_MEANINGS["57014"])
    return names, rows


def _column(values: list[Any], name: str, source: SqlSource) -> pd.Series[Any]:
    """Return a column as truth values, numbers or text: the widest of what stands in it."""
    kinds = {type(value) for value in values if value is not None}
    if kinds <= {bool}:
        return pd.Series(values, dtype=object)
    long = any(type(value) is int and abs(value) >= 1 << 53 for value in values)  # a name, not a quantity
    if kinds == {int} and not long:
        return pd.Series(values, dtype="Int64")
    if kinds <= {int, float, Decimal} and not long:
        return pd.Series([np.nan if value is None else float(value) for value in values], dtype=np.float64)
    found = [None if value is None else _text(value) for value in values]
    if any(text is None and value is not None for text, value in zip(found, values, strict=True)):
        raise _unfit(
            source,
            f"returns in column '{name}' what is no number, text, date or truth value",
            "leave the column out, or cast it in the query",
        )
    return pd.Series(found, dtype=object)


def _text(value: Any) -> str | None:
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    known = isinstance(value, str | bool | int | float | Decimal | uuid.UUID | dt.timedelta)
    return str(value) if known else None


def _ordered(table: RawTable) -> pd.DataFrame:
    if not len(table) or not table.names:
        return table.frame
    texts = pd.DataFrame({name: table.texts(name).astype(str) for name in table.names})
    return table.frame.loc[texts.sort_values(sorted(table.names), kind="stable").index].reset_index(drop=True)


def _refused(error: SQLAlchemyError, source: SqlSource) -> DataError:
    """Return the refusal for what the database said, of which nothing is quoted."""
    original = getattr(error, "orig", None)
    state = str(getattr(original, "sqlstate", None) or "")
    said = str(original).lower() if original is not None else ""
    states = [state, state[:2], *(known for words, known in _SAID.items() if words in said)]
    for known in states:
        if known in _MEANINGS:
            return _unfit(source, *_MEANINGS[known])
    return _unfit(
        source,
        f"was not answered ({state or type(original or error).__name__})",
        "check that the database runs and can be reached from here; its own log says more",
    )


def _unfit(source: SqlSource, what: str, remedy: str) -> DataError:
    return DataError(f"the query of '{where_is(source)}' {what}", remedy=remedy, code="data-unreadable")


def _wrong(
    what: str, *, remedy: str = 'for example data = { sql_env = "CLOISTER_DB_URL", table = "visits" }'
) -> TaskError:
    return TaskError(what, remedy=remedy, code="task-option")


def _no_driver() -> TaskError:
    return TaskError(
        "reading from a database needs SQLAlchemy and psycopg, which are not installed",
        remedy='pip install "cloister[sql]"',
        code="task-extra",
    )
