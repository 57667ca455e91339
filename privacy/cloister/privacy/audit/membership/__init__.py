"""Membership inference as pure functions: attacks on how sure models are, the shadows' design, and rates with their intervals."""

from __future__ import annotations

from cloister.privacy.audit.membership.attacks import (
    confidence,
    lira_scores,
    loss_scores,
    regression_confidence,
    rmia_scores,
)
from cloister.privacy.audit.membership.design import halves
from cloister.privacy.audit.membership.rates import (
    Rate,
    area,
    curve,
    most_allowed,
    rate_at,
    share_interval,
)

__all__ = [
    "Rate",
    "area",
    "confidence",
    "curve",
    "halves",
    "lira_scores",
    "loss_scores",
    "most_allowed",
    "rate_at",
    "regression_confidence",
    "rmia_scores",
    "share_interval",
]
