"""Named arrays of any shapes as one flat float32 vector, and back: for models that are not `torch.nn.Module`.

`ArrayLayout` is to a state dict of somebody else's app what `cloister.core.update.Layout` is to our own models, with the same
rule: floating-point arrays are in the vector, integer and boolean ones (counters) are fixed and keep the server's value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import SpecError
from cloister.core.update import Vector

__all__ = ["ArrayLayout"]


@dataclass(frozen=True)
class ArrayLayout:
    """What lies where in the flat vector of some named arrays.

    Attributes:
        shapes: every array's name and shape, in order.
        dtypes: every array's name and type, in order.
    """

    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, np.dtype[Any]]

    @classmethod
    def of(cls, arrays: Mapping[str, npt.NDArray[Any]]) -> ArrayLayout:
        """Return the layout of ``arrays``.

        Raises:
            SpecError: an array that is neither real floating-point nor integer nor boolean, or none to average.
        """
        for name, array in arrays.items():
            if array.dtype.kind not in "fiub":
                raise SpecError(
                    f"the model's array '{name}' is {array.dtype}",
                    remedy="send real numbers only",
                    code="task-model",
                )
        layout = cls(
            {name: array.shape for name, array in arrays.items()},
            {name: array.dtype for name, array in arrays.items()},
        )
        if not layout.size:
            raise SpecError(
                "the model has no floating-point array to average",
                remedy="send its weights as floating-point arrays",
                code="task-model",
            )
        return layout

    @cached_property
    def averaged(self) -> tuple[str, ...]:
        """Names of the arrays in the vector, in order."""
        return tuple(name for name, dtype in self.dtypes.items() if dtype.kind == "f")

    @cached_property
    def size(self) -> int:
        """Length of the flat vector."""
        return sum(self._length(name) for name in self.averaged)

    def mismatch(self, arrays: Mapping[str, npt.NDArray[Any]]) -> str | None:
        """Return why ``arrays`` do not have this layout (no value is quoted), or ``None`` where they do.

        Names and shapes must be the same. A floating-point array may come as any floating-point type; an integer or boolean
        array comes as it went.
        """
        if missing := [name for name in self.shapes if name not in arrays]:
            return f"array '{missing[0]}' is missing"
        if unknown := len(set(arrays) - set(self.shapes)):
            return f"{unknown} unknown array{'s' if unknown > 1 else ''}"
        for name, dtype in self.dtypes.items():
            array = arrays[name]
            if array.shape != self.shapes[name]:
                return f"array '{name}' has shape {array.shape}, expected {self.shapes[name]}"
            if array.dtype.kind != "f" if dtype.kind == "f" else array.dtype != dtype:
                return f"array '{name}' is {array.dtype}, expected {dtype}"
        return None

    def flatten(self, arrays: Mapping[str, npt.NDArray[Any]]) -> Vector:
        """Return the floating-point arrays as a new vector of shape (size,) float32, whatever the order in ``arrays``.

        A value outside float32's range becomes infinite; check `numpy.isfinite` where the arrays came from elsewhere.

        Raises:
            ValueError: an array is missing or has another shape.
        """
        vector: Vector = np.empty(self.size, dtype=np.float32)
        start = 0
        for name in self.averaged:
            if name not in arrays or arrays[name].shape != self.shapes[name]:
                raise ValueError(
                    f"array '{name}' of shape {self.shapes[name]} is missing or has another shape"
                )
            end = start + self._length(name)
            with np.errstate(over="ignore"):
                vector[start:end] = arrays[name].reshape(-1)
            start = end
        return vector

    def unflatten(
        self, vector: Vector, fixed: Mapping[str, npt.NDArray[Any]] | None = None
    ) -> dict[str, npt.NDArray[Any]]:
        """Return the arrays in ``vector``, in their own shapes and types and in order.

        Args:
            vector: (size,) float32.
            fixed: where the integer and boolean arrays are taken from; without it they are left out.

        Raises:
            ValueError: the vector's shape is another, or a fixed array is missing.
            SpecError: a value leaves the range of its array's type (code ``diverged``).
        """
        if vector.shape != (self.size,):
            raise ValueError(f"expected a vector of shape ({self.size},), got {vector.shape}")
        arrays: dict[str, npt.NDArray[Any]] = {}
        start = 0
        for name, dtype in self.dtypes.items():
            if dtype.kind == "f":
                end = start + self._length(name)
                with np.errstate(over="ignore"):
                    arrays[name] = vector[start:end].reshape(self.shapes[name]).astype(dtype)
                if not np.isfinite(arrays[name]).all():
                    raise SpecError(
                        f"the model's array '{name}' left the range of {dtype}",
                        remedy="lower the learning rates",
                        code="diverged",
                    )
                start = end
            elif fixed is not None:
                if name not in fixed:
                    raise ValueError(f"the fixed array '{name}' is missing")
                arrays[name] = fixed[name]
        return arrays

    def _length(self, name: str) -> int:
        return int(np.prod(self.shapes[name], dtype=np.int64))
