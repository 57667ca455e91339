"""Pydantic's errors in the words of the file: one line a key, with its value and what it should be.

================================  ================================================================================
what was wrong                    the line
================================  ================================================================================
a key nobody knows                ``unknown key 'training.batchsize'; did you mean 'batch_size'?``
a key missing                     ``'federation.rounds' is missing; for example rounds = 30``
a wrong type                      ``federation.rounds = "many": should be a whole number``
out of range                      ``federation.rounds = 0: should be at least 1``
no member of a choice of types    ``cohort.per_round = "al": expected 'all', a whole number, or a table like …``
a rule over several keys          ``[cohort] sites = 2 can never reach min_sites = 3; lower min_sites``
================================  ================================================================================
"""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

__all__ = ["expected", "nearest", "refusals"]

# A value to show for a key that must be given.
_EXAMPLES = {"name": '"heart"', "rounds": "30", "use": '"heart"', "poisson": "0.1", "records_cap": "500"}
_EXAMPLE_OF_TYPE = {bool: "true", int: "1", float: "0.5", str: '"…"', Path: '"data.csv"'}

_SHOULD_BE = {
    "bool": "should be true or false",
    "dict": "should be a table",
    "float": "should be a number",
    "int": "should be a whole number",
    "list": "should be a list",
    "model": "should be a table",
    "string": "should be text in quotes",
    "tuple": "should be a list",
}
_BOUNDS = {
    "greater_than": ("should be more than", "gt"),
    "greater_than_equal": ("should be at least", "ge"),
    "less_than": ("should be less than", "lt"),
    "less_than_equal": ("should be at most", "le"),
}
_LENGTHS = {
    "too_short": "should have at least {min_length} entries",
    "too_long": "should have at most {max_length} entries",
    "string_too_short": "should have at least {min_length} characters",
    "string_too_long": "should have at most {max_length} characters",
}
_LONGEST_VALUE = 80


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where an error is: the keys that lead to it, and the choice of types (if any) that it was one member of."""

    keys: tuple[str, ...]
    annotation: Any
    choice: tuple[str, ...] | None
    choices: Any


def refusals(error: ValidationError, model: type[BaseModel], prefix: str = "") -> list[str]:
    """Turn pydantic's errors into one line a key: its name, its value, what was expected, and the nearest known key.

    Args:
        error: what pydantic raised.
        model: the table that it was raised for.
        prefix: the table's own name in the file, for example ``task``; empty for the whole file.
    """
    placed = [(detail, _place(model, detail["loc"])) for detail in error.errors(include_url=False)]
    lines: list[str] = []
    for detail, place in placed:
        if place.choice is None:
            line = _line(detail, place, model, prefix)
        else:
            rivals = [(d, p) for d, p in placed if p.choice == place.choice]
            meant = _meant(rivals, place.choice)
            if meant and all(detail is not d for d, _ in meant):
                continue
            line = _line(detail, place, model, prefix) if meant else _choice_line(rivals[0][0], place, prefix)
        if line not in lines:
            lines.append(line)
    return lines


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known word nearest to ``word``, or the list of all of them."""
    names = sorted(known)
    return _close(word, names) or ("; known here: " + ", ".join(names) if names else "")


def expected(annotation: Any) -> str:
    """Say in plain words what a value of this type looks like."""
    members = _members(annotation)
    if len(members) > 1:
        return _any_of([expected(member) for member in members])
    annotation = members[0]
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return _any_of([f"'{value}'" for value in arguments])
    if origin in (tuple, list):
        return "a list" + (f" of {_several(arguments[0])}" if arguments else "")
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return f"a table like {{ {_required(annotation)} }}" if _required(annotation) else "a table"
    names = {bool: "true or false", int: "a whole number", float: "a number", str: "text", Path: "a path"}
    return names.get(annotation, "a value")


def _line(detail: ErrorDetails, place: _Place, model: type[BaseModel], prefix: str) -> str:
    key = _dotted((prefix, *place.keys))
    kind = detail["type"]
    if kind == "extra_forbidden":
        return f"unknown key '{key}'{_hint(model, place.keys)}"
    if kind == "missing":
        return _missing_line(key, place)
    if kind in ("value_error", "assertion_error"):
        return (f"[{key}] " if key else "") + detail["msg"].removeprefix("Value error, ")
    meant = _meant_key(model, place.keys) if kind == "literal_error" else ""
    return f"{key} = {_shown(detail['input'])}: {_should(detail, place.annotation)}{meant}"


def _meant_key(model: type[BaseModel], keys: Sequence[str]) -> str:
    """Name the nearest known key, where the table takes any other: a slip of the hand is read as one of those."""
    *above, word = keys
    annotation: Any = model
    for key in above:
        annotation = _entry(annotation) if key.startswith("[") else _field(annotation, key)
    tables = [table for table in _tables(annotation) if _others(table) is not None]
    known = [name for table in tables for name in table.model_fields]
    return _close(word, known) if tables and word not in known else ""


def _choice_line(detail: ErrorDetails, place: _Place, prefix: str) -> str:
    return f"{_dotted((prefix, *(place.choice or ())))} = {_shown(detail['input'])}: expected {expected(place.choices)}"


def _missing_line(key: str, place: _Place) -> str:
    tables = list(_tables(place.annotation))
    if tables:
        return f"the table [{key}] is missing; for example [{key}] with {_required(tables[0])}"
    name = place.keys[-1]
    return f"'{key}' is missing; for example {name} = {_example(name, place.annotation)}"


