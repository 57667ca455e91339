"""Everything that Cloister refuses, as one tree.

::

    CloisterError                    exit 1   our own fault unless a subclass says otherwise
    ├── StorageError                 exit 1   a file cannot be written: the disk is full or refuses (code ``disk``)
    ├── UsageError                   exit 2   the command was called wrongly
    ├── SpecError                    exit 3   the federation file was refused
    │   ├── TaskError                exit 3   the task it names was refused, or raised
    │   └── InfeasibleByzantineBound exit 3   more lying sites than a rule can bear among so many
    ├── DataError                    exit 4   a site's data was refused
    ├── PolicyError                  exit 5   a policy or a budget refused
    ├── PeersMissing                 exit 6   fewer sites than `cohort.min_sites`
    ├── IntegrityError               exit 7   a hash, a signature or a stored file does not hold
    └── AuditFailed                  exit 8   an audit missed its threshold

An error carries a stable ``code`` (for scripts), a ``message`` that names the thing and the value, and a ``remedy`` that
says what to do. None of the three ever holds a record of anybody's data: a message about data names the file, the column
and the row number.
"""

from __future__ import annotations

import errno
import os
from typing import ClassVar

__all__ = [
    "EXIT_CODES",
    "AuditFailed",
    "CloisterError",
    "DataError",
    "InfeasibleByzantineBound",
    "IntegrityError",
    "PeersMissing",
    "PolicyError",
    "SpecError",
    "StorageError",
    "TaskError",
    "UsageError",
]

#: The one table of exit statuses; docs/simulate.md prints it.
EXIT_CODES: dict[int, str] = {
    0: "done",
    1: "our own fault: please report it with the report id",
    2: "usage: the command was called wrongly",
    3: "the federation file or its task was refused",
    4: "data was refused",
    5: "a policy or a privacy budget refused",
    6: "peers are missing: fewer sites than cohort.min_sites",
    7: "integrity: a signature, hash, ledger or stored file does not hold",
    8: "an audit missed its threshold",
    130: "interrupted: resume with --resume",
    141: "nobody reads what it prints (a closed pipe)",
}


class CloisterError(Exception):
    """A refusal with a stable code, a message and a remedy."""

    exit_code: ClassVar[int] = 1
    default_code: ClassVar[str] = "internal"

    def __init__(self, message: str, *, remedy: str = "", code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.code = code or self.default_code

    def as_dict(self) -> dict[str, str]:
        """Return the refusal as ``--json`` prints it."""
        return {"code": self.code, "message": self.message, "remedy": self.remedy}


class StorageError(CloisterError, OSError):
    """A file cannot be written: the disk is full, or refuses. What stood there before still stands.

    It is an ``OSError`` too, with its ``errno`` and ``strerror``, for a caller that has a refusal of its own.
    """

    default_code = "disk"

    @classmethod
    def of(cls, path: str | os.PathLike[str], cause: OSError) -> StorageError:
        """Return the refusal for ``path``, which could not be written because of ``cause``."""
        reason = cause.strerror or type(cause).__name__
        full = cause.errno in (errno.ENOSPC, errno.EDQUOT)
        made = cls(
            f"cannot write '{os.fspath(path)}': {reason}",
            remedy="free space on the disk, then go on with --resume"
            if full
            else "check the folder, its disk and its permissions, then go on with --resume",
        )
        made.errno, made.strerror = cause.errno, reason
        return made

    def __str__(self) -> str:
        return self.message


class UsageError(CloisterError):
    """The command was called wrongly."""

    exit_code = 2
    default_code = "usage"


class SpecError(CloisterError):
    """The federation file was refused."""

    exit_code = 3
    default_code = "spec"


class TaskError(SpecError):
    """The task that the federation file names was refused, or raised."""

    default_code = "task"


class InfeasibleByzantineBound(SpecError):  # noqa: N818
    """A rule cannot bear ``f`` lying sites among ``n``: whatever it answered would be no defence.

    Attributes:
        n: how many updates there are.
        f: how many of them may lie.
        needed: the fewest updates that would do; ``None``: no number of them, or not known.
    """

    default_code = "infeasible-byzantine-bound"
    n: int = 0
    f: int = 0
    needed: int | None = None

    @classmethod
    def of(cls, rule: str, *, n: int, f: int, needed: int | None) -> InfeasibleByzantineBound:
        """Return the refusal of ``rule`` for f lying sites among n."""
        why = "tolerates no lying site" if needed is None else f"needs at least {needed} updates"
        made = cls(
            f"'{rule}' with n = {n} updates and f = {f} lying: it {why}",
            remedy="choose a robust rule"
            if needed is None
            else "lower aggregation.byzantine, ask more sites a round, or choose another rule",
        )
        made.n, made.f, made.needed = n, f, needed
        return made


class DataError(CloisterError):
    """A site's data was refused. The message never quotes a value of the data."""

    exit_code = 4
    default_code = "data"


class PolicyError(CloisterError):
    """A site's policy or a privacy budget refused."""

    exit_code = 5
    default_code = "policy"


class PeersMissing(CloisterError):  # noqa: N818
    """Fewer sites answered than ``cohort.min_sites`` asks for."""

    exit_code = 6
    default_code = "peers-missing"


class IntegrityError(CloisterError):
    """A hash, a signature or a stored file does not hold."""

    exit_code = 7
    default_code = "integrity"


class AuditFailed(CloisterError):  # noqa: N818
    """An audit missed its threshold."""

    exit_code = 8
    default_code = "audit-failed"
