"""The whole evaluation of one model: attacks, sweep, transfer, corruptions, calibration, certificates, alarms, sites; as plain data.

An accuracy under attack is an upper bound on the model's robustness: an attack that finds nothing proves nothing. What makes a figure
worse than that is listed in ``unreliable``, and a figure is only to be quoted where that list is empty.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cloister.core._version import __version__
from cloister.core.adversarial.threat import Norm, Threat, threat_of
from cloister.core.errors import SpecError
from cloister.server.robustness.alarms import Alarm, Observed, alarms
from cloister.server.robustness.ensemble import PARTS
from cloister.server.robustness.measures import (
    calibration,
    corrupted,
    share,
    smoothed,
    sweep_points,
    transferred,
)
from cloister.server.robustness.subject import Sample, Subject, draw_sample
from cloister.server.robustness.suite import (
    ATTACKS,
    BLACK_BOX,
    Bout,
    accuracy_of,
    flat_share,
    right,
)

__all__ = ["Settings", "default_attacks", "evaluate", "reliability"]

#: Fewer evaluated records than this make a figure unreliable, in all and at a site.
_FEW, _FEW_AT_SITE = 200, 20
#: Square lowering the accuracy by more than this is noted (AutoAttack's own check: checks.py, check_square_sr).
_SQUARE_NOTE = 0.002


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What is evaluated, and how hard it is tried.

    Attributes:
        norm: how a perturbation is measured.
        epsilon: its largest norm, in the units of the model's input.
        records: how many test records are drawn.
        attacks: names of `cloister.server.robustness.suite.ATTACKS`; those that fit, without it.
        features: the numeric columns that an adversary can change; all of them without it.
        seed: of everything that is drawn.
        steps: of PGD.
        restarts: of PGD.
        queries: of the black-box attacks.
        severity: of the corruptions, from 1 to 5; 0: none.
        sweep: whether accuracy is also measured at other ε.
        sigma: σ of the smoothing; 0: nothing is certified.
        certified: how many records are.
    """

    norm: Norm
    epsilon: float
    records: int = 1000
    attacks: tuple[str, ...] | None = None
    features: tuple[str, ...] | None = None
    seed: int = 0
    steps: int = 40
    restarts: int = 3
    queries: int = 5000
    severity: int = 3
    sweep: bool = True
    sigma: float = 0.0
    certified: int = 100


def default_attacks(bout: Bout) -> tuple[str, ...]:
    """Return the attacks that fit: AutoAttack's parts where they do, else PGD on the margin and random search."""
    if bout.obstacle() is not None:
        return ("fgsm", "pgd-20", "pgd", "pgd-margin", "random-search")
    parts = PARTS if bout.classes >= 4 else tuple(part for part in PARTS if part != "apgd-t")
    return ("fgsm", "pgd-20", "pgd", *parts)


