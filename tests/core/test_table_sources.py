"""One contract for everything that tables come from, and what databases promise beside it."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from cloister.core.errors import CloisterError, DataError, TaskError
from cloister.core.resolve import load_task, owners
from cloister.core.spec.tables import TaskTable
from cloister.core.tasks.heart import Heart, heart_data
from cloister.core.tasks.sources import Source, SqlSource, may_have_owners, read_source
from cloister.core.tasks.tables import RawTable
from postgres import PASSWORD, Database, installed, postgres

#: age with a gap, a code that is text in one row, a truth, free text with marks; the value that no message may quote.
SECRET = "Zaphod"
ROWS: list[dict[str, Any]] = [
    {"age": 41, "code": "3", "smoker": True, "word": "red, or ;blue"},
    {"age": None, "code": "0", "smoker": False, "word": SECRET},
    {"age": 63, "code": "x1", "smoker": None, "word": "NA"},
    {"age": 41, "code": "1", "smoker": True, "word": ""},
]
POSTGRES = pytest.param(
    "postgres", marks=[pytest.mark.slow, pytest.mark.skipif(not installed(), reason="no initdb")]
)
EMPTY_SCHEMA = "CREATE TABLE records (age INTEGER, code TEXT, smoker BOOLEAN, word TEXT)"


@pytest.fixture(scope="module")
def database() -> Iterator[Database]:
    with postgres() as found:
        yield found


@dataclass
class Place:
    """Somewhere to put rows, and the source that reads them."""

    put: Callable[[list[dict[str, Any]]], Source]


def frame_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "age": pd.Series([row["age"] for row in rows], dtype="Int64"),
            "code": pd.Series([row["code"] for row in rows], dtype=object),
            "smoker": pd.Series([row["smoker"] for row in rows], dtype=object),
            "word": pd.Series([row["word"] for row in rows], dtype=object),
        }
    )


@pytest.fixture(params=["csv", "tsv", "parquet", "folder", "sqlite", POSTGRES])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    kind = request.param

    def put(rows: list[dict[str, Any]]) -> Source:
        frame = frame_of(rows)
        if kind in ("csv", "tsv", "folder"):
            path = tmp_path / "some" / ("records." + ("tsv" if kind == "tsv" else "csv"))
            path.parent.mkdir()
            frame.to_csv(path, sep="\t" if kind == "tsv" else ",", index=False)
            return path.parent if kind == "folder" else path
        if kind == "parquet":
            frame.to_parquet(tmp_path / "records.parquet")
            return tmp_path / "records.parquet"
        values = [tuple(row.values()) for row in rows]
        if kind == "sqlite":
            return sqlite_source(tmp_path / "hospital.db", values)
        return postgres_source(request.getfixturevalue("database"), values)

    return Place(put)


def sqlite_source(path: Path, values: list[tuple[Any, ...]], **options: Any) -> SqlSource:
    with sqlite3.connect(path) as connection:
        connection.execute(EMPTY_SCHEMA)
        connection.executemany("INSERT INTO records VALUES (?, ?, ?, ?)", values)
    return SqlSource.model_validate({"sql": f"sqlite:///{path}", "table": "records", **options})


def execute(database: Database, *statements: tuple[str, list[tuple[Any, ...]]]) -> None:
    import psycopg

    with psycopg.connect(
        host=str(database.folder), port=database.port, user="postgres", dbname="postgres"
    ) as connection:
        cursor = connection.cursor()
        for statement, values in statements:
            if values:
                cursor.executemany(statement, values)
            elif "%s" not in statement:
                cursor.execute(statement)


def postgres_source(database: Database, values: list[tuple[Any, ...]], **options: Any) -> SqlSource:
    execute(
        database,
        ("DROP TABLE IF EXISTS records", []),
        (EMPTY_SCHEMA, []),
        ("INSERT INTO records VALUES (%s, %s, %s, %s)", values),
    )
    return SqlSource.model_validate({"sql": database.url(), "table": "records", **options})


def only(source: Source) -> RawTable:
    read = read_source(source)
    assert list(read.by_owner) == ["records"]
    return read.by_owner["records"]


def rows_of(table: RawTable) -> set[tuple[Any, ...]]:
    columns = [
        np.nan_to_num(table.numbers("age"), nan=-1).tolist(),
        table.texts("code").tolist(),
        np.nan_to_num(table.truths("smoker"), nan=-1).tolist(),
        table.texts("word").tolist(),
    ]
    return set(zip(*columns, strict=True))


def refused(work: Callable[[], object]) -> CloisterError:
    with pytest.raises(CloisterError) as caught:
        work()
    assert caught.value.remedy
    assert SECRET not in str(caught.value) + caught.value.remedy
    return caught.value


def test_every_source_hands_over_the_same_records(place: Place) -> None:
    table = only(place.put(ROWS))
    assert len(table) == 4
    assert table.names == ["age", "code", "smoker", "word"]
    assert rows_of(table) == {
        (41, "3", 1, "red, or ;blue"),
        (-1, "0", 0, SECRET),
        (63, "x1", -1, ""),
        (41, "1", 1, ""),
    }


def test_no_message_about_a_source_quotes_a_value(place: Place) -> None:
    table = only(place.put(ROWS))
    for work, code in (
        (lambda: table.numbers("word"), "data-not-a-number"),
        (lambda: table.truths("word"), "data-not-a-boolean"),
        (lambda: table.texts("wrod"), "data-missing-column"),
    ):
        error = refused(work)
        assert error.code == code
        assert table.where in error.message
        assert "hospital.db" not in table.where


def test_a_source_without_records_still_has_its_columns(place: Place) -> None:
    table = only(place.put([]))
    assert len(table) == 0
    assert table.names == ["age", "code", "smoker", "word"]
    assert table.numbers("age").shape == (0,)


def test_a_task_learns_the_same_from_every_source(place: Place, tmp_path: Path) -> None:
    source = place.put(
        [row | {"age": 20 + 10 * number, "smoker": number % 2 == 0} for number, row in enumerate(ROWS)]
    )
    given = source.model_dump(exclude_none=True) if isinstance(source, SqlSource) else str(source)
    options = {
        "use": "tabular",
        "data": given,
        "target": "smoker",
        "schema": {
            "columns": {"age": {"kind": "numeric", "low": 0, "high": 100}, "smoker": {"kind": "boolean"}}
        },
        "test_fraction": 0.0,
    }
    (split,) = owners(load_task(TaskTable.model_validate(options), tmp_path)).values()
    assert sorted(split.train.targets.tolist()) == [0, 0, 1, 1]
    assert may_have_owners(source) == (isinstance(source, Path) and source.is_dir())


def test_heart_reads_a_hospitals_table_as_it_reads_its_file(tmp_path: Path) -> None:
    frame = pd.read_csv(heart_data() / "hungarian.csv", dtype=str, keep_default_na=False)
    path = tmp_path / "h.db"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE hungarian (" + ", ".join(f"{name} TEXT" for name in frame) + ")")
        marks = ", ".join("?" for _ in frame.columns)
        connection.executemany(f"INSERT INTO hungarian VALUES ({marks})", frame.to_numpy().tolist())
    source = SqlSource(sql=f"sqlite:///{path}", table="hungarian")
    found, wanted = Heart(data=source).data(), Heart().data()["hungarian"]
    assert list(found) == ["hungarian"]
    assert len(found["hungarian"].test) == len(wanted.test)
    alike = [sorted(rows_in(split.train) + rows_in(split.test)) for split in (found["hungarian"], wanted)]
    assert alike[0] == alike[1]


def rows_in(data: Any) -> list[list[float]]:
    rows: list[list[float]] = data.batch(torch.arange(len(data)))[0].tolist()
    return rows


@pytest.fixture(params=["sqlite", POSTGRES])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., SqlSource]:
    """Return what makes a source over `ROWS`, the table replaced by what is given."""
    values = [tuple(row.values()) for row in ROWS]
    kind = request.param
    source = (
        sqlite_source(tmp_path / "hospital.db", values)
        if kind == "sqlite"
        else postgres_source(request.getfixturevalue("database"), values)
    )

    def made(**options: Any) -> SqlSource:
        given = source.model_dump(exclude_none=True)
        if "query" in options:
            del given["table"]
        return SqlSource.model_validate(given | {"name": "records"} | options)

    return made


def test_a_databases_records_come_in_one_order(make: Callable[..., SqlSource]) -> None:
    """The split into records to train and to test on goes by it."""
    up, down = (
        only(make(query=f"SELECT * FROM records ORDER BY code {way}")).texts("code").tolist()
        for way in ("ASC", "DESC")
    )
    assert up == down


@pytest.mark.parametrize(
    "query",
    [
        "DELETE FROM records",
        "SELECT 1; DELETE FROM records",
        "COMMIT",
        "INSERT INTO records SELECT * FROM records",
        "/* */ DELETE FROM records",
        "PRAGMA query_only = OFF",
    ],
)
def test_what_is_not_one_select_is_never_sent(make: Callable[..., SqlSource], query: str) -> None:
    assert refused(lambda: only(make(query=query))).code == "task-option"
    assert len(only(make())) == 4


def test_a_select_that_would_write_writes_nothing(make: Callable[..., SqlSource], tmp_path: Path) -> None:
    """The database itself refuses: the check of the query's words is not all there is."""
    error = refused(
        lambda: only(
            make(
                query="WITH gone AS (SELECT 1) INSERT INTO records SELECT age, code, smoker, word FROM records"
            )
        )
    )
    assert isinstance(error, DataError)
    assert len(only(make())) == 4


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="no initdb")
def test_a_function_that_writes_is_refused_by_the_transaction(database: Database) -> None:
    source = postgres_source(database, [tuple(row.values()) for row in ROWS])
    execute(
        database,
        ("CREATE OR REPLACE FUNCTION wipe() RETURNS int AS 'DELETE FROM records; SELECT 1' LANGUAGE sql", []),
    )
    given = source.model_dump(exclude_none=True) | {"query": "SELECT wipe() AS age", "name": "records"}
    del given["table"]
    error = refused(lambda: only(SqlSource.model_validate(given)))
    assert "nothing may be written" in error.message
    assert len(only(source)) == 4


