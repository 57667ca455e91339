"""If the model is stolen: does a recipient's mark survive what a thief does to it, and how many queries does a copy cost."""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from cloister.core.errors import UsageError
from cloister.core.evidence import Finding, Verdict
from cloister.core.resolve import build_model
from cloister.server.audit.model.marking import STRENGTH, embed, trace
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject, Batch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["check_extraction", "check_fingerprint", "surrogate"]

_RECIPIENTS = 16
_FALSE = 1e-3
_BUDGETS = (50, 200, 1000)
_CLOSE = 0.95
_RECORDS = 2000


def _marks_section(found: Finding) -> Section:
    section = Section()
    section.table(
        ("What the thief did", "Score", "Chance of a false accusation", "Traced"),
        [
            (
                name,
                f"{one['z']:.1f}",
                f"{one['p']:.1g}" if one["p"] > 1e-12 else "below 1e-12",
                "yes" if one["traced"] else "no",
            )
            for name, one in found.figures["attacks"].items()
        ],
        note=f"Each of {found.figures['recipients']} recipients has a mark of its own; the chance is a bound that holds whatever the thief did.",
    )
    return section


@shown_as("A recipient's mark", _marks_section)
def check_fingerprint(subject: AuditSubject) -> Finding:
    """Mark a copy, do to it what a thief does, and trace it."""
    randomness = subject.randomness("fingerprint")
    key = randomness.bits("key").to_bytes(16, "big")
    names = [f"recipient-{number:02d}" for number in range(1, _RECIPIENTS + 1)]
    original = {name: value.detach() for name, value in subject.model.state_dict().items()}
    thief, other = names[4], names[9]
    marked = embed(original, key=key, recipient=thief)
    batch = subject.batch("test", _RECORDS, "fingerprint")
    model = copy.deepcopy(subject.model)
    before = _quality(subject, model, batch)
    model.load_state_dict(marked)
    after = _quality(subject, model, batch)
    generator = torch.Generator().manual_seed(randomness.torch_seed("attacks"))
    friend = embed(original, key=key, recipient=other)
    copies = {
        "nothing": marked,
        "stored as float16": {name: value.half().float() for name, value in marked.items()},
        "smallest 20% of weights set to 0": _pruned(marked, 0.2),
        "smallest 50% of weights set to 0": _pruned(marked, 0.5),
        "noise as strong as the mark": _noisy(marked, generator),
        "trained on for 30 steps": _tuned(subject, model, marked, batch, randomness.torch_seed("tuning")),
        "averaged with another recipient's": {
            name: (value + friend[name]) / 2 if value.is_floating_point() else value
            for name, value in marked.items()
        },
        "the original, without a mark": _noisy(original, generator),
    }
    attacks: dict[str, Any] = {}
    for name, stolen in copies.items():
        scores = trace(stolen, original, key=key, recipients=names)
        own = next(one for one in scores if one.recipient == thief)
        wrong = [one for one in scores if one.p < _FALSE and one.recipient not in {thief, other}]
        attacks[name] = {"z": own.z, "p": own.p, "traced": own.p < _FALSE, "wrongly": len(wrong)}
    innocent = attacks["the original, without a mark"]
    accused = any(one["wrongly"] for one in attacks.values()) or innocent["traced"]
    tried = {name: one for name, one in attacks.items() if name != "the original, without a mark"}
    survived = sum(one["traced"] for one in tried.values())
    cost = before - after
    verdict: Verdict = (
        "fail"
        if accused
        else "pass"
        if survived == len(tried)
        else "warn"
        if attacks["nothing"]["traced"]
        else "no power"
    )
    sentence = (
        f"A mark that costs {100 * max(cost, 0.0):.2f} points of {'accuracy' if subject.classes else 'R²'} traces a copy to its recipient after {survived} of {len(tried)} things that a thief may do."
        if not accused
        else "A recipient without a part in the copy was named: the mark must not be relied on."
    )
    return Finding(
        name="fingerprint",
        verdict=verdict,
        sentence=sentence,
        figures={
            "attacks": attacks,
            "recipients": _RECIPIENTS,
            "strength": STRENGTH,
            "cost": cost,
            "false_alarm": _FALSE,
            "numbers": sum(value.numel() for value in original.values() if value.ndim >= 2),
            "seed": subject.seed,
        },
        power=f"It could have named a wrong recipient with a chance of at most {_FALSE:g} a copy. A mark of this strength cannot be traced after the neurons were put "
        "into another order, after distillation, or in a model of few weights.",
    )


def _quality(subject: AuditSubject, model: nn.Module, batch: Batch) -> float:
    with torch.inference_mode():
        outputs = torch.cat([model(part) for part in torch.split(batch.inputs, 250)])
    if subject.classes:
        return float((outputs.argmax(1) == batch.targets).double().mean())
    errors = (outputs.reshape(-1) - batch.targets).double()
    return 1 - float(errors.square().mean()) / max(float(batch.targets.double().var()), 1e-12)


def _pruned(tensors: dict[str, Tensor], share: float) -> dict[str, Tensor]:
    found = {}
    for name, value in tensors.items():
        if value.ndim >= 2 and value.is_floating_point():
            boundary = value.abs().flatten().kthvalue(max(1, int(share * value.numel()))).values
            found[name] = torch.where(value.abs() <= boundary, torch.zeros_like(value), value)
        else:
            found[name] = value
    return found


def _noisy(tensors: dict[str, Tensor], generator: torch.Generator) -> dict[str, Tensor]:
    return {
        name: value + STRENGTH * value.square().mean().sqrt() * torch.randn(value.shape, generator=generator)
        if value.ndim >= 2 and value.is_floating_point()
        else value
        for name, value in tensors.items()
    }


