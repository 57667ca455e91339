"""Does the federation keep the ε that it promises? What canaries showed: those that the run itself planted, and audited runs beside it.

A run that plants canaries (``audit.canaries``) is its own witness. An audited run (`cloister audit privacy`) is a run of its own, made on purpose, and found
here by what it audited: it speaks for this run if its claim is about the same mechanism: unit, noise, and ε at δ for all rounds.

==========================================  =====================================================================
case                                        verdict
==========================================  =====================================================================
any of them refutes the claim               fail
none does, and one of them had power        pass: the run's own canaries speak first
none of them had power                      no power
its site opened other coins than it sealed  fail
its figures are not what its events tell    fail
its coins were never opened                 what lies beside; else no power, with the reason
==========================================  =====================================================================
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cloister.core.errors import IntegrityError
from cloister.core.evidence import Finding, Verdict
from cloister.server.audit.budget.runs import ChargedRun, read_run
from cloister.server.audit.canaries.writing import FIGURES, sealed_and_opened
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject
from cloister.server.events import read_events

__all__ = ["FIGURES", "check_privacy", "evidence_of"]

_LARGEST = 1 << 26
#: Relative: two computations of one noise or one ε.
_NEAR = 1e-3
_VERDICTS: dict[str, Verdict] = {"consistent": "pass", "refuted": "fail", "no power": "no power"}


def evidence_of(run: Path) -> str:
    """Return a digest of the audited runs beside ``run``: another one there is another finding."""
    found = hashlib.sha256()
    for path, raw in _beside(run):
        found.update(path.parent.name.encode() + hashlib.sha256(raw).digest())
    return found.hexdigest()


def _section(found: Finding) -> Section:
    section, estimators = Section(), found.figures.get("estimators", [])
    if estimators:
        section.table(
            ("Estimator", "ε at least", "Reach", "Refutes from", "Decides"),
            [
                (
                    str(one["title"]),
                    _number(one.get("bound")),
                    _number(one.get("reach")),
                    _number(one.get("refutable")),
                    "yes" if one.get("decides") else "",
                )
                for one in estimators
            ],
            note=f"{found.figures.get('canaries')} canaries, seed {found.figures.get('seed')}; each bound at {found.figures.get('confidence', 0):.0%} confidence.",
        )
    return section


@shown_as("Privacy budget", _section)
def check_privacy(subject: AuditSubject) -> Finding:
    """Say what the run's own canaries and the audited runs of this federation's mechanism came to."""
    run = read_run(subject.path) if subject.path.is_dir() else None
    if run is None:
        return _nothing("The run promises no differential privacy: there is no claim to refute.")
    read = ((path, _read(raw)) for path, raw in _beside(subject.path))
    found = [(path, one) for path, one in read if one is not None and _same(one, subject, run)]
    own = [one for path, one in found if path.parent == subject.path.resolve()]
    fits = [one for _, one in found]
    if subject.spec.audit.canaries is not None:
        wrong = _wrong(subject.path, own)
        if wrong:
            return Finding(
                name="privacy",
                verdict="fail",
                sentence=wrong,
                power="It could have shown coins and figures that do not belong together. The record is the server's own word.",
            )
    if not fits:
        return _nothing(_why_not(subject))
    worst = max(
        fits, key=lambda one: (one["verdict"] == "refuted", one["verdict"] == "consistent", one in own)
    )
    verdict = _VERDICTS[worst["verdict"]]
    reason = str(worst["reason"])
    return Finding(
        name="privacy",
        verdict=verdict,
        sentence=f"{reason[0].upper()}{reason[1:]}."[:1000],
        figures={
            "run": worst.get("run"),
            "claim": worst["claim"],
            "lower_bound": worst["lower_bound"],
            "confidence": worst["confidence"],
            "decided_by": worst["decided_by"],
            "canaries": worst["canaries"],
            "seed": worst["set_up"].get("seed"),
            "seal": worst.get("seal"),
            "estimators": worst["estimators"],
            "audits": len(fits),
            "in_run": worst in own,
        },
        power=_power(worst, own=worst in own),
    )


def _beside(run: Path) -> Iterator[tuple[Path, bytes]]:
    for path in sorted(run.resolve().parent.glob(f"*/{FIGURES}")):
        try:
            if path.stat().st_size <= _LARGEST:
                yield path, path.read_bytes()
        except OSError:
            continue


def _read(raw: bytes) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(raw)
        numbers = [
            found["lower_bound"],
            found["confidence"],
            found["claim"]["epsilon"],
            found["claim"]["delta"],
        ]
        whole = all(isinstance(one, int | float) and math.isfinite(one) for one in numbers)
        fits = (
            found["check"] == "privacy"
            and found["verdict"] in _VERDICTS
            and isinstance(found["estimators"], list)
        )
        named = isinstance(found["set_up"], dict) and {"decided_by", "canaries", "reason"} <= set(found)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
    return found if whole and fits and named else None


def _same(found: Mapping[str, Any], subject: AuditSubject, run: ChargedRun) -> bool:
    """Whether that audit's claim is about this run's mechanism: the same noise, and the same ε for all rounds at the same δ."""
    told, claim, spec = found["set_up"], found["claim"], subject.spec
    noise, epsilon = told.get("noise_multiplier"), run.plan.spent(run.plan.rounds).epsilon
    return (
        told.get("federation") == spec.federation.name
        and told.get("unit") == spec.privacy.unit
        and claim["delta"] == run.plan.delta
        and isinstance(noise, int | float)
        and math.isclose(noise, run.plan.noise_multiplier, rel_tol=_NEAR)
        and math.isclose(claim["epsilon"], epsilon, rel_tol=_NEAR)
    )


def _wrong(run: Path, own: list[dict[str, Any]]) -> str:
    """Return what does not hold in the run's own audit; empty: nothing."""
    events = [one for one in read_events(run / "events.jsonl") if one.get("check") == "privacy"]
    void = next((one for one in events if one.get("verdict") == "void"), None)
    if void is not None:
        return f"The audit of the run is void: {void.get('reason')}."[:1000]
    try:
        seal, coins = sealed_and_opened(run / "events.jsonl")
    except IntegrityError:
        return "The run's events hold no coins that its figures could rest on." if own else ""
    bad = "The figures of the run's own audit are not what its events tell of the coins."
    fits = (
        one.get("seal") == seal and one.get("coins") == coins.included.astype(int).tolist() for one in own
    )
    return "" if own and all(fits) else bad


