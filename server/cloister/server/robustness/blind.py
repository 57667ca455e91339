"""A black-box attack for any threat: random search on the margin, asking the model for scores only.

Square Attack's idea (Andriushchenko et al. 2020, algorithm 1: keep a random change where it lowers the margin), with changes of random
inputs in place of squares, so that it needs no image, no bounds and no gradient. On images Square is stronger; use that.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cloister.core.adversarial.attacks import attacking
from cloister.core.adversarial.threat import Threat

__all__ = ["margin", "random_search"]


def margin(scores: Tensor, targets: Tensor) -> Tensor:
    """Return (n,) how far the target's score lies above the highest other one; below 0: the record is misclassified."""
    own = scores.gather(1, targets.view(-1, 1)).squeeze(1)
    others = scores.scatter(1, targets.view(-1, 1), -torch.inf)
    return own - others.amax(1)


def random_search(
    model: nn.Module,
    records: Tensor,
    targets: Tensor,
    threat: Threat,
    *,
    queries: int,
    generator: torch.Generator,
) -> Tensor:
    """Return ``records`` (n, …) after ``queries`` looks at the scores; each within the threat.

    Each look changes a share of the inputs, from half at the beginning down to one, to an end of the ε-ball.
    """
    if not len(records):
        return records
    project = threat.projection(records)
    with attacking(model), torch.no_grad():
        best = project(records + threat.epsilon * _signs(records, generator))
        found = margin(model(best), targets)
        for query in range(queries):
            share = max(0.5 * 0.98 ** (200 * query / max(queries, 1)), 1 / records[0].numel())
            chosen = torch.rand(records.shape, generator=generator) < share
            moved = torch.where(chosen, records + threat.epsilon * _signs(records, generator), best)
            moved = project(moved)
            tried = margin(model(moved), targets)
            better = tried < found
            best[better], found[better] = moved[better], tried[better]
    return best


def _signs(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randint(0, 2, like.shape, generator=generator).to(like.dtype).mul_(2).sub_(1)
