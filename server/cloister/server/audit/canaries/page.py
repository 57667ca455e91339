"""``audit-privacy.html``: the findings as one page that needs nothing outside itself, for who answers for the data first, then for an expert."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloister.server.report.canvas import ACCENT, INK, LOCAL, MUTED, render, tidy
from cloister.server.report.tables import Row, TableText
from cloister.server.report.template import style, template
from cloister.server.report.words import DASH, count, number, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["meaning", "render_page"]

_TEMPLATES = Path(__file__).with_name("templates")
_STATUS = {"refuted": "failed", "consistent": "done", "no power": "interrupted"}
_TEXT = 1000


def meaning(verdict: str) -> str:
    """Say what a verdict means to who answers for the data."""
    return {
        "refuted": "The run does not keep its promise: an attacker was shown to learn more than it allows. Do not release the model, and do not run this federation "
        "on real data until the cause is found.",
        "consistent": "Nothing was found that contradicts the promise, and this audit would have noticed one that is broken by half. It does not prove the promise: "
        "that rests on the mechanism's proof and on the code that was audited.",
        "no power": "This audit can say nothing about the promise, for or against. It is not a pass. Plant more canaries, or let the adversary see more.",
    }[verdict]


def render_page(found: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        found: what ``audit-privacy.json`` holds.
    """
    from markupsafe import Markup

    plots = {"bounds": _bounds(found), "scores": _scores(found)}
    return template("privacy.html", _TEMPLATES).render(
        style=style(),
        run=shown(found["run"], 100),
        status=_STATUS[found["verdict"]],
        verdict=found["verdict"],
        reason=shown(found["reason"][:1].upper() + found["reason"][1:], _TEXT) + ".",
        meaning=meaning(found["verdict"]),
        tiles=_tiles(found),
        plots={name: Markup(svg) for name, svg in plots.items()},  # noqa: S704 - matplotlib escapes its texts
        estimators=_estimators(found),
        set_up=_set_up(found),
        confidence=f"{found['confidence']:.0%}",
        times=f"{found['power']['times']:g}",
        seal=found["seal"],
    )


def _tiles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    claim = found["claim"]
    chosen = next(one for one in found["estimators"] if one["decides"])
    refutable = number(chosen["refutable"]) if chosen["refutable"] is not None else "nothing"
    return [
        ("Claimed ε", number(claim["epsilon"]), f"at most, at δ = {claim['delta']:g}"),
        ("Shown ε", number(found["lower_bound"]), f"at least, with {found['confidence']:.0%} confidence"),
        ("Could refute", refutable, "or more, in 9 of 10 audits"),
        ("Canaries", count(found["canaries"]), f"{count(found['included'])} of them in, by sealed coins"),
    ]


def _estimators(found: Mapping[str, Any]) -> TableText:
    rows = tuple(
        Row(
            head=one["title"],
            cells=(
                DASH if one["bound"] is None else number(one["bound"]),
                number(one["reach"]),
                DASH if one["refutable"] is None else number(one["refutable"]),
                "yes" if one["power"] else "no",
                one["assumes"] + ("" if one["holds"] else ": not so here"),
            ),
            kind="strong" if one["decides"] else "",
        )
        for one in found["estimators"]
    )
    return TableText(
        columns=(
            "Estimator",
            "ε at least",
            "Reach\nif the claim holds",
            "Could refute\nfrom a true ε of",
            "Power",
            "Assumes",
        ),
        rows=rows,
        note="The one in bold decides; which one does was settled before training, from the power of each. The others are told beside it, each with its own error.",
    )


def _set_up(found: Mapping[str, Any]) -> TableText:
    run = found["set_up"]
    sees = {
        "update": "every update of the site, in clear",
        "model": "the model of every round, and so the sums of all sites",
    }[run["sees"]]
    rows = (
        ("Federation", shown(run["federation"], 100)),
        ("Unit of the promise", run["unit"]),
        ("Mechanism", f"noise multiplier {number(run['noise_multiplier'])}, sampling rate {number(run['sampling_rate'])}, {count(run['steps'])} steps"),
        ("Canaries", f"in {run['space']} space, " + (f"at site {shown(run['site'])}" if run["site"] else "each a site of its own")),
        ("Planted in", _planted_in(run)),
        ("The adversary sees", sees),
        ("Optimiser", "plain SGD: what is scored is the sum of the noisy steps" if run["plain"] else "the file's own: how it blurs the scores is not known beforehand"),
        ("Ledgers", "charged like any run: canaries are records" if run["ledgers"] else "none kept: what this audit spent of real records is in no account"),
        ("Seed", "the coins are the site's, from its operating system; in a simulation from the seed " + str(run["seed"]) if run.get("in_run") else str(run["seed"])),
    )  # fmt: skip
    return TableText(columns=("", ""), rows=tuple(Row(head=head, cells=(text,)) for head, text in rows))


def _planted_in(run: Mapping[str, Any]) -> str:
    if not run.get("in_run"):
        return "a run of its own, made for this audit"
    seen, rounds = run["rounds_seen"], run["rounds"]
    missed = "" if seen == rounds else f"; seen in {seen} of its {rounds} rounds, so silence says nothing"
    return f"the run itself{missed}; the released model is without them"


def _bounds(found: Mapping[str, Any]) -> str:
    told = [one for one in found["estimators"] if one["bound"] is not None]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        claim = found["claim"]["epsilon"]
        for place, one in enumerate(reversed(told)):
            axes.barh(place, one["bound"], color=LOCAL if one["bound"] > claim else ACCENT, height=0.5)
            axes.plot([one["reach"]] * 2, [place - 0.36, place + 0.36], color=MUTED, linewidth=1.2)
        axes.axvline(claim, color=INK, linewidth=1.4, linestyle="--")
        axes.text(claim, len(told) - 0.4, " claimed", color=INK, fontsize=8.5, va="bottom")
        axes.set_xlim(0, 1.18 * max(claim, *(one["bound"] for one in told)))
        axes.set_yticks(range(len(told)), [one["name"] for one in reversed(told)])
        axes.set_ylim(-0.6, len(told) - 0.1)
        tidy(axes, xlabel="ε at least (bar); median if the claim holds exactly (tick)")

    return render("privacy-bounds", draw, label="Lower bounds on epsilon against the claim", height=2.6)


def _scores(found: Mapping[str, Any]) -> str:
    values = np.array(found["scores"], dtype=np.float64)
    included = np.array(found["coins"], dtype=bool)

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        spread = values.std() or 1.0
        placed = (values - np.median(values)) / spread
        edges = np.linspace(placed.min(), placed.max(), 41).tolist()
        for inside, colour, label in ((False, MUTED, "out"), (True, ACCENT, "in")):
            axes.hist(
                placed[included == inside],
                edges,
                color=colour,
                alpha=0.55,
                label=f"canaries that were {label}",
            )
        tidy(axes, xlabel="score, in its own standard deviations", ylabel="canaries")
        axes.legend(loc="upper right")

    return render(
        "privacy-scores",
        draw,
        label="Scores of canaries that were in, and of those that were not",
        height=2.6,
    )
