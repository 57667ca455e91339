"""``server.toml``: what a consortium's server is, and where it keeps its state.

::

    [server]
    name = "server"                  # as the consortium certified it
    superlink = "127.0.0.1:9092"     # where the SuperLink listens: never the world's door
    state = "state"                  # queue, SuperLink's database, secrets; 0700
    runs = "runs"                    # a folder for each job

    [jobs]
    listen = "127.0.0.1:9095"        # where users' requests arrive, from nginx
    at_once = 1                      # jobs that run at a time
    tasks = []                       # tasks beside the installed ones, as "module:attribute"

    [authority]                      # where sums are encrypted
    address = "keys.example.org:9443"

Credentials lie beside the file under fixed names (`cloister.privacy.identity.kit`), and so does ``members.json``: who the
sites are, and what each user may do.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import Field

from cloister.core.settings import Address, Settings, load_settings

__all__ = ["CONFIG", "ServerConfig", "load_server"]

#: The file's name in a server's folder.
CONFIG = "server.toml"


class ServerTable(Settings):
    """``[server]``: who it is, and where it keeps its state."""

    name: str = Field(default="server", min_length=1, max_length=64)
    superlink: Address = "127.0.0.1:9092"
    state: str = "state"
    runs: str = "runs"
    most_bytes: int = Field(default=1 << 30, ge=1 << 20)


class JobsTable(Settings):
    """``[jobs]``: where requests arrive, and how they are worked off."""

    listen: Address = "127.0.0.1:9095"
    at_once: int = Field(default=1, ge=1, le=64)
    attempts: int = Field(default=5, ge=1, le=100)
    tasks: tuple[str, ...] = ()


class AuthorityTable(Settings):
    """``[authority]``: where the key authority listens."""

    address: Address


class MetricsTable(Settings):
    """``[metrics]``: where ``/health`` and ``/metrics`` are served."""

    listen: Address


class ServerConfig(Settings):
    """The whole file."""

    server: ServerTable = ServerTable()
    jobs: JobsTable = JobsTable()
    authority: AuthorityTable | None = None
    metrics: MetricsTable | None = None


def load_server(folder: Path) -> ServerConfig:
    """Read the ``server.toml`` of a server's folder.

    Raises:
        SpecError: it is not there, is no TOML, or a key of it is wrong.
    """
    return load_settings(
        folder / CONFIG, ServerConfig, "name the server's folder: the kit that 'cloister provision' made"
    )
