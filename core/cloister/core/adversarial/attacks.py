"""White-box attacks on a batch of records: fast gradient sign, and projected gradient descent with restarts.

Formal guarantees of every attack here.
- Record by record: what record i becomes is a function of record i, its target, its own random numbers and the model alone, as long
  as the model treats every record by itself. The loss is summed over records, never averaged: how many there are changes nothing.
- The model is left as it was: parameters are frozen meanwhile (no gradient is computed for them, which is where the time goes), the
  model is in evaluation mode (no dropout, the function that is attacked is the one that is deployed), ``.grad`` is not touched.
- What comes out lies within the threat: see `cloister.core.adversarial.threat`.

A layer that is watched for per-record gradients is refused: those hooks would take the attack's gradients for the record's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from cloister.core.adversarial.threat import Threat
from cloister.core.errors import TaskError

__all__ = ["Loss", "attacking", "check_inputs", "fgsm", "gradient", "pgd", "pgd_restarts"]

#: From a batch's outputs and targets to (n,) losses, one a record: what an attack makes large.
Loss = Callable[[Tensor, Tensor], Tensor]


@contextmanager
def attacking(model: nn.Module) -> Iterator[None]:
    """Freeze the parameters of ``model`` and put it into evaluation mode; leave it as it was.

    Raises:
        TaskError: per-record gradients of the model are being recorded.
    """
    for name, layer in model.named_modules():
        stand_in = vars(layer).get("forward")  # book-keeping's; the other is what Opacus leaves on a module
        if getattr(stand_in, "watches_records", False) or "autograd_grad_sample_hooks" in vars(layer):
            raise TaskError(
                f"the model is attacked while gradients of its records are recorded (layer '{name or 'the model itself'}')",
                remedy="attack the records first, with all hooks off, then take one gradient a record",
                code="attack-hooks",
            )
    training = [layer for layer in model.modules() if layer.training]
    thawed = [parameter for parameter in model.parameters() if parameter.requires_grad]
    try:
        for layer in training:
            layer.training = False
        for parameter in thawed:
            parameter.requires_grad_(False)
        with torch.enable_grad():
            yield
    finally:
        for parameter in thawed:
            parameter.requires_grad_(True)
        for layer in training:
            layer.training = True


def check_inputs(inputs: object) -> Tensor:
    """Return ``inputs`` if an attack can move them.

    Raises:
        TaskError: they are no floating-point tensor: tokens, texts and several inputs at once cannot be moved by a little.
    """
    if not isinstance(inputs, Tensor) or not inputs.is_floating_point() or inputs.dim() < 2:
        kind = f"{inputs.dtype}, {inputs.dim()}-d" if isinstance(inputs, Tensor) else type(inputs).__name__
        raise TaskError(
            f"the records' inputs are {kind}: they cannot be moved by a little",
            remedy="attack tasks whose input is one floating-point tensor (n, …)",
            code="adversarial-inputs",
        )
    return inputs


def gradient(model: nn.Module, loss: Loss, point: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Return the gradient of each record's loss by its own input (n, …), and the (n,) losses; call it within `attacking`."""
    moved = point.detach().requires_grad_()
    losses = loss(model(moved), targets)
    (found,) = torch.autograd.grad(losses.sum(), moved)
    return found, losses.detach()


def fgsm(
    model: nn.Module,
    loss: Loss,
    records: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    step_size: float | None = None,
    start: Tensor | None = None,
) -> Tensor:
    """Return ``records`` (n, …) after one step up the gradient (Goodfellow et al. 2015), from ``start`` or the records."""
    return pgd(
        model, loss, records, targets, threat, steps=1, step_size=step_size or threat.epsilon, start=start
    )


def pgd(
    model: nn.Module,
    loss: Loss,
    records: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    start: Tensor | None = None,
) -> Tensor:
    """Return ``records`` after projected gradient ascent on their loss (Madry et al. 2018, section 2.1).

    Args:
        model: what is attacked.
        loss: what is made large.
        records: (n, …) floating point; n may be 0.
        targets: (n,).
        threat: what the adversary may do.
        steps: how many gradients are followed.
        step_size: how far each time, in the threat's norm.
        start: (n, …) where to begin; the records themselves without it.
    """
    if not len(records):
        return records
    point = records if start is None else start
    project = threat.projection(records)
    with attacking(model):
        for _ in range(steps):
            found, _ = gradient(model, loss, point, targets)
            with torch.no_grad():
                point = project(threat.ascend(point.detach(), found, step_size))
    return point.detach()


def pgd_restarts(
    model: nn.Module,
    loss: Loss,
    records: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    steps: int,
    step_size: float,
    restarts: int,
    generator: torch.Generator | None,
    still: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return ``records`` after the first of several attacks from random points that succeeds, else the last one's.

    A record that an attack has broken is left alone afterwards.

    Args:
        model: what is attacked.
        loss: what is made large.
        records: (n, …).
        targets: (n,).
        threat: what the adversary may do.
        steps: gradients of each attack.
        step_size: how far each time.
        restarts: attacks, at least 1.
        generator: where the random points come from.
        still: outputs and targets to (n,) bool: whether the model is still right.
    """
    best = records.clone()
    left = torch.arange(len(records), device=records.device)
    for _ in range(restarts):
        if not len(left):
            break
        own, wanted = records[left], targets[left]
        found = pgd(
            model,
            loss,
            own,
            wanted,
            threat,
            steps=steps,
            step_size=step_size,
            start=threat.start(own, generator),
        )
        best[left] = found
        with attacking(model), torch.no_grad():
            left = left[still(model(found), wanted)]
    return best
