"""Who trained the model on what, with which code: what the run's own record says, and whether it fits the files."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from safetensors import SafetensorError, safe_open

from cloister.core._version import __version__
from cloister.core.errors import CloisterError
from cloister.core.evidence import Finding, Verdict
from cloister.core.resolve import build_model
from cloister.core.update import Layout
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject

__all__ = ["check_provenance"]


def _section(found: Finding) -> Section:
    section, figures = Section(), found.figures
    section.table(
        ("What", "Value"),
        [(key.replace("_", " ").capitalize(), str(value)) for key, value in figures.get("facts", {}).items()],
    )
    sites = figures.get("sites", {})
    if sites:
        section.table(
            ("Site", "Rounds answered", "Refused", "Missing"),
            [
                (name, str(one["answered"]), str(one["refused"]), str(one["missing"]))
                for name, one in list(sites.items())[:100]
            ],
        )
    return section


@shown_as("Provenance", _section)
def check_provenance(subject: AuditSubject) -> Finding:
    """Set the run's events, its federation file and its model's own words against each other."""
    events = subject.events
    run = next((event for event in events if event["kind"] == "run"), None)
    end = next((event for event in reversed(events) if event["kind"] == "end"), None)
    if run is None:
        return Finding(
            name="provenance",
            verdict="no power",
            sentence="There is no record of the run beside the model.",
            power="It needs the run's events.",
        )
    layout = Layout.of(build_model(subject.task, subject.spec.federation.seed)).digest
    told = _fingerprint(subject)
    faults = _faults(subject, run, end, layout)
    notes = _notes(subject, run, end, told)
    versions = run.get("versions") or {}
    sites = _sites(events)
    rounds = sum(event["kind"] == "round" for event in events)
    facts: dict[str, Any] = {
        "federation": subject.spec.federation.name,
        "federation_hash": subject.loaded.digest(),
        "model_hash": subject.sha256,
        "model_layout": layout,
        "rounds": rounds,
        "sites_that_answered": sum(one["answered"] > 0 for one in sites.values()),
        "task": subject.spec.task.use,
        "data_fingerprint": told.get("data") or "not told",
        "code_fingerprint": told.get("code") or "not told",
        "versions": ", ".join(f"{name} {value}" for name, value in versions.items()),
        "began": run.get("time"),
        "ended": None if end is None else end.get("time"),
        "rule": run.get("rule"),
        "protection": run.get("protection"),
    }
    verdict: Verdict = "fail" if faults else "warn" if notes else "pass"
    why = (faults + notes)[0] if faults + notes else ""
    sentence = (
        f"{why[0].upper()}{why[1:]}."
        if why
        else f"{facts['sites_that_answered']} sites trained it in {rounds} rounds; federation file, record and model agree."
    )
    return Finding(
        name="provenance",
        verdict=verdict,
        sentence=sentence,
        figures={"facts": facts, "sites": sites, "faults": faults, "notes": notes},
        power="It could have shown files that do not belong together. The record is the server's own word: who can write the folder can write it anew; "
        "ledger heads and the certificate's signature speak against that.",
    )


def _faults(
    subject: AuditSubject, run: Mapping[str, Any], end: Mapping[str, Any] | None, layout: str
) -> list[str]:
    """Return what does not belong together."""
    about = _about(subject)
    told = [
        (
            run.get("digest") != subject.loaded.digest(),
            "the federation file in the folder is not the one that the run was made under",
        ),
        (
            run.get("layout") not in {None, layout},
            "the task's model is not laid out as the run's was",
        ),
        (
            about.get("layout") not in {None, layout},
            "the model's file says that it is laid out in another way",
        ),
        (
            about.get("federation") not in {None, subject.spec.federation.name},
            "the model's file says that it is of another federation",
        ),
        (
            end is None or end.get("model") is None,
            "the run's record does not say that it released a model",
        ),
    ]
    return [fault for holds, fault in told if holds]


def _notes(
    subject: AuditSubject,
    run: Mapping[str, Any],
    end: Mapping[str, Any] | None,
    told: Mapping[str, str],
) -> list[str]:
    """Return what somebody should know."""
    version = (run.get("versions") or {}).get("cloister")
    data, code = _prints(subject)
    found = [
        (
            end is not None and end.get("status") != "done",
            f"the run ended as '{(end or {}).get('status')}'",
        ),
        (
            version not in {None, __version__},
            f"it was made with version {version}, and is audited with {__version__}",
        ),
        (
            bool(told.get("data") and data) and told.get("data") != data,
            "the records at hand are not those that the run was made with",
        ),
        (
            bool(told.get("code") and code) and told.get("code") != code,
            "the task's code is not that which the run was made with",
        ),
    ]
    return [note for holds, note in found if holds]


def _about(subject: AuditSubject) -> dict[str, Any]:
    try:
        with safe_open(str(subject.file), framework="pt") as file:
            found = json.loads((file.metadata() or {}).get("cloister", "{}"))
    except (SafetensorError, OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _fingerprint(subject: AuditSubject) -> dict[str, str]:
    """Return the parts of the newest checkpoint's fingerprint."""
    for path in sorted((subject.path / "checkpoints").glob("round-*.safetensors"), reverse=True):
        try:
            with safe_open(str(path), framework="np") as file:
                for text in (file.metadata() or {}).values():
                    value = json.loads(text)
                    if isinstance(value, dict) and isinstance(value.get("fingerprint"), str):
                        pairs = [part.partition("=") for part in value["fingerprint"].split()]
                        return {key: rest for key, _, rest in pairs}
        except (SafetensorError, OSError, ValueError):
            continue
    return {}


def _prints(subject: AuditSubject) -> tuple[str, str]:
    """Return the fingerprints of the data and the code at hand, where the simulation part is installed."""
    for point in entry_points(group="cloister.partitions", name="fingerprint"):
        try:
            parts = [part.partition("=") for part in point.load()(subject.loaded).split()]
        except (CloisterError, ModuleNotFoundError):
            continue
        found = {key: rest for key, _, rest in parts}
        return found.get("data", ""), found.get("code", "")
    return "", ""


def _sites(events: list[dict[str, Any]]) -> dict[str, dict[str, int]]:
    seen: dict[str, Counter[str]] = {}
    for event in events:
        if event["kind"] == "site" and event.get("phase") == "train":
            seen.setdefault(str(event["site"]), Counter())[str(event["status"])] += 1
    return {
        name: {status: counts[status] for status in ("answered", "refused", "missing")}
        for name, counts in sorted(seen.items())
    }
