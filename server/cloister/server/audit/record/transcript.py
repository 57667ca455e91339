"""What could the server read of one site? The audit of the transcript, as a check of the run."""

from __future__ import annotations

from cloister.core.errors import UsageError
from cloister.core.evidence import Finding
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject
from cloister.server.audit.transcript.auditing import audit_transcript

__all__ = ["check_transcript"]

_POWER = (
    "It could have shown a site's update, weight or metric in what the server received, or a vector that is no uniform noise to it. A transcript is "
    "the server's own record: a second channel does not stand in it."
)


def _section(found: Finding) -> Section:
    section, checks = Section(), found.figures.get("checks", [])
    if checks:
        section.table(
            ("Part", "Came to", "Why"),
            [(str(one.get("name")), str(one.get("verdict")), str(one.get("reason") or "")) for one in checks],
        )
    return section


@shown_as("What the server saw", _section)
def check_transcript(subject: AuditSubject) -> Finding:
    """Show from everything that the server received that no site's update can be read."""
    if subject.spec.aggregation.protection == "plain":
        return Finding(
            name="transcript",
            verdict="warn",
            sentence="Updates came in clear: the server could read every site's update.",
            figures={"protection": "plain"},
            power="It could have shown nothing better: the federation file protects no update from the server.",
        )
    try:
        found = audit_transcript(subject.path)
    except UsageError as error:
        return Finding(
            name="transcript",
            verdict="no power",
            sentence=f"What the server received was not written down: {error.message}.",
            power='It needs [audit] transcript = "full" or "bounded".',
        )
    kept = ("protection", "messages", "starts", "authority", "clear_fields", "checks", "reason")
    reason = str(found.get("reason") or "")
    passed = found["verdict"] == "passed"
    return Finding(
        name="transcript",
        verdict="pass" if passed else "fail",
        sentence=f"Of everything that the server received ({found['messages']} messages), it could read sums only."
        if passed
        else f"The server could read more than sums, or it cannot be shown that it could not: {reason}.",
        figures={key: found[key] for key in kept if key in found},
        power=_POWER,
    )
