"""``cloister audit transcript RUN``: what could the server read of one site, shown from everything that it received."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from cloister.core.errors import AuditFailed
from cloister.core.outcome import JsonOption, outcome, settle

__all__ = ["PAGE", "register", "transcript_command"]

PAGE, FIGURES = "audit-transcript.html", "audit-transcript.json"


def register(app: typer.Typer) -> None:
    """Add ``transcript`` to ``app``."""
    app.command("transcript")(transcript_command)


def transcript_command(
    run: Annotated[Path, typer.Argument(metavar="RUN", help="The run's folder.", show_default=False)],
    authority: Annotated[
        str | None,
        typer.Option(
            "--authority",
            metavar="HEX",
            help="The public key that the consortium's authority must have.",
            show_default=False,
        ),
    ] = None,
    to: Annotated[
        Path | None,
        typer.Option(
            "--out",
            metavar="DIR",
            help="Where the page goes, by default into the run's folder.",
            show_default=False,
        ),
    ] = None,
    json_output: JsonOption = False,
) -> None:
    """Show from everything that the server received that no site's update, weight or metric can be read from it. Exit 8 if one can."""
    failed: AuditFailed | None = None
    with outcome(json_output) as out:
        from cloister.server.audit.transcript.auditing import audit_transcript
        from cloister.server.audit.transcript.telling import told

        out.progress.print("reading the transcript, and playing each session again", highlight=False)
        found = audit_transcript(run, authority=authority)
        paths = _write(found, run if to is None else to)
        out.result = found | paths
        if found["verdict"] != "passed":
            failed = _failure(found)
            out.result |= {"error": failed.as_dict()}
        out.say(*told(found))
        out.say(f"\npage  {paths['page']}")
    if failed is not None:
        raise typer.Exit(failed.exit_code if json_output else settle(failed, json_output=False))


def _failure(found: Mapping[str, Any]) -> AuditFailed:
    if found["verdict"] == "not protected":
        return AuditFailed(
            found["reason"],
            remedy="protect updates with aggregation.protection = 'masked', or trust the server with them",
            code="not-protected",
        )
    return AuditFailed(
        f"the server could read more than sums, or it cannot be shown that it could not: {found['reason']}",
        remedy="do not rely on this run's protection; find out which site or server did that",
        code="transcript-audit",
    )


def _write(found: Mapping[str, Any], folder: Path) -> dict[str, str]:
    from cloister.core.files import write_whole
    from cloister.server.audit.transcript.page import render_page

    page, figures = folder / PAGE, folder / FIGURES
    write_whole(page, render_page(found), mode=0o600)
    write_whole(figures, json.dumps(_finite(found), ensure_ascii=False, allow_nan=False) + "\n", mode=0o600)
    return {"page": str(page), "figures": str(figures)}


def _finite(value: Any) -> Any:
    """Return plain data without numbers that JSON cannot hold."""
    if isinstance(value, Mapping):
        return {str(key): _finite(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
