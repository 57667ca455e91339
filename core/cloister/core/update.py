"""A model and an update as one flat float32 vector, with the layout that says what lies where.

`Layout.of` sorts a model's tensors into two kinds:

===========================================  ==========  =====================================================
tensor                                       kind        what happens to it
===========================================  ==========  =====================================================
trainable floating-point parameter           averaged    in the vector
floating-point buffer (also 0-d)             averaged    in the vector; a 0-d buffer is one number
frozen parameter                             fixed       not in the vector: every site builds the same one
integer or boolean buffer                    fixed       not in the vector: an average of counters means nothing
tied parameter                               averaged    once, under its first name
complex tensor, parameter of a lazy layer    refused     `TaskError`
===========================================  ==========  =====================================================

Values of other floating-point types (float16, bfloat16, float64) are cast to float32 on the way out and back on the way in.
The layout's digest covers names, shapes, types and the fixed tensors' values, so that two parties with the same digest mean
the same model by the same vector.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cloister.core.errors import TaskError

__all__ = ["Entry", "Layout", "Tensors", "Update", "Vector"]

#: A flat float32 array of shape (layout.size,).
Vector = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Entry:
    """One tensor of a model: its name, shape, dtype, and whether it is averaged or fixed."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: Literal["averaged", "fixed"]

    @property
    def size(self) -> int:
        """Number of elements (1 for a 0-d tensor)."""
        return int(np.prod(self.shape, dtype=np.int64))


@dataclass(frozen=True)
class Layout:
    """What lies where in a model's flat vector.

    Attributes:
        entries: every tensor of the model, in the model's own order.
        fixed_digest: SHA-256 (hex) over the values of the fixed tensors.
    """

    entries: tuple[Entry, ...]
    fixed_digest: str

    @classmethod
    def of(cls, model: nn.Module) -> Layout:
        """Return the layout of ``model``.

        Raises:
            TaskError: a complex tensor, a lazy layer's parameter, a tensor without values (device ``meta``), or no trainable
                parameter at all.
        """
        entries = []
        fixed = hashlib.sha256()
        for name, tensor, averaged in _tensors(model):
            if is_lazy(tensor):
                raise TaskError(
                    f"the model's tensor '{name}' has no shape yet",
                    remedy="give the sizes of lazy layers",
                    code="task-model",
                )
            if tensor.is_meta:
                raise TaskError(
                    f"the model's tensor '{name}' has no values (device 'meta')",
                    remedy="build the model on the CPU",
                    code="task-model",
                )
            if tensor.is_complex():
                raise TaskError(
                    f"the model's tensor '{name}' is complex ({tensor.dtype})",
                    remedy="split it into two real tensors",
                    code="task-model",
                )
            entries.append(
                Entry(
                    name,
                    tuple(tensor.shape),
                    str(tensor.dtype).removeprefix("torch."),
                    "averaged" if averaged else "fixed",
                )
            )
            if not averaged:
                fixed.update(name.encode())
                fixed.update(
                    tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
                )
        if not any(
            parameter.requires_grad and parameter.is_floating_point() for parameter in model.parameters()
        ):
            raise TaskError(
                "the model has no trainable parameter",
                remedy="return a model with parameters that require a gradient",
                code="task-model",
            )
        return cls(tuple(entries), fixed.hexdigest())

    @cached_property
    def size(self) -> int:
        """Length of the flat vector: the number of averaged elements."""
        return sum(entry.size for entry in self.entries if entry.kind == "averaged")

    @cached_property
    def digest(self) -> str:
        """SHA-256 (hex) over names, shapes, types, kinds and fixed values."""
        text = json.dumps([[e.name, e.shape, e.dtype, e.kind] for e in self.entries] + [self.fixed_digest])
        return hashlib.sha256(text.encode()).hexdigest()

    def read(self, model: nn.Module) -> Vector:
        """Return the averaged tensors of ``model`` as a new vector of shape (size,) float32."""
        return self.of_model(model).read()

    def write(self, model: nn.Module, vector: Vector) -> None:
        """Copy ``vector`` of shape (size,) into the averaged tensors of ``model``.

        Raises:
            ValueError: the vector's shape or dtype is not this layout's.
        """
        self.of_model(model).write(vector)

    def of_model(self, model: nn.Module) -> Tensors:
        """Return the averaged tensors of ``model``, to be read and written often."""
        return Tensors(model, self.size)

    def split(self, vector: Vector) -> dict[str, Vector]:
        """Return the averaged tensors in ``vector`` by name, as views in their shapes."""
        views, start = {}, 0
        for entry in self.entries:
            if entry.kind == "averaged":
                views[entry.name] = vector[start : start + entry.size].reshape(entry.shape)
                start += entry.size
        return views


class Tensors:
    """The averaged tensors of one model, as a flat vector.

    A model without buffers is looked through once: its parameters stay what they are. A buffer may be replaced at every step,
    so one with buffers is looked through each time.
    """

    def __init__(self, model: nn.Module, size: int) -> None:
        self._model = model
        self._size = size
        self._kept = None if any(True for _ in model.buffers()) else _averaged(model)

    @property
    def size(self) -> int:
        """Length of the vector."""
        return self._size

    def read(self) -> Vector:
        """Return them as a new vector of shape (size,) float32."""
        vector = torch.empty(self._size, dtype=torch.float32)
        with torch.no_grad():
            for piece, tensor in self._pieces(vector):
                piece.copy_(tensor)
        return vector.numpy()

    def write(self, vector: Vector) -> None:
        """Copy ``vector`` of shape (size,) into them.

        Raises:
            ValueError: the vector's shape or dtype is another.
        """
        if vector.shape != (self._size,) or vector.dtype != np.float32:
            raise ValueError(
                f"expected a float32 vector of shape ({self._size},), got {vector.dtype} {vector.shape}"
            )
        source = torch.from_numpy(vector if vector.flags.writeable else _writable_view(vector))
        with torch.no_grad():
            for piece, tensor in self._pieces(source):
                tensor.copy_(piece)

    def _pieces(self, vector: Tensor) -> list[tuple[Tensor, Tensor]]:
        tensors = _averaged(self._model) if self._kept is None else self._kept
        pieces = torch.split(vector, [tensor.numel() for tensor in tensors])
        return [(piece.view(tensor.shape), tensor) for piece, tensor in zip(pieces, tensors, strict=True)]


@dataclass(frozen=True, eq=False)
class Update:
    """What one site sends: the change of its model in one round.

    Attributes:
        vector: (layout.size,) float32, the trained model minus the round's model.
        layout: what lies where.
    """

    vector: Vector
    layout: Layout


def _averaged(model: nn.Module) -> list[Tensor]:
    return [tensor for _, tensor, averaged in _tensors(model) if averaged]


def _tensors(model: nn.Module) -> list[tuple[str, Tensor, bool]]:
    """List (name, tensor, averaged) once per tensor; parameters first, then persistent buffers."""
    kept = model.state_dict(keep_vars=True)
    parameters: list[tuple[str, Tensor, bool]] = [
        (name, parameter, parameter.requires_grad and parameter.is_floating_point())
        for name, parameter in model.named_parameters()
    ]
    buffers = [
        (name, buffer, buffer.is_floating_point()) for name, buffer in model.named_buffers() if name in kept
    ]
    return parameters + buffers


def _writable_view(vector: Vector) -> Vector:
    # torch.from_numpy warns about a read-only array; this view is only read.
    view = vector.view()
    try:
        view.flags.writeable = True
    except ValueError:
        return vector.copy()
    return view
