"""``statistics.html``: one page that needs nothing outside itself; its figures are those of ``statistics.json``."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.server.report.canvas import ACCENT, INK, LOCAL, render, tidy
from cloister.server.report.tables import Row, TableText
from cloister.server.report.template import style, template
from cloister.server.report.words import DASH, count, number, percent, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["render_page"]

_TEMPLATES = Path(__file__).with_name("templates")
#: Cells of a category that are drawn.
_DRAWN = 40


def render_page(found: Mapping[str, Any]) -> str:
    """Return the page of an answer.

    Args:
        found: what ``statistics.json`` holds.
    """
    from markupsafe import Markup

    columns = found["columns"]
    plots = {
        f"column-{place}": Markup(_plot(f"column-{place}", column, found))  # noqa: S704 - matplotlib escapes its texts
        for place, column in enumerate(columns)
    }
    return template("statistics.html", _TEMPLATES).render(
        style=style(),
        name=shown(found["federation"], 64),
        verdict=_verdict(found),
        tiles=_tiles(found),
        quantiles=_quantiles(found),
        sections=[
            (f"column-{place}", shown(column["name"]), _cells(column)) for place, column in enumerate(columns)
        ],
        plots=plots,
        facts=_facts(found),
    )


def _verdict(found: Mapping[str, Any]) -> str:
    whom = "person" if found["privacy"]["records_per_person"] > 1 else "record"
    sentence = (
        f"{len(found['columns'])} columns of the records of {found['sites']} sites, counted together: no site's own counts were seen. Whoever "
        f"reads this learns of each {whom} what ε = {number(found['privacy']['epsilon'])} and δ = {found['privacy']['delta']:g} allow."
    )
    if found["reproducible"]:
        sentence += " The noise follows from the run's seed: a rehearsal, which protects nobody."
    return sentence


def _tiles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    records = found["records"]
    return [
        ("Records", _about(records["value"]), f"{percent(found['confidence'])}: {_span(records)}"),
        ("Sites", count(found["sites"]), "in the sum"),
        ("Each count is off by", f"± {number(found['noise_std'])}", "standard deviation of the noise"),
        ("ε", number(found["privacy"]["epsilon"]), f"δ = {found['privacy']['delta']:g}"),
    ]


def _about(value: float) -> str:
    return f"{round(value):,}"


def _span(one: Mapping[str, float]) -> str:
    return f"{round(one['low']):,} to {round(one['high']):,}"


def _quantiles(found: Mapping[str, Any]) -> TableText | None:
    numeric = [column for column in found["columns"] if column["kind"] == "numeric"]
    if not numeric:
        return None
    shares = [one["share"] for column in numeric if column["quantiles"] for one in column["quantiles"]]
    heads = sorted(set(shares))
    rows = tuple(
        Row(
            head=shown(column["name"]),
            cells=tuple(
                f"{number(one['value'])}\n{number(one['low'])} to {number(one['high'])}"
                for one in column["quantiles"]
            )
            if column["quantiles"]
            else (DASH,) * len(heads),
        )
        for column in numeric
    )
    return TableText(
        columns=("column", *(f"{100 * share:g}%" for share in heads)),
        rows=rows,
        note=f"Below each quantile the interval that its noise leaves ({percent(found['confidence'])}); its ends are edges of bins. A dash: too few records "
        "for this noise.",
    )


def _cells(column: Mapping[str, Any]) -> TableText:
    rows = tuple(
        Row(head=shown(cell["label"]), cells=(_about(cell["value"]), _span(cell), percent(cell["share"])))
        for cell in column["cells"]
    )
    return TableText(columns=("", "records", "interval", "share"), rows=rows)


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    privacy = found["privacy"]
    facts = [
        ("Task", str(found["of"].get("use"))),
        ("Federation hash", found["digest"]),
        ("Protection", found["protected"]),
        ("Unit", privacy["unit"]),
        ("Noise multiplier of the fewest honest sites", f"{privacy['noise_multiplier']:.4g}"),
        (
            "ε of the sum that was released",
            f"{privacy['epsilon_of_the_sum']:.4g} (all {found['sites']} sites' shares)",
        ),
        ("Records a person may have", count(privacy["records_per_person"])),
        ("Confidence of each interval", percent(found["confidence"])),
    ]
    return [(key, shown(value, 200)) for key, value in facts]


def _plot(key: str, column: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    cells = column["cells"]
    numeric = column["kind"] == "numeric"

    def bars(figure: Figure) -> None:
        axes = figure.subplots()
        bins = cells[: len(column["edges"]) - 1]
        edges = column["edges"]
        values = [max(0.0, cell["value"]) for cell in bins]
        axes.bar(
            edges[:-1],
            values,
            width=[b - a for a, b in pairwise(edges)],
            align="edge",
            color=ACCENT,
            linewidth=0,
        )
        middles = [(a + b) / 2 for a, b in pairwise(edges)]
        _whiskers(axes, middles, values, bins)
        middle = next((one for one in column["quantiles"] or () if one["share"] == 0.5), None)
        if middle is not None:
            axes.axvline(middle["value"], color=LOCAL, linewidth=1.2, linestyle=":", label="median")
            axes.axvspan(middle["low"], middle["high"], color=LOCAL, alpha=0.12, linewidth=0)
            figure.legend(loc="outside upper left", ncols=1)
        tidy(axes, ylabel="records", xlabel=shown(column["name"]))

    def groups(figure: Figure) -> None:
        axes = figure.subplots()
        drawn = cells[:_DRAWN]
        values = [max(0.0, cell["value"]) for cell in drawn]
        axes.bar(range(len(drawn)), values, width=0.7, color=ACCENT, linewidth=0)
        _whiskers(axes, list(range(len(drawn))), values, drawn)
        axes.set_xticks(
            range(len(drawn)),
            [shown(cell["label"], 14) for cell in drawn],
            rotation=30 if len(drawn) > 5 else 0,
        )
        tidy(axes, ylabel="records", xlabel=shown(column["name"]))

    label = f"Noisy counts of {shown(column['name'])} with {percent(found['confidence'])} intervals"
    return render(key, bars if numeric else groups, label=label)


def _whiskers(axes: Any, places: list[float], values: list[float], cells: list[Mapping[str, float]]) -> None:
    """Draw each count's interval."""
    below = [max(0.0, value - cell["low"]) for value, cell in zip(values, cells, strict=True)]
    above = [max(0.0, cell["high"] - value) for value, cell in zip(values, cells, strict=True)]
    axes.errorbar(places, values, yerr=[below, above], fmt="none", ecolor=INK, elinewidth=0.8, capsize=1.5)
