"""What a page shows of a run, part by part, as plain data: figures as numbers, foreign texts cut and made harmless.

Every name, reason and message of somebody else passes through `cloister.server.report.words.shown`; the page sets it as text and never as markup.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cloister.server.history import PHASES
from cloister.server.report.spent import SpentSoFar
from cloister.server.report.verdict import site_noun, verdict
from cloister.server.report.words import interval95, metric_label, metric_text, order, shown
from cloister.server.watching.book import Book, SiteNow

__all__ = [
    "LISTED",
    "audits",
    "curves",
    "head",
    "privacy",
    "progress",
    "refused",
    "signals",
    "sites",
    "table",
    "traffic",
    "warnings",
]

#: At most so many sites are listed one by one: first those that something is wrong with.
LISTED = 200
_REASON, _STATEMENT, _NEWEST = 240, 2000, 60
_PATH = 200


def table(spec: Mapping[str, Any] | None, name: str) -> Mapping[str, Any]:
    """Return a table of the federation file; empty where it has none."""
    found = (spec or {}).get(name)
    return found if isinstance(found, Mapping) else {}


def head(
    path: Path, book: Book, spec: Mapping[str, Any] | None, *, state: str, place: tuple[int, int]
) -> dict[str, Any]:
    """Return what the run is, how it stands and what it came to."""
    run, end = book.fold.run, book.fold.end
    sentences: list[str] = []
    if spec is not None and run is not None and (book.ended or end is not None):
        protection = str(table(spec, "aggregation").get("protection", "plain"))
        unit = str(table(spec, "privacy").get("unit", "none"))
        try:
            sentences = list(verdict(book.history(), protection=protection, unit=unit))
        except (KeyError, TypeError, ValueError):  # events of another version
            sentences = []
    offset, size = place
    name = run.name if run else table(spec, "federation").get("name") or path.name
    return {
        "name": shown(name),
        "folder": shown(path, _PATH),
        "state": state,
        "task": shown(run.task.get("name") or run.task.get("use") or "") if run else "",
        "engine": shown(run.engine or "") if run else "",
        "rule": shown(run.rule or "") if run else "",
        "protection": shown(run.protection or "") if run else "",
        "parameters": run.parameters if run else None,
        "seed": run.seed if run else None,
        "digest": shown(run.digest or "", 64) if run else "",
        "nouns": site_noun(run),
        "sentences": [shown(sentence, 1000) for sentence in sentences if sentence],
        "end": None
        if end is None
        else {"code": shown(end.code or ""), "message": shown(end.message or "", 600)},
        "reading": None if offset >= size or not size else round(offset / size, 3),
        "unreadable": book.unreadable,
    }


def progress(book: Book, spec: Mapping[str, Any] | None, *, state: str, now: float) -> dict[str, Any]:
    """Return rounds, the sites heard of in this one, and the time left by the median pace of the newest rounds."""
    run = book.fold.run
    planned = run.rounds if run else table(spec, "federation").get("rounds")
    pace, left = book.pace(), None
    ended = book.newest if state not in ("running", "quiet") else now
    if state == "running" and pace is not None and planned is not None and book.round_at is not None:
        rounds = planned - book.ended
        left = max(0.0, rounds * pace - min(pace, max(0.0, now - book.round_at)))
    heard = list(book.heard.values())
    active = state in ("running", "quiet") and planned is not None and book.ended < planned
    return {
        "round": book.ended,
        "rounds": planned,
        "doing": max(book.number, book.ended + 1) if active else None,
        "phase": (book.phase or "train") if active else "",
        "heard": len(heard) if active else 0,
        "refused": heard.count("refused") if active else 0,
        "asked": _asked(book, spec) if active else None,
        "pace_s": pace,
        "left_s": left,
        "elapsed_s": None if book.begun is None or ended is None else max(0.0, ended - book.begun),
        "begun": book.begun,
        "newest": book.newest,
        "now": now,
    }


def _asked(book: Book, spec: Mapping[str, Any] | None) -> int | None:
    """How many sites the round asks; ``None`` where chance decides and the events do not say."""
    run, drawn = book.fold.run, table(spec, "cohort").get("per_round", "all")
    if isinstance(drawn, int):
        return drawn
    return run.sites if run is not None and drawn == "all" else None


def sites(
    book: Book, spec: Mapping[str, Any] | None, spent: SpentSoFar | None, *, state: str
) -> dict[str, Any]:
    """Return the sites, those that something is wrong with first: what each does, did, sent and spent."""
    run = book.fold.run
    everyone = table(spec, "cohort").get("per_round", "all") == "all"
    active = state in ("running", "quiet") and run is not None and book.ended < run.rounds
    phase = book.phase or "train"
    names = dict.fromkeys([*book.names, *book.sites])
    rows = []
    for name in names:
        site = book.sites.get(name) or SiteNow()
        now = book.heard.get(name, "awaited" if active and everyone else "")
        rows.append((name, site, now))
    # Those who need a look come first.
    rows.sort(key=lambda row: (-_trouble(row[1]), row[0]))
    costs = spent.sites if spent else {}
    listed = []
    for name, site, now in rows[:LISTED]:
        cost, told, point = costs.get(name), book.fold.privacy.get(name), site.measured
        ledger = told.get("ledger") if told else None
        lead = book.lead if point is not None and book.lead in point.metrics else None
        listed.append(
            {
                "site": shown(name),
                "now": now or (site.status if not active else ""),
                "phase": phase if active else "",
                "asked": site.total.asked,
                "answered": site.total.answered,
                "refused": site.total.refused,
                "missing": site.total.missing,
                "seen": site.seen,
                "seconds": site.total.seconds / site.total.asked if site.total.asked else None,
                "down": site.total.bytes_down,
                "up": site.total.bytes_up,
                "measured": None
                if point is None
                else _figure(lead, point.metrics[lead]) | {"round": point.round, "records": point.records}
                if lead is not None
                else None,
                "epsilon": cost.epsilon if cost else (told or {}).get("epsilon"),
                "ledger": cost.ledger if cost else (ledger or {}).get("epsilon"),
                "cap": cost.cap if cost else (told or {}).get("cap"),
            }
        )
    awaited = [shown(name) for name, _, now in rows if now == "awaited"]
    return {
        "total": run.sites if run else len(rows),
        "listed": listed,
        "cut": max(0, (run.sites if run else len(rows)) - len(listed)),
        "awaited": awaited[:12],
        "awaited_count": len(awaited),
        "never": sum(site.seen is None for _, site, _ in rows),
        "measure": None if book.lead is None else metric_label(book.lead),
    }


def _trouble(site: SiteNow) -> int:
    return site.total.refused + site.total.missing + (site.status in ("refused", "missing"))


def _figure(name: str, value: float | None) -> dict[str, Any]:
    return {
        "name": name,
        "label": metric_label(name),
        "value": value,
        "text": metric_text(name, value),
        "share": metric_text(name, 0.5).endswith("%"),
    }


def curves(book: Book) -> dict[str, Any]:
    """Return the curves of the metrics (the one that speaks for the model first), of each site, and of loss and update norm."""
    names = order([name for name, _ in book.metrics])
    if book.lead in names:
        names = [book.lead, *(name for name in names if name != book.lead)]
    metrics = [
        {
            **_figure(name, None),
            "series": [
                {"name": label, "points": book.metrics[name, where].points()}
                for where, label in (("central", "Pooled test records"), ("sites", "Mean of the sites"))
                if (name, where) in book.metrics
            ],
        }
        for name in names
    ]
    lead = book.lead if book.lead in book.bands else "loss"
    band = book.bands.get(lead)
    return {
        "metrics": metrics,
        "lead": _lead(book),
        "sites": None
        if band is None
        else {
            **_figure(lead, None),
            "lines": [
                {"name": shown(name), "points": lines[lead].points()}
                for name, lines in book.lines.items()
                if lead in lines
            ],
            "count": len([site for site in book.sites.values() if site.measured is not None]),
            "band": band.points(),
        },
        "training_loss": book.loss.points(),
        "update_norm": book.norm.points(),
    }


def _lead(book: Book) -> list[dict[str, Any]]:
    """The newest figures of the metric that speaks for the model, with 95% intervals where it is a share of records."""
    found = []
    for where, label in (
        ("central", "on the pooled test records"),
        ("sites", "mean of the sites' own records"),
        ("baseline:pooled", "trained on the pooled data"),
    ):
        point = book.measured.get(where)
        name = book.lead if point is not None and book.lead in point.metrics else None
        if point is None or name is None:
            continue
        value = point.metrics[name]
        # The mean of the sites is no share of all their records: no interval of one.
        interval = (
            interval95(value, point.records)
            if name == "accuracy" and where != "sites" and isinstance(point.records, int)
            else None
        )
        found.append(
            _figure(name, value)
            | {"where": label, "round": point.round, "records": point.records}
            | {"interval": None if interval is None else [metric_text(name, end) for end in interval]}
        )
    return found


def privacy(
    book: Book, spec: Mapping[str, Any] | None, spent: SpentSoFar | None, *, at: int, refused: str
) -> dict[str, Any]:
    """Return ε by round with the accountant's projection, against what is allowed and the smallest cap that a site told.

    Args:
        book: the run.
        spec: its federation file.
        spent: the accountant's figures, where it has any yet.
        at: the round after which they hold; what is spent is never told as less than the events have told since.
        refused: why there are none.
    """
    told: Mapping[str, Any] = book.fold.privacy.get("") or {}
    asked = table(spec, "privacy")
    history = book.spent.points()
    figures = [value for _, value in history[-1:]]
    figures += [cost.epsilon for cost in spent.sites.values()] if spent else []
    projection = list(spent.projection) if spent else []
    newest = history[-1][0] if history else 0
    return {
        "unit": shown(asked.get("unit", "")),
        "delta": told.get("delta", asked.get("delta")),
        "allowed": spent.allowed if spent else asked.get("epsilon"),
        "cap": spent.cap if spent else None,
        "spent": max(figures, default=None),
        "at": max(at if spent else 0, newest),
        "sites_at": at if spent else newest,
        "at_end": projection[-1][1] if projection and book.fold.end is None else None,
        "history": history,
        "projection": [point for point in projection if point[0] >= newest],
        "statement": shown(told["statement"].replace("\n", " "), _STATEMENT)
        if isinstance(told.get("statement"), str)
        else "",
        "refused": shown(refused, _REASON),
    }


def refused(book: Book) -> dict[str, Any]:
    """Return how many replies were refused and why, and the newest of them."""
    return {
        "total": sum(book.refusals.values()),
        "by_reason": [[shown(code, 80), times] for code, times in book.refusals.most_common(20)],
        "newest": [
            {
                "round": one.round,
                "site": shown(one.site),
                "phase": shown(one.phase),
                "reason": shown(one.reason, _REASON),
                "time": at,
            }
            for one, at in list(book.refused)[: -_NEWEST - 1 : -1]
        ],
    }


def signals(book: Book) -> dict[str, Any] | None:
    """Return what stood out of the rounds' updates; ``None`` where the events have no signals."""
    if book.signals is None:
        return None
    keys = ("norm", "cosine", "agreement", "weight")
    return {
        "round": book.signals["round"],
        "toward": shown(book.signals["toward"] or ""),
        "rows": [
            {"who": shown(row.get("who")), **{key: _number(row.get(key)) for key in keys}}
            for row in book.signals["rows"]
        ],
        "alerts": [
            {
                "who": shown(alert.get("who")),
                "signal": shown(alert.get("signal")),
                "value": _number(alert.get("value")),
                "middle": _number(alert.get("middle")),
                "of": _number(alert.get("of")),
                "round": alert["round"],
            }
            for alert in reversed(book.alerts)
        ],
        "cosine": book.cosine.points(),
    }


