"""All that is to be said of one data set of a site."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cloister.client.data_check.finding import Finding, sorted_findings
from cloister.client.data_check.pictures import picture_findings
from cloister.client.data_check.records import record_findings
from cloister.client.data_check.tables import Reading, table_findings
from cloister.client.site_config import DataTable
from cloister.client.site_data import own_split, site_task
from cloister.core.errors import CloisterError
from cloister.core.finding import find_maker, made_class, parameters_of, places_of
from cloister.core.guarding import guarded
from cloister.core.resolve import from_base, load_task, notes_of
from cloister.core.spec.tables import TaskTable
from cloister.core.task import Task
from cloister.core.tasks.sources import Source, SqlSource, Tables, read_source
from cloister.core.tasks.tables import SUFFIXES, OverTables

__all__ = ["check_dataset"]

_LOCAL = {"", "localhost", "127.0.0.1", "::1"}


def check_dataset(
    name: str, table: DataTable, federation_task: TaskTable | None, base: Path
) -> list[Finding]:
    """Return what is to be said of a data set, the gravest first.

    Args:
        name: of the data set in ``site.toml``.
        table: the data set.
        federation_task: the federation file's ``[task]``; ``None``: none is at hand, and what only it says (a schema, the target, classes) is
            not checked.
        base: the site's folder.
    """
    found: list[Finding] = []
    task = TaskTable(use=table.task) if federation_task is None else federation_task
    found += _records(name, table, task, base, guess=federation_task is None)
    found += _places(table, base)
    return sorted_findings(found)


def _records(name: str, table: DataTable, task: TaskTable, base: Path, *, guess: bool) -> Iterator[Finding]:
    """Yield what is found by loading the records as the task does; where that cannot be, by reading the tables alone."""
    try:
        made = load_task(site_task(table, task, base), base)
    except CloisterError as error:
        if guess and error.code == "task-option":  # it lacks what only the federation file says
            yield from _tables_alone(table, base)
            yield Finding(
                code="no-federation",
                severity="note",
                what=f"the data set '{name}' was looked at without a federation file: schema, target and classes were not checked",
                remedy="name one with --federation",
            )
        else:
            yield _refused(error)
        return
    yield from _of_task(made, table)
    try:
        split = own_split(made, table)
    except CloisterError as error:
        yield _refused(error)
        return
    yield from record_findings(made, split, smallest_group=table.smallest_group)


def _of_task(task: Task, table: DataTable) -> Iterator[Finding]:
    for note in notes_of(task):
        yield Finding(
            code="task-note",
            severity="warning",
            what=note,
            remedy="declare in the federation file what was guessed",
        )
    if not isinstance(task, OverTables):
        return
    try:
        tables = guarded(type(task).__name__, "its tables", task.tables)
    except CloisterError as error:
        yield _refused(error)
        return
    yield from _of_tables(tables, table, Reading(columns=task.columns, target=task.target, **_asked(table)))


def _tables_alone(table: DataTable, base: Path) -> Iterator[Finding]:
    for source in _sources(table, base):
        try:
            read: Tables = read_source(source)
        except CloisterError as error:
            yield _refused(error)
        else:
            yield from _of_tables(read.by_owner, table, Reading(**_asked(table)))


def _of_tables(tables: Mapping[str, Any], table: DataTable, reading: Reading) -> Iterator[Finding]:
    own = {name: one for name, one in tables.items() if name == table.owner} or tables
    if len(own) < len(tables):
        yield Finding(
            code="others-records",
            severity="warning",
            what=f"beside this site's records lie those of {len(tables) - len(own)} other owners",
            remedy="keep only this site's records on its machine",
        )
    for one in own.values():
        yield from table_findings(one, reading)


def _asked(table: DataTable) -> dict[str, Any]:
    return {"quasi_identifiers": table.quasi_identifiers, "smallest_group": table.smallest_group}


def _places(table: DataTable, base: Path) -> Iterator[Finding]:
    for source in _sources(table, base):
        if isinstance(source, SqlSource):
            yield from _connection(source)
        elif source.exists():
            yield from _files(source)


def _files(path: Path) -> Iterator[Finding]:
    if path.stat().st_mode & 0o007:
        yield Finding(
            code="readable-by-all",
            severity="warning",
            what=f"'{path}' can be read by every user of this machine",
            remedy=f"run: chmod o= '{path}'",
        )
    if path.is_dir() and not any(inner.suffix in SUFFIXES for inner in path.iterdir()):
        yield from picture_findings(path)


def _connection(source: SqlSource) -> Iterator[Finding]:
    try:
        from cloister.core.tasks.sql import database_url

        url = database_url(source)
    except (CloisterError, ModuleNotFoundError):
        return  # told already, where the records were read
    host = url.host or str(url.query.get("host", ""))
    if url.drivername.startswith("postgresql") and host not in _LOCAL and not host.startswith("/"):
        mode = str(url.query.get("sslmode", ""))
        if mode != "verify-full":
            yield Finding(
                code="database-tls",
                severity="warning",
                what="the connection to the database does not check who answers",
                remedy="add ?sslmode=verify-full&sslrootcert=FILE to the URL",
            )


def _sources(table: DataTable, base: Path) -> Iterator[Source]:
    """Yield the files, folders and databases that the data set's options name."""
    try:
        maker = find_maker(table.task, base)
        if made_class(maker) is None:
            return
        known = parameters_of(maker)
        places = places_of(maker)
    except CloisterError:
        return
    for place in places:
        if place not in table.options or place not in known:
            continue
        try:
            value = TypeAdapter(known[place][0]).validate_json(json.dumps(table.options[place]), strict=True)
        except (ValidationError, TypeError):
            continue  # refused already, with the reason
        for one in value if isinstance(value, list | tuple) else [value]:
            if isinstance(one, Path | SqlSource):
                yield from_base(one, base)


def _refused(error: CloisterError) -> Finding:
    return Finding(code=error.code, severity="error", what=error.message, remedy=error.remedy)
