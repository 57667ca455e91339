"""The texts in a member's folder, made from templates. What is put into them was checked before: names, hosts, paths of a consortium's own file."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.core._version import __version__

__all__ = ["rendered", "site_files", "toml", "user_files"]

_FOLDER = Path(__file__).with_name("templates")


def rendered(name: str, about: Mapping[str, Any], folder: Path = _FOLDER) -> str:
    """Return a template of ``folder`` with its blanks filled in; a blank that nothing fills is an error."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(folder),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - none of them is HTML
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name).render(version=__version__, **about)


def toml(name: str, tables: Mapping[str, Any], folder: Path = _FOLDER) -> str:
    """Return a settings file: the comments of its template, then the tables."""
    import tomli_w

    return rendered(name, {"tables": tables}, folder) + tomli_w.dumps(tables)


def site_files(name: str, consortium: str, address: str, data: Mapping[str, Any]) -> dict[str, str]:
    """Return the files of a site's folder beside its credentials.

    Args:
        name: the site's.
        consortium: its name.
        address: ``host:port`` of the fleet.
        data: the tables ``[data.NAME]``; empty: the site's own people write them.
    """
    about = {"name": name, "consortium": consortium, "address": address, "data": data}
    tables = {
        "site": {"name": name, "state": "state"},
        "server": {"address": address},
        **({"data": data} if data else {}),
        "health": {"listen": "127.0.0.1:9464"},
    }
    return {
        "site.toml": toml("site.toml", tables),
        "policy.toml": rendered("policy.toml", about),
        "compose.yaml": rendered("compose.site.yaml", about),
        "README.md": rendered("README.site.md", about),
    }


def user_files(name: str, consortium: str, address: str) -> dict[str, str]:
    """Return the files of a user's folder beside its credentials; see `site_files`."""
    about = {"name": name, "consortium": consortium, "address": address}
    return {
        "user.toml": toml("user.toml", {"server": {"address": address}}),
        "README.md": rendered("README.user.md", about),
    }
