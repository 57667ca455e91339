"""Findings as one page that needs nothing outside itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from cloister.core._version import __version__
from cloister.core.evidence import Finding
from cloister.server.audit.sections import Section
from cloister.server.audit.subject import AuditSubject
from cloister.server.report.tables import Row, TableText
from cloister.server.report.template import style, template
from cloister.server.report.words import plural, seconds_text, shown

__all__ = ["render_findings", "title_of"]

_TEMPLATES = Path(__file__).with_name("templates")
_PILL = {"pass": "done", "warn": "interrupted", "fail": "failed", "no power": "interrupted"}
_WORDS = {"pass": "passed", "warn": "look", "fail": "failed", "no power": "no power"}
_LONG = 600


def render_findings(
    subject: AuditSubject,
    findings: Sequence[Finding],
    checks: Mapping[str, Callable[..., Finding]],
    *,
    kind: str,
) -> str:
    """Return the page of ``findings``.

    Args:
        subject: what was looked at.
        findings: in the page's order.
        checks: the checks by name, for their titles and sections.
        kind: what the page is called.
    """
    failed, warned, blind = (
        [found for found in findings if found.verdict == verdict] for verdict in ("fail", "warn", "no power")
    )
    worst = "fail" if failed else "warn" if warned else "no power" if len(blind) == len(findings) else "pass"
    return template("findings.html", _TEMPLATES).render(
        style=style(),
        title=f"{shown(subject.spec.federation.name, 64)} – Cloister {kind} audit",
        kind=kind,
        name=shown(subject.spec.federation.name, 64),
        status=_PILL[worst],
        state=_WORDS[worst],
        verdict=shown((failed or warned or list(findings))[0].sentence, _LONG) if findings else "",
        tiles=[
            ("Passed", str(sum(found.verdict == "pass" for found in findings)), "could have shown a fault"),
            ("To look at", str(len(warned)), "a sign, and no proof"),
            ("Failed", str(len(failed)), "a fault was shown"),
            ("Without power", str(len(blind)), "could have shown nothing"),
        ],
        overview=TableText(
            columns=("Check", "Verdict", "What was found"),
            rows=tuple(
                Row(
                    head=title_of(found.name, checks),
                    cells=(_WORDS[found.verdict], shown(found.sentence, _LONG)),
                    kind="strong" if found.verdict == "fail" else "",
                )
                for found in findings
            ),
        ),
        parts=[_part(found, checks) for found in findings],
        facts=_facts(subject, findings),
    )


def title_of(name: str, checks: Mapping[str, Callable[..., Finding]]) -> str:
    """Return how a page calls a check."""
    return shown(getattr(checks.get(name), "title", None) or name.replace("-", " ").capitalize(), 60)


def _part(found: Finding, checks: Mapping[str, Callable[..., Finding]]) -> dict[str, Any]:
    make = getattr(checks.get(found.name), "section", None)
    try:
        section = make(found) if callable(make) else Section()
    except (
        KeyError,
        TypeError,
        ValueError,
        IndexError,
    ):  # a finding without its figures: nothing was looked at
        section = Section()
    return {
        "title": title_of(found.name, checks),
        "status": _PILL[found.verdict],
        "verdict": _WORDS[found.verdict],
        "sentence": shown(found.sentence, _LONG),
        "power": shown(found.power, 1200),
        "tables": section.tables,
        "plots": section.plots,
    }


def _facts(subject: AuditSubject, findings: Sequence[Finding]) -> list[tuple[str, str]]:
    facts = [
        ("Looked at", str(subject.path)),
        ("Model", subject.sha256),
        ("Federation hash", subject.loaded.digest()),
        ("Task", subject.spec.task.use),
        ("Seed", str(subject.seed)),
        (
            "Time",
            f"{seconds_text(sum(found.seconds for found in findings))}, {plural(len(findings), 'check')}",
        ),
        ("Version", __version__),
    ]
    return [(key, shown(value, 200)) for key, value in facts if value]
