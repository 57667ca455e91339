"""What the model looks at: integrated gradients and occlusion (through captum), averaged over records.

Sundararajan, Taly & Yan (2017), "Axiomatic attribution for deep networks"; Zeiler & Fergus (2014) for occlusion. What is shown is a mean over the records of a
class, never one record's: a picture of attributions can show the record that it explains. The two methods share no formula, so that where they agree
neither is an artefact; and integrated gradients must add up to the change of the score (completeness), which says whether the path had steps enough.
"""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from cloister.core.evidence import Finding, Verdict
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject, Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["attributions", "check_explanations"]

_RECORDS = 200
_LEAST_RECORDS = 30
_STEPS = 48
_ONE = 0.5
_AGREE = 0.5
_OFF = 0.05


def attributions(
    subject: AuditSubject, inputs: Tensor, wanted: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return integrated gradients, occlusion, and how far the former miss the change of the score, each record's.

    Args:
        subject: the model.
        inputs: (n, …).
        wanted: (n,) the class whose score is explained; ``None`` for a regression.
    """
    from captum.attr import IntegratedGradients, Occlusion  # type: ignore[import-untyped]

    baseline = _baseline(subject, inputs)
    model = subject.model
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # captum tells that it sets requires_grad
        gradients, missed = IntegratedGradients(model).attribute(
            inputs.clone(),
            baseline,
            target=wanted,
            n_steps=_STEPS,
            internal_batch_size=512,
            return_convergence_delta=True,
        )
        shape = inputs.shape[1:]
        if len(shape) == 3:
            side = max(1, min(shape[1:]) // 8)
            window: tuple[int, ...] = (shape[0], side, side)
        else:
            window = (1,) * len(shape)
        hidden = Occlusion(model).attribute(
            inputs, sliding_window_shapes=window, strides=window, baselines=baseline, target=wanted
        )
    return gradients.detach(), hidden.detach(), missed.detach()


def _section(found: Finding) -> Section:
    from cloister.server.report.canvas import ACCENT, INK, MEAN, tidy

    figures, section = found.figures, Section()
    if figures.get("pictures"):

        def pictures(figure: Figure) -> None:
            rows = [("integrated gradients", figures["pictures"]), ("occlusion", figures["occluded"])]
            grid = figure.subplots(2, len(figures["shown"]), squeeze=False)
            for line, (_, images) in zip(grid, rows, strict=True):
                for axes, image, name in zip(line, images, figures["shown"], strict=True):
                    values = np.asarray(image)
                    most = float(np.abs(values).max()) or 1.0
                    axes.imshow(values, cmap="RdBu_r", vmin=-most, vmax=most)
                    axes.axis("off")
                    axes.set_title(name[:9], color=INK)

        section.plot(
            "explanations",
            "What speaks for a class",
            pictures,
            "red: for it, blue: against; mean of its records; above integrated gradients, below occlusion",
            width=8.4,
            height=2.6,
        )
    if figures.get("bars"):

        def bars(figure: Figure) -> None:
            axes = figure.subplots()
            shown = figures["bars"][:15]
            places = np.arange(len(shown))
            axes.barh(
                places - 0.2,
                [one["gradients"] for one in shown],
                0.38,
                color=ACCENT,
                label="integrated gradients",
            )
            axes.barh(places + 0.2, [one["occlusion"] for one in shown], 0.38, color=MEAN, label="occlusion")
            axes.set_yticks(places, [one["name"][:30] for one in shown])
            axes.invert_yaxis()
            tidy(axes, xlabel="share of all attribution")
            figure.legend(loc="outside upper left", ncols=2)

        section.plot("explanations", "What the model looks at", bars, "mean size over records", height=4.2)
    return section


@shown_as("Explanations", _section)
def check_explanations(subject: AuditSubject) -> Finding:
    """Attribute the model's scores to its inputs by two methods, and see whether they agree and whether one input decides."""
    from scipy.stats import spearmanr

    batch = subject.batch("test", _RECORDS, "explanations")
    with torch.no_grad():
        outputs = subject.model(batch.inputs)
    wanted = outputs.argmax(1) if subject.classes else None
    gradients, hidden, missed = attributions(subject, batch.inputs, wanted)
    sizes = [part.abs().mean(0).flatten().double().numpy() for part in (gradients, hidden)]
    shares = [size / max(float(size.sum()), 1e-300) for size in sizes]
    agree = float(spearmanr(sizes[0], sizes[1]).statistic) if len(sizes[0]) > 2 else 1.0
    scale = float(gradients.flatten(1).abs().sum(1).mean())
    off = float(missed.abs().mean()) / max(scale, 1e-12)
    top = int(shares[0].argmax())
    names = _names(subject, batch)
    one = float(shares[0][top])
    notes = []
    if one > _ONE:
        notes.append(f"'{names[top]}' alone carries {100 * one:.0f}% of all attribution")
    if not np.isfinite(agree) or agree < _AGREE:
        notes.append(f"the two methods disagree on what matters (rank correlation {agree:.2f})")
    if off > _OFF:
        notes.append(f"integrated gradients miss the score's change by {100 * off:.0f}%")
    order = np.argsort(-shares[0])
    figures: dict[str, Any] = {
        "records": len(batch),
        "agreement": agree,
        "completeness_error": off,
        "largest_share": one,
        "largest": names[top],
        "seed": subject.seed,
        "bars": [],
        "pictures": [],
    }
    if batch.inputs.ndim == 4:
        figures |= _pictures(subject, batch, gradients, hidden)
    else:
        figures["bars"] = [
            {"name": names[place], "gradients": float(shares[0][place]), "occlusion": float(shares[1][place])}
            for place in order[:40]
        ]
    leading = ", ".join(f"'{names[place]}'" for place in order[:3])
    few = len(batch) < _LEAST_RECORDS
    verdict: Verdict = "no power" if few else "warn" if notes else "pass"
    return Finding(
        name="explanations",
        verdict=verdict,
        sentence=f"{notes[0][0].upper()}{notes[0][1:]}."
        if notes
        else f"It looks most at {leading}; two methods agree on the order (rank correlation {agree:.2f}).",
        figures=figures,
        power=f"On {len(batch)} records it could have shown that one input decides alone, or that explanations are artefacts. It does not show that what the model looks at is right: "
        "that takes somebody who knows the field.",
    )


def _baseline(subject: AuditSubject, inputs: Tensor) -> Tensor:
    """Return what counts as nothing: black for images, the middle of its public range (or the mean) for a column."""
    if inputs.ndim == 4:
        low = 0.0 if subject.task.bounds is None else subject.task.bounds[0]
        return torch.as_tensor(low).float().expand(inputs.shape[1:]).unsqueeze(0).expand_as(inputs)
    return inputs.mean(0, keepdim=True).expand_as(inputs)


def _names(subject: AuditSubject, batch: Batch) -> list[str]:
    shape = batch.inputs.shape[1:]
    if subject.input_names is not None and len(subject.input_names) == int(np.prod(shape)):
        return list(subject.input_names)
    if len(shape) == 3:
        return [
            f"row {y + 1}, column {x + 1}"
            for _ in range(shape[0])
            for y in range(shape[1])
            for x in range(shape[2])
        ]
    return [f"input {place + 1}" for place in range(int(np.prod(shape)))]


def _pictures(subject: AuditSubject, batch: Batch, gradients: Tensor, hidden: Tensor) -> dict[str, Any]:
    shown: list[str] = []
    pictures: list[Any] = []
    occluded: list[Any] = []
    for number, name in enumerate(subject.task.classes[:10]):
        own = batch.targets == number
        if int(own.sum()) >= 5:
            shown.append(str(name))
            for kept, part in ((pictures, gradients), (occluded, hidden)):
                kept.append(part[own].mean(0).sum(0).double().numpy().round(5).tolist())
    return {"shown": shown, "pictures": pictures, "occluded": occluded}
