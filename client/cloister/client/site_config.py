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

from pathlib import Path
from typing import Any

from pydantic import Field

from cloister.core.settings import Address, Settings, load_settings

__all__ = ["CONFIG", "DataTable", "SiteConfig", "load_site", "state_folder"]

#: The file's name in a site's folder.
CONFIG = "site.toml"


class SiteTable(Settings):
    """``[site]``: who it is, and where it keeps its state."""

    name: str = Field(min_length=1, max_length=64)
    state: str = "state"


class ServerTable(Settings):
    """``[server]``: where the coordinator is reached.

    Attributes:
        address: ``host:port`` of the fleet.
        busy_poll_s: seconds between two questions for work while a run is under way.
        idle_poll_s: the same when there has been none for a while.
        most_bytes: of one message; a longer one is not taken.
    """

    address: Address
    busy_poll_s: float = Field(default=0.05, ge=0.01, le=10)
    idle_poll_s: float = Field(default=1.0, ge=0.05, le=60)
    most_bytes: int = Field(default=1 << 30, ge=1 << 20)


class HealthTable(Settings):
    """``[health]``: where ``/health`` and ``/metrics`` are served."""

    listen: Address


class DataTable(Settings):
    """``[data.NAME]``: one data set.

    Attributes:
        task: the task that it is for, as ``task.use`` names it.
        owner: whose records, where the task hands over several owners'; the only one's if left out.
        options: the task's options that say where the data lie; they win over the federation file's.
        quasi_identifiers: columns that together may tell who somebody is, for the check of the data; guessed if left out.
        smallest_group: k: the check of the data tells of groups with fewer records.
    """

    task: str = Field(min_length=1)
    owner: str | None = None
    options: dict[str, Any] = Field(default_factory=dict)
    quasi_identifiers: list[str] | None = None
    smallest_group: int = Field(default=5, ge=2, le=1000)


class SiteConfig(Settings):
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
    return load_settings(
        folder / CONFIG, SiteConfig, "name a site's folder: the start-up kit that the consortium made for it"
    )


def state_folder(folder: Path, config: SiteConfig) -> Path:
    """Return where a site keeps its state."""
    return folder / config.site.state
