"""The audits' part of a report: thresholds, every check with its verdict and power, and the figures that an expert recomputes it from."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from cloister.core.evidence import Finding
from cloister.server.report.clearance import Clearance
from cloister.server.report.tables import Row, TableText
from cloister.server.report.words import number, seconds_text, shown

__all__ = ["FoundInFull", "canaries_words", "checks_table", "figures_of", "thresholds_table"]

_VERDICTS = {"pass": "passed", "warn": "look", "fail": "failed", "no power": "no power"}
#: At most so many figures of a check are shown; all are in its file.
_FIGURES = 24
_INTERVAL = 2


@dataclass(frozen=True, kw_only=True)
class FoundInFull:
    """The figures of one check, in words."""

    name: str
    figures: tuple[tuple[str, str], ...]
    rest: int


def canaries_words(events: Mapping[str, Mapping[str, Any]]) -> str:
    """Return what the canaries that a run planted came to, by its own events; empty where it planted none.

    Args:
        events: the newest ``audit`` event of each check.
    """
    found = events.get("privacy")
    if found is None:
        return ""
    verdict, reason = str(found["verdict"]), str(found.get("reason", ""))
    if verdict in ("sealed", "opened"):
        return "Canaries in this run: not judged yet."
    words = f"Canaries in this run, on the promised epsilon: {verdict}. {reason[:1].upper()}{reason[1:]}."
    return shown(words, 1000)


def thresholds_table(clearance: Clearance) -> TableText | None:
    """Return what the federation file requires, and what was found; ``None`` where it requires nothing."""
    asked = [one for one in clearance.thresholds if one.asked or not one.met]
    if not asked:
        return None
    rows = [
        Row(
            head=shown(one.name.replace("_", " "), 60),
            cells=(shown(one.required, 80), shown(one.found, 120), "met" if one.met else "not met"),
            kind="" if one.met else "strong",
        )
        for one in asked
    ]
    return TableText(columns=("Threshold", "Required", "Found", ""), rows=tuple(rows))


def checks_table(clearance: Clearance) -> TableText | None:
    """Return each check with its verdict, what it found and what it could have shown; ``None`` where there was none."""
    if clearance.summary is None:
        return None
    rows = [
        Row(
            head=shown(found.name.replace("-", " ").capitalize(), 60),
            cells=(_VERDICTS[found.verdict], shown(found.sentence, 600), shown(found.power, 600)),
            kind="strong" if found.verdict == "fail" else "",
        )
        for found in clearance.findings
    ]
    seconds = sum(found.seconds for found in clearance.findings)
    return TableText(
        columns=("Check", "Verdict", "What was found", "What it could have shown"),
        rows=tuple(rows),
        note=f"Seed {clearance.summary.seed}, Cloister {shown(clearance.summary.version, 40)}, {seconds_text(seconds)}, {clearance.summary.at[:10]}. "
        '"No power" is no "passed": that check could have shown nothing here.',
    )


def figures_of(clearance: Clearance) -> list[FoundInFull]:
    """Return the figures of each check that looked at something."""
    made = []
    for found in clearance.findings:
        figures = list(_flat(found))
        if figures:
            made.append(
                FoundInFull(
                    name=shown(found.name, 60),
                    figures=tuple(figures[:_FIGURES]),
                    rest=max(0, len(figures) - _FIGURES),
                )
            )
    return made


def _flat(found: Finding) -> Iterator[tuple[str, str]]:
    yield from _leaves(found.figures, "")
    for name in found.artefacts:
        yield "file", shown(f"audits/{name}", 120)


def _leaves(value: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, str]]:
    for key, inner in value.items():
        name = shown(f"{prefix}{key}".replace("_", " "), 80)
        if isinstance(inner, Mapping):
            if prefix.count(".") < 1:
                yield from _leaves(inner, f"{prefix}{key}.")
        elif isinstance(inner, list | tuple):
            if len(inner) == _INTERVAL and all(isinstance(one, int | float) for one in inner):
                yield name, f"{number(float(inner[0]))} to {number(float(inner[1]))}"
        elif isinstance(inner, bool) or inner is None:
            yield name, {True: "yes", False: "no", None: "–"}[inner]
        elif isinstance(inner, int | float):
            yield (
                name,
                str(inner) if isinstance(inner, int) else number(inner if math.isfinite(inner) else None),
            )
        else:
            yield name, shown(inner, 120)
