"""How a command of findings ends: a table, a page, JSON, and exit status 8 where a check failed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from rich.table import Table

from cloister.core.errors import AuditFailed, StorageError
from cloister.core.evidence import Finding
from cloister.core.files import write_whole
from cloister.core.outcome import Outcome, visible
from cloister.server.audit.page import render_findings, title_of
from cloister.server.audit.subject import AuditSubject

__all__ = ["end_audit"]


def end_audit(
    out: Outcome,
    subject: AuditSubject,
    findings: Sequence[Finding],
    checks: Mapping[str, Callable[..., Finding]],
    *,
    kind: str,
) -> None:
    """Write the page ``<kind>.html`` beside the findings and say what was found.

    Raises:
        AuditFailed: a check failed.
        StorageError: the page cannot be written.
    """
    page = subject.folder / f"{kind}.html"
    try:
        subject.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError.of(page, error) from None
    write_whole(page, render_findings(subject, findings, checks, kind=kind), mode=0o600)
    failed = [found for found in findings if found.verdict == "fail"]
    out.result = {
        "run": str(subject.path),
        "verdicts": {found.name: found.verdict for found in findings},
        "findings": {found.name: found.as_dict() for found in findings},
        "page": str(page),
        "folder": str(subject.folder),
    }
    table = Table(box=None, pad_edge=False)
    for column in ("check", "verdict", "what was found"):
        table.add_column(column, overflow="fold")
    for found in findings:
        table.add_row(title_of(found.name, checks), found.verdict, visible(found.sentence))
    out.say(table, f"\npage  {page}")
    if failed:
        refusal = AuditFailed(
            f"check '{failed[0].name}' failed: {failed[0].sentence}",
            remedy=f"read {page} before anybody uses this model",
        )
        if out.json_output:
            out.result = dict(out.result) | {"error": refusal.as_dict()}
        raise refusal
