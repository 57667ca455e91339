"""Book-keeping: the clipped sum of per-record gradients from one forward and one backward pass.

Bu, Wang, Zha and Karypis (2023), "Differentially private optimization on large model at small cost": while the backward pass goes
through the layers, each layer's inputs and output gradients are kept; the norms come from them, and once the norms are known one
product a layer gives the clipped sum. The ordinary weight gradient, which differential privacy has no use for, is never computed.

A layer is watched by standing in for its ``forward`` during a pass; nothing is left on the model after it, no hook runs
at any other time, and workers with models of their own do not meet.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from cloister.core.errors import TaskError
from cloister.privacy.gradients.clipping import Clipped, Sums, check_losses, clip_factors
from cloister.privacy.gradients.rules import Call, Rule, own_parameters, rule_for

__all__ = ["BookKeeping", "obstacle"]


def obstacle(model: nn.Module) -> str | None:
    """Return why book-keeping cannot serve this model, or ``None`` where it can."""
    owners: dict[int, str] = {}
    for name, layer in model.named_modules():
        if not _own(layer):
            continue
        if rule_for(layer) is None:
            return f"layer '{name or '(the model itself)'}' is a {type(layer).__name__}, which it has no rule for"
        if "forward" in vars(layer):
            return f"layer '{name}' has a forward of its own in place of its class's"
        for own, parameter in _own(layer):
            path = f"{name}.{own}"
            if owners.setdefault(id(parameter), path) != path:
                return f"'{path}' and '{owners[id(parameter)]}' are one parameter"
    return None


class BookKeeping:
    """`RecordGradients` by book-keeping.

    Guarantees:
        - What is added is Σ_i min(1, C/‖g_i‖)·g_i, g_i being the gradient of record i's loss over all trainable parameters.
        - A record whose gradient is not finite adds 0.
        - The model is left as it was: its forward, hooks and ``.grad`` (``None``).

    Args:
        model: no two layers share a parameter, and every layer with one has a rule: see `obstacle`.

    Raises:
        TaskError: `obstacle` names something.
    """

    def __init__(self, model: nn.Module) -> None:
        if (reason := obstacle(model)) is not None:
            raise TaskError(
                f"book-keeping cannot give per-record gradients of this model: {reason}",
                remedy="use method = 'hooks' or 'auto'",
                code="dp-bookkeeping",
            )
        self._model = model
        self._layers: list[tuple[str, nn.Module, Rule]] = []
        self._parameters: list[tuple[str, nn.Parameter, bool]] = []
        for name, layer in model.named_modules():
            rule = rule_for(layer) if (own := _own(layer)) else None
            if rule is not None:
                self._layers.append((name, layer, rule))
                self._parameters += [
                    (f"{name}.{key}", parameter, rule.leaves_gradients) for key, parameter in own
                ]

    def add_clipped(self, run: Callable[[], Tensor], *, records: int, clip: float, into: Sums) -> Clipped:
        """Add the clipped sum of one physical batch: see `RecordGradients`."""
        calls: dict[nn.Module, list[Call]] = {}
        for parameter in into:
            parameter.grad = None
        with torch.enable_grad(), self._watched(records, calls):
            losses = run()
            check_losses(losses, records)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        self._check_unused()
        with torch.no_grad():
            found = [
                rule.gradients(layer, calls[layer]) for _, layer, rule in self._layers if calls.get(layer)
            ]
            squared = torch.stack([one.squared for one in found]).sum(0)
            factors = clip_factors(squared, clip)
            for one in found:
                for parameter, total in one.weigh(factors):
                    into[parameter].add_(total)
        dropped = 0 if factors.dropped is None else int(factors.dropped.sum())
        return Clipped(losses=losses.detach(), norms=squared.sqrt(), dropped=dropped)

    @contextmanager
    def _watched(self, records: int, calls: dict[nn.Module, list[Call]]) -> Iterator[None]:
        # The first layer's input needs no gradient, but its output must have one: the anchor brings autograd there.
        anchor = torch.zeros((), requires_grad=True)
        try:
            for name, layer, rule in self._layers:
                calls[layer] = []
                vars(layer)["forward"] = _stand_in(
                    name, layer, rule, records=records, calls=calls[layer], anchor=anchor
                )
            yield
        finally:
            for _, layer, _ in self._layers:
                vars(layer).pop("forward", None)

    def _check_unused(self) -> None:
        for path, parameter, leaves_gradient in self._parameters:
            found, parameter.grad = parameter.grad, None
            if found is not None and not leaves_gradient:
                raise TaskError(
                    f"'{path}' is used outside of its layer: that part of a record's gradient cannot be seen",
                    remedy="call the layer itself wherever its weights are used",
                    code="dp-weight-outside-layer",
                )


class _Probe(torch.autograd.Function):
    """The identity; its backward keeps the layer's inputs and the gradient of its output."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, _anchor: Tensor, calls: list[Call], *inputs: Tensor) -> Tensor:
        ctx.save_for_backward(*inputs)  # torch then refuses inputs that were changed in place meanwhile
        ctx.calls = calls
        return output.detach()  # not a view to autograd: an in-place activation may follow

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        ctx.calls.append((ctx.saved_tensors, gradients[0]))
        return (gradients[0], None, None, *[None] * len(ctx.saved_tensors))


def _stand_in(
    name: str, layer: nn.Module, rule: Rule, *, records: int, calls: list[Call], anchor: Tensor
) -> Callable[..., Tensor]:
    def forward(*args: Tensor, **kwargs: Tensor) -> Tensor:
        inputs = (*args, *kwargs.values())
        output = rule.forward(layer, *inputs)
        if not torch.is_grad_enabled():
            return output
        for tensor in (*inputs, output):
            if not tensor.dim() or len(tensor) != records:
                raise TaskError(
                    f"layer '{name}' was called with a tensor of shape {tuple(tensor.shape)} for {records} records",
                    remedy="keep the records in the first dimension of every layer's input",
                    code="dp-batch-first",
                )
        watched: Tensor = _Probe.apply(output, anchor, calls, *[tensor.detach() for tensor in inputs])  # type: ignore[no-untyped-call]
        return watched

    forward.watches_records = True  # type: ignore[attr-defined]  # an attack must not run meanwhile
    return forward


def _own(layer: nn.Module) -> list[tuple[str, nn.Parameter]]:
    """Return the layer's own trainable parameters, not those of layers inside it."""
    return [(name, parameter) for name, parameter in own_parameters(layer).items() if parameter.requires_grad]
