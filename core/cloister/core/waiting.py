"""How torch's threads wait for work: briefly awake, then asleep.

On Linux torch computes with GNU OpenMP, whose threads spin for some milliseconds after each piece of work, in case there is more. They hold the
cores meanwhile, and what is not torch's own work waits: the noise of a private step, which threads of ours draw from a cipher, took as
long with two threads as with one (`benchmarks/dp_cost.py`). GNU OpenMP reads its setting when it is loaded, so before torch is.
"""

from __future__ import annotations

import os

__all__ = ["wait_briefly"]

#: Turns of the loop that a thread waits in before it sleeps: some hundred microseconds, longer than from one layer to the next.
_TURNS = "10000"


def wait_briefly() -> None:
    """Have torch's threads sleep soon when they have nothing to do, in this process (if torch is not loaded yet) and those it starts.

    Who has said in the environment how threads wait (``GOMP_SPINCOUNT``, ``OMP_WAIT_POLICY``) is obeyed.
    """
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", _TURNS)
