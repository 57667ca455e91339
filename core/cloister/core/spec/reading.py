"""Read, check and write the federation file.

An unknown key is an error that offers the nearest known one; a value of the wrong type is an error that names the key, the
value and what was expected. A value that is no finite number, text, truth value, list or table (``nan``, ``inf``, a date) is refused wherever it stands, also in ``[task]``, and
so are text with a NUL or half a surrogate pair, and tables and lists that are nested too deep.
The effective file has every default filled in, with where each value came from.
"""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date, time
from enum import StrEnum
from pathlib import Path
from typing import Any

import tomli_w
from pydantic import ValidationError

from cloister.core.digests import federation_digest
from cloister.core.errors import SpecError
from cloister.core.spec.refusals import nearest, refusals
from cloister.core.spec.tables import LEAST_PROTECTED, FederationSpec
from cloister.core.spec.writing import annotated_toml

__all__ = [
    "Loaded",
    "Origin",
    "load_federation",
    "nearest",
    "parse_federation",
    "read_document",
    "refusals",
]

_MAX_BYTES = 1 << 20
_MAX_DEPTH = 32
_SHOWN = 80


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
        tables: dict[str, Any] = _without_none(self.spec.model_dump(mode="json"))
        return tables

    def effective_toml(self) -> str:
        """Return the effective file as TOML; reading it again gives the same spec."""
        return tomli_w.dumps(self.effective())

    def annotated_toml(self) -> str:
        """Return the effective file as TOML with one key a line and where its value came from in a comment."""
        return annotated_toml(self.effective(), self.origins)

    def settled(self, sites: int) -> Loaded:
        """Return the federation for ``sites`` sites, where the file says neither how many they are nor how updates are protected.

        Fewer than three cannot be protected from each other by sums: their updates go in clear, and the run says so.
        """
        key = "aggregation.protection"
        if self.origins[key] is not Origin.DEFAULT or self.spec.aggregation.protection == "plain":
            return self
        if sites >= LEAST_PROTECTED:
            return self
        tables = self.effective()
        tables["aggregation"]["protection"] = "plain"
        if self.origins["cohort.min_sites"] is Origin.DEFAULT:
            del tables["cohort"]["min_sites"]
        made = parse_federation(tables, base=self.base)
        return Loaded(spec=made.spec, base=self.base, origins=self.origins)

    def digest(self) -> str:
        """Return SHA-256 (hex) over the effective file, the same whatever the file's layout."""
        return federation_digest(self.effective())


def load_federation(path: Path, overrides: Sequence[str] = ()) -> Loaded:
    """Read a federation file.

    Args:
        path: the file.
        overrides: ``dotted.key=value`` settings laid over it; the value is read as TOML, or as text where it is not TOML.

    Raises:
        SpecError: the file is missing, is not TOML, or is refused.
    """
    return parse_federation(
        read_document(path), base=path.resolve().parent, overrides=overrides, name=f"'{path}'"
    )


