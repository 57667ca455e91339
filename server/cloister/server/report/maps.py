"""Plots of tables: the confusion matrix, the records of each site by class, and each site's last figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from cloister.server.report.canvas import ACCENT, CATEGORIES, INK, LOCAL, render, tidy
from cloister.server.report.words import count, metric_label, shown

if TYPE_CHECKING:
    from matplotlib.axis import Axis
    from matplotlib.colors import Colormap
    from matplotlib.figure import Figure

__all__ = ["BARS", "confusion_matrix", "last_by_site", "partition_plot"]

_WRITTEN = 16
_NAMED_CLASSES = 40
#: Up to this many sites each has a bar; more are drawn as one wide map.
BARS = 30
_BAR_CLASSES = 10
_NAMED_SITES = 40


def confusion_matrix(counts: Sequence[Sequence[int]], classes: Sequence[str]) -> str:
    """Plot (classes, classes) counts, the true class by row, shaded by the share of the row."""
    matrix = np.asarray(counts, dtype=float)
    size = len(matrix)
    names = (
        [shown(name, 18) for name in classes]
        if len(classes) == size
        else [str(number) for number in range(size)]
    )
    shares = matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        corners = np.arange(size + 1) - 0.5
        edge: dict[str, Any] = (
            {"edgecolor": "white", "linewidth": 1.0} if size <= _WRITTEN else {"rasterized": True}
        )
        image = axes.pcolormesh(corners, corners, shares, cmap=_shades(), vmin=0, vmax=1, **edge)
        axes.set_aspect("auto" if size <= 4 else "equal")
        axes.invert_yaxis()
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)
        ticks = list(range(size)) if size <= _NAMED_CLASSES else []
        turned = max(map(len, names)) * size > 56
        axes.set_xticks(ticks, [names[tick] for tick in ticks], rotation=90 if turned else 0)
        axes.set_yticks(ticks, [names[tick] for tick in ticks])
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")
        if size <= _WRITTEN:
            small = 7 if size > 6 else 10
            for row in range(size):
                for column in range(size):
                    text = count(matrix[row, column])
                    if size <= 4:
                        text += f"\n{100 * shares[row, column]:.1f}%"
                    color = "white" if shares[row, column] > 0.55 else INK
                    axes.text(column, row, text, ha="center", va="center", color=color, fontsize=small)
        else:
            bar = figure.colorbar(image, ax=axes, shrink=0.85)
            bar.outline.set_visible(False)
            bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")

    return render(
        "confusion",
        draw,
        label="Confusion matrix: records by true and predicted class",
        height=3.1 if size <= 4 else 4.6,
    )


def partition_plot(sites: Mapping[str, Sequence[int]], classes: Sequence[str]) -> str | None:
    """Plot how many records of each class a site has: bars for a few sites, shares as a map for many."""
    if not sites:
        return None
    width = max(len(row) for row in sites.values())
    matrix = np.array([[*row, *([0] * (width - len(row)))] for row in sites.values()], dtype=float)
    names = [shown(name, 22) for name in sites]
    labels = (
        [shown(name, 18) for name in classes]
        if len(classes) == width
        else ["records"]
        if width == 1
        else [str(n) for n in range(width)]
    )
    if len(sites) <= BARS and width <= _BAR_CLASSES:
        return _bars(matrix, names, labels)
    if width == 1:
        return _sizes(matrix[:, 0])
    return _shares(matrix, names, labels)


def last_by_site(federated: Mapping[str, float], own: Mapping[str, float], metric: str) -> str | None:
    """Plot each site's last figure, lowest first; beside it, where it is known, that of the site's own model."""
    if not federated:
        return None
    ordered = sorted(federated, key=lambda name: (federated[name], name))
    few = len(ordered) <= _NAMED_SITES

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import PercentFormatter

        axes = figure.subplots()
        places = np.arange(len(ordered))
        values = np.array([federated[name] for name in ordered])
        others = np.array([own.get(name, np.nan) for name in ordered])
        if few:
            axes.hlines(places, 0, 1, color="#eef2f4", linewidth=1, transform=axes.get_yaxis_transform())
            if own:
                axes.plot(
                    others,
                    places,
                    "o",
                    color=LOCAL,
                    markersize=6,
                    label="Its own model",
                    fillstyle="none",
                    markeredgewidth=1.6,
                )
            axes.plot(values, places, "o", color=ACCENT, markersize=6.5, label="Federated model")
            axes.set_yticks(places, [shown(name, 24) for name in ordered])
            axes.set_ylim(-0.7, len(ordered) - 0.3)
            tidy(axes, xlabel=metric_label(metric))
            axes.grid(visible=False)
            scale: Axis = axes.xaxis
        else:
            axes.fill_between(places + 1, values.min(), values, color=ACCENT, alpha=0.12, linewidth=0)
            axes.plot(places + 1, values, ".", color=ACCENT, markersize=4.5, label="Federated model")
            axes.axhline(
                float(np.median(values)), color=INK, linewidth=1.1, linestyle=(0, (4, 3)), label="Median site"
            )
            tidy(axes, xlabel="sites, lowest first", ylabel=metric_label(metric))
            scale = axes.yaxis
        if metric == "accuracy":
            scale.set_major_formatter(
                PercentFormatter(1.0, decimals=0 if np.nanmax(values) - np.nanmin(values) > 0.04 else 1)
            )
        figure.legend(loc="outside upper left", ncols=2)

    height = 1.3 + 0.3 * len(ordered) if few else 3.1
    return render(
        "last-by-site",
        draw,
        label=f"{metric_label(metric)} at each site after the last round",
        height=max(2.2, height),
    )


def _bars(matrix: npt.NDArray[np.float64], names: Sequence[str], labels: Sequence[str]) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        left = np.zeros(len(matrix))
        for column, label in enumerate(labels):
            axes.barh(
                range(len(matrix)),
                matrix[:, column],
                left=left,
                height=0.66,
                color=CATEGORIES[column],
                label=label,
            )
            left = left + matrix[:, column]
        for row, total in enumerate(left):
            axes.annotate(
                count(total),
                (total, row),
                xytext=(4, 0),
                textcoords="offset points",
                va="center",
                fontsize=8.5,
            )
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.margins(x=0.1)
        tidy(axes, xlabel="training records")
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        if len(labels) > 1:
            figure.legend(loc="outside upper left", ncols=min(5, len(labels)))

    return render(
        "partition",
        draw,
        label="Training records of each site by class",
        height=max(2.2, 1.2 + 0.32 * len(matrix)),
    )


def _sizes(sizes: npt.NDArray[np.float64]) -> str:
    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.bar(range(1, len(sizes) + 1), np.sort(sizes)[::-1], width=0.9, color=ACCENT)
        tidy(axes, xlabel="sites, largest first", ylabel="training records")

    return render(
        "partition", draw, label="Training records of each site", width=_width(len(sizes)), height=2.6
    )


def _shares(matrix: npt.NDArray[np.float64], names: Sequence[str], labels: Sequence[str]) -> str:
    """A map of each site's class shares above, its number of records as bars below."""

    def draw(figure: Figure) -> None:
        upper, lower = figure.subplots(
            2, 1, sharex=True, height_ratios=[max(2.0, min(4.0, 0.3 * len(labels))), 1]
        )
        totals = matrix.sum(axis=1)
        shares = (matrix / np.maximum(totals, 1)[:, None]).T
        image = upper.imshow(shares, cmap=_shades(), vmin=0, vmax=1, aspect="auto", interpolation="nearest")
        upper.grid(visible=False)
        for spine in upper.spines.values():
            spine.set_visible(False)
        step = -(-len(labels) // 20)
        upper.set_yticks(range(0, len(labels), step), labels[::step])
        upper.set_ylabel("class")
        upper.tick_params(axis="x", labelbottom=False)
        bar = figure.colorbar(image, ax=upper, pad=0.01, aspect=18)
        bar.outline.set_visible(False)
        bar.ax.yaxis.set_major_formatter(lambda value, _: f"{100 * value:.0f}%")
        lower.bar(range(len(totals)), totals, width=0.9, color=ACCENT)
        tidy(lower, ylabel="records", xlabel="sites" if len(names) > _NAMED_SITES else "")
        if len(names) <= _NAMED_SITES:
            lower.set_xticks(range(len(names)), names, rotation=90)
        lower.margins(x=0)

    return render(
        "partition",
        draw,
        label="Share of each class in each site's training records, and their number",
        width=_width(len(matrix)),
        height=4.2,
    )


def _width(sites: int) -> float:
    return 11.6 if sites > BARS else 5.6


def _shades() -> Colormap:
    from matplotlib.colors import LinearSegmentedColormap

    return LinearSegmentedColormap.from_list("cloister", ["#f3f7f8", "#a9d3d0", ACCENT, "#063f3c"])
