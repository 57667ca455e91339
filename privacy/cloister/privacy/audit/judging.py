"""The verdict of a privacy-budget audit: what was claimed against what an attacker was shown to learn.

==================  ==========================================================================================================
verdict             when
==================  ==========================================================================================================
``refuted``         the deciding estimator's bound is above the claimed ε: the claim is false, or the error that the confidence
                    admits has struck
``consistent``      it is not, and the estimator had power: a mechanism that costs `POWER` times its claim would have been found out
``no power``        it is not, and would not have been: nothing follows. Never "passed"
==================  ==========================================================================================================

One estimator decides, the one that was settled before anything was measured; the others are told beside it, each with its own error, and refute nothing:
who lets five of them speak refutes more than 1 honest claim in 20.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from cloister.privacy.audit.claims import Claim
from cloister.privacy.audit.power import POWER, SURE, Prepared, decisive
from cloister.privacy.audit.scores import Scores

__all__ = ["Judgement", "Verdict", "judge", "plan_of"]

Verdict = Literal["refuted", "consistent", "no power"]


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What an audit of one claim found.

    Attributes:
        claim: what was claimed.
        verdict: see the module.
        reason: in one sentence.
        lower_bound: the deciding estimator's bound on ε at the claim's δ.
        confidence: of each bound.
        decided_by: its name.
        bounds: every estimator with its bound; those whose assumptions do not hold here have ``None``.
        canaries: how many.
        included: how many of them were in.
    """

    claim: Claim
    verdict: Verdict
    reason: str
    lower_bound: float
    confidence: float
    decided_by: str
    bounds: tuple[tuple[Prepared, float | None], ...]
    canaries: int
    included: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values; an infinite ε is ``None``."""
        return {
            "verdict": self.verdict,
            "reason": self.reason,
            "claim": {
                "epsilon": self.claim.epsilon,
                "delta": self.claim.delta,
                "event": self.claim.whole.as_json(),
            },
            "lower_bound": self.lower_bound,
            "confidence": self.confidence,
            "decided_by": self.decided_by,
            "canaries": self.canaries,
            "included": self.included,
            "power": {"times": POWER, "in": SURE},
            "estimators": [
                plan_of(prepared)
                | {"bound": bound, "decides": prepared.estimator.kind.name == self.decided_by}
                for prepared, bound in self.bounds
            ],
        }


def plan_of(prepared: Prepared) -> dict[str, Any]:
    """Return what was settled of an estimator before anything was measured, as JSON values."""
    kind = prepared.estimator.kind
    return {
        "name": kind.name,
        "title": kind.title,
        "assumes": kind.assumes,
        "share": prepared.estimator.share,
        "reach": prepared.reach,
        "refutable": prepared.refutable if math.isfinite(prepared.refutable) else None,
        "power": prepared.power,
        "holds": prepared.holds,
    }


def judge(claim: Claim, prepared: Sequence[Prepared], scores: Scores, *, confidence: float) -> Judgement:
    """Return the verdict on ``claim``.

    Args:
        claim: what is audited.
        prepared: what `cloister.privacy.audit.power.prepare` settled beforehand, with the same confidence.
        scores: what the adversary measured.
        confidence: of each bound; a claim that holds is refuted with probability at most 1 - ``confidence``.
    """
    bounds = tuple(
        (one, one.estimator.bound(scores, delta=claim.delta, confidence=confidence) if one.holds else None)
        for one in prepared
    )
    chosen = decisive(prepared)
    bound = next(found for one, found in bounds if one is chosen and found is not None)
    verdict, reason = _verdict(claim, chosen, bound, confidence)
    return Judgement(
        claim=claim,
        verdict=verdict,
        reason=reason,
        lower_bound=bound,
        confidence=confidence,
        decided_by=chosen.estimator.kind.name,
        bounds=bounds,
        canaries=len(scores),
        included=int(scores.included.sum()),
    )


def _verdict(claim: Claim, chosen: Prepared, bound: float, confidence: float) -> tuple[Verdict, str]:
    sure = f"with {confidence:.0%} confidence"
    if bound > claim.epsilon:
        return "refuted", (
            f"what was released tells more than it may: epsilon is at least {bound:.2f} {sure}, and the claim is {claim.epsilon:.4g}"
        )
    above = (
        f"only above an epsilon of {chosen.refutable:.2f}"
        if math.isfinite(chosen.refutable)
        else "at no epsilon"
    )
    if not chosen.power and chosen.refutable <= POWER * claim.epsilon:
        return "no power", (
            f"nothing follows: the lower bound is {bound:.2f} {sure}, and how much these canaries could have shown is not known; the claim is {claim.epsilon:.4g}"
        )
    if not chosen.power:
        return "no power", (
            f"nothing follows: with so few canaries this audit could have refuted the claim of {claim.epsilon:.4g} {above} "
            f"(lower bound {bound:.2f} {sure})"
        )
    return "consistent", (
        f"epsilon is at least {bound:.2f} {sure}, and the claim is {claim.epsilon:.4g}; a mechanism that costs {chosen.refutable:.2f} or more would have "
        f"been refuted in {SURE:.0%} of such audits"
    )
