"""What a task computes with, as one digest of its source: a site that allowed one program is not sent another under its name."""

from __future__ import annotations

import hashlib
import inspect
from pathlib import Path

from cloister.core.task import Task

__all__ = ["source_digest"]


def source_digest(kind: type[Task], use: str, base: Path) -> str:
    """Return a SHA-256 (hex) over the source files of a task's class and its bases, and the file that ``use`` names.

    What those files import is not in it.

    Args:
        kind: the task's class.
        use: how the federation file names the task.
        base: the folder that a file in ``use`` is taken from.
    """
    files: dict[Path, None] = {}
    if (where := use.rpartition(":")[0]).endswith(".py"):
        files[(base / where).resolve()] = None
    for one in kind.__mro__[:-1]:
        try:
            source = inspect.getsourcefile(one)
        except TypeError:  # built in
            continue
        if source is not None:
            files[Path(source).resolve()] = None
    total = hashlib.sha256()
    for path in files:
        try:
            total.update(hashlib.sha256(path.read_bytes()).digest())
        except OSError:  # no file: a class made at run time
            total.update(path.name.encode("utf-8", "surrogateescape"))
    return total.hexdigest()
