"""The check ``leakage``: how many of a site's records an attacker makes from one update, unprotected and as this federation protects it.

The verdict is about the form in which the server sees a single update of this federation (`cloister.simulation.leakage.updates`):

=============  ====================================================================================
verdict        when
=============  ====================================================================================
fail           the federation protects updates, and a record was recovered all the same
warn           the server sees updates as they are, or merely clipped, and records were recovered
pass           unprotected updates give records away, and the protected one gives none
no power       not even an unprotected update gave records away: the attacks do not fit the task
=============  ====================================================================================
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from cloister.core.data import Data, TensorData
from cloister.core.errors import DataError
from cloister.core.evidence import Finding
from cloister.core.files import write_whole
from cloister.core.randomness import SeededRandomness
from cloister.core.update import Layout
from cloister.privacy.audit.leakage import Match, imprinted, invert, match, recover, ssim
from cloister.privacy.audit.leakage.likeness import RECOVERED
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject
from cloister.simulation.leakage.updates import FORMS, Form, gradient_seen, seen_by_server

if TYPE_CHECKING:
    from pathlib import Path

    from matplotlib.figure import Figure

__all__ = ["check_leakage", "section_with_pictures"]

PICTURES = "leakage-pictures.json"
_IMPRINT, _INVERT = 64, 4
_BINS = 8  # a record
_LOOKED_LIKE = 0.6
Numbers = npt.NDArray[np.float64]


def _section(found: Finding) -> Section:
    section, figures = Section(), found.figures
    for attack, title in (("imprint", "Imprint layer"), ("inversion", "Gradient inversion")):
        forms = figures.get(attack, {}).get("forms", {})
        if forms:
            section.table(
                ("The update is", "Records recovered", "Median PSNR", "Best PSNR", "Mean SSIM"),
                [
                    (
                        form + (" (what this federation's server sees)" if form == figures["sees"] else ""),
                        f"{one['recovered']} of {one['records']}",
                        _decibels(one["psnr_median"]),
                        _decibels(one["psnr_best"]),
                        "–" if one["ssim"] is None else f"{one['ssim']:.2f}",
                    )
                    for form, one in forms.items()
                ],
                title=title,
                note=f"Recovered: within {RECOVERED:g} dB, 3% of the range. Chance: an image of the same kind lies at {figures['chance']:.1f} dB.",
            )
    return section


def section_with_pictures(found: Finding, folder: Path) -> Section:
    """Return the section with pictures of records and what was made of them, for whoever may see those records."""
    section = _section(found)
    try:
        rows = json.loads((folder / PICTURES).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return section
    for attack, title in (("imprint", "Imprint layer"), ("inversion", "Gradient inversion")):
        images: dict[str, list[Any]] = rows.get(attack, {})
        if not images:
            continue

        def draw(figure: Figure, images: dict[str, list[Any]] = images) -> None:
            grid = figure.subplots(len(images), len(images["original"]), squeeze=False)
            for line, (form, own) in zip(grid, images.items(), strict=True):
                for axes, image in zip(line, own, strict=True):
                    axes.imshow(np.asarray(image), cmap="gray", vmin=0, vmax=1)
                    axes.set_xticks([])
                    axes.set_yticks([])
                    axes.grid(visible=False)
                line[0].set_ylabel(form, rotation=0, ha="right", va="center")

        section.plot(
            f"leakage-{attack}",
            title,
            draw,
            "records and what was made of them",
            width=8.4,
            height=0.9 * len(images),
        )
    return section


@shown_as("Leakage of an update", _section)
def check_leakage(subject: AuditSubject) -> Finding:
    """Reconstruct a site's records from one update, in each form, by an imprint layer and by gradient inversion."""
    randomness = subject.randomness("leakage")
    site, data = _site(subject)
    low, high = _bounds(subject, data)
    span = torch.where(high > low, high - low, torch.ones_like(high))
    sees = seen_by_server(subject)
    public = _public(subject, data)
    chance = _chance(_scaled(data.inputs, low, span), _scaled(public, low, span))
    pictures: dict[str, dict[str, list[Any]]] = {}
    figures: dict[str, Any] = {"site": site, "sees": sees, "chance": chance, "seed": subject.seed}
    attacks: dict[str, tuple[Data, Callable[[Form], Numbers]]] = {}
    many = TensorData(data.inputs[:_IMPRINT], data.targets[:_IMPRINT])
    few = TensorData(data.inputs[-_INVERT:], data.targets[-_INVERT:])
    attacks["imprint"] = (many, _imprint(subject, many, public, randomness))
    if subject.setting("leakage", "inversion", True):
        attacks["inversion"] = (few, _inversion(subject, few, low, high, randomness))
    for name, (records, attack) in attacks.items():
        real = _scaled(records.batch(torch.arange(len(records)))[0], low, span)
        forms: dict[str, Any] = {}
        pictures[name] = {"original": _images(real, data.inputs.shape[1:])}
        for form in FORMS if name == "imprint" else ("plain", "private", "masked"):
            subject.tell(f"leakage: {name}, {form} update")
            made = np.clip(
                (attack(form) - low.flatten().double().numpy()) / span.flatten().double().numpy(), -0.5, 1.5
            )
            found = match(real, np.clip(made, 0, 1))
            forms[form] = _measured(found, real, np.clip(made, 0, 1), data.inputs.shape[1:])
            if (
                form == "masked"
            ):  # masks are drawn afresh by the operating system: only the counts are the same twice
                forms[form] |= dict.fromkeys(("psnr_median", "psnr_best", "ssim", "candidates"))
            pictures[name][form] = _images(_chosen(found, made, real), data.inputs.shape[1:])
        figures[name] = {"forms": forms, "records": len(records)}
    artefacts: tuple[str, ...] = ()
    if data.inputs.ndim == 4 and subject.setting("leakage", "pictures", True):
        subject.folder.mkdir(parents=True, exist_ok=True)
        write_whole(subject.folder / PICTURES, json.dumps(pictures), mode=0o600)
        artefacts = (PICTURES,)
    return _judged(figures, artefacts)


