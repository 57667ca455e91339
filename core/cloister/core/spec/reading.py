"""Read, check and write the federation file.

An unknown key is an error that offers the nearest known one; a value of the wrong type is an error that names the key, the
value and what was expected; a setting that the format documents but this version does not offer says so. The effective file has
every default filled in, with where each value came from.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from cloister.core.errors import NotYetOffered, SpecError
from cloister.core.spec.tables import FederationSpec

__all__ = ["Loaded", "Origin", "load_federation", "nearest", "parse_federation", "refusals"]

# Tables and values that the file's format documents and this version does not offer yet.
_NOT_YET = {
    "attack": "attackers",
    "audit": "audits",
    "training.adversarial": "adversarial training",
    "privacy.epsilon": "differential privacy",
    "privacy.delta": "differential privacy",
    "privacy.clip": "differential privacy",
    "privacy.noise_multiplier": "differential privacy",
    "aggregation.group_size": "robust aggregation in groups",
    "aggregation.byzantine": "robust aggregation",
}
_NOT_YET_VALUES = {
    "privacy.unit": ("record", "record-distributed", "site", "site-local", "site-distributed"),
    "aggregation.protection": ("masked", "bfv", "ckks", "threshold-bfv"),
}
_MAX_BYTES = 1 << 20


class Origin(StrEnum):
    """Where a value of the effective file came from."""

    FILE = "file"
    SET = "--set"
    DEFAULT = "default"


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """A checked federation file.

    Attributes:
        spec: the checked tables.
        base: the folder that relative paths in the file are taken from.
        origins: where each dotted key's value came from.
    """

    spec: FederationSpec
    base: Path
    origins: Mapping[str, Origin]

    def effective(self) -> dict[str, Any]:
        """Return the whole file as plain data with every default filled in; ``None`` is left out."""
        return _without_none(self.spec.model_dump(mode="json"))

    def effective_toml(self) -> str:
        """Return the effective file as TOML; reading it again gives the same spec."""
        return tomli_w.dumps(self.effective())

    def digest(self) -> str:
        """Return SHA-256 (hex) over the effective file, the same whatever the file's layout."""
        text = json.dumps(self.effective(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode()).hexdigest()


def load_federation(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read a federation file.

    Args:
        path: the file.
        overrides: ``dotted.key=value`` settings laid over it; the value is read as TOML, or as text where it is not TOML.

    Raises:
        SpecError: the file is missing, is not TOML, or is refused.
    """
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise SpecError(f"there is no federation file '{path}'", remedy="check the path; examples/heart has one to start from") from None
    except OSError as error:
        raise SpecError(f"cannot read the federation file '{path}': {error.strerror}", remedy="check the path and its permissions") from None
    if len(raw) > _MAX_BYTES:
        raise SpecError(f"'{path}' has {len(raw)} bytes: a federation file has at most {_MAX_BYTES}", remedy="check the path")
    try:
        document = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SpecError(f"'{path}' is not TOML: {error}", remedy="mend the line that the message names") from None
    return parse_federation(document, base=path.resolve().parent, overrides=overrides, name=str(path))


def parse_federation(
    document: Mapping[str, Any], *, base: Path, overrides: Sequence[str] = (), name: str = "the federation"
) -> Loaded:
    """Check a federation given as plain data.

    Raises:
        SpecError: with every refusal of the file in one message.
    """
    origins = dict.fromkeys(_leaves(document), Origin.FILE)
    merged: dict[str, Any] = json.loads(json.dumps(document, default=str))
    for text in overrides:
        key, value = _read_override(text)
        _put(merged, key, value)
        origins = {k: v for k, v in origins.items() if k != key and not k.startswith(key + ".")}
        origins.update(dict.fromkeys(_leaves(value, key), Origin.SET))
    _refuse_not_yet(merged)
    try:
        spec = FederationSpec.model_validate(merged)
    except ValidationError as error:
        lines = refusals(error, FederationSpec)
        raise SpecError(f"{name} was refused:\n" + "\n".join(f"  {line}" for line in lines), remedy="change these keys and try again") from None
    loaded = Loaded(spec=spec, base=base, origins=origins)
    complete = {key: origins.get(key, Origin.DEFAULT) for key in _leaves(loaded.effective())}
    return Loaded(spec=spec, base=base, origins=complete)


def refusals(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Turn pydantic's errors into one line a key: its name, its value, what was expected, and the nearest known key."""
    lines = []
    for detail in error.errors(include_url=False):
        line = _refusal(detail, model)
        if line not in lines:
            lines.append(line)
    return lines


def nearest(word: str, known: Iterable[str]) -> str:
    """Return ``; did you mean 'x'?`` for the known word nearest to ``word``, or the list of all of them."""
    names = sorted(known)
    close = difflib.get_close_matches(word, names, n=1, cutoff=0.6)
    if close:
        return f"; did you mean '{close[0]}'?"
    return "; known here: " + ", ".join(names) if names else ""


def _refusal(detail: ErrorDetails, model: type[BaseModel]) -> str:
    # Union members ("int", "PoissonCohort", …) appear in pydantic's path; keep what a reader sees in the file.
    path = [str(part) for part in detail["loc"] if isinstance(part, int) or str(part).isidentifier() and str(part).islower()]
    path = [part for part in path if part not in ("int", "str", "float", "constrained-int")]
    key = ".".join(path)
    if detail["type"] == "extra_forbidden":
        return f"unknown key '{key}'{nearest(path[-1], _fields_at(model, path[:-1]))}"
    if detail["type"] == "missing":
        return f"'{key}' is missing"
    if detail["type"] == "value_error":
        where = f"[{key}] " if key else ""
        return where + detail["msg"].removeprefix("Value error, ")
    return f"{key} = {json.dumps(detail['input'], default=str)}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> list[str]:
    """Return the known keys of the table at ``path``."""
    current: type[BaseModel] | None = model
    for part in path:
        if current is None or part not in current.model_fields:
            return []
        current = _table_of(current.model_fields[part].annotation)
    return list(current.model_fields) if current else []


def _table_of(annotation: Any) -> type[BaseModel] | None:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    for argument in getattr(annotation, "__args__", ()):
        if (found := _table_of(argument)) is not None:
            return found
    return None


def _refuse_not_yet(document: Mapping[str, Any]) -> None:
    for key, what in _NOT_YET.items():
        if _get(document, key) is not None:
            raise NotYetOffered(
                f"'{key}' asks for {what}, which the file's format documents but this version does not offer",
                remedy=f"remove '{key}' to run without {what}",
            )
    for key, values in _NOT_YET_VALUES.items():
        value = _get(document, key)
        if value in values:
            raise NotYetOffered(
                f"{key} = '{value}' is part of the file's format but this version does not offer it",
                remedy=f"remove '{key}' to run without that protection; the report will say so",
            )


def _read_override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not key:
        raise SpecError(f"--set '{text}' is not key=value", remedy="write for example --set federation.rounds=5")
    try:
        return key, tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        return key, value.strip()


def _put(document: dict[str, Any], dotted: str, value: Any) -> None:
    *tables, leaf = dotted.split(".")
    for table in tables:
        inner = document.setdefault(table, {})
        if not isinstance(inner, dict):
            raise SpecError(f"--set {dotted}: '{table}' is not a table", remedy="check the dotted key")
        document = inner
    document[leaf] = value


def _get(document: Mapping[str, Any], dotted: str) -> Any:
    value: Any = document
    for part in dotted.split("."):
        if not isinstance(value, Mapping) or part not in value:
            return None
        value = value[part]
    return value


def _leaves(value: Any, prefix: str = "") -> list[str]:
    if isinstance(value, Mapping):
        return [leaf for key, inner in value.items() for leaf in _leaves(inner, f"{prefix}.{key}" if prefix else str(key))]
    return [prefix]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return value
