"""Plots and table of what a private run spends: by round with its projection, and by site against its cap."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cloister.server.report.canvas import ACCENT, INK, LOCAL, MEAN, render, tidy
from cloister.server.report.spent import SiteCost, SpentSoFar
from cloister.server.report.tables import Row, TableText, ends
from cloister.server.report.words import DASH, count, number, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["budget_table", "epsilon_by_round", "epsilon_by_site"]

_BARS = 24


def epsilon_by_round(spent: SpentSoFar) -> str | None:
    """Plot the ε spent by round, what is allowed, and what the accountant expects of the rounds that are left."""
    if not spent.rounds and not spent.projection:
        return None

    def draw(figure: Figure) -> None:
        from matplotlib.ticker import MaxNLocator

        axes = figure.subplots()
        if spent.rounds:
            marker = "o" if len(spent.rounds) <= 24 else None
            axes.plot(
                [one for one, _ in spent.rounds],
                [epsilon for _, epsilon in spent.rounds],
                color=ACCENT,
                linewidth=2.2,
                marker=marker,
                markersize=3.4,
                label="Spent, by the site that spent most",
            )
        if spent.projection:
            axes.plot(
                [one for one, _ in spent.projection],
                [epsilon for _, epsilon in spent.projection],
                color=ACCENT,
                linewidth=1.6,
                linestyle=":",
                label="If asked in every round that is left",
            )
        for value, label, color in (
            (spent.allowed, "Allowed by the federation file", INK),
            (spent.cap, "Smallest cap of a site, over all its runs", LOCAL),
        ):
            if value is not None:
                axes.axhline(value, color=color, linewidth=1.2, linestyle=(0, (4, 3)), label=label)
        tidy(axes, ylabel="ε", xlabel="round")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=8, min_n_ticks=1))
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        figure.legend(loc="outside upper left", ncols=2)

    return render("epsilon-by-round", draw, label="ε spent by round, against what is allowed")


def epsilon_by_site(spent: SpentSoFar) -> str | None:
    """Plot each site's ε in this run, what its ledger holds and its cap; of many sites those that spent most."""
    if not spent.sites:
        return None
    ordered = sorted(spent.sites.items(), key=lambda pair: (-_most(pair[1]), pair[0]))[:_BARS]
    if len(ordered) == len(spent.sites):
        ordered = [(name, spent.sites[name]) for name in spent.sites]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        ledger = [(row, cost.ledger) for row, (_, cost) in enumerate(ordered) if cost.ledger is not None]
        caps = [(row, cost.cap) for row, (_, cost) in enumerate(ordered) if cost.cap is not None]
        if ledger:
            rows, values = zip(*ledger, strict=True)
            axes.barh(rows, values, height=0.7, color=MEAN, alpha=0.3, label="All runs, by the site's ledger")
        axes.barh(
            range(len(ordered)),
            [cost.epsilon for _, cost in ordered],
            height=0.7 if not ledger else 0.4,
            color=ACCENT,
            label="This run",
        )
        if caps:
            rows, values = zip(*caps, strict=True)
            axes.vlines(
                values,
                [row - 0.42 for row in rows],
                [row + 0.42 for row in rows],
                color=LOCAL,
                linewidth=2.2,
                label="The site's cap",
            )
        if spent.allowed is not None:
            axes.axvline(
                spent.allowed, color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="Allowed in this run"
            )
        axes.set_yticks(range(len(ordered)), [shown(name, 24) for name, _ in ordered])
        axes.invert_yaxis()
        axes.set_xlim(left=0)
        axes.margins(x=0.06)
        tidy(axes, xlabel="ε")
        axes.grid(visible=True, axis="x")
        axes.grid(visible=False, axis="y")
        figure.legend(loc="outside upper left", ncols=2)

    return render(
        "epsilon-by-site",
        draw,
        label="ε of each site, against its cap",
        height=max(2.2, 1.3 + 0.32 * len(ordered)),
    )


def budget_table(spent: SpentSoFar) -> TableText | None:
    """Return each site's ε in this run, and on its ledger against its cap where the site told them; long lists are cut."""
    if not spent.sites:
        return None
    told = any(site.ledger is not None or site.cap is not None for site in spent.sites.values())
    chosen, cut = ends(list(spent.sites), {name: _most(site) for name, site in spent.sites.items()})
    rows = [
        Row(head=shown(name), cells=_cells(spent.sites[name], spent.allowed, told=told)) for name in chosen
    ]
    columns = ["Site", "Rounds asked", "ε of this run", "Allowed"]
    columns += ["ε on its ledger", "Its cap", "Used of it"] if told else []
    if cut:
        middle = Row(head=f"{count(cut)} sites between them", cells=("",) * (len(columns) - 1), kind="rest")
        rows.insert(len(rows) // 2, middle)
    last = spent.projection[-1] if spent.projection else None
    note = (
        f"A site that is asked in every round that is left will have spent ε = {number(last[1])} after round {count(last[0])}."
        if last
        else ""
    )
    return TableText(columns=tuple(columns), rows=tuple(rows), note=note)


def _cells(site: SiteCost, allowed: float | None, *, told: bool) -> tuple[str, ...]:
    cells = (count(site.asked), number(site.epsilon), number(allowed))
    if not told:
        return cells
    # A share and no remainder: what is left cannot be had by taking one ε from another.
    used = None if site.cap is None or site.ledger is None or site.cap <= 0 else site.ledger / site.cap
    return (*cells, number(site.ledger), number(site.cap), DASH if used is None else f"{used:.0%}")


def _most(site: SiteCost) -> float:
    return site.epsilon if site.ledger is None else site.ledger
