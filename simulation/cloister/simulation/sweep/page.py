"""``sweep.html``: one page that needs nothing outside itself; its figures are those of ``sweep.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cloister.server.report.tables import Row, TableText
from cloister.server.report.template import style, template
from cloister.server.report.words import (
    DASH,
    count,
    metric_label,
    metric_text,
    number,
    plural,
    seconds_text,
    shown,
)
from cloister.simulation.sweep.plots import by_epsilon, by_value, lead_of, value_text

__all__ = ["composed_text", "render_page", "values_text"]

_TEMPLATES = Path(__file__).with_name("templates")
_SEED = "federation.seed"
#: Metrics of which less is better.
_ERRORS = frozenset({"loss", "mae", "mse"})


def render_page(figures: Mapping[str, Any]) -> str:
    """Return the page of a sweep.

    Args:
        figures: what ``sweep.json`` holds.
    """
    from markupsafe import Markup

    plots = {title: Markup(svg) for title, svg in _plots(figures).items() if svg}  # noqa: S704 - matplotlib escapes its texts
    return template("sweep.html", _TEMPLATES).render(
        style=style(),
        name=shown(figures["name"], 64),
        sweep=shown(figures["sweep"], 100),
        status="done" if figures["done"] else "unfinished",
        verdict=_verdict(figures),
        over=", ".join(shown(key) for key in figures["grid"]["over"]),
        plots=plots,
        tiles=_tiles(figures),
        values=_values_table(figures),
        points=_points_table(figures),
        composes=figures["composes"],
        composed=[(composed_text(one), _composed_table(one)) for one in figures["composed"]],
        unbounded=len(figures["without_privacy"]),
        spread=any((one[figures["metric"]] or {}).get("n", 0) > 1 for one in figures["values"]),
        command=_command(figures),
    )


def _plots(figures: Mapping[str, Any]) -> dict[str, str | None]:
    """The metric, and beside it the loss, against the swept key and, where that moves ε, against the ε spent."""
    over = list(figures["grid"]["over"])
    found: dict[str, str | None] = {}
    for metric in dict.fromkeys((figures["metric"], "loss")):
        label = metric_label(metric)
        spent = found[f"{label} against the ε spent"] = by_epsilon(figures, metric)
        # The ε asked for and the ε spent differ by little: one plot says both.
        if over != ["privacy.epsilon"] or not spent:
            found[f"{label} against {shown(over[0])}"] = by_value(figures, metric)
    return found


def values_text(one: Mapping[str, Any]) -> str:
    """Return what a point is, in words: ``privacy.epsilon = 2``; of a reference ``without privacy``."""
    parts = ["without privacy"] if one["reference"] else []
    parts += [
        f"{shown(key)} = {shown(value_text(value))}" for key, value in one["values"].items() if key != _SEED
    ]
    if _SEED in one["values"]:
        parts.append(f"seed {one['values'][_SEED]}")
    return ", ".join(parts)


def composed_text(one: Mapping[str, Any]) -> str:
    """Return what all points of one unit cost a site together, in one sentence."""
    epsilon = one["most"]["epsilon"]
    cost = (
        f"at most ε = {number(epsilon)} at δ = {one['delta']:g}"
        if epsilon is not None
        else "an ε without any bound"
    )
    return (
        f"{plural(one['points'], 'private run').capitalize()} together cost a site {cost} (unit: {one['unit']}); "
        "the accountant composed all of their steps, no ε was added to another."
    )


def _verdict(figures: Mapping[str, Any]) -> str:
    metric = figures["metric"]
    scored = [(one[metric]["mean"], one) for one in figures["values"] if one[metric] and not one["reference"]]
    done = sum(point["done"] for point in figures["points"])
    runs = f"{plural(done, 'run').capitalize()} of '{shown(figures['name'], 64)}'"
    if done < len(figures["points"]):
        runs += f", of {plural(len(figures['points']), 'run')} planned; the sweep is not finished"
    if not scored:
        return f"{runs}. The models were not measured."
    low, lowest = min(scored, key=lambda pair: pair[0])
    high, highest = max(scored, key=lambda pair: pair[0])
    label = metric_label(metric)
    text = f"{runs}. {label} goes from {metric_text(metric, low)} ({values_text(lowest)}) to {metric_text(metric, high)} ({values_text(highest)})"
    references = [one[metric]["mean"] for one in figures["values"] if one[metric] and one["reference"]]
    if len(references) == 1:
        text += f"; without privacy it is {metric_text(metric, references[0])}"
    seeds = {one[metric]["n"] for _, one in scored}
    if max(seeds) == 1:
        return f"{text}."
    return f"{text}, each the mean of {'' if len(seeds) == 1 else 'up to '}{plural(max(seeds), 'seed')}."


def _tiles(figures: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    metric, label = figures["metric"], metric_label(figures["metric"])
    done = [point for point in figures["points"] if point["done"]]
    tiles = [("Runs", count(len(done)), f"of {count(len(figures['points']))}")]
    scored = [one for one in figures["values"] if one[metric] and not one["reference"]]
    if scored:
        best = (min if metric in _ERRORS else max)(scored, key=lambda one: one[metric]["mean"])
        tiles.append((f"Best {label.lower()}", metric_text(metric, best[metric]["mean"]), values_text(best)))
    spent = [point["privacy"]["epsilon"] for point in done if point["privacy"]["epsilon"] is not None]
    if spent:
        tiles.append(("Dearest run", f"ε = {number(max(spent))}", "spent by the site that spent most"))
    tiles += [
        (
            "All runs together",
            f"ε = {number(one['most']['epsilon'])}",
            f"composed; unit: {one['unit']}, δ = {one['delta']:g}",
        )
        for one in figures["composed"]
    ]
    tiles.append(("Time", seconds_text(sum(point["seconds"] for point in done)), "rounds of all runs"))
    return tiles


def _values_table(figures: Mapping[str, Any]) -> TableText:
    metric, private = figures["metric"], figures["composes"] is not None
    rows = []
    for one in figures["values"]:
        spread, loss, epsilon = one[metric] or {}, one["loss"] or {}, one["epsilon"] or {}
        several = (
            f"{metric_text(metric, spread['lowest'])} to {metric_text(metric, spread['highest'])}"
            if spread
            else DASH
        )
        rows.append(
            Row(
                head=values_text(one),
                cells=(
                    metric_text(metric, spread.get("mean")),
                    several,
                    _deviation(metric, spread.get("deviation")),
                    number(loss.get("mean")),
                    *([number(epsilon.get("highest"))] if private else []),
                    count(spread.get("n", 0)),
                ),
                kind="rest" if one["reference"] else "",
            )
        )
    columns = [
        "Point",
        f"{metric_label(metric)}\nmean",
        "Lowest to highest",
        "Standard deviation",
        "Loss\nmean",
    ]
    columns += ["ε spent"] if private else []
    return TableText(columns=(*columns, "Runs"), rows=tuple(rows))


def _points_table(figures: Mapping[str, Any]) -> TableText:
    metric = figures["metric"]
    keys = [key for key in figures["grid"]["over"] if key != _SEED]
    private = figures["composes"] is not None
    rows = []
    for point in figures["points"]:
        cells = [
            shown(value_text(point["values"][key])) if key in point["values"] else "no privacy"
            for key in keys
        ]
        cells.append(str(point["seed"]))
        if not point["done"]:
            cells += [DASH] * (7 if private else 5)
            rows.append(Row(head=f"{point['name']}, not finished", cells=tuple(cells), kind="rest"))
            continue
        cells += [metric_text(metric, lead_of(point, metric)), number(point["loss"]), count(point["records"])]
        if private:
            cells += [number(point["privacy"]["epsilon"]), number(point["privacy"]["noise_multiplier"])]
        cells += [count(point["rounds"]), seconds_text(point["seconds"])]
        rows.append(Row(head=f"Run {point['name']}", cells=tuple(cells), link=point["report"]))
    columns = [
        "Run\nits report",
        *(shown(key) for key in keys),
        "Seed",
        metric_label(metric),
        "Loss",
        "Test records",
    ]
    columns += ["ε spent", "Noise\nσ / C"] if private else []
    return TableText(columns=(*columns, "Rounds", "Time"), rows=tuple(rows))


def _composed_table(one: Mapping[str, Any]) -> TableText:
    most = one["most"]
    rows = [
        Row(head="No site more than", cells=_cost(most), kind="strong"),
        *(Row(head=shown(site), cells=_cost(cost)) for site, cost in (one["sites"] or {}).items()),
    ]
    note = "" if one["sites"] is not None else "There are too many sites to compose each one's own."
    return TableText(
        columns=("Site", "Rounds asked\nall runs", "ε of all runs together", "By loss distributions", "By Rényi divergences"),
        rows=tuple(rows),
        note=note,
    )  # fmt: skip


def _cost(cost: Mapping[str, Any]) -> tuple[str, ...]:
    return (count(cost["rounds"]), *(number(cost[key]) for key in ("epsilon", "pld", "rdp")))


def _deviation(metric: str, value: float | None) -> str:
    if value is None:
        return DASH
    return f"{100 * value:.1f} points" if metric == "accuracy" else number(value)


def _command(figures: Mapping[str, Any]) -> str:
    """The command line that made the sweep, to be copied; the file's own name is not known."""
    from shlex import quote

    grid = figures["grid"]
    parts = [f"--over {quote(f'{key}=' + ','.join(texts))}" for key, texts in grid["over"].items()]
    parts += [f"--seeds {','.join(map(str, grid['seeds']))}"] if grid["seeds"] else []
    parts += [f"--set {quote(text)}" for text in grid["settings"]]
    parts += ["--reference"] if grid["reference"] else []
    return shown("cloister sweep FILE " + " ".join(parts), 2000)
