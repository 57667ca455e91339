"""From the name in ``task.use`` to what makes the task: an installed one, an attribute of a module, or of a file.

Nothing is called here but the import of the module that was named.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import sys
from collections.abc import Callable, Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

from cloister.core.errors import TaskError
from cloister.core.guarding import guarded
from cloister.core.spec.refusals import nearest
from cloister.core.spec.tables import TaskTable
from cloister.core.task import Task

__all__ = [
    "STATISTICS",
    "find_maker",
    "holds_path",
    "innermost",
    "made_class",
    "named_tasks",
    "parameters_of",
    "places_of",
    "task_names",
]

#: The installed task that counts the records of another one (`cloister.core.tasks.statistics`).
STATISTICS = "statistics"


def task_names() -> list[str]:
    """Return the names of the installed tasks."""
    return sorted(point.name for point in entry_points(group="cloister.tasks"))


def made_class(attribute: Any) -> type[Task] | None:
    """Return the Task's class that this is, or that it says it returns; ``None``: neither.

    Nothing else is called: a federation file must not be able to run ``os:system`` with an argument of its own.
    """
    if inspect.isclass(attribute):
        return attribute if issubclass(attribute, Task) else None
    if not inspect.isfunction(attribute):
        return None
    made = guarded(attribute.__name__, "its annotations", lambda: get_type_hints(attribute)).get("return")
    return made if inspect.isclass(made) and issubclass(made, Task) else None


def find_maker(use: str, base: Path) -> Any:
    """Return what ``use`` names: a Task's class, a function that makes one, or (to be refused or taken) anything else.

    Args:
        use: an installed task's name, ``module:attribute`` or ``file.py:attribute``.
        base: the folder that a relative path is taken from.

    Raises:
        TaskError: there is none, or its module raised.
    """
    if ":" not in use:
        for point in entry_points(group="cloister.tasks"):
            if point.name == use:
                return guarded(use, "its module", point.load)
        raise TaskError(
            f"there is no task '{use}'{nearest(use, task_names())}",
            remedy="name an installed task, 'module:attribute', or 'file.py:attribute'",
            code="task-unknown",
        )
    where, _, name = use.rpartition(":")
    if not where or not name:
        raise TaskError(
            f"task.use = '{use}' lacks a part",
            remedy="write 'module:attribute' or 'file.py:attribute'",
            code="task-unknown",
        )
    module = _from_file(base / where) if where.endswith(".py") else _from_module(where, use)
    if not hasattr(module, name):
        public = [key for key in vars(module) if not key.startswith("_")]
        raise TaskError(
            f"'{where}' has no '{name}'{nearest(name, public)}", remedy="check task.use", code="task-unknown"
        )
    return getattr(module, name)


def _from_module(where: str, use: str) -> ModuleType:
    try:
        return guarded(use, "its module", lambda: importlib.import_module(where))
    except TaskError as error:
        missing = error.__cause__.name if isinstance(error.__cause__, ModuleNotFoundError) else None
        if missing is None or not f"{where}.".startswith(f"{missing}."):
            raise
        raise TaskError(
            f"task.use = '{use}': there is no module '{missing}'",
            remedy="install it, or give 'file.py:attribute'",
            code="task-unknown",
        ) from None


def _from_file(path: Path) -> ModuleType:
    path = path.resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise TaskError(
            f"task.use: cannot read the file '{path}': {error.strerror}",
            remedy="paths are taken from the federation file's folder",
            code="task-unknown",
        ) from None
    # The name goes with the path and what the file says: an edited file is a new module in a process that lives on.
    name = f"cloister_task_{path.stem}_{hashlib.sha256(str(path).encode() + source).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None:
        raise TaskError(f"task.use: '{path}' cannot be loaded as a module", code="task-unknown")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module

    def execute() -> None:
        # What was read, and not what lies compiled beside it: that may be of another source of the same length and time.
        exec(compile(source, path, "exec", dont_inherit=True), vars(module))  # noqa: S102

    try:
        guarded(path.name, "its module", execute)
    except TaskError:
        del sys.modules[name]
        raise
    return module


def parameters_of(attribute: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return the annotation and the default of each named parameter."""
    function = attribute.__init__ if inspect.isclass(attribute) else attribute
    hints = get_type_hints(function, include_extras=True)
    return {
        name: (hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(attribute).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def places_of(attribute: Callable[..., Any]) -> tuple[str, ...]:
    """Return the options that say where the data lie: the ``places`` of the task's class, else those that can be paths only."""
    found = made_class(attribute)
    if found is not None and found.places is not None:
        return tuple(found.places)
    return tuple(name for name, (hint, _) in parameters_of(attribute).items() if _leaves(hint) == {Path})


def holds_path(hint: Any) -> bool:
    """Whether a value of this type may be a path, or have one in it."""
    return Path in _leaves(hint)


def _leaves(hint: Any) -> set[Any]:
    """Return the types that a value is in the end made of: without lists, choices, pydantic's notes and ``None``."""
    if get_origin(hint) is Annotated:
        return _leaves(get_args(hint)[0])
    if get_origin(hint) is Literal:
        return {str}
    inner = [found for argument in get_args(hint) for found in _leaves(argument)]
    return set(inner) if get_args(hint) else {hint} - {type(None), Ellipsis}


def innermost(table: TaskTable) -> TaskTable:
    """Return the task whose records are used: the one that a statistic asks of, or ``table`` itself."""
    of = table.options.get("of")
    if table.use != STATISTICS or not isinstance(of, Mapping) or not isinstance(of.get("use"), str):
        return table
    return TaskTable.model_validate(dict(of))


def named_tasks(table: TaskTable) -> list[str]:
    """Return what ``table`` names as ``use``, and what tables in its options do: every task that may be loaded for it."""
    return [table.use, *_uses(table.options)]


def _uses(value: Any) -> Iterator[str]:
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
    if isinstance(value, Mapping) and isinstance(value.get("use"), str):
        yield value["use"]
    for one in inner:
        yield from _uses(one)
