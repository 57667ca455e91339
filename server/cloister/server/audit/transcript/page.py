"""``audit-transcript.html``: the findings as one page that needs nothing outside itself."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cloister.server.audit.transcript.telling import decryption_text, p_text, rounds_of
from cloister.server.report.canvas import ACCENT, INK, LOCAL, MUTED, render, tidy
from cloister.server.report.tables import Row, TableText
from cloister.server.report.template import style, template
from cloister.server.report.words import bytes_text, count, listed, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["quantiles_plot", "render_page"]

_TEMPLATES = Path(__file__).with_name("templates")
_STATUS = {"passed": "done", "failed": "failed", "not protected": "interrupted"}
_REASON = 2000
_BAND = (0.005, 0.995)


def render_page(found: Mapping[str, Any]) -> str:
    """Return the page.

    Args:
        found: what `audit_transcript` returns.
    """
    from markupsafe import Markup

    plot = quantiles_plot(found)
    return template("transcript.html", _TEMPLATES).render(
        style=style(),
        run=shown(found["run"], 100),
        status=_STATUS[found["verdict"]],
        verdict=found["verdict"],
        reason=shown(found["reason"], _REASON),
        tiles=_tiles(found),
        checks=_checks(found),
        plots={"quantiles": Markup(plot)} if plot else {},  # noqa: S704 - matplotlib escapes its texts
        power=_power(found),
        sessions=_sessions(found),
        clear=_clear(found),
        allowed=_allowed(found),
        decryption=decryption_text(found["decryption"]) if found.get("decryption") else "",
        authority=found["authority"] or "",
        given=found["authority_given"],
    )


def quantiles_plot(found: Mapping[str, Any]) -> str | None:
    """Plot the p-values of the chi-squares and of neighbours, in order, against where uniform ones lie."""
    tests = found.get("uniformity", {}).get("tests", ())
    values = np.sort([test["p"] for test in tests if test["continuous"]])
    if not len(values):
        return None

    def draw(figure: Figure) -> None:
        from scipy import stats

        axes = figure.subplots()
        size = len(values)
        places = np.arange(1, size + 1)
        expected = places / (size + 1)
        low, high = (stats.beta.ppf(level, places, size + 1 - places) for level in _BAND)
        axes.fill_between(
            expected, low, high, color=ACCENT, alpha=0.14, linewidth=0, label="Where 99 of 100 lie"
        )
        axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1.0, linestyle="--", label="Uniform")
        axes.plot(
            expected, values, color=LOCAL if found["verdict"] == "failed" else INK, marker="o", markersize=2.5, linewidth=0,
            label=f"{size} tests of this run",
        )  # fmt: skip
        tidy(axes, xlabel="expected p, if the vectors are uniform", ylabel="p of the test")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
        axes.legend(loc="upper left")

    return render(
        "transcript-quantiles", draw, label="p-values of the run's tests against uniform ones", height=3.6
    )


def _tiles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    checks = found["checks"]
    passed = sum(check["verdict"] == "passed" for check in checks)
    tiles = [
        ("Messages", count(found["messages"]), "received, all of them looked at"),
        ("Checks", f"{passed} of {len(checks)}", "hold"),
        ("Fields in clear", count(len(found["clear_fields"])), f"protection: {found['protection']}"),
    ]
    if found.get("uniformity"):
        tests = found["uniformity"]["tests"]
        least = min((test["adjusted"] for test in tests), default=1.0)
        tiles.append(
            (
                "Least p",
                p_text(least),
                f"adjusted for {count(len(tests))} tests; alarm at {found['uniformity']['alarm']:g}",
            )
        )
    if found.get("decryption"):
        who = found["decryption"]
        tiles.append(
            ("Can decrypt", "1", f"{who['holder']}, alone")
            if who.get("holder")
            else ("Helpers needed", count(who["curious"]), f"{who['lying']} with a server that lies")
        )
    return tiles


def _checks(found: Mapping[str, Any]) -> TableText:
    rows = tuple(
        Row(
            head=check["question"],
            cells=(check["verdict"], shown(check["reason"], _REASON)),
            kind="strong" if check["verdict"] == "failed" else "",
        )
        for check in found["checks"]
    )
    return TableText(columns=("Question", "Verdict", "Why"), rows=rows)


def _power(found: Mapping[str, Any]) -> TableText | None:
    planted = found.get("uniformity", {}).get("power")
    if not planted:
        return None
    rows = tuple(
        Row(
            head=f"{one['fault']} ({one['group']})",
            cells=(p_text(one["once"]), p_text(one["always"]), "yes" if one["found"] else "no"),
        )
        for one in planted
    )
    columns = ("If a site had", "p in one round", "p in every round", "Found")
    return TableText(
        columns=columns,
        rows=rows,
        note="The run's own means stand in for what a site sent; p is adjusted for all tests of the run.",
    )


def _sessions(found: Mapping[str, Any]) -> TableText | None:
    if not found.get("sessions"):
        return None
    rows = tuple(Row(head=f"Round {row[0]}", cells=row[1:]) for row in rounds_of(found))
    columns = (
        "Session",
        "Sum of",
        "Sites asked",
        "Vectors",
        "In the sum",
        "What opens",
        "Keys missing" if found["protection"] != "masked" else "Masks left\nat least",
        "Least p",
    )
    note = (
        "With every share that was revealed, so many masks stay on each single vector."
        if found["protection"] == "masked"
        else f"What opens is opened by {found['decryption']['holder']} alone."
        if found.get("decryption")
        else ""
    )
    note += " The least p is that of single vectors, before it is adjusted."
    return TableText(columns=columns, rows=rows, note=note)


def _clear(found: Mapping[str, Any]) -> TableText | None:
    if not found["clear_fields"]:
        return None
    rows = tuple(
        Row(
            head=shown(f"{one['record']}.{one['field']}", 80),
            cells=(
                shown(one["phase"]),
                shown(one["type"], 80),
                bytes_text(one["bytes"]),
                count(one["times"]),
                shown(listed(one["sites"]), 200),
                shown(one["tells"], 200),
            ),
        )
        for one in found["clear_fields"]
    )
    return TableText(columns=("Field", "Message", "Type", "Size", "Times", "Of", "What it tells"), rows=rows)


def _allowed(found: Mapping[str, Any]) -> TableText | None:
    if found["protection"] == "plain":
        return None
    rows = tuple(Row(head=step or "any", cells=(text,)) for step, text in found["allowed"].items())
    return TableText(columns=("Step", "What a message of it may bring"), rows=rows)
