"""Plots of a sweep: what the points scored, against the swept key and against the ε that they spent."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cloister.server.report.canvas import ACCENT, CATEGORIES, INK, render, tidy
from cloister.server.report.words import drawable, metric_label, number, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import XAxis
    from matplotlib.figure import Figure

__all__ = ["PRIVATE_KEYS", "by_epsilon", "by_value", "lead_of", "value_text"]

#: The keys that move ε: swept over, they give utility against the ε spent.
PRIVATE_KEYS = ("privacy.epsilon", "privacy.noise_multiplier")

_SEED = "federation.seed"
_DECADE = 10.0
_MOST_TICKS = 10


@dataclass(frozen=True, kw_only=True)
class _Dot:
    """One run: where it lies, and what it scored."""

    x: float
    y: float


@dataclass(frozen=True, kw_only=True)
class _Line:
    """The runs that differ in nothing but the horizontal axis and the seed: groups of one value each, in the order of x."""

    label: str
    groups: tuple[tuple[_Dot, ...], ...]
    reference: bool


def by_value(figures: Mapping[str, Any], metric: str) -> str | None:
    """Plot a metric (or ``loss``) against the first swept key, a line for each combination of the others; ``None`` if nothing was measured."""
    key = next(iter(figures["grid"]["over"]))
    texts = list(
        dict.fromkeys(json.dumps(one["values"].get(key)) for one in figures["values"] if key in one["values"])
    )
    values = [json.loads(text) for text in texts]
    numeric = all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)

    def place(point: Mapping[str, Any]) -> float | None:
        if key not in point["values"]:
            return None
        value = point["values"][key]
        return float(value) if numeric else float(texts.index(json.dumps(value)))

    lines = _lines(figures, metric, place, (key,))

    def finish(axis: XAxis) -> None:
        if numeric:
            _scale(axis, values)
        else:
            axis.set_ticks(range(len(values)), [shown(value_text(value), 16) for value in values])
            axis.axes.set_xlim(-0.5, len(values) - 0.5)

    return _plot(metric, "value", lines, finish, shown(key), ordered=numeric)


def by_epsilon(figures: Mapping[str, Any], metric: str) -> str | None:
    """Plot a metric (or ``loss``) against the ε that the points spent; ``None`` unless a key of `PRIVATE_KEYS` was swept and ε is known."""
    if not set(PRIVATE_KEYS) & figures["grid"]["over"].keys():
        return None

    def place(point: Mapping[str, Any]) -> float | None:
        epsilon = point["privacy"]["epsilon"]
        return None if epsilon is None else float(epsilon)

    lines = _lines(figures, metric, place, PRIVATE_KEYS)
    spent = [dot.x for line in lines for group in line.groups for dot in group if not line.reference]
    if not spent:
        return None
    return _plot(
        metric,
        "epsilon",
        lines,
        lambda axis: _scale(axis, spent, own_ticks=False),
        "ε spent, by the site that spent most",
    )


def lead_of(point: Mapping[str, Any], metric: str) -> float | None:
    """Return what a point of ``sweep.json`` scored, by a metric or ``loss``; ``None`` where that was not measured."""
    value = point["loss"] if metric == "loss" else point["metrics"].get(metric)
    return None if value is None else float(value)


def value_text(value: object) -> str:
    """Return a swept value as a reader writes it: ``2`` and not ``2.0``."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, int | float):
        return f"{value:g}" if isinstance(value, float) else str(value)
    return str(value) if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _lines(
    figures: Mapping[str, Any],
    metric: str,
    place: Callable[[Mapping[str, Any]], float | None],
    along: Sequence[str],
) -> list[_Line]:
    """The measured runs by what they differ in beside the keys ``along`` the axis and the seed."""
    kept: dict[tuple[bool, str], dict[str, list[_Dot]]] = {}
    for point in figures["points"]:
        if not point["done"]:
            continue
        value = lead_of(point, metric)
        if value is None or not drawable(metric, value):
            continue
        x = place(point)
        if x is None and not point["reference"]:
            continue
        rest = {key: one for key, one in point["values"].items() if key not in (*along, _SEED)}
        same = json.dumps({key: one for key, one in point["values"].items() if key != _SEED})
        groups = kept.setdefault((point["reference"], json.dumps(rest)), {})
        groups.setdefault(same, []).append(_Dot(x=math.nan if x is None else x, y=value))
    return [
        _Line(
            label=", ".join(f"{_last(key)} = {value_text(one)}" for key, one in json.loads(rest).items()),
            groups=tuple(
                tuple(group) for group in sorted(groups.values(), key=lambda group: _mean(d.x for d in group))
            ),
            reference=reference,
        )
        for (reference, rest), groups in kept.items()
    ]


