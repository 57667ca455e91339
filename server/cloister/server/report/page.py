"""``report.html``: one page that needs nothing outside itself; every text that is not ours is escaped by the template."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cloister.server.history import History
from cloister.server.report import audited, budget, curves, maps
from cloister.server.report.clearance import Clearance
from cloister.server.report.compliance import laws_of
from cloister.server.report.figures import site_series
from cloister.server.report.seen import who_sees
from cloister.server.report.spent import SpentSoFar, spent_so_far
from cloister.server.report.standing import signals_plot, standing_table, standing_words
from cloister.server.report.tables import refused_table, settings_table, side_by_side, sites_table
from cloister.server.report.template import style, template
from cloister.server.report.verdict import privacy_in_a_word, saw_in_a_word, site_noun, verdict
from cloister.server.report.words import (
    bytes_text,
    count,
    drawable,
    headline,
    interval95,
    listed,
    metric_label,
    metric_text,
    number,
    percent,
    points,
    seconds_text,
    shown,
)

__all__ = ["render_page"]

_CLEARED = {"released": "good", "passed": "open", "barred": "bad", "not audited": "open"}
_STATUS = {"done": "done", "interrupted": "interrupted", "failed": "failed"}


def render_page(
    *,
    report: Mapping[str, Any],
    spec: Mapping[str, Any],
    origins: Mapping[str, str],
    history: History,
    clearance: Clearance,
) -> str:
    """Return the page.

    Args:
        report: the figures of ``report.json``.
        spec: the effective federation file.
        origins: where each dotted key's value came from; may be empty.
        history: what the run's events add up to.
        clearance: what became of the model.
    """
    from markupsafe import Markup

    learned, price = verdict(
        history, protection=report["aggregation"]["protection"], unit=report["privacy"]["unit"]
    )
    spent = spent_so_far(spec, history)
    plots = {key: Markup(svg) for key, svg in _plots(history, spent).items() if svg}  # noqa: S704 - matplotlib escapes its texts
    return template("page.html").render(
        style=style(),
        name=shown(report["name"], 64),
        run=shown(report["run"], 100),
        status=_STATUS.get(report["status"], "unfinished"),
        clearance=clearance,
        cleared=_CLEARED[clearance.state],
        saw=saw_in_a_word(report),
        told_privacy=privacy_in_a_word(report),
        thresholds=audited.thresholds_table(clearance),
        checks=audited.checks_table(clearance),
        canaries=audited.canaries_words(history.audits),
        in_full=audited.figures_of(clearance),
        laws=laws_of(report, clearance),
        learned=learned,
        price=price,
        tiles=_tiles(report, history),
        models=side_by_side(history),
        sites=sites_table(history),
        plots=plots,
        metric=metric_label(_lead(history) or "loss"),
        wide_partition=len((history.run.partition or {}).get("sites") or ()) > maps.BARS
        if history.run
        else False,
        learning=not plots.keys().isdisjoint({"metric", "losses", "others", "confusion"}),
        costs=not plots.keys().isdisjoint({"traffic", "time"}),
        noun=site_noun(history.run),
        seers=who_sees(spec),
        budget=budget.budget_table(spent) if spent else None,
        guarantee=report["privacy"]["statement"].splitlines() if report["privacy"]["unit"] != "none" else [],
        refused=refused_table(history),
        standing=standing_table(history),
        standing_words=standing_words(history),
        missing=_missing(history),
        facts=_facts(report, history),
        warnings=[shown(text, 400) for text in (*report.get("notes", ()), *report["warnings"])],
        settings=settings_table(spec, origins),
        reproducible=report.get("reproducible", True),
        task={
            key: shown(value, 600)
            for key, value in (report.get("task") or {}).items()
            if isinstance(value, str) and value
        },
        traffic=f"{bytes_text(report['traffic']['bytes_down'])} to the sites, {bytes_text(report['traffic']['bytes_up'])} from them",
        time=", ".join(
            f"{phase} {seconds_text(value)}" for phase, value in history.seconds.items() if value > 0
        ),
    )


def _tiles(report: Mapping[str, Any], history: History) -> list[tuple[str, str, str]]:
    """The page's key figures: name, figure, and what must be known to read it."""
    tiles: list[tuple[str, str, str]] = []
    central, mean = history.series.get("central"), history.series.get("sites")
    series = central or mean
    if series is not None and (lead := headline(list(series.last.metrics))) is not None:
        last = series.last
        value = last.metrics[lead]
        where = (
            f"{count(last.records)} pooled test records"
            if central
            else f"{count(last.records)} records, mean of the sites"
        )
        if lead == "accuracy" and central and (interval := interval95(value, last.records)):
            where += f"; 95%: {percent(interval[0])} to {percent(interval[1])}"
        tiles.append((metric_label(lead), metric_text(lead, value), where))
        pooled = history.series.get("baseline:pooled")
        if pooled is not None and lead == "accuracy" and lead in pooled.last.metrics:
            gap = value - pooled.last.metrics[lead]
            sign = "±" if round(1000 * gap) == 0 else "+" if gap > 0 else "−"
            reference = percent(pooled.last.metrics[lead])
            tiles.append(
                (
                    "Against pooled",
                    f"{sign}{points(gap).removesuffix(' points')}",
                    f"points; training on the pooled data reaches {reference}",
                )
            )
    planned = report["rounds_planned"]
    tiles.append(
        (
            "Rounds",
            count(report["rounds"]),
            f"of {count(planned)}" if planned != report["rounds"] else "all that were planned",
        )
    )
    answered = sum(one.answered for one in history.rounds)
    asked = sum(one.cohort for one in history.rounds)
    tiles.append(
        (
            site_noun(history.run).capitalize(),
            count(report.get("sites")),
            f"{count(answered)} of {count(asked)} updates used",
        )
    )
    total = report["traffic"]["bytes_down"] + report["traffic"]["bytes_up"]
    each = total / report["rounds"] if report["rounds"] else None
    tiles.append(("Traffic", bytes_text(total), f"{bytes_text(each)} a round"))
    seconds = report["time"]["seconds"]
    pace = seconds / report["rounds"] if report["rounds"] else None
    tiles.append(("Time", seconds_text(seconds), f"{seconds_text(pace)} a round"))
    private = report["privacy"]
    if private["unit"] != "none":
        tiles.append(
            (
                "Privacy",
                f"ε = {number(private['epsilon'])}",
                f"unit: {private['unit']}, δ = {number(private['delta'])}",
            )
        )
    return tiles