@pytest.mark.parametrize(("limit", "refuses"), [(3, True), (4, False)])
def test_more_rows_than_the_limit_are_refused_and_not_cut(
    make: Callable[..., SqlSource], limit: int, refuses: bool
) -> None:
    source = make(row_limit=limit)
    if refuses:
        assert refused(lambda: only(source)).code == "data-too-large"
    else:
        assert len(only(source)) == 4


def test_a_query_that_takes_too_long_is_stopped(make: Callable[..., SqlSource]) -> None:
    slow = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000000) SELECT count(*) AS age FROM n"
    begun = time.monotonic()
    error = refused(lambda: only(make(query=slow, timeout_s=0.5)))
    assert "timeout_s" in error.message
    assert time.monotonic() - begun < 10


@pytest.mark.parametrize(
    ("query", "word"),
    [
        ("SELECT * FROM record", "table that is not there"),
        ("SELECT agee FROM records", "column that is not there"),
        (f"SELECT age FROM records WHERE word = '{SECRET}' AND AND", "not understood"),
        ("SELECT age, code AS age FROM records", "two columns of one name"),
    ],
)
def test_a_query_that_fails_says_why_and_quotes_nothing(
    make: Callable[..., SqlSource], query: str, word: str
) -> None:
    error = refused(lambda: only(make(query=query)))
    assert word in error.message
    assert "SELECT" not in error.message


