"""A Flower ``Array`` backed by live memory: no copy until somebody asks for its bytes."""

from __future__ import annotations

from typing import Any

import numpy.typing as npt
from flwr.app import Array

__all__ = ["LiveArray"]


class LiveArray(Array):
    """An ``Array`` that hands its NumPy array on as it is, and makes its bytes only when they are asked for.

    For the in-process engine, which reads `live`. Put it into an ``ArrayRecord`` item by item: the constructor of
    ``ArrayRecord`` copies what it is given into plain arrays.
    """

    def __init__(self, vector: npt.NDArray[Any]) -> None:
        self.__dict__["live"] = vector
        self.dtype = str(vector.dtype)
        self.shape = tuple(vector.shape)
        self.stype = "numpy.ndarray"

    @property
    def live(self) -> npt.NDArray[Any]:
        """The array itself."""
        vector: npt.NDArray[Any] = self.__dict__["live"]
        return vector

    @property
    def data(self) -> bytes:  # type: ignore[override]  # a field in the base class, computed here
        """The array in NumPy's file format, made when first asked for."""
        if "_bytes" not in self.__dict__:
            self.__dict__["_bytes"] = Array.from_numpy_ndarray(self.live).data
        made: bytes = self.__dict__["_bytes"]
        return made

    def numpy(self) -> npt.NDArray[Any]:
        """Return the array itself, not a copy."""
        return self.live
