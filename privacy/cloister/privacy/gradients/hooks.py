"""Per-record gradients by Opacus' own hooks: slower than book-keeping, and fit for weights that two layers share."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from opacus.grad_sample import GradSampleHooks  # type: ignore[import-untyped]  # Opacus ships no types
from torch import Tensor, nn

from cloister.core.errors import TaskError
from cloister.privacy.gradients.clipping import Clipped, Sums, check_losses, clip_factors, squared_norms
from cloister.privacy.gradients.convolution import conv2d_grad_sampler

__all__ = ["HookGradients"]


class _Hooks(GradSampleHooks):  # type: ignore[misc]  # untyped base
    """Opacus' hooks with our sampler for 2-d convolutions: Opacus' own is wrong for channels-last inputs."""

    def __init__(self, model: nn.Module) -> None:
        # An attribute of this object: Opacus' registry, which all of a process's models share, stays as it is.
        self.GRAD_SAMPLERS = {**GradSampleHooks.GRAD_SAMPLERS, nn.Conv2d: conv2d_grad_sampler}
        super().__init__(model, batch_first=True, loss_reduction="sum", strict=True)


class HookGradients:
    """`RecordGradients` by Opacus' hooks.

    Guarantees:
        - What is added is Σ_i min(1, C/‖g_i‖)·g_i, g_i being the gradient of record i's loss over all trainable parameters.
        - A record whose gradient is not finite adds 0.
        - The hooks are there during the call only; the model is left as it was, with ``.grad`` at ``None``.

    Args:
        model: accepted by `refusals.check_model_for_dp`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model

    def add_clipped(self, run: Callable[[], Tensor], *, records: int, clip: float, into: Sums) -> Clipped:
        """Add the clipped sum of one physical batch: see `RecordGradients`."""
        if not self._model.training:
            raise TaskError(
                "Opacus' hooks see nothing of a model in evaluation mode",
                remedy="call model.train() before a step",
                code="dp-model-mode",
            )
        hooks = _Hooks(self._model)
        try:
            with torch.enable_grad(), warnings.catch_warnings():
                # The first layer's input needs no gradient: Opacus knows, torch warns.
                warnings.filterwarnings("ignore", "Full backward hook is firing", UserWarning)
                losses = run()
                check_losses(losses, records)
                losses.sum().backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                return _clip(losses, records, clip, into)
        finally:
            hooks.cleanup()
            for parameter in into:
                parameter.grad = None
            for layer in self._model.modules():  # a layer whose output was not used keeps these
                vars(layer).pop("activations", None)
                vars(layer).pop("max_batch_len", None)


def _clip(losses: Tensor, records: int, clip: float, into: Sums) -> Clipped:
    squared = torch.zeros_like(losses)
    found: list[tuple[Tensor, Tensor]] = []
    for parameter in into:
        rows = getattr(parameter, "grad_sample", None)
        if rows is None:  # no record used it
            continue
        if len(rows) != records:
            raise TaskError(
                f"a parameter of shape {tuple(parameter.shape)} got {len(rows)} per-record gradients for {records} records",
                remedy="keep the records in the first dimension of every layer's input",
                code="dp-batch-first",
            )
        squared += squared_norms(rows)
        found.append((parameter, rows))
    factors = clip_factors(squared, clip)
    for parameter, rows in found:
        into[parameter].add_(factors.sum(rows))
    dropped = 0 if factors.dropped is None else int(factors.dropped.sum())
    return Clipped(losses=losses.detach(), norms=squared.sqrt(), dropped=dropped)
