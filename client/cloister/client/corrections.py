"""What is done to a batch's gradient between the gradient step and the optimiser: penalties, pulls, clipping.

In this order: L2 and L1 penalties, FedProx (Li et al. 2020, eq. 2: ``mu (w - w_t)``), SCAFFOLD (Karimireddy et al. 2020, Algorithm 1,
line 10: ``c - c_i``), then clipping of the whole gradient's L2 norm. Frozen parameters are left alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from cloister.core.spec import Training
from cloister.core.update import Layout, Vector

__all__ = ["gradient_corrections"]


def gradient_corrections(
    training: Training, model: nn.Module, layout: Layout, *, start: Vector, drift: Vector | None
) -> Callable[[], None]:
    """Return a function that corrects the gradients in ``model`` in place; one that does nothing where nothing was asked for.

    Args:
        training: the ``[training]`` table.
        model: the module whose ``.grad`` are corrected.
        layout: what lies where in the flat vectors.
        start: (size,) the round's model, the origin of FedProx's pull.
        drift: (size,) SCAFFOLD's correction, or ``None``.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    terms: list[Callable[[str, nn.Parameter, Tensor], object]] = []
    if training.l2:
        terms.append(lambda _, parameter, gradient: gradient.add_(parameter, alpha=training.l2))
    if training.l1:
        terms.append(lambda _, parameter, gradient: gradient.add_(parameter.sign(), alpha=training.l1))
    if training.proximal_mu:
        origin = _by_name(layout, start, named)
        terms.append(
            lambda name, parameter, gradient: gradient.add_(
                parameter - origin[name], alpha=training.proximal_mu
            )
        )
    if drift is not None:
        pull = _by_name(layout, drift, named)
        terms.append(lambda name, _, gradient: gradient.add_(pull[name]))
    clip = training.gradient_clip

    def correct() -> None:
        with torch.no_grad():
            for name, parameter in named.items():
                if parameter.grad is not None:
                    for term in terms:
                        term(name, parameter, parameter.grad)
        if clip:
            nn.utils.clip_grad_norm_(named.values(), clip)

    return correct if terms or clip else _nothing


def _nothing() -> None:
    pass


def _by_name(layout: Layout, vector: Vector, named: dict[str, nn.Parameter]) -> dict[str, Tensor]:
    views = layout.split(vector)
    return {
        name: torch.from_numpy(np.array(views[name])).to(parameter.device)
        for name, parameter in named.items()
    }
