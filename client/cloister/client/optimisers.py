"""A site's local optimiser, made anew for each round: a site keeps no optimiser state between rounds."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn, optim

from cloister.core.spec import Optimizer

__all__ = ["make_optimiser"]


def make_optimiser(table: Optimizer, parameters: Iterable[nn.Parameter], *, factor: float) -> optim.Optimizer:
    """Return the torch optimiser that ``table`` describes, with its learning rate times ``factor`` (the schedule's)."""
    rate = table.lr * factor
    if table.name == "sgd":
        return optim.SGD(parameters, lr=rate, momentum=table.momentum, nesterov=table.nesterov, weight_decay=table.weight_decay)
    if table.name == "rmsprop":
        return optim.RMSprop(parameters, lr=rate, eps=table.eps, momentum=table.momentum, weight_decay=table.weight_decay)
    kind = optim.Adam if table.name == "adam" else optim.AdamW
    return kind(parameters, lr=rate, betas=table.betas, eps=table.eps, weight_decay=table.weight_decay)