def _judged(figures: dict[str, Any], artefacts: tuple[str, ...]) -> Finding:
    sees: Form = figures["sees"]
    plain = figures["imprint"]["forms"]["plain"]
    most = max(
        (
            figures[a]["forms"][sees]
            for a in ("imprint", "inversion")
            if sees in figures.get(a, {}).get("forms", {})
        ),
        key=lambda one: one["recovered"] / one["records"],
    )
    words = {
        "plain": "as they are",
        "clipped": "clipped, without noise",
        "private": "clipped and with noise",
        "masked": "under masks",
    }
    said = f"From one unprotected update {plain['recovered']} of {plain['records']} records were recovered"
    protected = sees in {"private", "masked"}
    if not plain["recovered"]:
        verdict, sentence = (
            "no power",
            "Not even an unprotected update gave a record away to these attacks; they do not fit this task.",
        )
    elif most["recovered"] and protected:
        verdict, sentence = (
            "fail",
            f"{said}, and {most['recovered']} of {most['records']} from one that is protected as this federation does.",
        )
    elif most["recovered"]:
        verdict, sentence = (
            "warn",
            f"{said}, and this federation's server sees updates {words[sees]}: {most['recovered']} of {most['records']}. Protect them, or trust the server.",
        )
    else:
        verdict, sentence = (
            "pass",
            f"{said}; this federation's server sees them {words[sees]}, and from those none was.",
        )
    return Finding(
        name="leakage",
        verdict=verdict,  # type: ignore[arg-type]
        sentence=sentence,
        figures=figures,
        power=f"It could have shown records in an update of one step on {plain['records']} records of one site, against a server that may change the model (imprint) or "
        "only looks (inversion, labels known). What a sum over sites, or many rounds, give away is the membership audit's question. A site refuses imprint layers.",
        artefacts=artefacts,
    )


def _imprint(
    subject: AuditSubject, records: Data, public: Tensor, randomness: SeededRandomness
) -> Callable[[Form], Numbers]:
    model = copy.deepcopy(subject.initial).requires_grad_(True)
    seed = randomness.torch_seed("imprint")
    layered = imprinted(model, public, bins=_BINS * len(records), seed=seed)
    layout = Layout.of(layered)

    def attack(form: Form) -> Numbers:
        seen = gradient_seen(subject, layered, records, form, randomness=randomness)
        parts = layout.split(seen.astype(np.float32))
        return recover(parts["reading.weight"], parts["reading.bias"])

    return attack


