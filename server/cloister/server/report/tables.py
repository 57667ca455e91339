"""The report's tables as rows of text: the models side by side, the sites, what was refused, the settings."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloister.server.history import History, Measured, Series, SiteTally
from cloister.server.report.figures import site_series
from cloister.server.report.words import (
    DASH,
    bytes_text,
    count,
    headline,
    interval95,
    listed,
    metric_label,
    metric_text,
    number,
    order,
    percent,
    seconds_text,
    shown,
)

__all__ = ["Row", "TableText", "ends", "refused_table", "settings_table", "side_by_side", "sites_table"]

#: Longer lists show the `ENDS` lowest and the `ENDS` highest.
LISTED, ENDS = 12, 5

_BY_SITE = ("accuracy", "f1", "auroc", "mae", "r2")
_LOCAL = "baseline:local:"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row: the text of its first cell, the texts of the others, and ``strong``, ``rest`` (a summary) or nothing.

    What follows a line break in a cell is the small print of its figure. ``link`` is a relative address that we made ourselves.
    """

    head: str
    cells: tuple[str, ...]
    kind: str = ""
    link: str = ""


@dataclass(frozen=True, kw_only=True)
class TableText:
    """A table: column names (the first is that of the rows' heads), rows, and what must be said of it."""

    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    note: str = ""


def side_by_side(history: History) -> TableText | None:
    """Return the federated model, pooled training and each site's own model, one metric a column; ``None`` if none was measured."""
    central, mean = history.series.get("central"), history.series.get("sites")
    series = central or mean
    if series is None:
        return None
    names = order([name for name in series.last.metrics if name != "loss"])
    lead = headline(names)
    base = series.last.metrics.get(lead) if lead == "accuracy" else None
    where = "" if central else ", mean of the sites"

    def row(head: str, point: Measured, *, kind: str = "", share: bool = True) -> Row:
        return Row(
            head=head,
            cells=_cells(point, names, base if share and not kind else None, share=share),
            kind=kind,
        )

    # The mean of the sites weighs each site alike: it is no share of records and has no interval.
    rows = [
        row(
            f"Federated, round {series.last.round}{where}",
            series.last,
            kind="strong",
            share=central is not None,
        )
    ]
    if series.best.round != series.last.round:
        rows.append(
            row(f"Federated, best round ({series.best.round}){where}", series.best, share=central is not None)
        )
    if central and mean and mean.last.records:
        rows.append(row("Federated, mean of the sites' own tests", mean.last, share=False))
    if pooled := history.series.get("baseline:pooled"):
        rows.append(row("Trained on the pooled data", pooled.last))
    rows += _local_rows(history, names, base, lead)
    columns = ["Model"]
    for name in names:
        columns += (
            ["Accuracy\n95% interval", "Against federated\nin points"]
            if name == "accuracy"
            else [metric_label(name)]
        )
    return TableText(
        columns=(*columns, "Loss", "Test records"), rows=tuple(rows), note=_note(history, central is not None)
    )


def sites_table(history: History) -> TableText | None:
    """Return each site's records, the federated model on its own test records, and how it took part; long lists are cut."""
    sites = site_series(history)
    partition = _partition(history)
    known = list(
        dict.fromkeys([*(history.run.site_names if history.run else ()), *partition, *history.sites, *sites])
    )
    if not known:
        return None
    found = {name for series in sites.values() for name in series.last.metrics}
    metrics = order([name for name in _BY_SITE if name in found])
    lead = headline(metrics)
    values = {site: _lead(series, lead) for site, series in sites.items()}
    columns = ["Site", "Training records", *(metric_label(name) for name in metrics), "Loss", "Test records"]
    columns += ["Rounds answered", "Time a round", "Received", "Sent"]

    def row(site: str) -> Row:
        series, tally = sites.get(site), history.sites.get(site)
        last = series.last if series else None
        cells = [count(sum(partition[site])) if site in partition else DASH]
        cells += [metric_text(name, last.metrics.get(name) if last else None) for name in metrics]
        cells += [number(last.loss) if last else DASH, count(last.records) if last else DASH]
        if tally:
            cells += [_took_part(tally), seconds_text(tally.seconds / max(1, tally.answered))]
            cells += [bytes_text(tally.bytes_down), bytes_text(tally.bytes_up)]
        else:
            cells += ["not asked", *[DASH] * 3]
        return Row(head=shown(site), cells=tuple(cells))

    chosen, cut = ends(known, values)
    rows = [row(site) for site in chosen]
    if cut:
        rows.insert(
            ENDS, Row(head=f"{count(cut)} sites between them", cells=("",) * (len(columns) - 1), kind="rest")
        )
    note = "" if history.bytes_measured else "Received and sent are even shares of each round's traffic. "
    cut_note = f"The {ENDS} lowest and the {ENDS} highest of {count(len(known))} sites. " if cut else ""
    return TableText(columns=tuple(columns), rows=tuple(rows), note=cut_note + note)


