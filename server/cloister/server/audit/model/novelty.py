"""What does the model say of inputs that are none of its kind: does its confidence, or its energy, tell them from real ones.

Maximum softmax probability: Hendrycks & Gimpel (2017). Energy -log Σ exp(scores): Liu, Wang, Owens & Li (2020). The measure is AUROC: the chance that a
strange input scores as less familiar than a real one; 1/2 is a coin.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloister.core.evidence import Finding, Verdict
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject, Batch

__all__ = ["auroc", "check_novelty"]

_RECORDS = 1000
_LEAST = 0.75


def auroc(strange: npt.NDArray[np.float64], real: npt.NDArray[np.float64]) -> float:
    """Return the chance that one of ``strange`` lies above one of ``real``; ties count half (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    ranks = rankdata(np.concatenate([strange, real]))
    return float(
        (ranks[: len(strange)].sum() - len(strange) * (len(strange) + 1) / 2) / (len(strange) * len(real))
    )


def _section(found: Finding) -> Section:
    section = Section()
    section.table(
        ("Inputs", "AUROC of confidence", "AUROC of energy", "Mean highest probability"),
        [
            (name, f"{one['confidence']:.3f}", f"{one['energy']:.3f}", f"{one['mean_confidence']:.3f}")
            for name, one in found.figures.get("kinds", {}).items()
        ],
        note="An AUROC of 0.5 does not tell them from real records, 1 always does. Below 0.5 the model is surer of them than of real ones.",
    )
    return section


@shown_as("Strange inputs", _section)
def check_novelty(subject: AuditSubject) -> Finding:
    """Measure confidence and energy on noise and on shifted records."""
    if subject.task.kind != "classification":
        return Finding(
            name="novelty",
            verdict="no power",
            sentence="A regression has no confidence.",
            power="It could have shown nothing.",
        )
    batch = subject.batch("test", _RECORDS, "novelty")
    real = _scores(subject, batch.inputs)
    kinds: dict[str, Any] = {}
    for name, inputs in _strange(subject, batch).items():
        seen = _scores(subject, inputs)
        kinds[name] = {
            "confidence": auroc(-seen[0], -real[0]),
            "energy": auroc(seen[1], real[1]),
            "mean_confidence": float(seen[0].mean()),
        }
    # The noise is what a model should know for strange; a shift may leave a record what it is.
    best = max(kinds["noise"]["confidence"], kinds["noise"]["energy"])
    n = len(batch)
    half = 1.96 * np.sqrt(
        (2 * n + 1) / (12 * n * n)
    )  # of a coin's AUROC, two samples of n (Mann and Whitney 1947)
    few = bool(0.5 + half > _LEAST)
    verdict: Verdict = "no power" if few else "pass" if best >= _LEAST else "warn"
    words = "tells" if best >= _LEAST else "hardly tells"
    return Finding(
        name="novelty",
        verdict=verdict,
        sentence=f"Its confidence {words} noise from real records (AUROC {best:.2f}); on noise its highest probability is "
        f"{kinds['noise']['mean_confidence']:.2f} on average, on real records {float(real[0].mean()):.2f}.",
        figures={"kinds": kinds, "records": n, "threshold": _LEAST, "seed": subject.seed},
        power=f"On {n} records it could have shown an AUROC that differs from a coin's by {half:.2f}. Other strange inputs than these may pass for real ones.",
    )


def _scores(subject: AuditSubject, inputs: Tensor) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    with torch.inference_mode():
        scores = torch.cat([subject.model(part) for part in torch.split(inputs, 250)]).double()
    return scores.softmax(1).amax(1).numpy(), -torch.logsumexp(scores, 1).numpy()


def _strange(subject: AuditSubject, batch: Batch) -> dict[str, Tensor]:
    x = batch.inputs
    generator = torch.Generator().manual_seed(subject.randomness("novelty").torch_seed("noise"))
    bounds = subject.task.bounds
    low = x.amin(0) if bounds is None else torch.as_tensor(bounds[0]).expand(x.shape[1:])
    high = x.amax(0) if bounds is None else torch.as_tensor(bounds[1]).expand(x.shape[1:])
    noise = low + (high - low) * torch.rand(x.shape, generator=generator)
    flat = x.flatten(1)
    order = torch.rand(flat.shape, generator=generator).argsort(1)
    rows = torch.rand(flat.shape, generator=generator).argsort(0)
    found = {
        "noise": noise,
        "turned round (greatest for least)": low + high - x,
        "values of a record in another order": flat.gather(1, order).reshape(x.shape),
        "each value from another record": flat.gather(0, rows).reshape(x.shape),
    }
    if x.ndim == 4:
        found["moved by a quarter"] = torch.roll(x, max(1, x.shape[-1] // 4), dims=-1)
        found["upside down"] = torch.flip(x, (-2,))
    return found
