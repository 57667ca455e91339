"""From ``[task]`` to a checked `Task`: find it, give it its options, build its model, read its data.

Whatever a task raises becomes a `TaskError` that names the place in the task's own file and never quotes the exception's text,
since that may hold a value of the data. ``CLOISTER_DEBUG=1`` shows the whole traceback on one's own machine.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, get_args, get_type_hints

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cloister.core.data import Data, Split
from cloister.core.errors import DataError, TaskError
from cloister.core.guarding import guarded
from cloister.core.randomness import SeededRandomness
from cloister.core.spec.refusals import nearest, refusals
from cloister.core.spec.tables import TaskTable
from cloister.core.task import Task

__all__ = [
    "POOLED",
    "build_model",
    "check_data",
    "described",
    "guarded",
    "load_task",
    "notes_of",
    "owners",
    "path_options",
    "task_kind",
    "task_names",
]

#: The owner's name when a task hands over one `Split` for all.
POOLED = "pooled"


def task_names() -> list[str]:
    """Return the names of the installed tasks."""
    return sorted(point.name for point in entry_points(group="cloister.tasks"))


def load_task(table: TaskTable, base: Path) -> Task:
    """Find the task that ``table.use`` names and construct it with its options.

    Args:
        table: the ``[task]`` table.
        base: the folder that relative paths are taken from.

    Raises:
        TaskError: no such task, an unknown or wrong option, or the task raised.
    """
    attribute = _find(table.use, base)
    if isinstance(attribute, Task):
        if table.options:
            raise TaskError(
                f"task.use = '{table.use}' is an object already made: it takes no options",
                remedy="name its class instead",
            )
        return _checked(attribute, table.use)
    if not _makes_task(attribute):
        raise TaskError(
            f"task.use = '{table.use}' is neither a Task nor something that makes one",
            remedy="name a subclass of cloister.core.Task, or a function that is annotated to return one",
            code="task-type",
        )
    if inspect.isabstract(attribute):
        lacking = " and ".join(f"{method}()" for method in sorted(attribute.__abstractmethods__))
        raise TaskError(
            f"task.use = '{table.use}' lacks {lacking}", remedy="write what it lacks", code="task-type"
        )
    options = _options(table, attribute, base)
    return _checked(guarded(table.use, "its constructor", lambda: attribute(**options)), table.use)


def task_kind(table: TaskTable, base: Path) -> type[Task]:
    """Return the class of the task that ``table`` names; it is constructed only where a function makes it.

    Raises:
        TaskError: as of `load_task`.
    """
    attribute = _find(table.use, base)
    if inspect.isclass(attribute) and issubclass(attribute, Task):
        return attribute
    return type(load_task(table, base))


def path_options(use: str, base: Path) -> frozenset[str]:
    """Return the names of the task's options that are paths, or lists of them: they name files of the machine that it runs on.

    Raises:
        TaskError: there is no such task.
    """
    attribute = _find(use, base)
    if not _makes_task(attribute):
        return frozenset()
    found = guarded(use, "the annotations of its constructor", lambda: _parameters(attribute))
    return frozenset(name for name, (hint, _) in found.items() if _names_path(hint))


def _names_path(hint: Any) -> bool:
    return (inspect.isclass(hint) and issubclass(hint, Path)) or any(map(_names_path, get_args(hint)))


def _checked(task: Any, use: str) -> Task:
    if not isinstance(task, Task):
        raise TaskError(
            f"task.use = '{use}' made a {type(task).__name__}, not a Task",
            remedy="name a subclass of cloister.core.Task",
            code="task-type",
        )
    kind, classes = guarded(use, "its kind or classes", lambda: (task.kind, task.classes))
    if kind not in ("classification", "regression"):
        raise TaskError(
            f"task '{use}' is of kind '{kind}'",
            remedy="set kind to 'classification' or 'regression'",
            code="task-kind",
        )
    if not isinstance(classes, list | tuple):
        raise TaskError(
            f"task '{use}' has a {type(classes).__name__} as its classes, not a tuple of names",
            remedy='name each class, for example classes = ("no", "yes"); () for a regression',
            code="task-classes",
        )
    odd = [name for name in classes if not isinstance(name, str) or classes.count(name) > 1]
    if odd:
        raise TaskError(
            f"task '{use}' has {odd[0]!r} among its classes, which is no name, or not only once",
            remedy='give each class a name of its own, for example classes = ("0", "1")',
            code="task-classes",
        )
    if kind == "classification" and len(classes) < 2:
        raise TaskError(
            f"task '{use}' is a classification with {len(classes)} classes",
            remedy="name at least two in `classes`",
            code="task-classes",
        )
    return task


def build_model(task: Task, seed: int) -> nn.Module:
    """Build the task's model with torch's generator seeded by ``seed``; every party that does so holds the same model.

    Raises:
        TaskError: the task raised, made no module, or made one with batch norm.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SeededRandomness(seed).torch_seed("model"))
        model = guarded(type(task).__name__, "model()", task.model)
    if not isinstance(model, nn.Module):
        raise TaskError(
            f"{type(task).__name__}.model() returned a {type(model).__name__}, not a torch.nn.Module",
            remedy="return the model itself",
            code="task-model",
        )
    for name, module in model.named_modules():
        if isinstance(module, _BatchNorm):
            raise TaskError(
                f"the model's layer '{name}' is {type(module).__name__}: batch norm mixes the records of a batch and its running "
                "statistics leave the site unprotected",
                remedy="use GroupNorm, or opacus.validators.ModuleValidator.fix(model)",
                code="batch-norm",
            )
    return model


