"""One thing that a check of the data found."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

__all__ = ["SEVERITIES", "Finding", "Severity", "called", "of", "sorted_findings"]

Severity = Literal["error", "warning", "note"]
#: The gravest first. An error keeps the data set from being trained on; a warning wants a decision; a note is for knowing.
SEVERITIES: tuple[Severity, ...] = get_args(Severity)

_PLAIN = re.compile(r"[^\W\d_][\w .()/%°²³+-]{0,63}")


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One finding.

    Attributes:
        code: stable, for scripts; docs/site-data.md explains each.
        severity: how grave it is.
        what: names the place and counts records, and never holds a value of them.
        remedy: what to do.
        column: the column that it is about, if it is about one.
    """

    code: str
    severity: Severity
    what: str
    remedy: str
    column: str | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return it as plain data."""
        return asdict(self)


def called(column: str, place: int) -> str:
    """Return what messages call a column: its name, or its number where the name may be a value (a file without a header)."""
    return f"column '{column}'" if _PLAIN.fullmatch(column) else f"column {place + 1}"


def of(count: int, total: int) -> str:
    """Return how many of how many records."""
    return f"{count:,} of {total:,} records"


def sorted_findings(findings: list[Finding]) -> list[Finding]:
    """Return them, the gravest first, each only once."""
    unique: dict[tuple[str, str], Finding] = {}
    for finding in findings:
        unique.setdefault((finding.code, finding.what), finding)
    return sorted(unique.values(), key=lambda finding: SEVERITIES.index(finding.severity))
