"""Whether a rule can bear f lying sites among n. The numbers stand in `cloister.core.spec.pipelines.STAGES`."""

from __future__ import annotations

from cloister.core.errors import InfeasibleByzantineBound
from cloister.core.spec.pipelines import STAGES

__all__ = ["require"]


def require(name: str, *, n: int, f: int) -> None:
    """Refuse (n, f) that the stage ``name`` cannot bear; nothing is clamped.

    Raises:
        InfeasibleByzantineBound: n is below what the stage needs for f, or no n would do.
        ValueError: f is negative, or no row at all.
    """
    if f < 0:
        raise ValueError(f"f = {f} is negative")
    if n < 1:
        raise ValueError("no update to aggregate")
    needed = STAGES[name].least(f)
    if needed is None or n < needed:
        raise InfeasibleByzantineBound.of(name, n=n, f=f, needed=needed)
