"""A site's local optimiser: a site keeps no optimiser state between rounds."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn, optim

from cloister.core.spec import Optimizer

__all__ = ["begin_round", "make_optimiser"]


def begin_round(optimiser: optim.Optimizer, rate: float) -> None:
    """Make ``optimiser`` as good as new, with the round's learning rate ``rate``: nothing of another site is left in it."""
    optimiser.state.clear()
    for group in optimiser.param_groups:
        group["lr"] = rate


def make_optimiser(table: Optimizer, parameters: Iterable[nn.Parameter]) -> optim.Optimizer:
    """Return the torch optimiser that ``table`` describes."""
    rate = table.lr
    if table.name == "sgd":
        return optim.SGD(
            parameters,
            lr=rate,
            momentum=table.momentum,
            nesterov=table.nesterov,
            weight_decay=table.weight_decay,
        )
    if table.name == "rmsprop":
        return optim.RMSprop(
            parameters, lr=rate, eps=table.eps, momentum=table.momentum, weight_decay=table.weight_decay
        )
    kind = optim.Adam if table.name == "adam" else optim.AdamW
    return kind(parameters, lr=rate, betas=table.betas, eps=table.eps, weight_decay=table.weight_decay)
