"""From a drawing function to inline SVG: one look for every plot, no global state left behind, the same bytes each time."""

from __future__ import annotations

import html
import io
import re
import threading
import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["ACCENT", "CATEGORIES", "GRID", "INK", "LOCAL", "MEAN", "MUTED", "Draw", "render", "tidy"]

INK, MUTED, GRID = "#17252e", "#5a6b75", "#e4e9ed"
ACCENT, MEAN, LOCAL = "#0b6e69", "#2f6fde", "#d9822b"
#: Okabe and Ito's colours, told apart by colour-blind readers, in an order that reads well, then three more.
CATEGORIES = (
    "#0072B2",
    "#E69F00",
    "#009E73",
    "#CC79A7",
    "#56B4E9",
    "#D55E00",
    "#8C6BB1",
    "#7A8790",
    "#B8A400",
    "#3B4CC0",
)

Draw = Callable[["Figure"], None]

_STYLE: dict[Any, Any] = {
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "text.color": INK,
    "text.parse_math": False,
    "axes.edgecolor": "#b8c3ca",
    "axes.labelcolor": MUTED,
    "axes.labelsize": 9,
    "axes.linewidth": 0.8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.unicode_minus": False,
    "axes.titlesize": 9,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "lines.linewidth": 1.6,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "legend.fontsize": 8.5,
    "legend.handlelength": 1.6,
    "legend.columnspacing": 1.4,
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.fonttype": "none",
}
_FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, 'DejaVu Sans', sans-serif"
# matplotlib keeps its settings in one place: two reports drawn at once would see each other's.
_SETTINGS = threading.Lock()


def render(name: str, draw: Draw, *, label: str, width: float = 5.6, height: float = 3.1) -> str:
    """Return a plot as an ``<svg>`` element that needs nothing outside itself.

    Args:
        name: tells the ids of this plot from those of the page's other plots; the same name gives the same ids.
        draw: draws on a matplotlib figure.
        label: what the plot shows, for those who do not see it.
        width: inches; on the page the plot is as wide as its column.
        height: inches.
    """
    return _inline(_drawn(name, draw, (width, height)), label)


def _drawn(name: str, draw: Draw, size: tuple[float, float]) -> str:
    import matplotlib as mpl
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with _SETTINGS, mpl.rc_context(_STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        # A letter that the measuring font lacks is drawn by the reader's own font.
        warnings.filterwarnings("ignore", message=r"Glyph .* missing from", category=UserWarning)
        warnings.filterwarnings(
            "ignore", message=r"Matplotlib currently does not support .* natively", category=UserWarning
        )
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        figure.savefig(buffer, format="svg", metadata=nothing)
    return buffer.getvalue()


def tidy(axes: Axes, *, ylabel: str = "", xlabel: str = "") -> None:
    """Give axes horizontal grid lines only, and their labels."""
    axes.grid(visible=False, axis="x")
    axes.spines["left"].set_visible(False)
    axes.set_ylabel(ylabel)
    axes.set_xlabel(xlabel)


def _inline(svg: str, label: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<defs>\s*<style[^>]*>.*?</style>\s*</defs>", "", svg, flags=re.DOTALL)
    svg = svg.replace("'DejaVu Sans'", _FONT.replace('"', "'"))
    used = set(re.findall(r"url\(#([^)]+)\)", svg)) | set(re.findall(r'href="#([^"]+)"', svg))
    svg = re.sub(r' id="([^"]*)"', lambda found: found.group(0) if found.group(1) in used else "", svg)
    svg = svg.replace("xlink:href", "href")
    size = re.search(r'viewBox="([^"]*)"', svg)
    head = f'<svg viewBox="{size.group(1) if size else "0 0 400 220"}" role="img" aria-label="{html.escape(label, quote=True)}">'
    body = svg[svg.index(">") + 1 :]
    return head + re.sub(r"\n\s*", "\n", body).strip()
