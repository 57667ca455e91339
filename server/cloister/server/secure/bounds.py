"""What no honest sites can add up to: public bounds of the small numbers in a sum, checked before any of it is used.

A site under protection can write what it likes into its own share, and nobody sees the share. What the sum cannot be, however, shows:

===========  =========================================================
number       of ``count`` honest sites
===========  =========================================================
weight       from ``count`` to ``count`` times the public cap
within       from -``count``/2 to ``count``/2
cut          from 0 to ``count``
confusion    every count at least 0
===========  =========================================================

Inside these bounds, and in the update itself, a lying site moves the sum as far as its number reaches: up to the modulus, if it does not
care to stay within ``aggregation.reach``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy.typing as npt

from cloister.core import protocol
from cloister.core.spec import FederationSpec, RecordsCap
from cloister.privacy.sums import CUT, WEIGHT

__all__ = ["implausible"]

#: `Exact` numbers come in steps of 2^-20.
_SLACK = 1e-3


def implausible(spec: FederationSpec, sums: Mapping[str, npt.NDArray[Any]], count: int) -> str:
    """Return which number of ``sums`` honest sites cannot have made, in words; empty: none."""
    weighting = spec.aggregation.weighting
    most = weighting.records_cap if isinstance(weighting, RecordsCap) else 1
    bounds = {
        WEIGHT: (count, count * most),
        protocol.WITHIN: (-count / 2, count / 2),
        CUT: (0, count),
        protocol.CONFUSION: (0, float("inf")),
    }
    for name, (low, high) in bounds.items():
        if name in sums and not (sums[name].min() >= low - _SLACK and sums[name].max() <= high + _SLACK):
            return f"its '{name}' is not from {low:g} to {high:g}, so a site in it lied"
    return ""
