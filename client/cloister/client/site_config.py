"""``site.toml``: what one real site is, where its data lie and where it keeps its state.

::

    [site]
    name = "cleveland"              # as the consortium certified it
    state = "state"                 # ledgers, sessions, the site log; 0700

    [server]
    address = "fl.example.org:8443" # the fleet's address: nginx, not the SuperLink itself

    [data.heart]                    # one data set: the name of its ledger, as policy.toml refers to it
    task = "heart"                  # the task that it is for
    owner = "cleveland"             # whose records, where the task hands over several owners'
    options = { data = "/srv/heart" }  # of the task: where the data lie

    [health]
    listen = "127.0.0.1:9464"       # /health and /metrics; left out: none

Credentials lie beside the file under fixed names (`cloister.privacy.identity.kit`), and so does ``policy.toml``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cloister.core.errors import SpecError
from cloister.core.spec.refusals import refusals

__all__ = ["CONFIG", "DataTable", "SiteConfig", "load_site"]

#: The file's name in a site's folder.
CONFIG = "site.toml"
_LONGEST = 1 << 20
_ADDRESS = r"^(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+):[0-9]{1,5}$"
_NAME = r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$"


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class SiteTable(_Table):
    """``[site]``: who it is, and where it keeps its state."""

    name: str = Field(min_length=1, max_length=64)
    state: str = "state"


class ServerTable(_Table):
    """``[server]``: where the coordinator is reached.

    Attributes:
        address: ``host:port`` of the fleet.
        busy_poll_s: seconds between two questions for work while a run is under way.
        idle_poll_s: the same when there has been none for a while.
    """

    address: str = Field(pattern=_ADDRESS)
    busy_poll_s: float = Field(default=0.05, ge=0.01, le=10)
    idle_poll_s: float = Field(default=1.0, ge=0.05, le=60)


class HealthTable(_Table):
    """``[health]``: where ``/health`` and ``/metrics`` are served."""

    listen: str = Field(pattern=_ADDRESS)


class DataTable(_Table):
    """``[data.NAME]``: one data set.

    Attributes:
        task: the task that it is for, as ``task.use`` names it.
        owner: whose records, where the task hands over several owners'; the only one's if left out.
        options: the task's options that say where the data lie; they win over the federation file's.
    """

    task: str = Field(min_length=1)
    owner: str | None = None
    options: dict[str, Any] = {}


class SiteConfig(_Table):
    """The whole file."""

    site: SiteTable
    server: ServerTable
    data: dict[str, DataTable] = Field(min_length=1)
    health: HealthTable | None = None


def load_site(folder: Path) -> SiteConfig:
    """Read the ``site.toml`` of a site's folder.

    Raises:
        SpecError: it is not there, is no TOML, or a key of it is wrong.
    """
    path = folder / CONFIG
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise SpecError(
            f"cannot read '{path}': {error.strerror}",
            remedy="name a site's folder: the start-up kit that the consortium made for it",
        ) from None
    if len(raw) > _LONGEST:
        raise SpecError(f"'{path}' is longer than {_LONGEST} bytes", remedy="check the file")
    try:
        tables: Mapping[str, Any] = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"'{path}' is not TOML: {error}", remedy="mend the file") from None
    try:
        return SiteConfig.model_validate(tables)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in refusals(error, SiteConfig))
        raise SpecError(f"'{path}' was refused:\n{lines}", remedy="change these keys and try again") from None
