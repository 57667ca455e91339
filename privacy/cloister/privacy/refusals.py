"""Models that record-level privacy refuses, with the reason and what to do instead.

Clipping each record's gradient bounds what a record does only if that gradient is the record's own. `check_model_for_dp` reads the
model's layers; `check_on_records` runs it on a few records and measures, which also finds what no list of layers can know: a
model or a loss of a user's own that mixes records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from opacus import GradSampleModule  # type: ignore[import-untyped]  # Opacus ships no types
from opacus.grad_sample import GradSampleHooks  # type: ignore[import-untyped]
from opacus.layers.dp_multihead_attention import SequenceBias  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.instancenorm import _InstanceNorm

from cloister.core.errors import TaskError
from cloister.privacy.bookkeeping import BookKeeping, obstacle
from cloister.privacy.gradients.clipping import RecordGradients, check_losses
from cloister.privacy.gradients.hooks import HookGradients
from cloister.privacy.gradients.rules import own_parameters

__all__ = ["Method", "Unchanged", "check_model_for_dp", "check_on_records", "record_gradients"]

#: How per-record gradients are had; ``auto`` takes book-keeping wherever it can.
Method = Literal["auto", "bookkeeping", "hooks"]

#: Reason, remedy, code.
_Refusal = tuple[str, str, str]

_KEPT = (torch.float32, torch.float64)


def record_gradients(model: nn.Module, method: Method = "auto") -> RecordGradients:
    """Return the way to the per-record gradients of ``model``.

    Raises:
        TaskError: as `check_model_for_dp`.
    """
    return BookKeeping(model) if check_model_for_dp(model, method) == "bookkeeping" else HookGradients(model)


def check_model_for_dp(model: nn.Module, method: Method = "auto") -> Literal["bookkeeping", "hooks"]:
    """Return how per-record gradients of this model are had, or refuse it.

    =================================================  =============================================
    model                                              answer
    =================================================  =============================================
    batch norm, in any mode                            refused: it mixes records and keeps statistics
    instance norm that tracks statistics               refused: the statistics leave without noise
    ``nn.RNN``, ``nn.LSTM``, ``nn.GRU``, attention     refused: no per-record gradient; Opacus has others
    a layer without a grad sampler                     refused
    embedding with ``max_norm``, ``scale_grad_by_freq``  refused: a token's gradient depends on other records
    ``nn.EmbeddingBag``, ``SequenceBias``              refused: records are not their first dimension
    convolution that pads with anything but zeros      refused: Opacus' gradient of it is wrong
    16-bit or complex parameters                       refused
    no trainable parameter                             refused
    one parameter in two layers                        ``hooks``; refused under ``bookkeeping``
    a layer called several times in a pass             as usual: its calls make one gradient
    frozen parameters                                  left out: no gradient, no noise
    anything else                                      ``bookkeeping``
    =================================================  =============================================

    Raises:
        TaskError: refused; the message names the layer, the remedy its replacement.
    """
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TaskError(
            "the model has no trainable parameter",
            remedy="return a model with parameters that require a gradient",
            code="task-model",
        )
    for name, layer in model.named_modules():
        _check_layer(name or "(the model itself)", layer)
    reason = obstacle(model)
    if reason is None and method != "hooks":
        return "bookkeeping"
    if method == "bookkeeping":
        raise TaskError(
            f"book-keeping cannot give per-record gradients of this model: {reason}",
            remedy="use method = 'hooks' or 'auto'",
            code="dp-bookkeeping",
        )
    if GradSampleHooks.validate(model):
        raise TaskError(
            f"Opacus' hooks, which this model needs ({reason or 'they were asked for'}), refuse a layer with parameters and buffers",
            remedy="keep buffers in a layer without parameters of its own",
            code="dp-layer",
        )
    return "hooks"


def _check_layer(name: str, layer: nn.Module) -> None:
    own = [parameter for parameter in own_parameters(layer).values() if parameter.requires_grad]
    found = _whatever_its_parameters(layer) or (_with_own_parameters(layer, own[0].dtype) if own else None)
    if found is not None:
        reason, remedy, code = found
        raise TaskError(
            f"record-level privacy refuses layer '{name}' ({type(layer).__name__}): {reason}",
            remedy=remedy,
            code=code,
        )


def _whatever_its_parameters(layer: nn.Module) -> _Refusal | None:
    if isinstance(layer, _BatchNorm):
        return (
            "batch norm mixes the records of a batch and keeps their statistics",
            "use nn.GroupNorm, or nn.LayerNorm for vectors",
            "dp-batch-norm",
        )
    if isinstance(layer, _InstanceNorm) and layer.track_running_stats:
        return (
            "its running statistics leave without noise",
            "set track_running_stats=False",
            "dp-running-statistics",
        )
    if isinstance(layer, nn.RNNBase):
        return "it has no per-record gradient", f"use opacus.layers.DP{layer.mode.split('_')[0]}", "dp-layer"
    if isinstance(layer, nn.MultiheadAttention):
        return (
            "it has no per-record gradient",
            "write attention with nn.Linear and functional.scaled_dot_product_attention, as the model 'transformer' does",
            "dp-layer",
        )
    return None


def _with_own_parameters(layer: nn.Module, dtype: torch.dtype) -> _Refusal | None:
    if dtype not in _KEPT:
        return (
            f"its parameters are {str(dtype).removeprefix('torch.')}",
            "keep parameters in float32",
            "dp-dtype",
        )
    if isinstance(layer, nn.EmbeddingBag | SequenceBias):
        return (
            "records are not the first dimension of its input",
            "use nn.Embedding or nn.Linear",
            "dp-batch-first",
        )
    if isinstance(layer, nn.Embedding) and (layer.max_norm is not None or layer.scale_grad_by_freq):
        return (
            "max_norm and scale_grad_by_freq make a token's gradient depend on other records",
            "leave both out",
            "dp-layer",
        )
    if isinstance(layer, _ConvNd) and layer.padding_mode != "zeros":
        reason = f"padding_mode = '{layer.padding_mode}' is not part of its per-record gradient"
        return reason, "pad before the layer with nn.functional.pad", "dp-layer"
    if type(layer) not in GradSampleModule.GRAD_SAMPLERS:
        return (
            "there is no grad sampler for it, so a record's gradient cannot be seen",
            "build it from nn.Linear, nn.Conv2d, nn.GroupNorm, nn.LayerNorm, nn.Embedding, …, or call opacus's register_grad_sampler",
            "dp-layer",
        )
    return None


class Unchanged:
    """Watches a model's parameters and floating-point buffers: one that a forward pass changes leaves the site without noise.

    Buffers that hold whole numbers (counters) are never sent: see `cloister.core.update.Layout`.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._before = self._state()

    def check(self) -> None:
        """Refuse a model whose parameter or buffer is not what it was.

        Raises:
            TaskError: it was written to, replaced, or added.
        """
        for name, state in self._state().items():
            if self._before.get(name) != state:
                kind = state[0]
                raise TaskError(
                    f"the forward pass changed the model's {kind} '{name}': what it holds would leave without noise",
                    remedy="keep no running statistic in the model, or keep it outside of buffers",
                    code="dp-running-statistics",
                )

    def _state(self) -> dict[str, tuple[str, int, int]]:
        # torch counts the writes to a tensor: no value has to be compared.
        return {
            f"{path}.{name}" if path else name: (kind, id(tensor), tensor._version)  # noqa: SLF001 - torch has no public name for it
            for path, layer in self._model.named_modules()  # afresh: a forward pass may replace or add one
            for kind in ("buffer", "parameter")
            for name, tensor in vars(layer)[f"_{kind}s"].items()
            if tensor is not None and tensor.is_floating_point()
        }


