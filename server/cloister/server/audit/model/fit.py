"""Does the model know its training records better than others, and does it know them at all: over-fit and under-fit, at each site."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from cloister.core.data import Data
from cloister.core.evidence import Finding, Verdict
from cloister.core.metrics import measure
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_fit"]

#: A gap in accuracy above this, and beyond chance, is over-fitting.
_GAP = 0.10
_Z = 1.96
_RECORDS = 4000


def _section(found: Finding) -> Section:
    from cloister.server.report.canvas import ACCENT, LOCAL, tidy
    from cloister.server.report.words import number

    sites, section = found.figures["sites"], Section()
    metric = found.figures["metric"]
    shown = dict(list(sites.items())[:30])

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        places = np.arange(len(shown))
        axes.bar(places - 0.2, [one["train"] for one in shown.values()], 0.38, color=LOCAL, label="training")
        axes.bar(places + 0.2, [one["test"] for one in shown.values()], 0.38, color=ACCENT, label="test")
        axes.set_xticks(
            places,
            [name[:12] for name in shown],
            rotation=45 if len(shown) > 6 else 0,
            ha="right" if len(shown) > 6 else "center",
        )
        tidy(axes, ylabel=metric)
        figure.legend(loc="outside upper left", ncols=2)

    section.plot("fit", "Training and test records", draw, "at each site")
    section.table(
        ("Site", f"Training {metric}", f"Test {metric}", "Gap", "95% interval", "Training records"),
        [
            (
                name,
                number(one["train"]),
                number(one["test"]),
                number(one["gap"]),
                f"{one['gap'] - one['half']:.3f} to {one['gap'] + one['half']:.3f}",
                f"{one['train_records']:,}",
            )
            for name, one in list(sites.items())[:60]
        ],
    )
    return section


@shown_as("Over-fit and under-fit", _section)
def check_fit(subject: AuditSubject) -> Finding:
    """Measure the model on each site's training and test records."""
    classification = subject.task.kind == "classification"
    metric = "accuracy" if classification else "loss"
    sites: dict[str, Any] = {}
    for name, split in subject.sites.items():
        if not len(split.train) or not len(split.test):
            continue
        train, test = (_measured(subject, part, metric) for part in (split.train, split.test))
        gap = (train[0] - test[0]) if classification else (test[0] - train[0])
        half = _Z * math.sqrt(train[1] ** 2 + test[1] ** 2)
        sites[name] = {
            "train": train[0],
            "test": test[0],
            "gap": gap,
            "half": half,
            "train_records": len(split.train),
            "test_records": len(split.test),
        }
    if not sites:
        return Finding(
            name="fit",
            verdict="no power",
            sentence="No site has training and test records at hand.",
            figures={"sites": {}, "metric": metric},
            power="It could have shown nothing.",
        )
    weights = np.array([one["test_records"] for one in sites.values()], dtype=float)
    gaps, halves = (np.array([one[key] for one in sites.values()]) for key in ("gap", "half"))
    share = weights / weights.sum()
    mean, mean_half = float(gaps @ share), float(np.sqrt((halves**2) @ share**2))
    scale = (
        _GAP
        if classification
        else _GAP * max(float(np.mean([one["train"] for one in sites.values()])), 1e-12)
    )
    over = [name for name, one in sites.items() if one["gap"] - one["half"] > scale]
    guess = _guess(subject) if classification else None
    train_mean = float(
        np.average(
            [one["train"] for one in sites.values()], weights=[one["train_records"] for one in sites.values()]
        )
    )
    under = guess is not None and train_mean < guess + 0.05
    figures = {
        "metric": metric,
        "sites": sites,
        "gap": mean,
        "gap_interval": [mean - mean_half, mean + mean_half],
        "over": over,
        "guess": guess,
        "train": train_mean,
        "threshold": scale,
    }
    verdict: Verdict
    if under:
        verdict, sentence = (
            "warn",
            f"The model is right for {100 * train_mean:.1f}% of its training records; naming the commonest class is for {100 * (guess or 0):.1f}%.",
        )
    elif over or mean - mean_half > scale:
        at = f" at {len(over)} of {len(sites)} sites, '{over[0]}' among them" if over else ""
        verdict, sentence = (
            "warn",
            f"The model knows its training records better than others{at}: the {metric} differs by {mean:.3f} ({mean - mean_half:.3f} to {mean + mean_half:.3f}).",
        )
    elif mean + mean_half > scale:
        verdict, sentence = (
            "no power",
            f"The {metric} differs by {mean:.3f} ({mean - mean_half:.3f} to {mean + mean_half:.3f}) between training and test records: too few to tell.",
        )
    else:
        verdict, sentence = (
            "pass",
            f"The {metric} on training and on test records differs by {mean:.3f} ({mean - mean_half:.3f} to {mean + mean_half:.3f}).",
        )
    return Finding(
        name="fit",
        verdict=verdict,
        sentence=sentence,
        figures=figures,
        power=f"It could have shown a mean gap above {scale + mean_half:.3f}. A model without a gap may still remember single records: see the membership audit.",
    )


def _measured(subject: AuditSubject, data: Data, metric: str) -> tuple[float, float]:
    """Return the metric's mean over a site's records and its standard error."""
    rows = np.arange(min(len(data), _RECORDS))
    if metric == "accuracy":
        found = measure(subject.task, subject.model, data, rows=rows).metrics["accuracy"]
        # One record is added on either side, so that a perfect share has an error too (Agresti and Coull 1998).
        share = (found * len(rows) + 1) / (len(rows) + 2)
        return found, math.sqrt(share * (1 - share) / (len(rows) + 2))
    with torch.inference_mode():
        losses = []
        for part in torch.split(torch.from_numpy(rows), 256):
            inputs, targets = data.batch(part)
            losses.append(subject.task.loss(subject.model(inputs), targets).double())
    values = torch.cat(losses)
    return float(values.mean()), float(values.std()) / math.sqrt(len(values)) if len(values) > 1 else math.inf


def _guess(subject: AuditSubject) -> float:
    """Return how often the commonest class of all training records is right."""
    targets = torch.cat([split.train.targets for split in subject.sites.values()])
    return float(torch.bincount(targets, minlength=subject.classes).max()) / len(targets)