def owners(task: Task) -> dict[str, Split]:
    """Return the task's records by owner; a single `Split` is owned by `POOLED`.

    Raises:
        TaskError: the task raised or returned something else.
        DataError: an owner without a training record, or a target out of range.
    """
    found = guarded(type(task).__name__, "data()", task.data)
    splits = (
        {POOLED: found} if isinstance(found, Split) else dict(found) if isinstance(found, Mapping) else None
    )
    if not splits or not all(isinstance(split, Split) for split in splits.values()):
        raise TaskError(
            f"{type(task).__name__}.data() returned neither a Split nor a mapping of names to Splits",
            remedy="return Split(train, test), or one for each owner by name",
            code="task-data",
        )
    for owner, split in splits.items():
        check_data(task, split.train, owner=owner, part="training")
        if guarded(type(task).__name__, "its test data", partial(len, split.test)):
            check_data(task, split.test, owner=owner, part="test")
    return splits


def check_data(task: Task, data: Data, *, owner: str, part: str) -> None:
    """Refuse data that cannot be trained on.

    Raises:
        DataError: no record, targets that are not one a record, out of range or not finite, or one class only where the
            task needs more.
        TaskError: the targets are no tensor, or the data raised.
    """
    size, targets = guarded(type(task).__name__, f"its {part} data", lambda: (len(data), data.targets))
    if size == 0:
        raise DataError(
            f"site '{owner}' has no {part} record",
            remedy="give it data, or leave it out of the federation",
            code="data-empty",
        )
    if not isinstance(targets, Tensor):
        raise TaskError(
            f"site '{owner}': its {part} targets are a {type(targets).__name__}, not a tensor",
            remedy="give torch.as_tensor(targets)",
            code="task-data",
        )
    if tuple(targets.shape) != (size,):
        raise DataError(
            f"site '{owner}': {part} targets have shape {tuple(targets.shape)} for {size} records, not ({size},)",
            remedy="give one number a record, for example targets.squeeze(1) where the shape is (n, 1)",
            code="data-target",
        )
    if task.kind == "classification":
        if targets.is_floating_point():
            raise DataError(
                f"site '{owner}': {part} targets are {targets.dtype}, not class numbers",
                remedy="give int64 class numbers",
                code="data-target",
            )
        low, high = int(targets.min()), int(targets.max())
        if low < 0 or high >= len(task.classes):
            raise DataError(
                f"site '{owner}': a {part} target lies outside the {len(task.classes)} classes of the task",
                remedy="declare every class in the task, in the order of their numbers",
                code="data-target",
            )
        if part == "training" and low == high and not task.allows_single_class:
            raise DataError(
                f"site '{owner}': all its {part} records have one class",
                remedy="give it records of another class, leave it out, or set allow_single_class = true in [task]",
                code="data-single-class",
            )
    elif not bool(torch.isfinite(targets).all()):
        raise DataError(
            f"site '{owner}': a {part} target is not finite",
            remedy="remove the record or mend the value",
            code="data-target",
        )


