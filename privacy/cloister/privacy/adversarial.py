"""Whether an attack keeps records apart: what record-level privacy asks of adversarial training.

Clipping bounds what a record does only if the perturbation of every other record is as it were without it. `check_attack_for_dp` measures
that on made-up records: a perturbation that is shared by a batch, or carried over from one batch to the next ("free" training: Shafahi et
al. 2019), changes with a neighbour and is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from cloister.core.errors import TaskError
from cloister.privacy.dpsgd import Objective
from cloister.privacy.refusals import check_model_for_dp

__all__ = ["check_attack_for_dp"]


def check_attack_for_dp(
    make: Callable[[int], Objective], model: nn.Module, inputs: Tensor, targets: Tensor
) -> None:
    """Refuse an attack under which a record's perturbation depends on other records or on earlier batches.

    Costs n + 3 attacks of n records; the model is left as it was.

    Args:
        make: returns the objective, as new, its randomness seeded by the argument.
        model: accepted by `check_model_for_dp`.
        inputs: (n, …) made-up records that differ from each other, n at least 2; three is enough.
        targets: (n,).

    Raises:
        TaskError: as `check_model_for_dp`; the attack mixes records, keeps something from one batch to the next, or leaves a
            gradient in the parameters.
    """
    check_model_for_dp(model)
    records = len(targets)
    if records < 2:
        raise TaskError(
            f"{records} records cannot show whether an attack keeps them apart", remedy="give at least 2"
        )
    kept = [None if parameter.grad is None else parameter.grad.clone() for parameter in model.parameters()]
    together = make(0).perturb(model, inputs, targets)
    if not isinstance(together, Tensor) or together.shape != inputs.shape:
        raise TaskError(
            "the attack does not return one input for each record",
            remedy="return (n, …) as given",
            code="dp-attack-shape",
        )
    for before, parameter in zip(kept, model.parameters(), strict=True):
        same = parameter.grad is None if before is None else torch.equal(before, parameter.grad)  # type: ignore[arg-type]
        if not same:
            raise TaskError(
                "the attack leaves a gradient in the model's parameters, neither clipped nor noisy",
                remedy="ask for gradients by the inputs only, with the parameters frozen",
                code="dp-attack-gradient",
            )
    for changed in range(records):
        rows = torch.tensor([(row + 1) % records if row == changed else row for row in range(records)])
        found = make(0).perturb(model, inputs[rows], targets[rows])
        others = torch.tensor([row for row in range(records) if row != changed])
        if not torch.allclose(found[others], together[others], rtol=1e-4, atol=1e-6):
            raise _mixed("changes with another record of its batch")
    twice = make(0)
    twice.perturb(model, inputs.flip(0), targets.flip(0))
    fresh = make(0)
    fresh.perturb(model, inputs, targets)
    if not torch.allclose(
        twice.perturb(model, inputs, targets), fresh.perturb(model, inputs, targets), rtol=1e-4, atol=1e-6
    ):
        raise _mixed("changes with the records of an earlier batch")


def _mixed(how: str) -> TaskError:
    return TaskError(
        f"a record's perturbation {how}",
        remedy="let the attack start afresh at every batch and move every record by its own gradient: no shared, universal or 'free' "
        "perturbation",
        code="dp-attack-mixed",
    )
