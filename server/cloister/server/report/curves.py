"""Plots over the rounds: metrics, losses, traffic and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from cloister.server.history import PHASES, History, Series
from cloister.server.report.canvas import ACCENT, CATEGORIES, INK, LOCAL, MEAN, render, tidy
from cloister.server.report.figures import site_series
from cloister.server.report.words import bytes_text, drawable, listed, metric_label, order, shown

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = [
    "FEW_SITES",
    "losses",
    "metric_by_round",
    "other_metrics",
    "sites_by_round",
    "time_by_round",
    "traffic_by_round",
]

#: Up to this many sites each has a line of its own; beyond, the sites are one band.
FEW_SITES = 8

_BARS = 80
#: The means of the sites often lie on the pooled figures: dots over a thick line leave both to be seen.
_THIN = 1.4


def metric_by_round(history: History, metric: str) -> str | None:
    """Plot one metric by round: central, mean of the sites, and the pooled baseline as a level."""
    drawn = []
    for name, where, color, width in (
        ("Federated, pooled test records", "central", ACCENT, 2.8),
        ("Federated, mean of the sites", "sites", MEAN, _THIN),
    ):
        series = history.series.get(where)
        if series is not None and (found := _values(series, metric))[0]:
            drawn.append((name, found, color, width))
    if not drawn:
        return None
    pooled = history.series.get("baseline:pooled")

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (rounds, values), color, width in drawn:
            _line(axes, rounds, values, label=name, color=color, width=width, style=_style(width))
        if pooled is not None and drawable(metric, pooled.last.metrics.get(metric)):
            _level(axes, pooled.last.metrics[metric], label="Pooled training", color=INK)
        _finish(axes, metric)

    return render(f"metric-{metric}", draw, label=f"{metric_label(metric)} by round")


def sites_by_round(history: History, metric: str) -> str | None:
    """Plot one metric at each site by round; for many sites, the band in which they lie."""
    series = {name: _values(one, metric) for name, one in site_series(history).items()}
    series = {name: values for name, values in series.items() if values[0]}
    if not series:
        return None

    def few(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (name, (rounds, values)) in enumerate(series.items()):
            _line(
                axes,
                rounds,
                values,
                label=shown(name, 24),
                color=CATEGORIES[index % len(CATEGORIES)],
                width=1.6,
            )
        _finish(axes, metric)

    def many(figure: Figure) -> None:
        axes = figure.subplots()
        rounds, quantiles = _quantiles(series, (0.0, 0.1, 0.25, 0.5, 0.75, 0.9))
        lowest, low, lower, middle, upper, high = quantiles
        axes.fill_between(
            rounds, low, high, color=ACCENT, alpha=0.14, linewidth=0, label="Middle 80% of the sites"
        )
        axes.fill_between(rounds, lower, upper, color=ACCENT, alpha=0.28, linewidth=0, label="Middle half")
        _line(axes, rounds, middle, label="Median site", color=ACCENT, width=2.0)
        _line(axes, rounds, lowest, label="Lowest site", color=LOCAL, width=1.0, style=":")
        _finish(axes, metric)

    draw = few if len(series) <= FEW_SITES else many
    return render(
        f"sites-{metric}",
        draw,
        label=f"{metric_label(metric)} at each site by round: {listed(list(series), 8)}",
    )


def other_metrics(history: History, headline: str) -> str | None:
    """Plot the other metrics that lie between 0 and 1, measured centrally (else at the sites), by round."""
    series = history.series.get("central") or history.series.get("sites")
    if series is None:
        return None
    names = [name for name in order(list(series.last.metrics)) if name != headline]
    values = {name: _values(series, name) for name in names}
    values = {
        name: (rounds, found)
        for name, (rounds, found) in values.items()
        if found and min(found) >= 0 and max(found) <= 1
    }
    if not values:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for index, (name, (rounds, found)) in enumerate(list(values.items())[:6]):
            _line(axes, rounds, found, label=metric_label(name), color=CATEGORIES[index])
        _finish(axes, "")

    return render(
        "other-metrics",
        draw,
        label="Other metrics by round: " + ", ".join(metric_label(name) for name in values),
    )


def losses(history: History) -> str | None:
    """Plot the losses by round: training at the sites, central, mean of the sites."""
    trained = [
        (one.round, one.loss) for one in history.rounds if one.loss is not None and drawable("loss", one.loss)
    ]
    lines: list[tuple[str, tuple[list[int], list[float]], str, float]] = []
    if trained:
        lines.append(
            ("Training, mean of the sites", ([r for r, _ in trained], [v for _, v in trained]), LOCAL, 1.6)
        )
    for name, where, color, width in (
        ("Pooled test records", "central", ACCENT, 2.8),
        ("Sites' test records, mean", "sites", MEAN, _THIN),
    ):
        series = history.series.get(where)
        if series is not None and (found := _values(series, "loss"))[0]:
            lines.append((name, found, color, width))
    if not lines:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        for name, (rounds, values), color, width in lines:
            _line(axes, rounds, values, label=name, color=color, width=width, style=_style(width))
        _finish(axes, "loss")

    return render("losses", draw, label="Loss by round")


def traffic_by_round(history: History) -> str | None:
    """Plot the bytes to the sites and from them, by round."""
    if not any(one.bytes_down or one.bytes_up for one in history.rounds):
        return None
    parts = {
        "To the sites": [float(one.bytes_down) for one in history.rounds],
        "From the sites": [float(one.bytes_up) for one in history.rounds],
    }
    return _stacked(
        "traffic",
        history,
        parts,
        (MEAN, ACCENT),
        ylabel="a round",
        label="Traffic by round",
        formatter=bytes_text,
    )


def time_by_round(history: History) -> str | None:
    """Plot the seconds of each phase, by round."""
    phases = [phase for phase, seconds in history.seconds.items() if seconds > 0]
    if not phases:
        return None
    names = {phase: phase.capitalize() for phase in PHASES}
    parts = {
        names.get(phase, shown(phase)): [one.seconds.get(phase, 0.0) for one in history.rounds]
        for phase in phases
    }
    return _stacked("time", history, parts, CATEGORIES, ylabel="seconds", label="Time of each phase by round")


def _stacked(
    name: str,
    history: History,
    parts: Mapping[str, Sequence[float]],
    colors: Sequence[str],
    *,
    ylabel: str,
    label: str,
    formatter: object = None,
) -> str:
    rounds = [one.round for one in history.rounds]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        if len(rounds) <= _BARS:
            base = np.zeros(len(rounds))
            for (part, values), color in zip(parts.items(), colors, strict=False):
                axes.bar(rounds, values, bottom=base, width=0.74, color=color, label=part, linewidth=0)
                base = base + np.asarray(values)
        else:
            axes.stackplot(
                rounds, *parts.values(), labels=list(parts), colors=list(colors[: len(parts)]), linewidth=0
            )
        if callable(formatter):
            axes.yaxis.set_major_formatter(lambda value, _: formatter(value))
        axes.set_ylim(bottom=0)
        _finish(axes, None, ylabel=ylabel)

    return render(name, draw, label=label)


def _values(series: Series, metric: str) -> tuple[list[int], list[float]]:
    """Rounds and values where the metric was measured and can be drawn."""
    found = [
        (point.round, point.loss if metric == "loss" else point.metrics.get(metric))
        for point in series.points
    ]
    known = [(number, value) for number, value in found if value is not None and drawable(metric, value)]
    return [number for number, _ in known], [value for _, value in known]


def _quantiles(
    series: Mapping[str, tuple[list[int], list[float]]], levels: Sequence[float]
) -> tuple[list[int], list[list[float]]]:
    by_round: dict[int, list[float]] = {}
    for rounds, values in series.values():
        for number, value in zip(rounds, values, strict=True):
            by_round.setdefault(number, []).append(value)
    rounds = sorted(by_round)
    return rounds, [[float(np.quantile(by_round[number], level)) for number in rounds] for level in levels]


def _line(
    axes: Axes,
    rounds: Sequence[int],
    values: Sequence[float],
    *,
    label: str,
    color: str,
    width: float = 1.6,
    style: str = "-",
) -> None:
    marker = "o" if len(rounds) <= 12 else None
    axes.plot(
        rounds,
        values,
        label=label,
        color=color,
        linewidth=width,
        linestyle=style,
        marker=marker,
        markersize=3.2,
    )


def _style(width: float) -> str:
    return ":" if width == _THIN else "-"


def _level(axes: Axes, value: float, *, label: str, color: str) -> None:
    axes.axhline(value, label=label, color=color, linewidth=1.2, linestyle=(0, (4, 3)))


def _finish(axes: Axes, metric: str | None, *, ylabel: str = "") -> None:
    """Labels, whole rounds below, percentages where the metric is a share, the legend above."""
    from matplotlib.ticker import MaxNLocator, PercentFormatter

    tidy(axes, ylabel=ylabel or (metric_label(metric) if metric else ""), xlabel="round")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
    low, high = axes.get_ylim()
    if metric == "accuracy":
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0 if high - low > 0.05 else 1))
    axes.margins(x=0.02)
    handles, labels = axes.get_legend_handles_labels()
    if handles:
        columns = 2 if len(handles) in (2, 4) or max(map(len, labels)) > 18 else 3
        axes.figure.legend(handles, labels, loc="outside upper left", ncols=columns)  # type: ignore[union-attr,unused-ignore]  # axes of a Figure
