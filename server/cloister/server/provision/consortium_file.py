"""``consortium.toml``: who takes part, and where the server is reached.

::

    [consortium]
    name = "hospitals"
    days = 365                      # how long members' certificates hold

    [server]
    host = "fl.example.org"         # the world's door: nginx
    port = 8443
    aliases = []                    # other names and addresses of the same machine

    [authority]                     # the key authority; left out: none, and no encrypted sums
    host = "keys.example.org"
    port = 9443

    [[sites]]
    name = "cleveland"
    [sites.data.heart]              # copied into its site.toml
    task = "heart"

    [[sites]]
    name = "hungarian"
    csr = true                      # makes its keys itself: cloister site enrol

    [[users]]
    name = "ada"
    roles = ["submit", "watch"]
"""

from __future__ import annotations

import ipaddress
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, Field, ValidationError, model_validator

from cloister.core.errors import SpecError
from cloister.core.spec.base import Table
from cloister.core.spec.refusals import refusals
from cloister.privacy.identity.documents import read_document
from cloister.privacy.identity.names import NAME
from cloister.privacy.identity.register import UserRole

__all__ = ["ConsortiumFile", "load_consortium_file", "parse_consortium_file"]

_LONGEST = 1 << 20
_MOST = 1000
_HOST = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)(\.(?!-)[A-Za-z0-9-]{1,63}(?<!-))*")


def _host(text: str) -> str:
    """Return a host's name or address that can stand in a certificate and in nginx.conf."""
    try:
        ipaddress.ip_address(text)
    except ValueError:
        if len(text) > 253 or _HOST.fullmatch(text) is None or re.fullmatch(r"[0-9.]+", text):
            raise ValueError(f"{text!r} is no host's name or address") from None
    return text


Host = Annotated[str, AfterValidator(_host)]
Name = Annotated[str, Field(pattern=NAME)]
Port = Annotated[int, Field(ge=1, le=65535)]


class ConsortiumTable(Table):
    """``[consortium]``.

    Attributes:
        name: for readers; it stands in every certificate.
        days: how long a member's certificates hold.
    """

    name: Name
    days: int = Field(default=365, ge=1, le=3650)


class ServerTable(Table):
    """``[server]``: the door that sites and users come to.

    Attributes:
        host: its name or address.
        port: where nginx listens.
        aliases: other names and addresses of it.
        name: what the server is called as a member.
    """

    host: Host
    port: Port = 8443
    aliases: list[Host] = Field(default=[], max_length=50)
    name: Name = "server"

    @property
    def address(self) -> str:
        """``host:port`` as a site or a user dials it."""
        return address(self.host, self.port)


class AuthorityTable(Table):
    """``[authority]``: the key authority, run by somebody who does not run the server.

    Attributes:
        host: the name or address that the server reaches it as.
        port: where it listens.
        name: what it is called as a member.
    """

    host: Host
    port: Port = 9443
    name: Name = "key-authority"

    @property
    def address(self) -> str:
        """``host:port`` as the server dials it."""
        return address(self.host, self.port)


class DataTable(Table):
    """``[sites.data.NAME]``: copied into the site's site.toml as it is.

    Attributes:
        task: the task that it is for.
        owner: whose records.
        options: of the task.
    """

    task: str = Field(min_length=1)
    owner: str | None = None
    options: dict[str, Any] = Field(default={})


class SiteTable(Table):
    """``[[sites]]``.

    Attributes:
        name: unique among sites.
        data: its data sets, by the name of their ledger.
        csr: it makes its keys itself; no kit is made for it.
    """

    name: Name
    data: dict[Name, DataTable] = Field(default={})
    csr: bool = False

    @model_validator(mode="after")
    def _one_way(self) -> SiteTable:
        if self.csr and self.data:
            raise ValueError(
                f"site '{self.name}' enrols by itself (csr) and writes its own site.toml: leave its data out"
            )
        return self


class UserTable(Table):
    """``[[users]]``.

    Attributes:
        name: unique among users.
        roles: what it may do: submit jobs, watch all jobs, administer.
        csr: it makes its keys itself; no kit is made for it.
    """

    name: Name
    roles: list[UserRole] = Field(min_length=1)
    csr: bool = False


class ConsortiumFile(Table):
    """The whole file."""

    consortium: ConsortiumTable
    server: ServerTable
    authority: AuthorityTable | None = None
    sites: list[SiteTable] = Field(min_length=1, max_length=_MOST)
    users: list[UserTable] = Field(default=[], max_length=_MOST)

    @model_validator(mode="after")
    def _names_differ(self) -> ConsortiumFile:
        for table, names in (
            ("sites", [site.name for site in self.sites]),
            ("users", [user.name for user in self.users]),
        ):
            seen: set[str] = set()
            for name in names:
                if name.lower() in seen:  # some disks do not tell 'A' from 'a'
                    raise ValueError(f"[[{table}]] has '{name}' twice, or in other letters")
                seen.add(name.lower())
        return self


def load_consortium_file(path: Path) -> tuple[ConsortiumFile, bytes]:
    """Read ``consortium.toml``, and return it with the file's bytes.

    Raises:
        UsageError: it cannot be read.
        SpecError: it is no TOML, or a key of it is wrong.
    """
    raw = read_document(path, most=_LONGEST)
    return parse_consortium_file(raw, path), raw


def parse_consortium_file(raw: bytes, path: Path) -> ConsortiumFile:
    """Read the bytes of a ``consortium.toml``; ``path`` is for messages.

    Raises:
        SpecError: it is no TOML, or a key of it is wrong.
    """
    try:
        tables: Mapping[str, Any] = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise SpecError(f"'{path}' is not TOML: {error}", remedy="mend the file") from None
    try:
        return ConsortiumFile.model_validate(tables)
    except ValidationError as error:
        lines = "\n".join(f"  {line}" for line in refusals(error, ConsortiumFile))
        raise SpecError(
            f"'{path}' was refused:\n{lines}",
            remedy="change these keys and try again",
            code="consortium-file",
        ) from None


def address(host: str, port: int) -> str:
    """Return ``host:port``, an IPv6 address in brackets."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