def described(task: Task) -> dict[str, Any]:
    """Return what ``task.describe()`` says of the task, as plain JSON data.

    Raises:
        TaskError: it raised, or returned something else than a dict that JSON can hold.
    """
    name = type(task).__name__
    found = guarded(name, "describe()", task.describe)
    if isinstance(found, dict):
        try:
            text = json.dumps(found, allow_nan=False, ensure_ascii=False)
            text.encode()
            plain: dict[str, Any] = json.loads(text)
        except (TypeError, ValueError, RecursionError):  # an object, nan, half a surrogate pair, a circle
            pass
        else:
            return plain
    what = "a dict that JSON cannot hold" if isinstance(found, dict) else f"a {type(found).__name__}"
    raise TaskError(
        f"{name}.describe() returned {what}",
        remedy='return a dict of texts, finite numbers, lists and dicts, for example {"title": "My task"}',
        code="task-describe",
    )


def notes_of(task: Task) -> list[str]:
    """Return the task's ``notes``, sentences for the report's reader; none where it has no such attribute.

    Raises:
        TaskError: they are no list of texts.
    """
    name = type(task).__name__
    found = guarded(name, "its notes", lambda: getattr(task, "notes", ()))
    if not isinstance(found, list | tuple) or not all(isinstance(note, str) for note in found):
        raise TaskError(
            f"the notes of {name} are no list of texts",
            remedy='set notes to a list of sentences, for example notes = ["synthetic data"]',
            code="task-notes",
        )
    return [str(note) for note in found]


def _makes_task(attribute: Any) -> bool:
    """Whether this is a Task's class or says that it returns a Task.

    Nothing else is called: a federation file must not be able to run ``os:system`` with an argument of its own.
    """
    if inspect.isclass(attribute):
        return issubclass(attribute, Task)
    if not inspect.isfunction(attribute):
        return False
    made = guarded(attribute.__name__, "its annotations", lambda: get_type_hints(attribute)).get("return")
    return inspect.isclass(made) and issubclass(made, Task)


def _find(use: str, base: Path) -> Any:
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
    if spec is None or spec.loader is None:
        raise TaskError(f"task.use: '{path}' cannot be loaded as a module", code="task-unknown")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        guarded(path.name, "its module", lambda: spec.loader.exec_module(module) if spec.loader else None)
    except TaskError:
        del sys.modules[name]
        raise
    return module


def _options(table: TaskTable, attribute: Callable[..., Any], base: Path) -> dict[str, Any]:
    """Check the task's options against the annotations of what makes it.

    Strict in the way of JSON: ``"12"`` is no whole number, and text is a ``Path`` or a list a ``tuple`` where that is asked for.
    """
    parameters = guarded(table.use, "the annotations of its constructor", lambda: _parameters(attribute))
    # Fields go by number and an alias, so that an option may have any name (``schema``, ``copy``, ``model_config``).
    fields: dict[str, Any] = {
        f"option{number}": (hint, Field(... if default is inspect.Parameter.empty else default, alias=name))
        for number, (name, (hint, default)) in enumerate(parameters.items())
    }
    config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
    model: type[BaseModel] = create_model("TaskOptions", __config__=config, **fields)
    try:
        checked = model.model_validate_json(json.dumps(table.options))
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in refusals(error, model, "task"))
        raise TaskError(
            f"[task] was refused by '{table.use}':\n{lines}",
            remedy="change these keys and try again",
            code="task-option",
        ) from None
    names = dict(zip(fields, parameters, strict=True))
    return {names[field]: _from_base(getattr(checked, field), base) for field in checked.model_fields_set}


def _parameters(attribute: Callable[..., Any]) -> dict[str, tuple[Any, Any]]:
    """Return the annotation and the default of each named parameter."""
    function = attribute.__init__ if inspect.isclass(attribute) else attribute
    hints = get_type_hints(function, include_extras=True)
    return {
        name: (hints.get(name, Any), parameter.default)
        for name, parameter in inspect.signature(attribute).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    }


def _from_base(value: Any, base: Path) -> Any:
    """Take relative paths, also those in lists, from the federation file's folder."""
    if isinstance(value, Path):
        return base / value
    return type(value)(_from_base(inner, base) for inner in value) if type(value) in (list, tuple) else value
