"""Who stood out: the signals of the rounds as a plot and a table.

The words are those of somebody who must decide whether to call a site: what was odd, from when on, and that odd is not guilty.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from cloister.server.history import History
from cloister.server.report.canvas import ACCENT, CATEGORIES, INK, render, tidy
from cloister.server.report.figures import alerts_of
from cloister.server.report.tables import Row, TableText
from cloister.server.report.words import count, listed, number, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["signals_plot", "standing_table", "standing_words"]

#: Lines that are drawn for those who stand out.
_MOST = 6
_WHAT = {
    ("norm", True): "Its updates are larger than the others'",
    ("norm", False): "Its updates are smaller than the others'",
    ("cosine", True): "Its updates point more exactly where most point than honest ones do",
    ("cosine", False): "Its updates point elsewhere than most",
    ("agreement", True): "Its signs agree with most more than honest ones do",
    ("agreement", False): "Its signs disagree with most",
}
_MAYBE = {
    ("norm", True): "scaled up, mislabelled data, or few or unusual records",
    ("norm", False): "not training, or records that the model has learned already",
    (
        "cosine",
        True,
    ): "made from others' updates (to hide among them), or from more data than the others have",
    ("cosine", False): "turned round, mislabelled data, or data unlike the others'",
    ("agreement", True): "made from others' updates, or from more data than the others have",
    ("agreement", False): "turned round, mislabelled data, or data unlike the others'",
}


def standing_table(history: History) -> TableText | None:
    """Return who stood out, in what, since when, and what it may be; ``None``: nobody did."""
    alerts = alerts_of(history)
    if not alerts:
        return None
    rows = []
    for alert in alerts:
        key = (alert["signal"], (alert["value"] or 0.0) > (alert["middle"] or 0.0))
        figures = f"{number(alert['value'])}\nmiddle of {count(alert['of'])}: {number(alert['middle'])}"
        rows.append(
            Row(head=shown(alert["who"]), cells=(_WHAT[key], figures, count(alert["round"]), _MAYBE[key]))
        )
    return TableText(columns=("Who", "What", "Figure", "Told in round", "May be"), rows=tuple(rows))


def standing_words(history: History) -> str:
    """Say what the table means, or why there is none."""
    rows = [len(event["rows"]) for event in history.signals]
    if not rows:
        return ""
    if alerts_of(history):
        return (
            "Standing out over several rounds is no proof: a site whose data are unlike the others' does so as well. Nothing was done about it; ask those "
            "who run the site."
        )
    if not any(rows):
        return (
            "The server saw sums over all sites only, of which none can stand out." if history.rounds else ""
        )
    return "Nobody stood out over several rounds. A liar that sends what an honest site with other data might send does not, either."


def signals_plot(history: History) -> str | None:
    """Plot the cosines of the rounds' rows, with those who stood out; without rows the cosine of each direction to the last."""
    with_rows = [event for event in history.signals if event["rows"]]
    if with_rows:
        return _rows_plot(history, with_rows)
    known = [
        (event["round"], event["direction"]["cosine"])
        for event in history.signals
        if event["direction"]["cosine"] is not None
    ]
    if not known:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(
            *zip(*known, strict=True), color=ACCENT, linewidth=1.6, label="Sum of all, to the last round"
        )
        tidy(axes, ylabel="cosine", xlabel="round")
        axes.figure.legend(loc="outside upper left")  # type: ignore[union-attr,unused-ignore]  # axes of a Figure

    return render("signals", draw, label="Cosine of each round's direction to that of the round before")


def _rows_plot(history: History, events: list[Mapping[str, Any]]) -> str:
    stood = list(dict.fromkeys(alert["who"] for alert in alerts_of(history)))
    rounds = [event["round"] for event in events]
    values = [sorted(row["cosine"] for row in event["rows"]) for event in events]
    toward = "the median of its round" if events[-1]["toward"] == "median" else "the last round's direction"

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        lowest, highest = [one[0] for one in values], [one[-1] for one in values]
        axes.fill_between(rounds, lowest, highest, color=ACCENT, alpha=0.16, linewidth=0, label="All")
        middle = [statistics.median(one) for one in values]
        axes.plot(rounds, middle, color=INK, linewidth=1.2, label="Middle one")
        for place, who in enumerate(stood[:_MOST]):
            found = [
                (event["round"], row["cosine"])
                for event in events
                for row in event["rows"]
                if row["who"] == who
            ]
            color = CATEGORIES[place % len(CATEGORIES)]
            axes.plot(*zip(*found, strict=True), color=color, linewidth=1.6, label=shown(who, 24))
        tidy(axes, ylabel=f"cosine to {toward}", xlabel="round")
        axes.figure.legend(loc="outside upper left", ncols=3)  # type: ignore[union-attr,unused-ignore]  # axes of a Figure

    return render(
        "signals",
        draw,
        label=f"Cosine of each update to {toward}, by round"
        + (f"; stood out: {listed(stood, 8)}" if stood else ""),
    )