def _plots(history: History, spent: SpentSoFar | None) -> dict[str, str | None]:
    sites = site_series(history)
    lead = _lead(history)
    measured = history.series.get("central")
    partition = history.run.partition if history.run else None
    plots: dict[str, str | None] = {
        "losses": curves.losses(history),
        "signals": signals_plot(history),
        "traffic": curves.traffic_by_round(history),
        "time": curves.time_by_round(history),
        "budget": budget.epsilon_by_round(spent) if spent else None,
        "budgets": budget.epsilon_by_site(spent) if spent else None,
    }
    if lead is not None:
        last = {
            name: series.last
            for name, series in sites.items()
            if drawable(lead, series.last.metrics.get(lead))
        }
        own = site_series(history, "baseline:local:")
        alike = {
            name: own[name].last.metrics[lead]
            for name, point in last.items()
            if name in own
            and drawable(lead, own[name].last.metrics.get(lead))
            and own[name].last.records == point.records
        }
        plots["metric"] = curves.metric_by_round(history, lead)
        plots["others"] = curves.other_metrics(history, lead)
        plots["sites"] = curves.sites_by_round(history, lead)
        if len(last) > curves.FEW_SITES:  # fewer stand in the table
            plots["last"] = maps.last_by_site(
                {name: point.metrics[lead] for name, point in last.items()}, alike, lead
            )
    if measured is not None and measured.last.confusion is not None:
        plots["confusion"] = maps.confusion_matrix(
            measured.last.confusion, history.run.classes if history.run else ()
        )
    if partition and partition.get("sites"):
        plots["partition"] = maps.partition_plot(partition["sites"], partition.get("classes") or ())
    return plots


def _lead(history: History) -> str | None:
    """The metric that speaks for the model."""
    series = history.series.get("central") or history.series.get("sites")
    return headline(list(series.last.metrics)) if series else None


def _missing(history: History) -> str:
    """Who did not answer, the most absent first."""
    absent = {site: tally for site, tally in history.sites.items() if tally.missing}
    ordered = sorted(absent, key=lambda site: (-absent[site].missing, site))
    return listed(
        [f"{shown(site)} ({absent[site].missing} of {absent[site].asked} rounds)" for site in ordered], 8
    )


def _facts(report: Mapping[str, Any], history: History) -> list[tuple[str, str]]:
    aggregation = report["aggregation"]
    optimizer = aggregation["optimizer"]
    name = optimizer.get("name") if isinstance(optimizer, Mapping) else optimizer
    partition = report.get("partition") or {}
    facts: list[tuple[str, object]] = [
        ("Aggregation", f"{aggregation['rule']}, then {name}"),
        ("Protection", aggregation["protection"]),
        ("Model", f"{count(report.get('parameters'))} parameters"),
        ("Partition", partition.get("by")),
        ("Seed", report["seed"] if report.get("reproducible", True) else "drawn from the operating system"),
        (
            "Engine",
            f"{report['engine']}, {report['workers']} workers"
            if report.get("engine") and report.get("workers")
            else report.get("engine"),
        ),
        ("Federation hash", report.get("digest")),
        ("Layout hash", report.get("layout")),
        ("Versions", ", ".join(f"{key} {value}" for key, value in report["versions"].items())),
        ("Resumed after round", ", ".join(map(str, history.resumed_from))),
    ]
    return [
        (key, shown(value, 120 if key != "Versions" else 400))
        for key, value in facts
        if value not in (None, "")
    ]
