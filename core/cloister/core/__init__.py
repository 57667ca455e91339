"""The vocabulary that every part of Cloister shares.

A name is imported from its module when it is first asked for, so that ``cloister --help`` does not wait for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from cloister.core._version import __version__

if TYPE_CHECKING:
    from cloister.core.data import Data, LazyData, Rows, Split, TensorData
    from cloister.core.errors import CloisterError
    from cloister.core.randomness import Randomness, SeededRandomness, SystemRandomness
    from cloister.core.task import Task
    from cloister.core.update import Entry, Layout, Update, Vector

__all__ = [
    "CloisterError",
    "Data",
    "Entry",
    "Layout",
    "LazyData",
    "Randomness",
    "Rows",
    "SeededRandomness",
    "Split",
    "SystemRandomness",
    "Task",
    "TensorData",
    "Update",
    "Vector",
    "__version__",
]

_MODULES = {
    "data": ("Data", "LazyData", "Rows", "Split", "TensorData"),
    "errors": ("CloisterError",),
    "randomness": ("Randomness", "SeededRandomness", "SystemRandomness"),
    "task": ("Task",),
    "update": ("Entry", "Layout", "Update", "Vector"),
}
_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
    value = getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
