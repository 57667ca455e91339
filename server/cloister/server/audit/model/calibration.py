"""Do the model's probabilities mean what they say: expected calibration error, over all records and at each site."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from cloister.core.evidence import Finding, Verdict
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["bins_of", "check_calibration"]

_BINS = 15
_WARN = 0.10
_RECORDS = 5000
_FEW = 50
_DRAWS = 200


def bins_of(probabilities: Tensor, targets: Tensor) -> tuple[float, list[dict[str, float]]]:
    """Return the expected calibration error over 15 bins of the highest probability (Guo et al. 2017, eq. 3), and the bins.

    Args:
        probabilities: (n, classes).
        targets: (n,).
    """
    confidence, predicted = probabilities.double().max(1)
    correct = (predicted == targets).double()
    place = (confidence * _BINS).ceil().long().sub(1).clamp(0, _BINS - 1)
    found, error = [], 0.0
    for number in range(_BINS):
        own = place == number
        if bool(own.any()):
            sure, hit = float(confidence[own].mean()), float(correct[own].mean())
            error += float(own.double().mean()) * abs(sure - hit)
            found.append({"confidence": sure, "accuracy": hit, "records": int(own.sum())})
    return error, found


def _section(found: Finding) -> Section:
    from cloister.server.report.canvas import INK, MEAN, tidy
    from cloister.server.report.words import number

    figures, section = found.figures, Section()
    if "bins" not in figures:
        return section

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot([0, 1], [0, 1], color=INK, linewidth=1.0, linestyle=(0, (4, 3)), label="calibrated")
        bins = figures["bins"]
        axes.bar(
            [one["confidence"] for one in bins],
            [one["accuracy"] for one in bins],
            width=0.045,
            color=MEAN,
            linewidth=0,
            label="records of a bin",
        )
        axes.set_xlim(0, 1.03)
        axes.set_ylim(0, 1.02)
        tidy(axes, xlabel="highest probability", ylabel="accuracy")
        figure.legend(loc="outside upper left", ncols=2)

    section.plot("calibration", "Calibration", draw, "test records")
    section.table(
        ("Site", "Records", "Calibration error", "By chance alone"),
        [
            (name, f"{one['records']:,}", number(one["ece"]), number(one["chance"]))
            for name, one in list(figures["sites"].items())[:60]
        ],
        note="By chance alone: the 95% quantile of what a perfectly calibrated model would show on as many records.",
    )
    return section


@shown_as("Calibration", _section)
def check_calibration(subject: AuditSubject) -> Finding:
    """Measure the calibration error on test records, and what chance alone would give."""
    if subject.task.kind != "classification":
        return Finding(
            name="calibration",
            verdict="no power",
            sentence="A regression has no probabilities.",
            power="It could have shown nothing.",
        )
    batch = subject.batch("test", _RECORDS, "calibration")
    with torch.inference_mode():
        p = torch.cat([subject.model(part).softmax(1) for part in torch.split(batch.inputs, 250)])
    if not bool(p.isfinite().all()):
        return Finding(
            name="calibration",
            verdict="fail",
            sentence="A probability is not finite.",
            power="It could have shown any such probability.",
        )
    generator = torch.Generator().manual_seed(subject.randomness("calibration").torch_seed("chance"))
    error, bins = bins_of(p, batch.targets)
    chance = _chance(p, generator)
    sites: dict[str, Any] = {}
    for place, name in enumerate(batch.sites):
        own = batch.site == place
        if bool(own.any()):
            sites[name] = {
                "records": int(own.sum()),
                "ece": bins_of(p[own], batch.targets[own])[0],
                "chance": _chance(p[own], generator),
            }
    worst = max(sites, key=lambda name: (sites[name]["ece"] - sites[name]["chance"], name))
    bad = [name for name, one in sites.items() if one["ece"] > max(_WARN, one["chance"])]
    figures = {
        "ece": error,
        "chance": chance,
        "bins": bins,
        "sites": sites,
        "worst_site": worst,
        "records": len(batch),
        "threshold": _WARN,
    }
    off = error > max(_WARN, chance)
    verdict: Verdict = "warn" if off or bad else "no power" if len(batch) < _FEW or chance > _WARN else "pass"
    sentence = f"The probabilities are off by {error:.3f} on average ({chance:.3f} could be chance)" + (
        f"; at '{bad[0]}' by {sites[bad[0]]['ece']:.3f}." if bad else "."
    )
    return Finding(
        name="calibration",
        verdict=verdict,
        sentence=sentence,
        figures=figures,
        power=f"On {len(batch)} records it could have shown an error above {max(_WARN, chance):.2f}; below {chance:.2f} chance alone explains it.",
    )


def _chance(p: Tensor, generator: torch.Generator) -> float:
    """Return the 95% quantile of the error that a model with these probabilities shows when they are right."""
    found = torch.tensor(
        [
            bins_of(p, torch.multinomial(p, 1, generator=generator).squeeze(1))[0]
            for _ in range(_DRAWS if len(p) <= 1000 else 40)
        ]
    )
    return float(found.quantile(0.95))
