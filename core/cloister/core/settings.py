"""Settings files of an installation (``site.toml``, ``server.toml``, …): strict tables, and one way to read them."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloister.core.errors import SpecError
from cloister.core.spec.refusals import refusals

__all__ = ["Address", "Settings", "host_of", "load_settings", "port_of"]

_LONGEST = 1 << 20

#: ``host:port``.
Address = Annotated[str, Field(pattern=r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$")]


class Settings(BaseModel):
    """A table of a settings file: an unknown key is refused, and so is a value of another type."""

    model_config = ConfigDict(extra="forbid", frozen=True)


S = TypeVar("S", bound=Settings)


def load_settings(path: Path, model: type[S], remedy: str) -> S:
    """Read a settings file.

    Args:
        path: the file.
        model: its tables.
        remedy: what to do where there is no such file.

    Raises:
        SpecError: it is not there, is no TOML, or a key of it is wrong.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(_LONGEST + 1)
    except OSError as error:
        raise SpecError(f"cannot read '{path}': {error.strerror}", remedy=remedy, code="settings") from None
    if len(raw) > _LONGEST:
        raise SpecError(f"'{path}' is longer than {_LONGEST} bytes", remedy="check the file", code="settings")
    try:
        tables: Mapping[str, Any] = tomllib.loads(raw.decode())
    except (ValueError, RecursionError) as error:  # TOML's and UTF-8's errors are ValueErrors
        raise SpecError(f"'{path}' is not TOML: {error}", remedy="mend the file", code="settings") from None
    try:
        return model.model_validate(tables)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in refusals(error, model))
        raise SpecError(
            f"'{path}' was refused:\n{lines}", remedy="change these keys and try again", code="settings"
        ) from None


def host_of(address: str) -> str:
    """Return the host of ``host:port``, an IPv6 address without its brackets."""
    return address.rpartition(":")[0].strip("[]")


def port_of(address: str) -> int:
    """Return the port of ``host:port``."""
    return int(address.rpartition(":")[2])
