"""A site's local optimiser: a site keeps no optimiser state between rounds."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import nn, optim

from cloister.core.spec import Optimizer

__all__ = ["LocalOptimiser", "make_optimiser"]


class LocalOptimiser(Protocol):
    """Moves a model's parameters by their ``.grad``."""

    def begin_round(self, rate: float) -> None:
        """Be as good as new, with the round's learning rate: nothing of another site is left."""
        ...

    def zero_grad(self) -> None:
        """Forget the gradients."""
        ...

    def step(self) -> None:
        """Move the parameters; one without a gradient stays."""
        ...


def make_optimiser(table: Optimizer, parameters: Iterable[nn.Parameter]) -> LocalOptimiser:
    """Return the optimiser that ``table`` describes."""
    rate = table.lr
    if table.name == "sgd" and not table.momentum and not table.weight_decay:
        return _PlainSgd(parameters)
    if table.name == "sgd":
        return _OfTorch(
            optim.SGD(
                parameters,
                lr=rate,
                momentum=table.momentum,
                nesterov=table.nesterov,
                weight_decay=table.weight_decay,
            )
        )
    if table.name == "rmsprop":
        return _OfTorch(
            optim.RMSprop(
                parameters, lr=rate, eps=table.eps, momentum=table.momentum, weight_decay=table.weight_decay
            )
        )
    kind = optim.Adam if table.name == "adam" else optim.AdamW
    return _OfTorch(
        kind(parameters, lr=rate, betas=table.betas, eps=table.eps, weight_decay=table.weight_decay)
    )


class _OfTorch:
    def __init__(self, optimiser: optim.Optimizer) -> None:
        self._optimiser = optimiser

    def begin_round(self, rate: float) -> None:
        self._optimiser.state.clear()
        for group in self._optimiser.param_groups:
            group["lr"] = rate

    def zero_grad(self) -> None:
        self._optimiser.zero_grad(set_to_none=True)

    def step(self) -> None:
        self._optimiser.step()


class _PlainSgd:
    """Gradient descent in one call for all parameters: to the bit what ``optim.SGD`` does, whose hooks cost time in every small step."""

    def __init__(self, parameters: Iterable[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        self._rate = 0.0

    def begin_round(self, rate: float) -> None:
        self._rate = rate

    def zero_grad(self) -> None:
        for parameter in self._parameters:
            parameter.grad = None

    def step(self) -> None:
        moved = [(p.detach(), p.grad) for p in self._parameters if p.grad is not None]
        if moved:
            values, gradients = zip(*moved, strict=True)
            torch._foreach_add_(values, gradients, alpha=-self._rate)
