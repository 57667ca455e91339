"""The vocabulary that every part of Cloister shares."""

from cloister.core._version import __version__
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