def _plot(
    metric: str,
    name: str,
    lines: Sequence[_Line],
    finish: Callable[[XAxis], None],
    xlabel: str,
    *,
    ordered: bool = True,
) -> str | None:
    if not any(not line.reference for line in lines):
        return None
    labels = list(dict.fromkeys(line.label for line in lines))
    color = {label: CATEGORIES[place % len(CATEGORIES)] for place, label in enumerate(labels)}
    single = len(labels) == 1

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import PercentFormatter

        axes = figure.subplots()
        for line in lines:
            if line.reference:
                _reference(axes, line, INK if single else color[line.label])
            else:
                _curve(axes, line, ACCENT if single else color[line.label], joined=ordered)
        tidy(axes, ylabel=metric_label(metric), xlabel=xlabel)
        axes.margins(x=0.05)
        finish(axes.xaxis)
        low, high = axes.get_ylim()
        if metric == "accuracy":
            axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.05 else 1))
        handles, texts = axes.get_legend_handles_labels()
        figure.legend(
            handles, texts, loc="outside upper left", ncols=2 if max(map(len, texts), default=0) > 18 else 3
        )

    return render(f"sweep-{name}-{metric}", draw, label=f"{metric_label(metric)} against {xlabel}")


def _curve(axes: Axes, line: _Line, color: str, *, joined: bool) -> None:
    """The means and, over several seeds, the runs and their spread: joined by a line and a band where the axis has an order."""
    x = [_mean(dot.x for dot in group) for group in line.groups]
    several = any(len(group) > 1 for group in line.groups)
    label = line.label or ("Mean over the seeds" if several else "Each run")
    if several:
        low = [min(dot.y for dot in group) for group in line.groups]
        high = [max(dot.y for dot in group) for group in line.groups]
        if joined:
            axes.fill_between(x, low, high, color=color, alpha=0.13, linewidth=0)
        else:
            axes.vlines(x, low, high, color=color, alpha=0.25, linewidth=5)
        dots = [dot for group in line.groups for dot in group]
        axes.plot(
            [dot.x for dot in dots], [dot.y for dot in dots], "o", color=color, markersize=3.6, alpha=0.55,
            markeredgewidth=0, label="" if line.label else "Each run",
        )  # fmt: skip
    axes.plot(
        x,
        [_mean(dot.y for dot in group) for group in line.groups],
        color=color,
        marker="o",
        markersize=5.5,
        linewidth=1.8 if joined else 0,
        label=label,
    )


def _reference(axes: Axes, line: _Line, color: str) -> None:
    """The runs without privacy: a level where they have no place on the axis, else a line."""
    label = f"{line.label}, without privacy" if line.label else "Without privacy"
    dots = [dot for group in line.groups for dot in group]
    style: dict[str, Any] = {"color": color, "linewidth": 1.3, "linestyle": (0, (4, 3)), "label": label}
    if any(math.isnan(dot.x) for dot in dots):
        values = [dot.y for dot in dots]
        if max(values) > min(values):
            axes.axhspan(min(values), max(values), color=color, alpha=0.07, linewidth=0)
        axes.axhline(_mean(values), **style)
    else:
        axes.plot(
            [_mean(dot.x for dot in group) for group in line.groups],
            [_mean(dot.y for dot in group) for group in line.groups],
            **style,
        )


def _scale(axis: XAxis, values: Sequence[float], *, own_ticks: bool = True) -> None:
    """Make the axis logarithmic where the values span more than a decade; name the swept values themselves on it."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    known = sorted({float(value) for value in values})
    log = known[0] > 0 and known[-1] / known[0] > _DECADE
    if log:
        axis.axes.set_xscale("log")
        axis.set_minor_formatter(NullFormatter())
    if own_ticks and len(known) <= _MOST_TICKS:
        axis.set_ticks(known, [value_text(value) for value in known])
        axis.set_ticks([], minor=True)
    elif log:
        axis.set_major_locator(LogLocator(base=10, subs=(1.0, 2.0, 5.0)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: number(value).rstrip("0").rstrip(".")))


def _mean(values: Iterable[float]) -> float:
    known = list(values)
    return sum(known) / len(known)


def _last(key: str) -> str:
    """The end of a dotted key: enough for a legend."""
    return shown(key.rpartition(".")[2], 24)
