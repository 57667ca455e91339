"""Is the released file the model of its task, and nothing else: names, shapes, types, finite values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cloister.core.evidence import Finding
from cloister.core.resolve import build_model
from cloister.core.update import Layout
from cloister.server.audit.sections import shown_as
from cloister.server.audit.subject import AuditSubject

__all__ = ["check_structure"]


@shown_as("Structure")
def check_structure(subject: AuditSubject) -> Finding:
    """Compare the file's tensors with those of the task's own model."""
    held = subject.tensors or {}
    known = {
        name: value
        for name, value in subject.initial.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor)
    }
    tied = {id(known[name]) for name in held if name in known}
    faults = [f"'{name}' is no tensor of the task's model" for name in sorted(held.keys() - known.keys())]
    faults += [
        f"'{name}' is missing" for name, value in known.items() if name not in held and id(value) not in tied
    ]
    for name in sorted(held.keys() & known.keys()):
        value, wanted = held[name], known[name]
        if value.shape != wanted.shape:
            faults.append(f"'{name}' has shape {tuple(value.shape)}, and the task's {tuple(wanted.shape)}")
        elif value.dtype != wanted.dtype:
            faults.append(f"'{name}' is {value.dtype}, and the task's {wanted.dtype}")
        elif not bool(value.isfinite().all()):
            faults.append(f"'{name}' holds a value that is not finite")
    faults += _frozen(subject, held)
    figures: dict[str, Any] = {
        "tensors": len(held),
        "numbers": sum(value.numel() for value in held.values()),
        "layout": Layout.of(_fresh(subject)).digest,
        "dtypes": sorted({str(value.dtype).removeprefix("torch.") for value in held.values()}),
        "faults": faults[:20],
        "number_of_faults": len(faults),
    }
    good = f"The file holds the {len(held)} tensors of the task's model and nothing else, {figures['numbers']:,} finite numbers."
    return Finding(
        name="structure",
        verdict="fail" if faults else "pass",
        sentence=f"The file is not the task's model: {faults[0]}." if faults else good,
        figures=figures,
        power="It could have shown any tensor that is missing, added, of another shape or type, or not finite, and any frozen one that was changed. "
        "It says nothing of what the numbers do.",
    )


def _frozen(subject: AuditSubject, held: Any) -> list[str]:
    """Return which tensors that no site trains are not as every site builds them."""
    model = _fresh(subject)
    fixed = {entry.name for entry in Layout.of(model).entries if entry.kind == "fixed"}
    built = model.state_dict()
    return [
        f"'{name}' is frozen, and is not as it was built"
        for name in sorted(fixed & held.keys() & built.keys())
        if built[name].shape == held[name].shape
        and not torch.equal(built[name].to(held[name].dtype), held[name])
    ]


def _fresh(subject: AuditSubject) -> torch.nn.Module:
    return build_model(subject.task, subject.spec.federation.seed)
