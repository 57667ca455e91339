"""How does the model stand an adversary? The evaluation of `cloister audit robustness`, where somebody said what an adversary may change.

That is a statement about the world, and no default: it comes from ``[training.adversarial]``. Without it there is nothing to evaluate against.
"""

from __future__ import annotations

from typing import Any

from cloister.core.evidence import Finding
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject
from cloister.server.robustness.evaluation import Settings, evaluate
from cloister.server.robustness.subject import open_subject

__all__ = ["check_robustness"]

_RECORDS = 500


def _section(found: Finding) -> Section:
    section, attacks = Section(), found.figures.get("attacks", {})
    if attacks:
        section.table(
            ("Attack", "Accuracy", "95% interval"),
            [
                (name, f"{one['accuracy']:.3f}", "{:.3f} to {:.3f}".format(*one["interval"]))
                for name, one in attacks.items()
            ],
        )
    return section


@shown_as("Robustness", _section)
def check_robustness(subject: AuditSubject) -> Finding:
    """Attack the model with what the federation file says that an adversary can do."""
    told = subject.spec.training.adversarial
    if told is None:
        return Finding(
            name="robustness",
            verdict="no power",
            sentence="Nobody said what an adversary can change: the model was not attacked.",
            power="It needs [training.adversarial], or `cloister audit robustness RUN --epsilon E`.",
        )
    if not subject.sites:
        return Finding(
            name="robustness",
            verdict="no power",
            sentence="No records are here to attack the model on.",
            power="It needs test records: run it where they are.",
        )
    settings = Settings(
        norm=told.norm,
        epsilon=told.epsilon,
        features=told.features,
        records=_RECORDS,
        seed=subject.seed,
        sweep=False,
        severity=0,
        restarts=1,
    )
    found: dict[str, Any] = evaluate(open_subject(subject.path), settings)
    rung = [alarm["name"] for alarm in found["alarms"] if alarm["raised"]]
    robust = found["robust_accuracy"]
    low, high = robust["interval"]
    kept = (
        "norm",
        "epsilon",
        "records",
        "seed",
        "accuracy",
        "robust_accuracy",
        "attacks",
        "alarms",
        "unreliable",
    )
    return Finding(
        name="robustness",
        verdict="warn" if rung or found["unreliable"] else "pass",
        sentence=f"Under {told.norm} attacks of epsilon = {told.epsilon:g} it is right on {robust['accuracy']:.1%} of {found['records']} records "
        f"({low:.1%} to {high:.1%}), and on {found['accuracy']['accuracy']:.1%} of them unattacked"
        + (f"; alarm: {rung[0]}" if rung else "")
        + ".",
        figures={key: found[key] for key in kept if key in found},
        power="It could have shown gradient masking, and gives an upper bound of the robust accuracy: a better attack may find more.",
    )