def check_on_records(
    model: nn.Module,
    loss: Callable[[Tensor, Tensor], Tensor],
    inputs: Any,
    targets: Tensor,
    method: Method = "auto",
) -> None:
    """Run the model on a few records, and refuse it unless each has its own loss and its own gradient.

    Made-up records of the right shapes serve as well as real ones, and reveal nothing. Costs some 3n small passes; torch's generator is
    left as it was.

    Args:
        model: in training mode.
        loss: (outputs, targets) to (n,) losses.
        inputs: n records that differ from each other; a tensor, or tuples, lists and mappings of tensors.
        targets: (n,), n at least 2; three is enough.
        method: as `check_model_for_dp`.

    Raises:
        TaskError: as `check_model_for_dp`; or a record's loss depends on another record or on how many there are; or its
            gradient is not the one that autograd finds; or the forward pass changes a buffer.
    """
    records = len(targets)
    if records < 2:
        raise TaskError(
            f"{records} records cannot show whether records are kept apart", remedy="give at least 2"
        )
    found = record_gradients(model, method)
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]

    def run(rows: list[int], seed: int = 0) -> Tensor:
        torch.manual_seed(seed)
        at = torch.tensor(rows, device=targets.device)
        return loss(model(_take(inputs, at)), targets[at])

    with torch.random.fork_rng(devices=[targets.device] if targets.is_cuda else []):
        unchanged = Unchanged(model)
        every = list(range(records))
        together = run(every)
        check_losses(together, records)
        unchanged.check()
        _check_apart(run, together.detach(), random=not torch.equal(together, run(every, seed=1)))
        for parameter in parameters:
            parameter.grad = None
        sums: dict[Tensor, Tensor] = {parameter: torch.zeros_like(parameter) for parameter in parameters}
        clipped = found.add_clipped(lambda: run(every), records=records, clip=1e12, into=sums)
        alone = [
            torch.autograd.grad(together[row], parameters, retain_graph=True, allow_unused=True)
            for row in every
        ]
    norms = torch.stack([torch.stack([g.norm() for g in row if g is not None]).norm() for row in alone])
    total = [
        torch.stack([torch.zeros_like(p) if g is None else g for g in rows]).sum(0)
        for p, rows in zip(parameters, zip(*alone, strict=True), strict=True)
    ]
    distance = torch.stack([(sums[p] - t).norm() for p, t in zip(parameters, total, strict=True)]).norm()
    if not torch.allclose(clipped.norms, norms, rtol=1e-3, atol=1e-6) or distance > 1e-3 * norms.sum() + 1e-6:
        raise TaskError(
            "the per-record gradients of this model are not those that autograd finds",
            remedy="keep the records in the first dimension of every layer's input, and use weights only through their layers",
            code="dp-gradient",
        )


def _check_apart(run: Callable[..., Tensor], together: Tensor, *, random: bool) -> None:
    records = len(together)
    every = list(range(records))
    for changed in every:
        rows = [(row + 1) % records if row == changed else row for row in every]
        with torch.no_grad():
            losses = run(rows)
        others = [row for row in every if row != changed]
        if not torch.allclose(losses[others], together[others], rtol=1e-4, atol=1e-6):
            raise TaskError(
                "a record's loss changes with another record of its batch",
                remedy="let model and loss treat every record by itself: no statistics over the first dimension",
                code="dp-records-mixed",
            )
    if random:  # dropout: a record alone draws another mask
        return
    with torch.no_grad():
        alone = torch.cat([run([row]) for row in every])
    if not torch.allclose(alone, together, rtol=1e-3, atol=1e-5):
        raise TaskError(
            "a record's loss changes with the size of its batch",
            remedy="return each record's own loss, not divided by the number of records",
            code="dp-records-mixed",
        )


def _take(inputs: Any, rows: Tensor) -> Any:
    if isinstance(inputs, Tensor):
        return inputs[rows]
    if isinstance(inputs, dict):
        return {key: _take(part, rows) for key, part in inputs.items()}
    return type(inputs)(_take(part, rows) for part in inputs)