def _inversion(
    subject: AuditSubject, records: Data, low: Tensor, high: Tensor, randomness: SeededRandomness
) -> Callable[[Form], Numbers]:
    model: nn.Module = copy.deepcopy(subject.initial).requires_grad_(True).eval()
    inputs, targets = records.batch(torch.arange(len(records)))
    layout = Layout.of(model)
    trained = [name for name, value in model.named_parameters() if value.requires_grad]

    def attack(form: Form) -> Numbers:
        seen = layout.split(
            gradient_seen(subject, model, records, form, randomness=randomness).astype(np.float32)
        )
        model.eval()
        found = invert(
            model,
            partial(subject.task.loss),
            [torch.from_numpy(np.array(seen[name])) for name in trained],
            targets,
            shape=tuple(inputs.shape[1:]),
            low=low,
            high=high,
            seed=randomness.torch_seed("inversion"),
            steps=int(subject.setting("leakage", "steps", 600)),
        )
        return found.records.flatten(1).double().numpy()

    return attack


def _site(subject: AuditSubject) -> tuple[str, TensorData]:
    """Return the first site with records enough, and a batch of them."""
    for name, split in subject.sites.items():
        if len(split.train) >= _IMPRINT + _INVERT:
            rng = subject.randomness("leakage").generator("batch")
            rows = torch.from_numpy(rng.permutation(len(split.train))[: _IMPRINT + _INVERT])
            inputs, targets = split.train.batch(rows)
            if not isinstance(inputs, Tensor) or not inputs.is_floating_point():
                break
            return name, TensorData(inputs.float(), targets)
    raise DataError(
        f"no site has {_IMPRINT + _INVERT} training records of floating-point inputs at hand",
        remedy="audit where the records are",
        code="data-empty",
    )


def _public(subject: AuditSubject, data: TensorData) -> Tensor:
    """Return records that an attacker may have: test records, or the batch's own where there are none."""
    try:
        return subject.batch("test", 500, "leakage").inputs
    except DataError:
        return data.inputs


def _bounds(subject: AuditSubject, data: TensorData) -> tuple[Tensor, Tensor]:
    shape = data.inputs.shape[1:]
    if subject.task.bounds is None:
        return data.inputs.amin(0), data.inputs.amax(0)
    return tuple(torch.as_tensor(end).float().expand(shape).clone() for end in subject.task.bounds)  # type: ignore[return-value]


def _scaled(inputs: Tensor, low: Tensor, span: Tensor) -> Numbers:
    return ((inputs - low) / span).flatten(1).double().numpy()


def _chance(real: Numbers, public: Numbers) -> float:
    """Return the median PSNR of a record and the nearest of 64 others of its kind."""
    return float(np.median(match(real[:_IMPRINT], public[:_IMPRINT]).psnr))


def _measured(found: Match, real: Numbers, made: Numbers, shape: torch.Size) -> dict[str, Any]:
    similar = None
    if len(shape) == 3:
        held = [
            ssim(_image(real[row], shape), _image(made[place], shape)) if place >= 0 else 0.0
            for row, place in enumerate(found.candidate)
        ]
        similar = float(np.mean(held))
    return {
        "records": len(real),
        "candidates": len(made),
        "recovered": found.recovered,
        "fraction": found.recovered / len(real),
        "psnr_median": float(np.median(found.psnr)),
        "psnr_best": float(found.psnr.max()),
        "ssim": similar,
    }


def _chosen(found: Match, made: Numbers, real: Numbers) -> Numbers:
    chosen = np.zeros_like(real)
    for row, place in enumerate(found.candidate):
        if place >= 0:
            chosen[row] = made[place]
    return chosen


def _decibels(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f} dB"


def _image(record: Numbers, shape: torch.Size) -> Numbers:
    return np.asarray(record.reshape(tuple(shape)).mean(0), dtype=np.float64)


def _images(records: Numbers, shape: torch.Size) -> list[Any]:
    return [_image(one, shape).clip(0, 1).round(3).tolist() for one in records[:8]] if len(shape) == 3 else []
