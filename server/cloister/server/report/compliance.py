"""Which evidence of a run speaks to which requirement of the law, and what it leaves open. The table is data: ``compliance.toml``.

It is a map for those who must answer for the processing, and no legal advice: no row says that a requirement is met.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from cloister.server.report.clearance import Clearance
from cloister.server.report.words import (
    count,
    headline,
    interval95,
    metric_label,
    metric_text,
    number,
    percent,
    shown,
)

__all__ = [
    "TABLE",
    "Evidence",
    "Mapped",
    "Requirement",
    "evidence_in",
    "kinds",
    "laws_of",
    "requirements",
]

TABLE = Path(__file__).with_name("compliance.toml")


@dataclass(frozen=True, kw_only=True)
class Evidence:
    """One piece of evidence in a run.

    Attributes:
        text: what it says here.
        link: where on the page, or in which file, it stands.
    """

    text: str
    link: str


@dataclass(frozen=True, kw_only=True)
class Requirement:
    """One row.

    Attributes:
        law: ``GDPR``, ``HIPAA`` or ``EU AI Act``.
        article: of the law.
        requirement: what it asks for, in our words.
        evidence: keys of the evidence that speaks to it.
        open: what that does not cover.
    """

    law: str
    article: str
    requirement: str
    evidence: tuple[str, ...]
    open: str


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """One row of the page: a requirement, what this run has on it, and what is left open."""

    article: str
    requirement: str
    evidence: tuple[Evidence, ...]
    open: str


def laws_of(report: Mapping[str, Any], clearance: Clearance) -> list[tuple[str, list[Mapped]]]:
    """Return each law with its rows, filled in with what this run has.

    Args:
        report: the figures of ``report.json``.
        clearance: what the audits came to.
    """
    found = evidence_in(report, clearance)
    laws: dict[str, list[Mapped]] = {}
    for one in requirements():
        row = Mapped(
            article=one.article,
            requirement=one.requirement,
            evidence=tuple(found[key] for key in one.evidence),
            open=one.open,
        )
        laws.setdefault(one.law, []).append(row)
    return list(laws.items())


@cache
def requirements() -> tuple[Requirement, ...]:
    """Return the table's rows."""
    return tuple(
        Requirement(**{**row, "evidence": tuple(row["evidence"])}) for row in _table()["requirement"]
    )


@cache
def kinds() -> Mapping[str, Mapping[str, str]]:
    """Return each kind of evidence: what it is (``about``), and where it stands (``link``)."""
    found: Mapping[str, Mapping[str, str]] = _table()["evidence"]
    return found


def evidence_in(report: Mapping[str, Any], clearance: Clearance) -> dict[str, Evidence]:
    """Return what this run has of each kind of evidence.

    Args:
        report: the figures of ``report.json``.
        clearance: what the audits came to.
    """
    checks = {one.name: one for one in clearance.findings}

    def told(key: str) -> str:
        if key in _TOLD:
            return _TOLD[key](report, clearance)
        found = checks.get(key)
        if found is None:
            return f"Check '{key}': not made."
        verdict = {"warn": "to be looked at", "no power": "no power to tell"}.get(
            found.verdict, found.verdict
        )
        return f"Check '{key}': {verdict}. {shown(found.sentence, 130)}"

    return {key: Evidence(text=told(key), link=kind["link"]) for key, kind in kinds().items()}


def _dp(report: Mapping[str, Any], _: Clearance) -> str:
    private = report["privacy"]
    if private["unit"] == "none":
        return "No differential privacy was applied."
    return (
        f"ε = {number(private['epsilon'])} at δ = {number(private['delta'])}, unit: {shown(private['unit'])}."
    )


def _saw(report: Mapping[str, Any], _: Clearance) -> str:
    sees = report["aggregation"]["visible_to"]["server"]["sees"]
    return shown(sees[0], 130) if sees else "Nothing."


def _ledgers(report: Mapping[str, Any], _: Clearance) -> str:
    sites = report["privacy"]["sites"]
    kept = sum(1 for one in sites.values() if one.get("ledger"))
    return (
        f"{count(kept)} of {count(len(sites))} sites told the head of their ledger."
        if sites
        else "No ledger was told of."
    )


def _quality(report: Mapping[str, Any], _: Clearance) -> str:
    measured = report["metrics"]["central"] or report["metrics"]["sites_mean"]
    if not measured:
        return "The model was not measured."
    last = measured["last"]
    name = headline(list(last))
    if name is None:
        return f"Loss {number(last['loss'])}."
    interval = (
        interval95(last[name], last["records"])
        if name == "accuracy" and report["metrics"]["central"]
        else None
    )
    range_ = f" (95%: {percent(interval[0])} to {percent(interval[1])})" if interval else ""
    return f"{metric_label(name)} {metric_text(name, last[name])}{range_} on {count(last['records'])} test records."


def _thresholds(_: Mapping[str, Any], clearance: Clearance) -> str:
    asked = [one for one in clearance.thresholds if one.asked]
    if clearance.summary is None:
        return "Not audited."
    met = sum(one.met for one in asked)
    return (
        f"{met} of {len(asked)} thresholds are met." if asked else "The federation file sets no thresholds."
    )


def _certificate(_: Mapping[str, Any], clearance: Clearance) -> str:
    return (
        f"Signed on {clearance.at[:10]}."
        if clearance.state == "released"
        else "No certificate: the model is not released."
    )


def _refused(report: Mapping[str, Any], _: Clearance) -> str:
    refused = sum(report["aggregation"]["refused"].values())
    return f"{count(refused)} replies were refused." if refused else "No reply was refused."


_TOLD: Mapping[str, Callable[[Mapping[str, Any], Clearance], str]] = {
    "dp": _dp,
    "server-saw": _saw,
    "ledger-heads": _ledgers,
    "quality": _quality,
    "thresholds": _thresholds,
    "certificate": _certificate,
    "refused": _refused,
    "card": lambda *_: "The model card states task, data, intended use and limits.",
    "federation": lambda report, _: (
        f"Federation file with hash {shown(report.get('digest') or '–', 17)}, known to every site beforehand."
    ),
    "events": lambda report, _: f"Every message of {count(report['rounds'])} rounds is in events.jsonl.",
    "seed": lambda report, _: (
        f"Seed {report['seed']}."
        if report.get("reproducible", True)
        else "Randomness of the operating system."
    ),
}


def _table() -> dict[str, Any]:
    return tomllib.loads(TABLE.read_text(encoding="utf-8"))