def test_marks_that_mean_something_to_a_driver_mean_nothing_in_a_query(
    make: Callable[..., SqlSource],
) -> None:
    table = only(make(query="SELECT code, ':age %s {x}' AS word FROM records WHERE code LIKE '%x%'"))
    assert table.texts("word").tolist() == [":age %s {x}"]


def test_bytes_are_refused(make: Callable[..., SqlSource]) -> None:
    pytest.importorskip("sqlalchemy")
    source = make(query="SELECT CAST('ab' AS BLOB) AS word FROM records")
    if "postgresql" in (source.sql or ""):
        source = make(query="SELECT CAST('ab' AS BYTEA) AS word FROM records")
    assert "no number, text, date" in refused(lambda: only(source)).message


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="no initdb")
def test_the_types_of_postgresql_become_numbers_text_and_dates(database: Database) -> None:
    source = SqlSource(
        sql=database.url(),
        query="SELECT 1.50::numeric AS n, 9007199254740993::bigint AS big, DATE '2020-01-31' AS d, NULL::float8 AS f, true AS t, "
        "'00000000-0000-0000-0000-000000000001'::uuid AS u",
        name="records",
    )
    table = only(source)
    assert table.numbers("n").tolist() == [1.5]
    assert table.texts("big").tolist() == ["9007199254740993"]
    assert table.texts("d").tolist() == ["2020-01-31"]
    assert np.isnan(table.numbers("f")).all()
    assert table.truths("t").tolist() == [1]
    assert table.texts("u").tolist() == ["00000000-0000-0000-0000-000000000001"]


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="no initdb")
def test_a_password_comes_from_the_environment_or_a_file_of_0600(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    execute(
        database,
        ("DROP TABLE IF EXISTS records", []),
        (EMPTY_SCHEMA, []),
        ("DROP ROLE IF EXISTS reader", []),
        (f"CREATE ROLE reader LOGIN PASSWORD '{PASSWORD}'", []),
        ("GRANT SELECT ON records TO reader", []),
    )
    monkeypatch.setenv("CLOISTER_TEST_URL", database.url("reader", password=PASSWORD))
    assert len(only(SqlSource(sql_env="CLOISTER_TEST_URL", table="records"))) == 0
    path = tmp_path / "database.url"
    path.write_text(database.url("reader", password=PASSWORD) + "\n")
    path.chmod(0o600)
    assert len(only(SqlSource(url_file=path, table="public.records"))) == 0
    path.write_text(database.url("reader", password="another"))
    error = refused(lambda: only(SqlSource(url_file=path, table="records")))
    assert "refused the login" in error.message
    execute(database, ("REVOKE SELECT ON records FROM reader", []))
    monkeypatch.setenv("CLOISTER_TEST_URL", database.url("reader", password=PASSWORD))
    assert (
        "not allowed"
        in refused(lambda: only(SqlSource(sql_env="CLOISTER_TEST_URL", table="records"))).message
    )


def test_a_file_with_a_password_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "database.url"
    path.write_text(f"postgresql://me:{SECRET}@127.0.0.1:1/x")
    for mode in (0o640, 0o604, 0o644):
        path.chmod(mode)
        assert refused(lambda: only(SqlSource(url_file=path, table="t"))).code == "data-secret"


@pytest.mark.parametrize(
    "url",
    [f"postgresql://me:{SECRET}@host/x", f"postgresql://host/x?user=me&password={SECRET}"],
)
def test_a_password_in_a_file_that_others_read_is_refused_and_not_shown(tmp_path: Path, url: str) -> None:
    for more in ({}, {"tabel": "t"}, {"query": 5}):
        options = {"use": "tabular", "target": "y", "data": {"sql": url, "table": "t", **more}}
        error = refused(partial(load_task, TaskTable.model_validate(options), tmp_path))
        assert "password" in error.message


@pytest.mark.parametrize(
    "options",
    [
        {"table": "t"},
        {"sql": "sqlite:////x.db", "sql_env": "X", "table": "t"},
        {"sql": "sqlite:////x.db"},
        {"sql": "sqlite:////x.db", "table": "t", "query": "SELECT 1"},
        {"sql": "mysql://host/x", "table": "t"},
        {"sql": "no url at all", "table": "t"},
        {"sql": "sqlite:///relative.db", "table": "t"},
        {"sql_env": "CLOISTER_NO_SUCH_VARIABLE", "table": "t"},
    ],
)
def test_a_database_that_is_described_wrongly_is_refused(options: dict[str, Any]) -> None:
    error = refused(lambda: only(SqlSource.model_validate(options)))
    assert isinstance(error, TaskError)
    assert error.code == "task-option"


def test_a_database_that_is_not_there_is_refused(tmp_path: Path) -> None:
    assert (
        "reached"
        in refused(lambda: only(SqlSource(sql=f"sqlite:///{tmp_path}/none.db", table="records"))).remedy
    )
    error = refused(
        lambda: only(SqlSource(sql="postgresql://me@127.0.0.1:1/x", table="records", timeout_s=2))
    )
    assert "127.0.0.1" not in error.message
    assert not (tmp_path / "none.db").exists()


def test_a_url_file_is_taken_from_the_files_folder(tmp_path: Path) -> None:
    source = sqlite_source(tmp_path / "hospital.db", [tuple(row.values()) for row in ROWS])
    path = tmp_path / "database.url"
    path.write_text(source.sql or "")
    path.chmod(0o600)
    options = {"use": "heart", "data": {"url_file": "database.url", "table": "records"}}
    error = refused(lambda: owners(load_task(TaskTable.model_validate(options), tmp_path)))
    assert error.code == "data-missing-column"  # it was read: it is no hospital's table