def _number(value: Any) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def traffic(book: Book) -> dict[str, Any]:
    """Return bytes and seconds: of the whole run, and by round and phase."""
    phases: Sequence[str] = [*PHASES, *(phase for phase in book.seconds if phase not in PHASES)]
    return {
        "down": book.total_down,
        "up": book.total_up,
        "asked": book.asked,
        "answered": book.answered,
        "by_round": {"down": book.down.points(), "up": book.up.points()},
        "seconds": [
            {"phase": shown(phase), "seconds": book.seconds[phase], "points": book.by_phase[phase].points()}
            for phase in phases
            if phase in book.seconds
        ],
    }


def audits(book: Book, found: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what audits found: from the run's folder, and from its events where the folder has none of that name."""
    known = {one["check"] for one in found}
    told = [
        {
            "check": shown(check),
            "verdict": shown(event.get("verdict", "")),
            "sentence": shown(event.get("reason") or "", 600),
            "power": shown(event["power"], 600) if isinstance(event.get("power"), str) else "",
            "file": "",
        }
        for check, event in book.fold.history().audits.items()
        if shown(check) not in known
    ]
    return [*map(dict, found), *told]


def warnings(book: Book) -> list[str]:
    """Return the newest warnings, the newest first."""
    return [shown(text, 400) for text in reversed(list(book.fold.warnings))][:_NEWEST]
