"""Which program a task is, as a policy names it."""

from __future__ import annotations

import inspect
from pathlib import Path

from cloister.client.site_config import DataTable
from cloister.client.site_data import site_task
from cloister.core.finding import find_maker
from cloister.core.resolve import load_task
from cloister.core.source import source_digest
from cloister.core.spec.tables import TaskTable
from cloister.core.task import Task

__all__ = ["program_digest"]


def program_digest(table: DataTable | None, task: TaskTable, base: Path) -> str:
    """Return the SHA-256 (hex) over a task's program (`cloister.core.source`).

    The task is constructed only where a function makes it: nothing else than that tells of which class it is.

    Args:
        table: the site's data set; ``None``: the task's own options alone.
        task: the federation file's ``[task]``.
        base: the site's folder.

    Raises:
        CloisterError: there is no such task, or it was refused.
    """
    maker = find_maker(task.use, base)
    if inspect.isclass(maker) and issubclass(maker, Task):
        return source_digest(maker, task.use, base)
    made = load_task(task if table is None else site_task(table, task, base), base)
    return source_digest(type(made), task.use, base)
