"""Do the sites' ledgers and the run tell one story? Where the ledgers are at hand: in a simulation."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from cloister.core.evidence import Finding
from cloister.server.audit.budget.auditing import audit_budget
from cloister.server.audit.budget.runs import read_run
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject

__all__ = ["check_ledgers", "ledgers_of"]


def ledgers_of(run: Path) -> list[Path]:
    """Return the ledger files that a simulation kept; none where they are elsewhere."""
    try:
        folder = os.fsdecode((run / "ledgers.txt").read_bytes()).removesuffix("\n")
    except OSError:
        return []
    return sorted(Path(folder).glob("*/*.sqlite")) if folder else []


def _section(found: Finding) -> Section:
    section = Section()
    totals = found.figures.get("totals", [])
    if totals:
        section.table(
            ("Ledger", "Unit", "Charges", "ε recomputed", "ε by the ledger"),
            [
                (
                    one["ledger"],
                    one["unit"],
                    str(one["charges"]),
                    f"{one['epsilon']:.4g}",
                    f"{one['ledger_says']:.4g}",
                )
                for one in totals[:100]
            ],
        )
    faults = found.figures.get("discrepancies", [])
    if faults:
        section.table(("Discrepancy", "What"), [(one["code"], one["message"]) for one in faults[:50]])
    return section


@shown_as("Ledgers", _section)
def check_ledgers(subject: AuditSubject) -> Finding:
    """Verify the ledgers that are at hand, and hold them against the run, both ways."""
    run = read_run(subject.path) if subject.path.is_dir() else None
    ledgers = [] if run is None else _asked(ledgers_of(subject.path), set(run.asked))
    if not ledgers:
        return Finding(
            name="ledgers",
            verdict="no power",
            sentence="No ledger is at hand: each is at its site."
            if run is not None
            else "The run promises no differential privacy: nothing is charged to a ledger.",
            power="It needs the sites' ledgers: `cloister audit budget LEDGER --run RUN` where they are. The certificate names the head of each, "
            "so that a site can show later that its ledger holds the run.",
        )
    found: dict[str, Any] = audit_budget(ledgers, [subject.path])
    faults = found["discrepancies"]
    return Finding(
        name="ledgers",
        verdict="fail" if faults else "pass",
        sentence=f"{faults[0]['message'][0].upper()}{faults[0]['message'][1:]}."
        if faults
        else f"{len(ledgers)} ledgers verify, and hold every charge of this run and none that it did not cause.",
        figures={name: found[name] for name in ("totals", "discrepancies", "notes")},
        power="It could have shown a ledger that was changed, cut short or put back, a round that was not charged, or a charge below its cost.",
    )


def _asked(ledgers: list[Path], sites: set[str]) -> list[Path]:
    """Return the ledgers of the sites that the run asked; all, where names cannot be told from file names."""
    own = [path for path in ledgers if path.stem in sites]
    return own or ledgers
