"""A finding as a part of a page: tables and plots that its check makes of its figures.

A check may have a function ``section(finding) -> Section`` and a ``title``, as attributes; without them the page shows sentence, power and the file.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from cloister.core.evidence import Finding
from cloister.server.report.tables import Row, TableText
from cloister.server.report.words import shown

if TYPE_CHECKING:
    from cloister.server.report.canvas import Draw

__all__ = ["Section", "shown_as"]

F = TypeVar("F", bound=Callable[..., Finding])


def shown_as(title: str, section: Callable[[Finding], Section] | None = None) -> Callable[[F], F]:
    """Give a check its title and its section of the page."""

    def give(check: F) -> F:
        vars(check).update(title=title, section=section)
        return check

    return give


@dataclass(kw_only=True)
class Section:
    """Tables and plots, in order.

    Attributes:
        tables: with their headings.
        plots: (title, small print, SVG).
    """

    tables: list[tuple[str, TableText]] = field(default_factory=list)
    plots: list[tuple[str, str, Any]] = field(default_factory=list)

    def table(
        self, columns: Sequence[str], rows: Sequence[Sequence[str]], *, title: str = "", note: str = ""
    ) -> None:
        """Add a table; the first cell of a row is its head."""
        made = tuple(
            Row(head=shown(row[0], 80), cells=tuple(_cell(cell) for cell in row[1:])) for row in rows
        )
        self.tables.append((title, TableText(columns=tuple(columns), rows=made, note=note)))

    def plot(
        self,
        name: str,
        title: str,
        draw: Draw,
        more: str = "",
        *,
        width: float = 5.6,
        height: float = 3.1,
    ) -> None:
        """Add a plot that ``draw`` draws on a matplotlib figure."""
        from markupsafe import Markup

        from cloister.server.report.canvas import render

        svg = render(f"audit-{name}", draw, label=f"{title} {more}".strip(), width=width, height=height)
        self.plots.append((title, more, Markup(svg)))  # noqa: S704 - matplotlib escapes its texts


def _cell(text: str) -> str:
    """Return foreign text as it may be shown, with its one line break."""
    return "\n".join(shown(part, 200) for part in text.split("\n", 1))