def evaluate(
    subject: Subject,
    settings: Settings,
    *,
    source: Subject | None = None,
    tell: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Evaluate a model.

    Args:
        subject: the model and its test records.
        settings: what is tried.
        source: another model of the same task, on which examples are made for a transfer attack.
        tell: is told what goes on.

    Returns:
        Plain data: what ``robustness.json`` holds.

    Raises:
        SpecError: the task is a regression, or settings and task do not go together.
        UsageError: an attack is not known or does not fit.
    """
    task = subject.task
    if task.kind != "classification":
        raise SpecError(
            "robustness is evaluated for classifications, and the task is a regression",
            remedy="evaluate another task",
            code="robustness-kind",
        )
    begun = time.monotonic()
    sample = draw_sample(subject, settings.records, settings.seed)
    threat = threat_of(task, norm=settings.norm, epsilon=settings.epsilon, features=settings.features)
    bout = _bout(subject, sample, threat, settings)
    clean = right(bout.model, bout.inputs, bout.targets)
    tell(f"clean accuracy {accuracy_of(clean):.4f} on {len(clean)} records")
    names = settings.attacks or default_attacks(bout)
    held, timed = _attacked(bout, names, clean, tell)
    robust, stages = _together(held, clean)
    sweep = sweep_points(bout, clean, tell) if settings.sweep else []
    transfer = None if source is None else transferred(bout, source, clean)
    seen = _observed(bout, clean, held, sweep, transfer)
    rung = alarms(seen)
    result: dict[str, Any] = {
        "format": 1,
        "model": {"path": str(subject.path), "sha256": subject.sha256},
        "federation": subject.loaded.spec.federation.name,
        "digest": subject.loaded.digest(),
        "task": subject.loaded.spec.task.use,
        "classes": list(task.classes),
        "norm": settings.norm,
        "epsilon": settings.epsilon,
        "features": None if threat.free is None else _features(task.features, threat),
        "records": len(clean),
        "seed": settings.seed,
        "settings": {
            "steps": settings.steps,
            "restarts": settings.restarts,
            "queries": settings.queries,
            "attacks": list(names),
        },
        "accuracy": share(clean),
        "robust_accuracy": share(robust),
        "autoattack": share(_all_of(held, PARTS)) if all(part in held for part in PARTS) else None,
        "attacks": {
            name: share(held[name]) | {"seconds": timed[name], "after": stages[name]} for name in held
        },
        "sweep": sweep,
        "transfer": transfer,
        "corruptions": corrupted(bout, settings.severity, tell),
        "calibration": calibration(bout),
        "smoothing": smoothed(bout, settings.sigma, settings.certified, tell),
        "alarms": [alarm.as_dict() for alarm in rung],
        "sites": _sites(sample, clean, robust),
    }
    result["worst_site"] = min(result["sites"], key=lambda name: (result["sites"][name]["robust"], name))
    result["unreliable"] = reliability(result, rung, bout.obstacle())
    result["seconds"] = round(time.monotonic() - begun, 3)
    result["versions"] = {"cloister": __version__, "torch": torch.__version__}
    return result


def reliability(result: Mapping[str, Any], rung: Sequence[Alarm], obstacle: str | None) -> list[str]:
    """Return why the figures may not be trusted, each in one sentence; nothing where they may."""
    found = [
        f"alarm '{alarm.name}': {alarm.says} ({alarm.evidence:.3f}, threshold {alarm.threshold:g})"
        for alarm in rung
        if alarm.raised and alarm.evidence is not None
    ]
    if result["records"] < _FEW:
        found.append(f"{result['records']} records: the intervals are wide; evaluate at least {_FEW}")
    ran = set(result["attacks"])
    if not ran & {"apgd-t", "pgd-margin"}:
        found.append(
            "no attack on a margin was run: cross-entropy alone overlooks models with saturated scores"
        )
    if not ran & set(BLACK_BOX):
        found.append("no black-box attack was run: hidden gradients would stay unseen")
    if obstacle is not None:
        found.append(f"AutoAttack was not run: {obstacle}")
    attacks = result["attacks"]
    if "square" in attacks and "apgd-t" in attacks:
        before = min(attacks[name]["after"] for name in ran - set(BLACK_BOX))
        if before - attacks["square"]["after"] > _SQUARE_NOTE:
            found.append(
                f"Square lowered the accuracy by {before - attacks['square']['after']:.3f} after all gradient attacks: more queries may lower it further"
            )
    return found


def _bout(subject: Subject, sample: Sample, threat: Threat, settings: Settings) -> Bout:
    return Bout(
        model=subject.model,
        inputs=sample.inputs,
        targets=sample.targets,
        threat=threat,
        classes=len(subject.task.classes),
        seed=settings.seed,
        steps=settings.steps,
        restarts=settings.restarts,
        queries=settings.queries,
    )


def _attacked(
    bout: Bout, names: Sequence[str], clean: Tensor, tell: Callable[[str], None]
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Run each attack on the rightly classified records; AutoAttack's parts, as it does, on those that its earlier parts left."""
    held: dict[str, Tensor] = {}
    timed: dict[str, float] = {}
    left = clean
    for name in (one for one in ATTACKS if one in names):
        begun = time.monotonic()
        among = left if name in PARTS else clean
        if name == "random-search":
            among = clean
        held[name] = bout.withstands(name, among)
        if name in PARTS:
            left = held[name]
        timed[name] = round(time.monotonic() - begun, 3)
        tell(f"{name}: {accuracy_of(held[name]):.4f} withstand it ({timed[name]:.0f} s)")
    for name in names:
        if name not in held:
            bout.withstands(name, clean)  # refuses the unknown name
    return held, timed


def _together(held: Mapping[str, Tensor], clean: Tensor) -> tuple[Tensor, dict[str, float]]:
    """Return which records withstand all attacks, and what is left after each one in turn."""
    left, stages = clean, {}
    for name, kept in held.items():
        left = left & kept
        stages[name] = accuracy_of(left)
    return left, stages


def _all_of(held: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    return torch.stack([held[name] for name in names]).all(0)


def _observed(
    bout: Bout,
    clean: Tensor,
    held: Mapping[str, Tensor],
    sweep: Sequence[Mapping[str, Any]],
    transfer: Mapping[str, Any] | None,
) -> Observed:
    white = [held[name] for name in held if name not in BLACK_BOX]
    black = [held[name] for name in held if name in BLACK_BOX]
    under_white = torch.stack([clean, *white]).all(0)
    strong = next((held[name] for name in ("apgd-t", "pgd-margin") if name in held), None)
    widest = [point for point in sweep if point["anything"]]
    return Observed(
        white=accuracy_of(under_white) if white else None,
        black=accuracy_of(torch.stack([under_white, *black]).all(0)) if white and black else None,
        transfer=None if transfer is None else transfer["accuracy"],
        fgsm=accuracy_of(held["fgsm"]) if "fgsm" in held else None,
        pgd20=accuracy_of(held["pgd-20"]) if "pgd-20" in held else None,
        strong=None if strong is None else accuracy_of(strong),
        huge=widest[-1]["accuracy"] if widest else None,
        chance=1 / bout.classes,
        flat=flat_share(bout.model, bout.inputs[clean], bout.targets[clean]) if bool(clean.any()) else None,
    )


def _sites(sample: Sample, clean: Tensor, robust: Tensor) -> dict[str, dict[str, Any]]:
    found = {}
    for place, name in enumerate(sample.sites):
        own = sample.site == place
        count = int(own.sum())
        if count:
            found[name] = {
                "records": count,
                "accuracy": accuracy_of(clean[own]),
                "robust": accuracy_of(robust[own]),
                "unreliable": count < _FEW_AT_SITE,
            }
    return found


def _features(places: Mapping[str, int] | None, threat: Threat) -> list[str]:
    return [
        name for name, place in (places or {}).items() if threat.free is not None and place in threat.free
    ]
