"""From ``[task]`` to a checked `Task`: find it, give it its options, build its model, read its data.

Whatever a task raises becomes a `TaskError` that names the place in the task's own file and never quotes the exception's text,
since that may hold a value of the data. ``CLOISTER_DEBUG=1`` shows the whole traceback on one's own machine.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from pydantic import BaseModel, ConfigDict, Field, ValidationError, create_model
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from cloister.core.data import Data, Split
from cloister.core.errors import DataError, TaskError
from cloister.core.finding import find_maker, made_class, parameters_of, task_names
from cloister.core.guarding import guarded
from cloister.core.randomness import SeededRandomness
from cloister.core.spec.refusals import refusals
from cloister.core.spec.tables import TaskTable
from cloister.core.task import Task

__all__ = [
    "POOLED",
    "build_model",
    "check_data",
    "described",
    "from_base",
    "guarded",
    "load_task",
    "notes_of",
    "owners",
    "task_names",
]

#: The owner's name when a task hands over one `Split` for all.
POOLED = "pooled"


def load_task(table: TaskTable, base: Path) -> Task:
    """Find the task that ``table.use`` names and construct it with its options.

    Args:
        table: the ``[task]`` table.
        base: the folder that relative paths are taken from.

    Raises:
        TaskError: no such task, an unknown or wrong option, or the task raised.
    """
    attribute = find_maker(table.use, base)
    if isinstance(attribute, Task):
        if table.options:
            raise TaskError(
                f"task.use = '{table.use}' is an object already made: it takes no options",
                remedy="name its class instead",
            )
        return _checked(attribute, table.use)
    if made_class(attribute) is None:
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


def _options(table: TaskTable, attribute: Callable[..., Any], base: Path) -> dict[str, Any]:
    """Check the task's options against the annotations of what makes it.

    Strict in the way of JSON: ``"12"`` is no whole number, and text is a ``Path`` or a list a ``tuple`` where that is asked for.
    """
    parameters = guarded(table.use, "the annotations of its constructor", lambda: parameters_of(attribute))
    # Fields go by number and an alias, so that an option may have any name (``schema``, ``copy``, ``model_config``).
    plain = {name: parameter for name, parameter in parameters.items() if parameter[0] is not Task}
    fields: dict[str, Any] = {
        f"option{number}": (hint, Field(... if default is inspect.Parameter.empty else default, alias=name))
        for number, (name, (hint, default)) in enumerate(plain.items())
    }
    inner = {name: _inner(table, name, base) for name in parameters if name not in plain}
    given = {name: value for name, value in table.options.items() if name not in inner}
    config = ConfigDict(extra="forbid", frozen=True, strict=True, arbitrary_types_allowed=True)
    model: type[BaseModel] = create_model("TaskOptions", __config__=config, **fields)
    try:
        checked = model.model_validate_json(json.dumps(given))
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in refusals(error, model, "task"))
        raise TaskError(
            f"[task] was refused by '{table.use}':\n{lines}",
            remedy="change these keys and try again",
            code="task-option",
        ) from None
    names = dict(zip(fields, plain, strict=True))
    return inner | {
        names[field]: from_base(getattr(checked, field), base) for field in checked.model_fields_set
    }


def _inner(table: TaskTable, name: str, base: Path) -> Task:
    """Make the task that an option annotated `Task` asks for: a table like ``[task]`` itself."""
    given = table.options.get(name)
    try:
        asked = TaskTable.model_validate(given)
    except ValidationError:
        raise TaskError(
            f"[task] was refused by '{table.use}': '{name}' is missing, or is no table that names a task",
            remedy=f'write for example {name} = {{ use = "heart" }}',
            code="task-option",
        ) from None
    return load_task(asked, base)


def from_base(value: Any, base: Path) -> Any:
    """Take relative paths, also those in lists and tables, from the federation file's folder."""
    if isinstance(value, Path):
        return base / value
    if isinstance(value, BaseModel):
        return value.model_copy(
            update={name: from_base(getattr(value, name), base) for name in value.model_fields_set}
        )
    return type(value)(from_base(inner, base) for inner in value) if type(value) in (list, tuple) else value