def refused_table(history: History) -> TableText | None:
    """Return how often each reason was given, by which sites, with one full text; ``None`` when nothing was refused."""
    if not history.refused:
        return None
    rows = []
    for code, times in list(history.refused_by_reason.items())[:LISTED]:
        of_code = [refused for refused in history.refused if refused.code == code]
        sites = list(dict.fromkeys(refused.site for refused in of_code))
        example = of_code[0].reason
        detail = shown(example.removeprefix(f"{code}: "), 160) if example != code else DASH
        rows.append(Row(head=shown(code, 160), cells=(count(times), listed(sites, 4), detail)))
    return TableText(columns=("Reason", "Times", "Sites", "For example"), rows=tuple(rows))


def settings_table(spec: Mapping[str, Any], origins: Mapping[str, str]) -> TableText:
    """Return the effective federation file: each dotted key, its value as TOML has it, and where it came from."""
    rows = [Row(head=key, cells=(_value(value), origins.get(key, DASH))) for key, value in _leaves(spec)]
    return TableText(columns=("Key", "Value", "From"), rows=tuple(rows))


def _took_part(tally: SiteTally) -> str:
    failed = [
        f"{amount} {word}"
        for amount, word in ((tally.refused, "refused"), (tally.missing, "missing"))
        if amount
    ]
    return f"{tally.answered} of {tally.asked}" + ("\n" + ", ".join(failed) if failed else "")


def _cells(
    point: Measured, names: Sequence[str], base: float | None, *, share: bool = True
) -> tuple[str, ...]:
    cells = []
    for name in names:
        value = point.metrics.get(name)
        text = metric_text(name, value)
        if name != "accuracy":
            cells.append(text)
            continue
        if share and (interval := interval95(value, point.records)):
            text += f"\n{100 * interval[0]:.1f} to {percent(interval[1])}"
        cells += [text, _against(value, base)]
    return (*cells, number(point.loss), count(point.records))


def _against(value: float | None, base: float | None) -> str:
    if value is None or base is None:
        return DASH
    gap = round(100 * (value - base), 1)
    return f"{'+' if gap > 0 else '−' if gap < 0 else '±'}{abs(gap):.1f}"


def _local_rows(history: History, names: Sequence[str], base: float | None, lead: str | None) -> list[Row]:
    local = site_series(history, _LOCAL)
    chosen, cut = ends(list(local), {site: _lead(series, lead) for site, series in local.items()})
    rows = [Row(head=f"{shown(site)} alone", cells=_cells(local[site].last, names, base)) for site in chosen]
    if cut:
        found = {
            name: [s.last.metrics[name] for s in local.values() if name in s.last.metrics] for name in names
        }
        middle = {name: statistics.median(values) for name, values in found.items() if values}
        losses = [series.last.loss for series in local.values() if series.last.loss is not None]
        records = {series.last.records for series in local.values()}
        point = Measured(
            round=0,
            loss=statistics.median(losses) if losses else None,
            metrics=middle,
            confusion=None,
            records=next(iter(records)) if len(records) == 1 else None,
        )
        rows.insert(
            ENDS,
            Row(
                head=f"median of {count(len(local))} sites alone",
                cells=_cells(point, names, base),
                kind="rest",
            ),
        )
    return rows


def _note(history: History, central: bool) -> str:
    parts = []
    if not central and "sites" in history.series:
        parts.append(
            "The model was not measured centrally: figures are means over the sites' own test records."
        )
    if not any(where.startswith("baseline:") for where in history.series):
        parts.append(
            'No baselines were trained; ask for them with evaluation.baselines = ["pooled", "local"].'
        )
    return " ".join(parts)


def _partition(history: History) -> dict[str, list[int]]:
    partition = history.run.partition if history.run else None
    return dict((partition or {}).get("sites") or {})


def _lead(series: Series, lead: str | None) -> float | None:
    return series.last.metrics.get(lead) if lead else None


def ends(names: Sequence[str], values: Mapping[str, float | None]) -> tuple[list[str], int]:
    """Return all names of a short list as they come, or the lowest and highest of a long one, and how many were cut."""
    if len(names) <= LISTED:
        return list(names), 0
    known = [name for name in names if values.get(name) is not None]
    ordered = sorted(known, key=lambda name: (values[name], name)) if len(known) >= 2 * ENDS else list(names)
    return ordered[:ENDS] + ordered[-ENDS:], len(names) - 2 * ENDS


def _leaves(value: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    found: list[tuple[str, Any]] = []
    for key, inner in value.items():
        dotted = f"{prefix}.{key}" if prefix else str(key)
        found += _leaves(inner, dotted) if isinstance(inner, Mapping) else [(dotted, inner)]
    return found


def _value(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, default=str)
