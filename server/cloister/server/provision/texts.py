"""The texts in a kit: made from ``templates/`` beside this module. What is put into them was checked when ``consortium.toml`` was read."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from cloister.core._version import __version__

__all__ = ["rendered"]


def rendered(name: str, about: Mapping[str, Any]) -> str:
    """Return a template with its blanks filled in."""
    return _environment().get_template(name).render(version=__version__, **about)


@lru_cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("cloister.server.provision", "templates"),
        undefined=StrictUndefined,
        autoescape=False,  # noqa: S701 - none of them is HTML
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