def _tuned(
    subject: AuditSubject, model: nn.Module, tensors: dict[str, Tensor], batch: Batch, seed: int
) -> dict[str, Tensor]:
    """Return what training on with records of its own, at a small rate, makes of the copy."""
    tuned = copy.deepcopy(model)
    tuned.load_state_dict(tensors)
    tuned.requires_grad_(True)
    optimiser = torch.optim.SGD(tuned.parameters(), lr=0.01)
    generator = torch.Generator().manual_seed(seed)
    for _ in range(30):
        rows = torch.randint(len(batch), (64,), generator=generator)
        optimiser.zero_grad()
        subject.task.loss(tuned(batch.inputs[rows]), batch.targets[rows]).mean().backward()  # type: ignore[no-untyped-call]
        optimiser.step()
    return {name: value.detach() for name, value in tuned.state_dict().items()}


def _extraction_section(found: Finding) -> Section:
    from cloister.server.report.canvas import ACCENT, LOCAL, tidy
    from cloister.server.report.words import percent

    section, rows = Section(), found.figures.get("budgets", [])
    if not rows:
        return section

    def draw(figure: Figure) -> None:
        axes = figure.subplots()
        axes.plot(
            [row["queries"] for row in rows],
            [row["agreement"] for row in rows],
            "o-",
            color=ACCENT,
            label="real records",
        )
        axes.plot(
            [row["queries"] for row in rows],
            [row["noise"] for row in rows],
            "o--",
            color=LOCAL,
            label="random inputs",
        )
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda queries, _: f"{queries:,.0f}")
        axes.minorticks_off()
        axes.set_ylim(0, 1.02)
        tidy(axes, xlabel="queries", ylabel="agreement")
        figure.legend(loc="outside upper left", ncols=2)

    section.plot("extraction", "Agreement of a stolen copy", draw, "by queries")
    section.table(
        ("Queries", "Agreement, real records", "Agreement, random inputs", "Accuracy of the copy"),
        [
            (
                f"{row['queries']:,}",
                percent(row["agreement"]),
                percent(row["noise"]),
                percent(row["accuracy"]),
            )
            for row in rows
        ],
    )
    return section


@shown_as("Extraction by queries", _extraction_section)
def check_extraction(subject: AuditSubject) -> Finding:
    """Train a copy on the model's own answers, by how many questions were asked, and see how often it agrees."""
    if not subject.classes:
        return Finding(
            name="extraction",
            verdict="no power",
            sentence="The test is one of classes, and the task is a regression.",
            power="It could have shown nothing.",
        )
    batch = subject.batch("test", 4 * _RECORDS, "extraction")
    half = len(batch) // 2
    if half < _BUDGETS[0]:
        raise UsageError(
            "there are too few test records to ask questions with", remedy="give more test records"
        )
    order = torch.from_numpy(subject.randomness("extraction").generator("halves").permutation(len(batch)))
    own, held = order[:half], order[half:]
    seed = subject.randomness("extraction").torch_seed("copies")
    generator = torch.Generator().manual_seed(seed)
    x = batch.inputs
    low, high = x.amin(0), x.amax(0)
    with torch.inference_mode():
        answers = subject.model(x[held]).argmax(1)
    budgets = list(dict.fromkeys(min(budget, half) for budget in _BUDGETS))
    steps = int(subject.setting("extraction", "steps", 400))
    rows = []
    for queries in budgets:
        copied = surrogate(subject, x[own[:queries]], seed=seed, steps=steps)
        noise = low + (high - low) * torch.rand((queries, *x.shape[1:]), generator=generator)
        guessed = surrogate(subject, noise, seed=seed, steps=steps)
        with torch.inference_mode():
            said, blind = copied(x[held]).argmax(1), guessed(x[held]).argmax(1)
        rows.append(
            {
                "queries": queries,
                "agreement": float((said == answers).double().mean()),
                "noise": float((blind == answers).double().mean()),
                "accuracy": float((said == batch.targets[held]).double().mean()),
            }
        )
        subject.tell(f"extraction: {queries} queries, {rows[-1]['agreement']:.3f} agreement")
    cheap = next((row for row in rows if row["agreement"] >= _CLOSE), None)
    last = rows[-1]
    half_width = 1.96 * float(np.sqrt(0.25 / len(held)))
    return Finding(
        name="extraction",
        verdict="warn" if cheap else "pass",
        sentence=f"With {(cheap or last)['queries']:,} questions and their full answers a copy agrees with the model on {100 * (cheap or last)['agreement']:.1f}% of records"
        + ("; limit how many questions one user may ask." if cheap else "."),
        figures={"budgets": rows, "held": len(held), "threshold": _CLOSE, "seed": subject.seed},
        power=f"On {len(held)} records it could have shown an agreement to {100 * half_width:.0f} points, for one who has records of this kind, knows the model's layers and is "
        f"told all scores, at up to {last['queries']:,} questions. More questions, or better chosen ones, copy more.",
    )


def surrogate(subject: AuditSubject, queries: Tensor, *, seed: int, steps: int = 400) -> nn.Module:
    """Return a copy of the task's model, built anew and trained on the model's probabilities for ``queries``."""
    with torch.inference_mode():
        answers = torch.cat([subject.model(part).softmax(1) for part in torch.split(queries, 250)])
    answers = answers.clone()
    model = build_model(subject.task, seed % 2**31)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for _ in range(steps):
            rows = torch.randint(len(queries), (min(64, len(queries)),), generator=generator)
            optimiser.zero_grad()
            functional.cross_entropy(model(queries[rows]), answers[rows]).backward()  # type: ignore[no-untyped-call]
            optimiser.step()
    return model.eval().requires_grad_(False)