def _meant(
    rivals: Sequence[tuple[ErrorDetails, _Place]], choice: tuple[str, ...]
) -> list[tuple[ErrorDetails, _Place]]:
    """Return the errors of the member that the value was clearly meant for; none where no member fits its kind."""
    inside = [(detail, place) for detail, place in rivals if place.keys != choice]
    if inside:
        return inside
    return [(detail, place) for detail, place in rivals if detail["type"] in _BOUNDS]


def _should(detail: ErrorDetails, annotation: Any) -> str:
    kind, context = detail["type"], detail.get("ctx", {})
    if kind in _BOUNDS:
        words, name = _BOUNDS[kind]
        return f"{words} {context[name]:g}"
    if kind in _LENGTHS:
        return "should not be empty" if context.get("min_length") == 1 else _LENGTHS[kind].format(**context)
    if kind == "literal_error" and _literal(annotation) is not None:
        values = [str(value) for value in get_args(_literal(annotation))]
        return f"should be {_any_of([repr(value) for value in values])}" + (
            _close(str(detail["input"]), values) if len(values) > 1 else ""
        )
    if kind == "string_pattern_mismatch":
        return f"should fit the pattern {context['pattern']}"
    if kind.endswith(("_type", "_parsing", "_from_float")):
        family = kind.split("_", 1)[0]
        if family in _SHOULD_BE:
            return _SHOULD_BE[family]
    return detail["msg"][:1].lower() + detail["msg"][1:]


def _place(model: type[BaseModel], location: Sequence[int | str]) -> _Place:
    """Follow pydantic's location; after a choice of types it holds the name of a member, which is no key."""
    keys: list[str] = []
    annotation: Any = model
    choice: tuple[str, ...] | None = None
    choices: Any = None
    for part in location:
        members = _members(annotation)
        if len(members) > 1:
            if choice is None:
                choice, choices = tuple(keys), annotation
            annotation = next((member for member in members if getattr(member, "__name__", "") == part), Any)
            continue
        keys.append(f"[{part}]" if isinstance(part, int) else part)
        annotation = _entry(members[0]) if isinstance(part, int) else _field(members[0], part)
    return _Place(keys=tuple(keys), annotation=annotation, choice=choice, choices=choices)


def _members(annotation: Any) -> list[Any]:
    """Return the types that a value may have, without ``None`` and without pydantic's notes on them."""
    if get_origin(annotation) is Annotated:
        return _members(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [
            member
            for argument in get_args(annotation)
            if argument is not type(None)
            for member in _members(argument)
        ]
    return [annotation]


def _entry(annotation: Any) -> Any:
    return (
        get_args(annotation)[0] if get_origin(annotation) in (tuple, list) and get_args(annotation) else Any
    )


def _field(annotation: Any, name: str) -> Any:
    if get_origin(annotation) is dict:  # a table of tables with names of their own
        return get_args(annotation)[1]
    for table in _tables(annotation):
        for known, info in table.model_fields.items():
            if name == (info.alias or known):
                return info.annotation
        if (others := _others(table)) is not None:
            return others
    return Any


def _others(table: type[BaseModel]) -> Any:
    """Return what a table's keys of no name of their own may be, where it says so."""
    hint = (
        get_type_hints(table).get("__pydantic_extra__")
        if table.model_config.get("extra") == "allow"
        else None
    )
    return get_args(hint)[1] if get_origin(hint) is dict else None


def _tables(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _tables(argument)


def _literal(annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        return annotation
    return next(
        (found for argument in get_args(annotation) if (found := _literal(argument)) is not None), None
    )


def _hint(model: type[BaseModel], keys: Sequence[str]) -> str:
    """Name the nearest key of the same table; else the same name in another table; else all keys of this table."""
    *above, word = keys
    annotation: Any = model
    for key in above:
        annotation = _entry(annotation) if key.startswith("[") else _field(annotation, key)
    known = [info.alias or name for table in _tables(annotation) for name, info in table.model_fields.items()]
    if _close(word, known):
        return _close(word, known)
    elsewhere = [path for path in _paths(model) if path.rpartition(".")[2] == word]
    if elsewhere:
        return f"; did you mean '{elsewhere[0]}'?"
    return nearest(word, known)


def _paths(annotation: Any, prefix: str = "") -> Iterator[str]:
    for table in _tables(annotation):
        for name, info in table.model_fields.items():
            path = _dotted((prefix, info.alias or name))
            yield path
            yield from _paths(info.annotation, path)


def _close(word: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, sorted(known), n=1, cutoff=0.6)
    return f"; did you mean '{close[0]}'?" if close else ""


def _required(table: type[BaseModel]) -> str:
    needed = [
        (info.alias or name, info.annotation)
        for name, info in table.model_fields.items()
        if info.is_required()
    ]
    return ", ".join(f"{name} = {_example(name, annotation)}" for name, annotation in needed)


def _example(name: str, annotation: Any) -> str:
    literal = _literal(annotation)
    if literal is not None:
        return f'"{get_args(literal)[0]}"'
    return _EXAMPLES.get(name) or next(
        (_EXAMPLE_OF_TYPE[kind] for kind in _members(annotation) if kind in _EXAMPLE_OF_TYPE), "…"
    )


def _any_of(words: Sequence[str]) -> str:
    return (
        words[0]
        if len(words) == 1
        else f"{', '.join(words[:-1])}{',' if len(words) > 2 else ''} or {words[-1]}"
    )


def _several(annotation: Any) -> str:
    return {"a number": "numbers", "a whole number": "whole numbers", "text": "texts"}.get(
        expected(annotation), expected(annotation)
    )


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str, ensure_ascii=False)
    return text if len(text) <= _LONGEST_VALUE else f"{text[:_LONGEST_VALUE]}…"


def _dotted(parts: Iterable[str]) -> str:
    return ".".join(part for part in parts if part).replace(".[", "[")
