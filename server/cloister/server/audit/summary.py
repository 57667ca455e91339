"""All checks of a run together: ``audits/summary.json``, what it holds and when it still holds.

The summary says of which model, federation, seed and version it is. `read_summary` gives it back only for the very model that lies in the run's folder; a
finding that was written down and changed since is refused.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cloister.core._version import __version__
from cloister.core.errors import IntegrityError, StorageError
from cloister.core.files import write_whole
from cloister.core.evidence import Finding, installed_checks
from cloister.server.audit.record.claim import evidence_of
from cloister.server.audit.record.ledgers import ledgers_of
from cloister.server.audit.running import Check
from cloister.server.audit.subject import AuditSubject
from cloister.server.audit.thresholds import Threshold, judged, measures_of

__all__ = [
    "FORMAT",
    "SUMMARY",
    "Summary",
    "checks_of",
    "read_summary",
    "settings_for",
    "summarised",
    "write_summary",
]

SUMMARY = "summary.json"
FORMAT = 1
_LARGEST = 1 << 26
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


@dataclass(frozen=True, kw_only=True)
class Summary:
    """What an audit of a run came to.

    Attributes:
        run: the folder's name.
        federation: digest.
        model: SHA-256 of its file.
        seed: of everything that checks drew.
        settings: by check, what it was told.
        version: of Cloister.
        at: when it was made, UTC.
        findings: in order.
        thresholds: what the federation file asks for, and whether it is met.
    """

    run: str
    federation: str
    model: str
    seed: int
    settings: Mapping[str, Any]
    version: str
    at: str
    findings: tuple[Finding, ...]
    thresholds: tuple[Threshold, ...]

    @property
    def met(self) -> bool:
        """Whether every threshold is."""
        return all(one.met for one in self.thresholds)

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return {
            "format": FORMAT,
            "run": self.run,
            "federation": self.federation,
            "model": self.model,
            "seed": self.seed,
            "settings": {name: dict(told) for name, told in self.settings.items()},
            "version": self.version,
            "at": self.at,
            "met": self.met,
            "checks": [found.as_dict() for found in self.findings],
            "thresholds": [one.as_dict() for one in self.thresholds],
        }


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


def read_summary(folder: Path) -> Summary | None:
    """Return the summary in a folder of findings; ``None`` where there is none.

    Raises:
        IntegrityError: (audit-summary) it cannot be read as one.
    """
    path = folder / SUMMARY
    try:
        with path.open("rb") as file:
            value = json.loads(file.read(_LARGEST))
        if value["format"] != FORMAT:
            raise ValueError  # noqa: TRY301 - one answer for all that is wrong with it
        texts = {name: str(value[name]) for name in ("run", "federation", "model", "version", "at")}
        return Summary(
            **texts,
            seed=int(value["seed"]),
            settings=dict(value["settings"]),
            findings=tuple(Finding.from_dict(one) for one in value["checks"]),
            thresholds=tuple(Threshold(**one) for one in value["thresholds"]),
        )
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, RecursionError, IntegrityError):
        raise IntegrityError(
            f"'{path}' is no summary of an audit",
            remedy="remove it, and audit again: cloister audit run",
            code="audit-summary",
        ) from None
