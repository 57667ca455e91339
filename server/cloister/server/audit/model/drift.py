"""How far training moved each layer from where every site began, in norm and in spectral norm.

A layer that did not move was not trained, or its updates were lost; one that moved by many times what the others did carries something of its own.
Both are signs and no proof.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cloister.core.evidence import Finding
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_drift"]

#: A matrix whose spectral norm grew to this many times the middle growth stands out.
_GROWN = 10.0


def section(found: Finding) -> Section:
    """Return the layers as a table and bars."""
    from cloister.server.report.canvas import ACCENT, LOCAL, tidy
    from cloister.server.report.words import DASH, number

    rows = found.figures["layers"]

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        shown = [row for row in rows if row["spectral_after"] is not None][:24]
        places = np.arange(len(shown))
        axes.barh(places - 0.2, [row["spectral_before"] for row in shown], 0.38, color=LOCAL, label="before")
        axes.barh(places + 0.2, [row["spectral_after"] for row in shown], 0.38, color=ACCENT, label="after")
        axes.set_yticks(places, [row["name"][:34] for row in shown])
        axes.invert_yaxis()
        tidy(axes, xlabel="spectral norm")
        figure.legend(loc="outside upper left", ncols=2)

    section = Section()
    section.table(
        ("Layer", "Norm before", "Norm after", "Moved", "Spectral before", "Spectral after"),
        [
            (
                row["name"],
                *(
                    DASH if row[key] is None else number(row[key])
                    for key in ("norm_before", "norm_after", "moved", "spectral_before", "spectral_after")
                ),
            )
            for row in rows[:60]
        ],
    )
    if any(row["spectral_after"] is not None for row in rows):
        section.plot("drift", "Spectral norms", draw, "of every matrix", height=max(2.0, 0.34 * len(rows)))
    return section


@shown_as("Drift from the first model", section)
def check_drift(subject: AuditSubject) -> Finding:
    """Measure every trained layer against the model that training began with."""
    before = dict(subject.initial.named_parameters())
    rows: list[dict[str, Any]] = []
    for name, after in subject.model.named_parameters():
        start, end = before[name].detach().double(), after.detach().double()
        norm = float(start.norm())
        rows.append(
            {
                "name": name,
                "shape": list(after.shape),
                "norm_before": norm,
                "norm_after": float(end.norm()),
                "moved": float((end - start).norm()),
                "relative": float((end - start).norm()) / norm if norm else None,
                "spectral_before": _spectral(start),
                "spectral_after": _spectral(end),
                "largest": float(end.abs().max()),
            }
        )
    still = [row["name"] for row in rows if row["moved"] == 0]
    growths = {
        row["name"]: row["spectral_after"] / row["spectral_before"] for row in rows if row["spectral_before"]
    }
    middle = float(np.median(list(growths.values()))) if growths else 1.0
    grown = sorted(name for name in growths if growths[name] > _GROWN * _others(growths, name))
    sentences = []
    if len(still) == len(rows):
        sentences.append("No layer differs from the model that training began with: nothing was learned.")
    elif still:
        sentences.append(f"{len(still)} of {len(rows)} layers did not move at all, '{still[0]}' among them.")
    if grown:
        sentences.append(f"The spectral norm of '{grown[0]}' grew {growths[grown[0]]:.0f} times.")
    if not sentences:
        far = max(rows, key=lambda row: row["moved"])
        sentences.append(
            f"Every layer moved; the farthest, '{far['name']}', by {far['moved']:.3g}. No spectral norm grew out of line."
        )
    return Finding(
        name="drift",
        verdict="fail" if len(still) == len(rows) else "warn" if still or grown else "pass",
        sentence=" ".join(sentences),
        figures={"layers": rows, "still": still, "grown": grown, "growth_of_the_middle": middle},
        power=f"It could have shown a layer that did not move, or a matrix whose spectral norm grew {_GROWN:.0f} times what the middle one of the others did. A planted "
        "behaviour can lie in far smaller changes.",
    )


def _others(growths: Mapping[str, float], name: str) -> float:
    """Return the middle growth of the other matrices, at least 1."""
    rest = [growth for other, growth in growths.items() if other != name]
    return max(float(np.median(rest)), 1.0) if rest else 1.0


def _spectral(weight: Tensor) -> float | None:
    """Return the largest singular value of a matrix; a convolution counts as (out, in × kernel)."""
    if weight.ndim < 2:
        return None
    return float(torch.linalg.matrix_norm(weight.flatten(1), ord=2))