def read_document(path: Path) -> dict[str, Any]:
    """Read a federation file as plain data, unchecked.

    Raises:
        SpecError: the file is missing, too large, or is not TOML.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        raise SpecError(
            f"there is no federation file '{path}'",
            remedy="check the path; examples/heart has one to start from",
        ) from None
    except OSError as error:
        raise SpecError(
            f"cannot read the federation file '{path}': {error.strerror}",
            remedy="check the path and its permissions",
        ) from None
    if len(raw) > _MAX_BYTES:
        raise SpecError(
            f"'{path}' has more than {_MAX_BYTES} bytes, the most that a federation file may have",
            remedy="check the path",
        )
    try:
        return tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # not TOML, not UTF-8, or a number of thousands of digits
        raise SpecError(
            f"'{path}' is not TOML: {error}", remedy="mend the place that the message names"
        ) from None


def parse_federation(
    document: Mapping[str, Any], *, base: Path, overrides: Sequence[str] = (), name: str = "the federation"
) -> Loaded:
    """Check a federation given as plain data; a key whose value is ``None`` counts as left out.

    Raises:
        SpecError: with every refusal of the file in one message.
    """
    merged: dict[str, Any] = _plain(document, "")
    origins = dict.fromkeys(_leaves(merged), Origin.FILE)
    for text in overrides:
        key, value = _read_override(text)
        _put(merged, key, value)
        origins = {k: v for k, v in origins.items() if k != key and not k.startswith(key + ".")}
        origins.update(dict.fromkeys(_leaves(value, key), Origin.SET))
    try:
        spec = FederationSpec.model_validate(merged)
    except ValidationError as error:
        lines = refusals(error, FederationSpec)
        raise SpecError(
            f"{name} was refused:\n" + "\n".join(f"  {line}" for line in lines),
            remedy="change these keys and try again",
        ) from None
    loaded = Loaded(spec=spec, base=base, origins=origins)
    complete = {key: origins.get(key, Origin.DEFAULT) for key in _leaves(loaded.effective())}
    return Loaded(spec=spec, base=base, origins=complete)


def _plain(value: Any, key: str, depth: int = 0) -> Any:
    """Copy plain data; refuse what a federation file cannot hold, by its key."""
    if depth > _MAX_DEPTH:
        raise SpecError(
            f"{key}: tables and lists are nested more than {_MAX_DEPTH} deep",
            remedy="flatten it, or let the task read it from a file of its own",
        )
    if isinstance(value, Mapping):
        if "" in value:
            raise SpecError(
                f"{key or 'the file'} has a key without a name", remedy="give it a name or remove it"
            )
        return {
            _text(str(k), key or "the file"): _plain(inner, f"{key}.{k}" if key else str(k), depth + 1)
            for k, inner in value.items()
            if inner is not None
        }
    if isinstance(value, list | tuple):
        return [_plain(inner, f"{key}[{number}]", depth + 1) for number, inner in enumerate(value)]
    if isinstance(value, float) and not math.isfinite(value):
        raise SpecError(
            f"{key} = {value}: should be a finite number", remedy="give a number that is neither nan nor inf"
        )
    if isinstance(value, str):
        return _text(value, key)
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, date | time):
        raise SpecError(
            f"{key} = {value}: a federation file holds no dates",
            remedy=f'write it as text: {key} = "{value}"',
        )
    raise SpecError(
        f"{key} is a {type(value).__name__}, which a federation file cannot hold",
        remedy="give text, a number, true or false, a list or a table",
    )


def _text(text: str, key: str) -> str:
    """Refuse text that no file name and no UTF-8 file can hold."""
    if "\0" in text or any("\ud800" <= character <= "\udfff" for character in text):
        raise SpecError(
            f"{key} holds text with a NUL or with half a surrogate pair: {text[:_SHOWN]!r}",
            remedy="write the text in UTF-8, without NUL",
        )
    return text


def _read_override(text: str) -> tuple[str, Any]:
    key, separator, value = text.partition("=")
    key = key.strip()
    if not separator or not all(key.split(".")):
        raise SpecError(
            f"--set '{text}' is not key=value",
            remedy="write for example --set federation.rounds=5",
            code="set",
        )
    _text(text, "--set")
    if key.count(".") >= _MAX_DEPTH:
        raise SpecError(
            f"--set '{key[:_SHOWN]}…': tables are nested more than {_MAX_DEPTH} deep",
            remedy="write for example --set federation.rounds=5",
            code="set",
        )
    try:
        read = tomllib.loads(f"value = {value}")
    except (ValueError, RecursionError):
        return key, value.strip()
    return key, _plain(read["value"], key) if read.keys() == {"value"} else value.strip()


def _put(document: dict[str, Any], dotted: str, value: Any) -> None:
    *tables, leaf = dotted.split(".")
    for depth, table in enumerate(tables, start=1):
        inner = document.setdefault(table, {})
        if not isinstance(inner, dict):
            above = ".".join(tables[:depth])
            raise SpecError(
                f"--set {dotted}: '{above}' is a value, not a table",
                remedy=f"give the whole of it: --set '{above}={{ … }}'",
                code="set",
            )
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
    if isinstance(value, Mapping) and (value or not prefix):  # an empty table is a value
        return [
            leaf
            for key, inner in value.items()
            for leaf in _leaves(inner, f"{prefix}.{key}" if prefix else str(key))
        ]
    return [prefix]


def _without_none(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_none(inner) for key, inner in value.items() if inner is not None}
    return value
