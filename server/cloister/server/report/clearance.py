"""Where a run's model stands: released, barred, or not looked at yet. The first thing that a report says.

Read from the files beside the run: ``audits/summary.json`` and ``release/certificate.json``. Signatures are not checked here: that is `cloister verify`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from cloister.core.evidence import Finding
from cloister.server.audit.verdicts import Summary, Threshold, read_summary
from cloister.server.report.words import listed, plural

__all__ = ["RELEASE", "Clearance", "clearance_of"]

#: The folder of a release, and of findings, in the run's.
RELEASE, AUDITS = "release", "audits"
_LARGEST = 1 << 22

State = Literal["released", "passed", "barred", "not audited"]
_WORDS: Mapping[State, str] = {
    "released": "Released",
    "passed": "Passed, not released yet",
    "barred": "Not released",
    "not audited": "Not audited",
}


@dataclass(frozen=True, kw_only=True)
class Clearance:
    """What became of a run's model.

    Attributes:
        state: see `State`.
        sentence: why, for a reader who decides.
        at: when it was released, or audited; empty where neither.
        summary: what the audits found; ``None``: there were none of this model.
    """

    state: State
    sentence: str
    at: str = ""
    summary: Summary | None = None

    @classmethod
    def released(cls, at: str, summary: Summary) -> Clearance:
        """Return that of a model that is released now."""
        asked = sum(one.asked for one in summary.thresholds)
        why = (
            f"it meets {plural(asked, 'threshold')} of its federation file, and no other check failed"
            if asked
            else "no check failed; its federation file sets no thresholds"
        )
        return cls(
            state="released",
            sentence=f"This model was released on {at[:10]}: {why}.",
            at=at,
            summary=summary,
        )

    @property
    def word(self) -> str:
        """The state in words."""
        return _WORDS[self.state]

    @property
    def findings(self) -> tuple[Finding, ...]:
        """What the checks found."""
        return self.summary.findings if self.summary else ()

    @property
    def thresholds(self) -> tuple[Threshold, ...]:
        """What was required."""
        return self.summary.thresholds if self.summary else ()

    @property
    def failed(self) -> str:
        """What failed or could not be shown, in one sentence."""
        if self.summary is None:
            return "Nothing was looked at."
        missed = [one.name for one in self.thresholds if not one.met]
        blind = [one.name for one in self.findings if one.verdict == "no power"]
        look = [one.name for one in self.findings if one.verdict == "warn"]
        parts = [f"Not met: {listed(missed, 6)}." if missed else "Nothing failed."]
        parts += [f"To be looked at: {listed(look, 6)}."] if look else []
        parts += [f"Without power to tell: {listed(blind, 8)}."] if blind else []
        return " ".join(parts)

    def as_dict(self) -> dict[str, Any]:
        """Return what ``report.json`` says of it."""
        return {
            "state": self.state,
            "sentence": self.sentence,
            "at": self.at or None,
            "failed": self.failed,
            "checks": {one.name: one.verdict for one in self.findings},
            "thresholds": [one.as_dict() for one in self.thresholds],
            "seed": self.summary.seed if self.summary else None,
        }


def clearance_of(folder: Path) -> Clearance:
    """Return where the model in a run's folder stands.

    Raises:
        IntegrityError: (audit-summary) the summary of its audits cannot be read.
    """
    summary = read_summary(folder / AUDITS)
    if summary is None:
        return Clearance(
            state="not audited",
            sentence="Nobody has looked yet at what this model gives away, and whether it is sound.",
        )
    digest = _digest(folder / "model.safetensors")
    if digest != summary.model:
        return Clearance(
            state="not audited",
            sentence="The audits that lie here are of another model than this one.",
        )
    at = _released_at(folder / RELEASE / "certificate.json", digest)
    if at:
        return Clearance.released(at, summary)
    missed = [one for one in summary.thresholds if not one.met]
    if missed:
        told = "; ".join(f"{one.name}: {one.found}, required: {one.required}" for one in missed[:4])
        more = f"; and {len(missed) - 4} more" if len(missed) > 4 else ""
        return Clearance(
            state="barred",
            sentence=f"This model is not to be used: {plural(len(missed), 'threshold is', 'thresholds are')} not met ({told}{more}).",
            at=summary.at,
            summary=summary,
        )
    return Clearance(
        state="passed",
        sentence="The audits bar nothing; nobody has signed a release.",
        at=summary.at,
        summary=summary,
    )


def _digest(path: Path) -> str:
    made = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                made.update(block)
    except OSError:
        return ""
    return made.hexdigest()


def _released_at(path: Path, model: str) -> str:
    """Return when the certificate says that this model was released; nothing where it is of another, or there is none."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(_LARGEST))["content"]
        return str(content["at"]) if content["model"]["sha256"] == model else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""
