"""``rehearsal.html``: one page that needs nothing outside itself; its figures are those of ``rehearsal.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.server.report.canvas import INK, render
from cloister.server.report.tables import Row, TableText
from cloister.server.report.template import style, template
from cloister.server.report.words import DASH, metric_label, metric_text, percent, plural, shown
from cloister.simulation.rehearsal.planning import NOBODY

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["render_page", "table_of"]

_TEMPLATES = Path(__file__).with_name("templates")


def render_page(figures: Mapping[str, Any]) -> str:
    """Return the page of a rehearsal.

    Args:
        figures: what ``rehearsal.json`` holds.
    """
    from markupsafe import Markup

    svg = _map(figures)
    return template("rehearsal.html", _TEMPLATES).render(
        style=style(),
        name=shown(figures["name"], 64),
        sweep=shown(figures["sweep"], 100),
        status="done" if figures["done"] else "unfinished",
        verdict=_verdict(figures),
        notes=[shown(note, 300) for note in figures["notes"]],
        plots={"map": Markup(svg)} if svg else {},  # noqa: S704 - matplotlib escapes its texts
        scores=table_of(figures),
    )


def table_of(figures: Mapping[str, Any]) -> TableText:
    """Return the rehearsal as a table: an attack a row, a rule a column, the worst case last."""
    metric, rules = figures["metric"], figures["rules"]
    rows = [
        Row(
            head="Nobody lies" if attack == NOBODY else attack,
            cells=tuple(_cell(metric, rule["attacks"][attack]) for rule in rules),
            kind="rest" if attack == NOBODY else "",
        )
        for attack in (rules[0]["attacks"] if rules else ())
    ]
    worst = tuple(
        f"{metric_text(metric, rule['worst']['mean'])}\n{rule['worst']['attack']}" if rule["worst"] else DASH
        for rule in rules
    )
    rows.append(Row(head="Worst case", cells=worst, kind="strong"))
    return TableText(columns=("Attack", *(shown(rule["rule"], 60) for rule in rules)), rows=tuple(rows))


def _cell(metric: str, one: Mapping[str, Any]) -> str:
    text = metric_text(metric, one["mean"])
    if one.get("stopped"):
        text += f"\n{plural(one['stopped'], 'run')} brought to a stop"
    return (
        f"{text}\ntrigger works {percent(one['attack_success'])}"
        if one["attack_success"] is not None
        else text
    )


def _verdict(figures: Mapping[str, Any]) -> str:
    metric = figures["metric"]
    known = [rule for rule in figures["rules"] if rule["worst"]]
    parts = [
        f"{shown(rule['rule'], 60)}: {metric_text(metric, rule['worst']['mean'])} ({rule['worst']['attack']})"
        for rule in known
    ]
    if not parts:
        return "No run is finished."
    return (
        f"Worst {metric_label(metric).lower()} of all attacks, mean of {plural(len(figures['seeds']), 'seed')}: "
        + "; ".join(parts)
        + "."
    )


def _map(figures: Mapping[str, Any]) -> str | None:
    """Draw the table as a map, an attack a row; ``None`` unless the metric is a share."""
    rules, metric = figures["rules"], figures["metric"]
    attacks = list(rules[0]["attacks"]) if rules else []
    values = [[rule["attacks"][attack]["mean"] for rule in rules] for attack in attacks]
    if metric != "accuracy" or not any(one is not None for row in values for one in row):
        return None

    def draw(figure: Figure) -> None:
        import numpy as np

        axes = figure.subplots()
        grid = np.array([[np.nan if one is None else one for one in row] for row in values])
        axes.pcolormesh(grid, vmin=0, vmax=1, cmap="RdYlGn", alpha=0.75, edgecolors="white", linewidth=1)
        for (row, column), one in np.ndenumerate(grid):
            if np.isfinite(one):
                worst = rules[column]["worst"]
                weight = "bold" if worst and worst["attack"] == attacks[row] else "normal"
                axes.text(
                    column + 0.5, row + 0.5, f"{one:.2f}", ha="center", va="center", color=INK, fontsize=8, weight=weight
                )  # fmt: skip
        axes.set_yticks([place + 0.5 for place in range(len(attacks))], attacks)
        names = [shown(rule["rule"], 40).replace(" | ", " |\n") for rule in rules]
        axes.set_xticks([place + 0.5 for place in range(len(rules))], names)
        axes.xaxis.tick_top()
        axes.invert_yaxis()
        axes.grid(visible=False)
        for spine in axes.spines.values():
            spine.set_visible(False)

    return render(
        "rehearsal",
        draw,
        label=f"{metric_label(metric)} by attack and rule",
        width=min(9.0, 2.2 + 1.1 * len(rules)),
        height=1.0 + 0.26 * len(attacks),
    )
