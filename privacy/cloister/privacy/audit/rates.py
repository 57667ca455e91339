"""A bound from true and false alarms: what (ε, δ)-DP says of a test's two rates, with both measured.

Under (ε, δ)-DP a test with false-alarm rate a finds at most e^ε·a + δ of those that are in (Kairouz, Oh & Viswanath 2015, Thm. 2.1). With Clopper and Pearson's
(1934) bounds on both rates, at half the error each, ε is at least ln((found - δ)/a) (Nasr and others 2021, arXiv 2101.04535).

Assumes that the canaries are **independent**: one a run, as in audits of many runs, or orthogonal ones under independent noise.

==========================  ==============
case                        result
==========================  ==============
nobody in, or nobody out    0
nobody accused              0
==========================  ==============
"""

from __future__ import annotations

import math

from scipy import special

from cloister.privacy.audit.scores import Counts

__all__ = ["epsilon_from_rates"]


def epsilon_from_rates(counts: Counts, *, delta: float, confidence: float) -> float:
    """Return the bound on ε from below at ``delta`` that the two rates give.

    Args:
        counts: what came of the accusations.
        delta: δ of the claim.
        confidence: the chance that both rates are within their bounds.
    """
    if not counts.inside or not counts.outside or not counts.hits:
        return 0.0
    error = (1 - confidence) / 2
    found = float(special.betaincinv(counts.hits, counts.inside - counts.hits + 1, error))
    alarms = 1.0
    if counts.false_alarms < counts.outside:
        alarms = float(
            special.betaincinv(counts.false_alarms + 1, counts.outside - counts.false_alarms, 1 - error)
        )
    return max(math.log((found - delta) / alarms), 0.0) if found > delta else 0.0
