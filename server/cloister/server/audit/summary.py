"""All checks of a run together: which there are, in which order, and what they come to."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister.core._version import __version__
from cloister.core.errors import StorageError
from cloister.core.evidence import Finding, installed_checks
from cloister.core.files import write_whole
from cloister.server.audit.record.claim import evidence_of
from cloister.server.audit.record.ledgers import ledgers_of
from cloister.server.audit.running import Check
from cloister.server.audit.subject import AuditSubject
from cloister.server.audit.thresholds import judged, measures_of
from cloister.server.audit.verdicts import SUMMARY, Summary

__all__ = ["checks_of", "settings_for", "summarised", "write_summary"]

#: The order in which checks are made and shown: what is claimed first, then the model. Checks of other packages come last.
_ORDER = (
    "provenance",
    "accounting",
    "ledgers",
    "transcript",
    "privacy",
    "membership",
    "leakage",
    "structure",
    "fit",
    "calibration",
    "fairness",
    "explanations",
    "novelty",
    "robustness",
    "backdoor",
    "poison",
    "drift",
    "fingerprint",
    "extraction",
)


def checks_of(asked: Sequence[str] | None) -> Iterator[tuple[str, Check]]:
    """Yield the checks to make, in order: those that are ``asked`` for, or every installed one.

    A name that is asked for and not installed is left out: its threshold is then not met.
    """
    installed = dict(installed_checks())
    names = [name for name in _ORDER if name in installed]
    names += [name for name in installed if name not in _ORDER]
    for name in names:
        if asked is None or name in asked:
            yield name, installed[name]


def settings_for(run: Path) -> dict[str, dict[str, Any]]:
    """Return what findings depend on beside the model: another audited run beside this one, other ledgers."""
    ledgers = [f"{path.name} {path.stat().st_mtime_ns} {path.stat().st_size}" for path in ledgers_of(run)]
    return {"privacy": {"evidence": evidence_of(run)}, "ledgers": {"files": ledgers}}


def summarised(subject: AuditSubject, findings: Sequence[Finding]) -> Summary:
    """Return the summary of ``findings``, with the thresholds of the run's own federation file."""
    return Summary(
        run=subject.path.name,
        federation=subject.loaded.digest(),
        model=subject.sha256,
        seed=subject.seed,
        settings=subject.settings,
        version=__version__,
        at=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        findings=tuple(findings),
        thresholds=tuple(judged(subject.spec, measures_of(subject.path), findings)),
    )


def write_summary(subject: AuditSubject, findings: Sequence[Finding]) -> Summary:
    """Write the summary of ``findings`` and return it.

    Raises:
        StorageError: the disk is full or refuses.
    """
    made, path = summarised(subject, findings), subject.folder / SUMMARY
    try:
        subject.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError.of(path, error) from None
    write_whole(path, json.dumps(made.as_dict(), allow_nan=False, ensure_ascii=False, indent=1) + "\n")
    return made
