"""The queue of jobs: one SQLite file that outlives every process.

A job is a signed request and its federation. It is ``queued``, then ``running``, and ends ``done``, ``failed`` or ``stopped``; ``waiting`` is a queued
one that is tried again later, since a site holds it for approval or too few sites are there.

Formal guarantees:

- A request is queued once: its run's name is its hash, and a second submission is refused, whatever became of the first.
- A call is new once, whichever process heard it first, until the time is over that it is good for.
- A state is on the disk before anything acts on it; a crash leaves a job ``running``, and whoever opens the queue next goes on with it.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal, get_args

from cloister.core.errors import PolicyError, UsageError
from cloister.privacy.request import JobRequest, SignedRequest

__all__ = ["Job", "JobState", "JobStore"]

JobState = Literal["queued", "waiting", "running", "done", "failed", "stopped"]

_OPEN = ("queued", "waiting", "running")
_TABLES = (
    """
CREATE TABLE IF NOT EXISTS jobs (
    run TEXT PRIMARY KEY, name TEXT NOT NULL, user TEXT NOT NULL, submitted REAL NOT NULL,
    request BLOB NOT NULL, signature BLOB NOT NULL, certificate BLOB NOT NULL, federation TEXT NOT NULL,
    state TEXT NOT NULL, attempts INTEGER NOT NULL DEFAULT 0, not_before REAL NOT NULL DEFAULT 0,
    code TEXT NOT NULL DEFAULT '', message TEXT NOT NULL DEFAULT '', ended REAL
) STRICT
""",
    "CREATE TABLE IF NOT EXISTS calls (key TEXT PRIMARY KEY, until REAL NOT NULL) STRICT, WITHOUT ROWID",
)


@dataclass(frozen=True, kw_only=True)
class Job:
    """One job as the queue knows it; times are seconds since 1970.

    Attributes:
        run: names it.
        name: of the federation.
        user: who asked.
        submitted: when.
        state: see above.
        attempts: how often its process was started.
        code: why it ended or waits, ``""`` while there is nothing to say.
        message: the same in words.
        ended: when it did, or ``None``.
    """

    run: str
    name: str
    user: str
    submitted: float
    state: JobState
    attempts: int
    code: str
    message: str
    ended: float | None


_COLUMNS = ", ".join(field.name for field in fields(Job))


class JobStore:
    """The queue in ``path``; every call opens it anew, so that threads and processes may share it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with self._open() as database:
            for table in _TABLES:
                database.execute(table)
        path.chmod(0o600)

    def add(self, signed: SignedRequest, request: JobRequest, user: str, federation: str) -> Job:
        """Queue a job.

        Raises:
            PolicyError: (job-replayed) this very request was submitted before.
        """
        row = (
            request.run,
            request.name,
            user,
            time.time(),
            signed.encoded,
            signed.signature,
            signed.certificate,
            federation,
        )
        try:
            with self._open() as database:
                database.execute(
                    "INSERT INTO jobs (run, name, user, submitted, request, signature, certificate, federation, state) "
                    "VALUES (?, ?, ?, ?, ?, ?, ?, ?, 'queued')",
                    row,
                )
        except sqlite3.IntegrityError:
            raise PolicyError(
                f"the request '{request.run}' was submitted before",
                remedy="watch that job, or sign a new request: cloister job submit",
                code="job-replayed",
            ) from None
        return self.job(request.run)

    def first(self, key: str, until: float) -> bool:
        """Remember ``key`` until a time, seconds since 1970; return whether it is new."""
        with self._open() as database:
            database.execute("DELETE FROM calls WHERE until < ?", (time.time(),))
            added = database.execute("INSERT OR IGNORE INTO calls (key, until) VALUES (?, ?)", (key, until))
            return added.rowcount == 1

    def job(self, run: str) -> Job:
        """Return a job.

        Raises:
            UsageError: (job-unknown) there is none.
        """
        with self._open() as database:
            row = database.execute(f"SELECT {_COLUMNS} FROM jobs WHERE run = ?", (run,)).fetchone()  # noqa: S608
        if row is None:
            raise UsageError(
                f"there is no job '{run[:128]}'", remedy="see: cloister job list", code="job-unknown"
            )
        return Job(**dict(row))

    def jobs(self, *, states: tuple[str, ...] = get_args(JobState)) -> list[Job]:
        """Return the jobs in these states, in the order in which they came."""
        marks = ", ".join("?" for _ in states)
        with self._open() as database:
            rows = database.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE state IN ({marks}) ORDER BY submitted, run",  # noqa: S608
                states,
            ).fetchall()
        return [Job(**dict(row)) for row in rows]

    def asked(self, run: str) -> tuple[SignedRequest, str]:
        """Return a job's signed request and its federation file (JSON)."""
        with self._open() as database:
            row = database.execute(
                "SELECT request, signature, certificate, federation FROM jobs WHERE run = ?", (run,)
            ).fetchone()
        return SignedRequest(
            encoded=row["request"], signature=row["signature"], certificate=row["certificate"]
        ), str(row["federation"])

    def next(self) -> Job | None:
        """Return the job whose turn it is, or ``None``."""
        now = time.time()
        with self._open() as database:
            row = database.execute(
                f"SELECT {_COLUMNS} FROM jobs WHERE state IN ('queued', 'waiting') AND not_before <= ? "  # noqa: S608
                "ORDER BY submitted, run LIMIT 1",
                (now,),
            ).fetchone()
        return None if row is None else Job(**dict(row))

    def begin(self, run: str) -> None:
        """Note that a process is about to be started for ``run``."""
        self._set(run, "state = 'running', attempts = attempts + 1, code = '', message = ''")

    def wait(self, run: str, seconds: float, code: str, message: str, *, counted: bool = True) -> None:
        """Note that ``run`` is tried again in ``seconds``; ``counted``: whether that used up an attempt."""
        self._set(
            run,
            f"state = 'waiting', not_before = ?, code = ?, message = ?{'' if counted else ', attempts = attempts - 1'}",
            time.time() + seconds,
            code,
            message,
        )

    def end(self, run: str, state: JobState, code: str = "", message: str = "") -> None:
        """Note how ``run`` ended."""
        self._set(run, "state = ?, code = ?, message = ?, ended = ?", state, code, message, time.time())

    def stop(self, run: str) -> Job:
        """Note that ``run`` is to be stopped; what runs is stopped by whoever started it.

        Raises:
            UsageError: (job-unknown, job-ended) there is none, or it has ended.
        """
        job = self.job(run)
        if job.state not in _OPEN:
            raise UsageError(
                f"the job '{run}' is {job.state} already", remedy="nothing is left to do", code="job-ended"
            )
        self.end(run, "stopped", "stopped", "stopped by a user")
        return self.job(run)

    def _set(self, run: str, what: str, *values: object) -> None:
        with self._open() as database:
            database.execute(
                f"UPDATE jobs SET {what} WHERE run = ? AND state != 'stopped'",  # noqa: S608 - `what` is ours
                (*values, run),
            )

    @contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        database = sqlite3.connect(self._path, timeout=30)
        try:
            database.row_factory = sqlite3.Row
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            with database:
                yield database
        finally:
            database.close()
