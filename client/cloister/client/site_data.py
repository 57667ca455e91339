"""One data set of a real site: the federation's task over the site's own records.

Formal guarantees:

- Where data lie is said by the site's ``site.toml`` alone: an option that is one of the task's ``places`` never comes from the federation
  file, so that nobody else chooses which file or database a site reads.
- Every other option comes from the federation file alone, so that all sites mean the same by the same model.
- A path among those (a schema's, say) is one below the site's own folder.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path, PurePath, PureWindowsPath
from typing import Any

from cloister.client.site_config import DataTable
from cloister.core.data import Split
from cloister.core.errors import DataError, PolicyError, TaskError
from cloister.core.finding import find_maker, holds_path, innermost, made_class, parameters_of, places_of
from cloister.core.guarding import guarded
from cloister.core.resolve import POOLED, load_task, owners
from cloister.core.spec.refusals import nearest
from cloister.core.spec.tables import TaskTable
from cloister.core.task import Task

__all__ = ["load_dataset", "own_split", "site_task"]


def load_dataset(table: DataTable, federation_task: TaskTable, base: Path) -> tuple[Task, Split]:
    """Return the federation's task as this site has it, and the site's records.

    Args:
        table: the data set, from ``site.toml``.
        federation_task: the federation file's ``[task]``.
        base: the site's folder, which paths and task files are taken from.

    Raises:
        PolicyError: (task-differs) the data set is for another task.
        TaskError: an option says something that is not its file's to say, or the task refused or raised.
        DataError: the records cannot be read or trained on, or ``owner`` names none of theirs.
    """
    task = load_task(site_task(table, federation_task, base), base)
    return task, own_split(task, table)


def site_task(table: DataTable, federation_task: TaskTable, base: Path) -> TaskTable:
    """Return the ``[task]`` that this site trains: the federation's, over the place that the site gave.

    Raises:
        PolicyError: (task-differs) the data set is for another task.
        TaskError: (task-place) an option says something that is not its file's to say, or the place is missing.
    """
    inner = innermost(federation_task)
    if inner is not federation_task:
        own = site_task(table, inner, base).model_dump()
        return TaskTable.model_validate({"use": federation_task.use, **federation_task.options, "of": own})
    if table.task != federation_task.use:
        raise PolicyError(
            f"this data set is for the task '{table.task}', and the federation's is '{federation_task.use}'",
            remedy="ask for a data set of that task, or declare one in site.toml",
            code="task-differs",
        )
    maker = find_maker(table.task, base)
    if made_class(maker) is None:  # an object that takes no options, or nothing that `load_task` would take
        return federation_task
    known = guarded(table.task, "the annotations of its constructor", lambda: parameters_of(maker))
    places = [name for name in places_of(maker) if name in known]
    for name in table.options:
        if name not in places:
            raise _misplaced(name, places)
    for name in places:
        if known[name][1] is inspect.Parameter.empty and name not in table.options:
            raise TaskError(
                f"the data set's options do not say where its records lie: '{name}' is missing",
                remedy=f"give it in site.toml, for example options = {{ {name} = … }}; the federation file does not choose it",
                code="task-place",
            )
    common = {name: value for name, value in federation_task.options.items() if name not in places}
    for name, value in common.items():
        if name in known:
            _check_common(name, value, known[name][0])
    return TaskTable.model_validate({"use": table.task, **common, **table.options})


def own_split(task: Task, table: DataTable) -> Split:
    """Return the site's records among those that ``task`` hands over.

    Raises:
        TaskError: the task raised.
        DataError: the records cannot be read or trained on, or ``owner`` names none of theirs.
    """
    splits, owner = owners(task), table.owner
    alone = len(splits) == 1
    if owner is None and alone:
        return next(iter(splits.values()))
    names = ", ".join(f"'{name}'" for name in splits)
    if owner is None:
        raise DataError(
            f"the task hands over the records of {len(splits)} owners: {names}",
            remedy="say in site.toml whose are this site's, for example owner = " + names.split(", ")[0],
            code="data-owner",
        )
    if alone and POOLED in splits and owner != POOLED:
        raise DataError(
            f"the task hands over one owner's records, and site.toml names the owner '{owner}'",
            remedy="leave out `owner`",
            code="data-owner",
        )
    if owner not in splits:
        raise DataError(
            f"the task hands over no records of an owner '{owner}'{nearest(owner, splits)}",
            remedy="name one of them as `owner` in site.toml",
            code="data-owner",
        )
    return splits[owner]


def _misplaced(name: str, places: list[str]) -> TaskError:
    if not places:
        return TaskError(
            f"the task has no option that says where data lie, and the data set's options give '{name}'",
            remedy="leave out `options`",
            code="task-place",
        )
    return TaskError(
        f"the data set's options give '{name}', which the federation file decides{nearest(name, places)}",
        remedy="keep in site.toml only what says where the data lie",
        code="task-place",
    )


def _check_common(name: str, value: Any, hint: Any) -> None:
    """Refuse an option of the federation's that would bring in another task, or a file from outside of the site's folder."""
    if hint is Task:
        raise TaskError(
            f"the federation's task.{name} names a task of its own, which this site did not choose",
            remedy="ask for the task by its own name",
            code="task-place",
        )
    if holds_path(hint):
        _check_below(name, value)


def _check_below(name: str, value: Any) -> None:
    for text in _texts(value):
        if (
            PurePath(text).is_absolute()
            or PureWindowsPath(text).is_absolute()
            or ".." in (*PurePath(text).parts, *PureWindowsPath(text).parts)
        ):
            raise TaskError(
                f"the federation's task.{name} is a path that does not stay in the site's folder",
                remedy=f"ask its author for a path within the folder, or for a table in place of the file, in task.{name}",
                code="task-place",
            )


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _texts(inner)
