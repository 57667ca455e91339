"""``audits/summary.json`` as data: what the checks of a run found, and which thresholds are met. Read here, made in `cloister.server.audit.summary`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from cloister.core.errors import IntegrityError
from cloister.core.evidence import Finding

__all__ = ["FORMAT", "SUMMARY", "Summary", "Threshold", "read_summary"]

SUMMARY = "summary.json"
FORMAT = 1
_LARGEST = 1 << 26


@dataclass(frozen=True, kw_only=True)
class Threshold:
    """One threshold.

    Attributes:
        name: the key in ``[audit.require]``, or the check's name.
        required: in words.
        found: in words.
        met: whether it holds.
        asked: whether the file asks for it; else it is the rule for all checks.
    """

    name: str
    required: str
    found: str
    met: bool
    asked: bool = True

    def as_dict(self) -> dict[str, Any]:
        """Return plain data."""
        return asdict(self)


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
