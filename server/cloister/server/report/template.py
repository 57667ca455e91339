"""How a page is made: escaped templates, and one look for all of them, that of ``style.css``."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template
    from markupsafe import Markup

__all__ = ["style", "template"]

_FOLDER = Path(__file__).with_name("templates")


def template(name: str, folder: Path = _FOLDER) -> Template:
    """Return a template that escapes every text and refuses a name that it is not given.

    Args:
        name: the file.
        folder: where it lies; the report's own are found from anywhere, for their building blocks (``blocks.html``).
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader([folder, _FOLDER]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(name)


def style() -> Markup:
    """Return the style sheet of every page."""
    from markupsafe import Markup

    return Markup((_FOLDER / "style.css").read_text(encoding="utf-8"))  # noqa: S704 - our own file
