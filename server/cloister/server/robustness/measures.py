"""The measures of an evaluation that are no single attack: sweep, transfer, corruptions, calibration, certificates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from cloister.core.adversarial.threat import Threat
from cloister.core.randomness import SeededRandomness
from cloister.server.robustness.corruptions import CORRUPTIONS, corrupt
from cloister.server.robustness.smoothing import ABSTAIN, certify
from cloister.server.robustness.subject import Subject
from cloister.server.robustness.suite import Bout, accuracy_of, right

__all__ = ["calibration", "corrupted", "share", "smoothed", "sweep_points", "transferred"]

#: The sweep's ε over that of the evaluation.
_SWEEP = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)


def calibration(bout: Bout, bins: int = 15) -> dict[str, Any]:
    """Return the expected calibration error over 15 bins of the highest probability (Guo et al. 2017, eq. 3), and the bins."""
    with torch.inference_mode():
        scores = torch.cat([bout.model(part) for part in torch.split(bout.inputs, 250)])
    confidence, predicted = scores.softmax(1).max(1)
    correct = (predicted == bout.targets).double()
    if not bool(scores.isfinite().all()):
        return {"ece": None, "bins": []}
    place = (confidence.double() * bins).ceil().long().sub(1).clamp(0, bins - 1)
    table, error = [], 0.0
    for number in range(bins):
        own = place == number
        if not bool(own.any()):
            continue
        sure, hit = float(confidence[own].double().mean()), float(correct[own].mean())
        error += float(own.double().mean()) * abs(sure - hit)
        table.append({"bin": number, "records": int(own.sum()), "confidence": sure, "accuracy": hit})
    return {"ece": error, "bins": table}


def sweep_points(bout: Bout, clean: Tensor, tell: Callable[[str], None]) -> list[dict[str, Any]]:
    """Accuracy under PGD (20 steps on cross-entropy, then on the margin) from ε/4 up to chance, and where any input becomes any other."""
    rows = clean.nonzero().squeeze(1)[:500]
    points: list[dict[str, Any]] = []
    base, chance = bout.threat.epsilon, 1 / bout.classes
    reach = _reach(bout.threat, bout.inputs)
    sizes = [base * factor for factor in _SWEEP if reach is None or base * factor < reach]
    for size in [*sizes, *([] if reach is None else [reach])]:
        if points and points[-1]["accuracy"] <= chance / 2 and size != reach:
            continue
        part = Bout(
            model=bout.model,
            inputs=bout.inputs[rows],
            targets=bout.targets[rows],
            threat=bout.threat.at(size),
            classes=bout.classes,
            seed=bout.seed,
            steps=20,
            restarts=1,
        )
        every = torch.ones(len(rows), dtype=torch.bool)
        left = part.withstands("pgd", every)
        left = part.withstands("pgd-margin", left)
        accuracy = float(left.sum()) / max(len(rows), 1) * accuracy_of(clean)
        points.append({"epsilon": size, "accuracy": accuracy, "anything": size == reach})
        tell(f"sweep: {accuracy:.4f} at epsilon = {size:.4g}")
    return points


def _reach(threat: Threat, inputs: Tensor) -> float | None:
    """Return the ε that lets any input become any other; ``None`` where no bound says so, or some inputs stay as they are."""
    if threat.low is None or threat.high is None or threat.free is not None:
        return None
    span = (torch.as_tensor(threat.high) - torch.as_tensor(threat.low)).expand(inputs.shape[1:]).float()
    return float(span.max()) if threat.norm == "linf" else float(span.norm())


def transferred(bout: Bout, source: Subject, clean: Tensor) -> dict[str, Any]:
    """Make examples on ``source`` by PGD and on the margin, and try them on the model."""
    rows = clean.nonzero().squeeze(1)
    there = Bout(
        model=source.model,
        inputs=bout.inputs,
        targets=bout.targets,
        threat=bout.threat,
        classes=bout.classes,
        seed=bout.seed,
        steps=bout.steps,
        restarts=1,
    )
    left = clean.clone()
    for name in ("pgd", "pgd-margin"):
        left[rows] &= right(bout.model, there.examples(name, rows), bout.targets[rows])
    return {"source": str(source.path), "sha256": source.sha256, **share(left)}


def corrupted(bout: Bout, severity: int, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """Return the accuracy under each of the fifteen corruptions; ``None`` for inputs that are no images, and for severity 0."""
    threat = bout.threat
    if (
        not severity
        or bout.inputs.dim() != 4
        or threat.low is None
        or threat.high is None
        or min(bout.inputs.shape[2:]) < 4
    ):
        return None
    low, high = torch.as_tensor(threat.low), torch.as_tensor(threat.high)
    images = (bout.inputs - low) / (high - low)
    found = {}
    for name in CORRUPTIONS:
        changed = corrupt(name, images, severity=severity, seed=bout.seed)
        found[name] = accuracy_of(right(bout.model, low + (high - low) * changed, bout.targets))
    mean = sum(found.values()) / len(found)
    tell(f"corruptions of severity {severity}: {mean:.4f} in the mean")
    return {
        "severity": severity,
        "accuracy": found,
        "mean": mean,
        "worst": min(found, key=found.__getitem__),
    }


def smoothed(bout: Bout, sigma: float, records: int, tell: Callable[[str], None]) -> dict[str, Any] | None:
    """Return what is certified about the first ``records`` records under noise of ``sigma``; ``None`` where it is 0."""
    if not sigma:
        return None
    rows = torch.arange(min(records, len(bout.inputs)))
    found = certify(
        bout.model,
        bout.inputs[rows],
        classes=bout.classes,
        sigma=sigma,
        seed=SeededRandomness(bout.seed).torch_seed("robustness", "smoothing"),
    )
    correct = found.predicted == bout.targets[rows]
    radii = torch.where(correct, found.radius, torch.zeros_like(found.radius))
    curve = [
        {"radius": radius, "accuracy": accuracy_of(correct & (found.radius >= radius))}
        for radius in (torch.linspace(0, 4, 17) * sigma).tolist()
    ]
    tell(f"smoothing: mean certified radius {float(radii.mean()):.4f}")
    return {
        "sigma": sigma,
        "alpha": 0.001,
        "samples": 1000,
        "records": len(rows),
        "norm": "l2",
        "abstained": float((found.predicted == ABSTAIN).double().mean()),
        "accuracy": accuracy_of(correct),
        "mean_radius": float(radii.mean()),
        "median_radius": float(radii.median()),
        "curve": curve,
    }


def share(held: Tensor) -> dict[str, Any]:
    """Return an accuracy with its 95% interval (Clopper and Pearson 1934)."""
    count, total = int(held.sum()), len(held)
    low = float(stats.beta.ppf(0.025, count, total - count + 1)) if count else 0.0
    high = float(stats.beta.ppf(0.975, count + 1, total - count)) if count < total else 1.0
    return {"accuracy": count / total, "interval": [low, high]}
