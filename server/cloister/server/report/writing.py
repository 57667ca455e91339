"""From a run folder to its report: reads ``federation.toml`` and ``events.jsonl``, writes the three files whole or not at all."""

from __future__ import annotations

import json
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole
from cloister.server.events import read_events
from cloister.server.folding import Fold
from cloister.server.report.card import model_card
from cloister.server.report.clearance import Clearance, clearance_of
from cloister.server.report.figures import build_report
from cloister.server.report.page import render_page

__all__ = ["Rendered", "ReportPaths", "rendered", "write_report"]


@dataclass(frozen=True)
class ReportPaths:
    """Where the report lies: figures for machines, the page for people, the model card."""

    json: Path
    html: Path
    card: Path


@dataclass(frozen=True)
class Rendered:
    """The three files as texts."""

    json: str
    html: str
    card: str


def write_report(folder: Path) -> ReportPaths:
    """Write ``report.json``, ``report.html`` and ``model-card.md`` into a run folder.

    Only the folder's ``federation.toml``, ``events.jsonl`` and, where they are, ``origins.json``, ``audits/summary.json`` and
    ``release/certificate.json`` are read, so the report can be made again at any time, of a run that goes on too. Each file is
    replaced whole or not at all.

    Raises:
        IntegrityError: one of these files is missing or cannot be read as what it should be.
    """
    made = rendered(folder, clearance_of(folder))
    paths = ReportPaths(folder / "report.json", folder / "report.html", folder / "model-card.md")
    write_whole(paths.json, made.json)
    write_whole(paths.html, made.html)
    write_whole(paths.card, made.card)
    return paths


def rendered(folder: Path, clearance: Clearance) -> Rendered:
    """Return the report of a run whose model stands as ``clearance`` says.

    Raises:
        IntegrityError: see `write_report`.
    """
    spec = _read_toml(folder / "federation.toml")
    history = Fold.of(read_events(folder / "events.jsonl")).history()
    if history.run is None:
        raise IntegrityError(
            f"the events of '{folder}' have no 'run' event: there is nothing to report",
            remedy="check that it is a run folder",
            code="events",
        )
    report = build_report(folder, spec_effective=spec, history=history) | {"clearance": clearance.as_dict()}
    origins = _read_origins(folder / "origins.json")
    return Rendered(
        json=json.dumps(report, allow_nan=False, ensure_ascii=False, indent=1) + "\n",
        html=render_page(report=report, spec=spec, origins=origins, history=history, clearance=clearance),
        card=model_card(report=report, spec=spec, history=history, clearance=clearance),
    )


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise IntegrityError(
            f"cannot read '{path}': {error.strerror}",
            remedy="check that it is a run folder",
            code="run-folder",
        ) from None
    except ValueError as error:
        raise IntegrityError(
            f"'{path}' is not TOML: {error}", remedy="restore the file of the run", code="run-folder"
        ) from None


def _read_origins(path: Path) -> dict[str, str]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError):
        raise IntegrityError(
            f"cannot read '{path}' as JSON",
            remedy="restore the file of the run, or remove it",
            code="run-folder",
        ) from None
    if not isinstance(found, dict):
        raise IntegrityError(
            f"'{path}' does not hold a table",
            remedy="restore the file of the run, or remove it",
            code="run-folder",
        )
    return {str(key): str(value) for key, value in found.items()}
