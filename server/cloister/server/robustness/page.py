"""``robustness.html``: one page that needs nothing outside itself; its figures are those of ``robustness.json``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloister.server.report.canvas import ACCENT, INK, LOCAL, MEAN, render, tidy
from cloister.server.report.tables import Row, TableText
from cloister.server.report.template import style, template
from cloister.server.report.words import DASH, count, number, percent, seconds_text, shown

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["render_page"]

_TEMPLATES = Path(__file__).with_name("templates")
_BLACK_BOX = ("square", "random-search")


def render_page(found: Mapping[str, Any]) -> str:
    """Return the page of an evaluation.

    Args:
        found: what ``robustness.json`` holds.
    """
    from markupsafe import Markup

    plots = {key: Markup(svg) for key, svg in _plots(found).items() if svg}  # noqa: S704 - matplotlib escapes its texts
    raised = [alarm for alarm in found["alarms"] if alarm["raised"]]
    return template("robustness.html", _TEMPLATES).render(
        style=style(),
        name=shown(found["federation"], 64),
        verdict=_verdict(found),
        status="failed" if raised else "done",
        state=f"{len(raised)} alarms" if raised else "no alarm",
        tiles=_tiles(found),
        unreliable=[shown(text, 400) for text in found["unreliable"]],
        attacks=_attacks(found),
        alarms=_alarms(found),
        sites=_sites(found),
        corruptions=_corruptions(found),
        smoothing=found["smoothing"],
        plots=plots,
        facts=_facts(found),
    )


def _verdict(found: Mapping[str, Any]) -> str:
    clean, robust = (percent(found[key]["accuracy"]) for key in ("accuracy", "robust_accuracy"))
    sentence = (
        f"Of {count(found['records'])} test records the model gets {clean} right, and {robust} whatever an adversary "
        f"tried within {found['norm']} ε = {number(found['epsilon'])}."
    )
    if found["unreliable"]:
        sentence += " Read the notes below before you quote these figures."
    return sentence


def _tiles(found: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    worst = found["sites"][found["worst_site"]]
    tiles = [
        ("Clean accuracy", percent(found["accuracy"]["accuracy"]), _interval(found["accuracy"])),
        (
            "Robust accuracy",
            percent(found["robust_accuracy"]["accuracy"]),
            _interval(found["robust_accuracy"]),
        ),
        (
            "Worst site",
            percent(worst["robust"]),
            f"{shown(found['worst_site'], 40)}; {count(worst['records'])} records",
        ),
    ]
    if found["calibration"]["ece"] is not None:
        tiles.append(("Calibration error", number(found["calibration"]["ece"]), "expected, 15 bins"))
    if found["corruptions"] is not None:
        tiles.append(
            (
                "Under corruptions",
                percent(found["corruptions"]["mean"]),
                f"mean of 15, severity {found['corruptions']['severity']}",
            )
        )
    return tiles


def _interval(share: Mapping[str, Any]) -> str:
    low, high = share["interval"]
    return f"95%: {percent(low)} to {percent(high)}"


def _attacks(found: Mapping[str, Any]) -> TableText:
    rows = [_row("none", (percent(found["accuracy"]["accuracy"]), _interval(found["accuracy"]), DASH, DASH))]
    for name, one in found["attacks"].items():
        kind = " (scores only)" if name in _BLACK_BOX else ""
        rows.append(
            _row(
                name + kind,
                (
                    percent(one["accuracy"]),
                    _interval(one),
                    percent(one["after"]),
                    seconds_text(one["seconds"]),
                ),
            )
        )
    if found["transfer"] is not None:
        rows.append(
            _row(
                "transfer", (percent(found["transfer"]["accuracy"]), _interval(found["transfer"]), DASH, DASH)
            )
        )
    return _table(
        ("attack", "accuracy", "interval", "left after this and the ones above", "time"),
        tuple(rows),
        "An accuracy under attack is an upper bound: an attack that finds nothing proves nothing. AutoAttack's parts (apgd-ce, apgd-t, "
        "fab-t, square) each attack what the parts before them left.",
    )


def _alarms(found: Mapping[str, Any]) -> TableText:
    words = {True: "raised", False: "not raised", None: "not looked for"}
    rows = tuple(
        _row(
            alarm["name"],
            (
                words[alarm["raised"]],
                DASH if alarm["evidence"] is None else f"{alarm['evidence']:.3f}",
                f"{alarm['threshold']:g}",
                alarm["says"],
            ),
        )
        for alarm in found["alarms"]
    )
    return _table(("alarm", "state", "seen", "threshold", "what it says"), rows, "")


def _sites(found: Mapping[str, Any]) -> TableText:
    rows = tuple(
        _row(
            shown(name),
            (
                count(one["records"]),
                percent(one["accuracy"]),
                percent(one["robust"]),
                "few records" if one["unreliable"] else "",
            ),
        )
        for name, one in sorted(found["sites"].items(), key=lambda item: (item[1]["robust"], item[0]))[:200]
    )
    return _table(("site", "records", "clean", "under all attacks", ""), rows, "The worst site first.")


def _corruptions(found: Mapping[str, Any]) -> TableText | None:
    if found["corruptions"] is None:
        return None
    rows = tuple(
        _row(name.replace("_", " "), (percent(value),))
        for name, value in sorted(found["corruptions"]["accuracy"].items(), key=lambda item: item[1])
    )
    return _table(("corruption", "accuracy"), rows, "")


def _facts(found: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings = found["settings"]
    facts = [
        ("Model", found["model"]["path"]),
        ("SHA-256", found["model"]["sha256"]),
        ("Federation hash", found["digest"]),
        ("Task", found["task"]),
        ("Columns an adversary changes", ", ".join(found["features"] or ())),
        ("Seed", str(found["seed"])),
        ("PGD", f"{settings['steps']} steps, {settings['restarts']} restarts"),
        ("Black box", f"{settings['queries']} queries"),
        ("Time", seconds_text(found["seconds"])),
        ("Versions", ", ".join(f"{key} {value}" for key, value in found["versions"].items())),
    ]
    return [(key, shown(value, 200)) for key, value in facts if value]


def _plots(found: Mapping[str, Any]) -> dict[str, str | None]:
    return {"sweep": _sweep(found), "calibration": _calibration(found), "certified": _certified(found)}


def _sweep(found: Mapping[str, Any]) -> str | None:
    points = found["sweep"]
    if not points:
        return None
    sizes = [0.0, *(point["epsilon"] for point in points)]
    values = [found["accuracy"]["accuracy"], *(point["accuracy"] for point in points)]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(sizes, values, color=ACCENT, marker="o", markersize=3.2, label="under PGD")
        axes.axhline(
            1 / len(found["classes"]), color=INK, linewidth=1.2, linestyle=(0, (4, 3)), label="chance"
        )
        axes.axvline(
            found["epsilon"], color=LOCAL, linewidth=1.2, linestyle=":", label="ε of this evaluation"
        )
        axes.set_ylim(0, 1.02)
        tidy(axes, ylabel="accuracy", xlabel=f"ε ({found['norm']})")
        figure.legend(loc="outside upper left", ncols=3)

    return render("sweep", draw, label="Accuracy under PGD by ε")


def _calibration(found: Mapping[str, Any]) -> str | None:
    bins = found["calibration"]["bins"]
    if not bins:
        return None

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="calibrated")
        axes.bar(
            [one["confidence"] for one in bins],
            [one["accuracy"] for one in bins],
            width=0.045,
            color=MEAN,
            linewidth=0,
            label="records of a bin",
        )
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.02)
        tidy(axes, ylabel="accuracy", xlabel="highest probability")
        figure.legend(loc="outside upper left", ncols=2)

    return render("calibration", draw, label="Accuracy against the model's own probability")


def _certified(found: Mapping[str, Any]) -> str | None:
    if found["smoothing"] is None:
        return None
    curve = found["smoothing"]["curve"]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.step(
            [one["radius"] for one in curve], [one["accuracy"] for one in curve], where="post", color=ACCENT
        )
        axes.set_ylim(0, 1.02)
        tidy(axes, ylabel="certified accuracy", xlabel="l2 radius")

    return render("certified", draw, label="Certified accuracy of the smoothed model by radius")


def _row(head: str, cells: tuple[str, ...]) -> Row:
    return Row(head=head, cells=cells)


def _table(columns: tuple[str, ...], rows: tuple[Row, ...], note: str) -> TableText:
    return TableText(columns=columns, rows=rows, note=note)
