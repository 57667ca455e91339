"""How a process of the simulation uses its machine: one thread, and memory that is kept for the next step.

With several processes on a machine, torch's own threads wait for each other more than they compute. And glibc gives large blocks
back to the system at once, so that each step of training faults the same pages in again; told to keep them, it does not.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["keep_memory", "one_thread"]

# mallopt(3): M_TRIM_THRESHOLD and M_MMAP_THRESHOLD; 32 MiB is the most that glibc takes for the second.
_TRIM, _MMAP = -1, -3
_KEPT, _LARGEST = 1 << 30, 1 << 25


def keep_memory() -> None:
    """Have glibc keep freed blocks of up to 32 MiB for the next step; elsewhere nothing happens."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(_MMAP, _LARGEST)
        library.mallopt(_TRIM, _KEPT)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let torch use one thread in this process while the context lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