def _why_not(subject: AuditSubject) -> str:
    if subject.spec.audit.canaries is None:
        return "No audited run of this federation lies beside this one: nobody tried to refute its epsilon."
    events = (one for one in read_events(subject.path / "events.jsonl") if one.get("check") == "privacy")
    why = next(
        (one.get("reason") for one in events if one.get("verdict") == "incomplete"), "the run did not end"
    )
    return f"The run planted canaries, and they tell nothing: {why}."[:1000]


def _power(found: Mapping[str, Any], *, own: bool) -> str:
    deciding: Mapping[str, Any] = next((one for one in found["estimators"] if one.get("decides")), {})
    refutable = deciding.get("refutable")
    above = (
        "at no epsilon" if refutable is None else f"a mechanism that costs epsilon = {refutable:.3g} or more"
    )
    if own:
        told = found["set_up"]
        return (
            f"It could have shown {above}, in 9 of 10 such audits, if every round went as it was claimed. It is about this very run, at site '{told.get('site')}': other "
            "sites planted nothing."
        )
    return (
        f"It could have shown {above}, in 9 of 10 such audits. It is about another run of the same mechanism, made with canaries: it shows what the code does, "
        "not what each site did in this run."
    )


def _nothing(sentence: str) -> Finding:
    return Finding(
        name="privacy",
        verdict="no power",
        sentence=sentence,
        power="It needs an audited run: `cloister audit privacy FILE --out FOLDER`, with the folder in which this run lies.",
    )


def _number(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, int | float) else "–"
