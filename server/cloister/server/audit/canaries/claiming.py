"""An audit of a run by canaries, from the federation file: what is seen, claimed and settled before the first round, and the verdict after the last."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from cloister.core.spec import FederationSpec
from cloister.core.update import Layout
from cloister.privacy.audit.canaries import place_in
from cloister.privacy.audit.claims import Claim
from cloister.privacy.audit.coins import Coins
from cloister.privacy.audit.in_run import Sees, Space, claimed, kinds_of, plain_steps, seen_in
from cloister.privacy.audit.judging import Judgement, judge, plan_of
from cloister.privacy.audit.power import Prepared, prepare
from cloister.privacy.audit.scores import Scores
from cloister.privacy.plan import plan_from
from cloister.server.audit.canaries.watching import Watch

__all__ = ["CHECK", "CONFIDENCE", "Case", "case_of", "in_run_case", "scores_of", "watch_of"]

#: The name of the check in a run's events.
CHECK = "privacy"
#: Of each bound of an audit in a run.
CONFIDENCE = 0.95


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is settled of an audit before training.

    Attributes:
        claim: what the run claims.
        prepared: of each estimator, what it could find.
        canaries: how many.
        space: of the canaries.
        sees: what the adversary sees.
        plain: whether its scores are plain sums of noisy steps.
        confidence: of the bounds.
    """

    claim: Claim
    prepared: tuple[Prepared, ...]
    canaries: int
    space: Space
    sees: Sees
    plain: bool
    confidence: float

    def sealed(self, seal: str) -> dict[str, Any]:
        """Return the event before training: the coins' seal, the claim, and what was settled of each estimator."""
        return {
            "check": CHECK,
            "verdict": "sealed",
            "seal": seal,
            "canaries": self.canaries,
            "space": self.space,
            "sees": self.sees,
            "claim": {"epsilon": self.claim.epsilon, "delta": self.claim.delta},
            "confidence": self.confidence,
            "estimators": [plan_of(one) for one in self.prepared],
        }

    def judged(self, scores: Scores, *, whole: bool = True) -> Judgement:
        """Return the verdict.

        Args:
            scores: what was seen, with the coins.
            whole: whether the canaries' site took part in every round. Where not, it leaked less than is claimed: a refutation is one all the same, and
                silence says nothing.
        """
        prepared = self.prepared if whole else tuple(replace(one, power=False) for one in self.prepared)
        return judge(self.claim, prepared, scores, confidence=self.confidence)


def case_of(
    spec: FederationSpec,
    *,
    size: int,
    sites: int,
    canaries: int,
    space: Space,
    sees: Sees,
    plain: bool,
    confidence: float,
) -> Case:
    """Return what is settled of an audit before training; it takes some seconds.

    Args:
        spec: the federation.
        size: length of the model's vector.
        sites: how many take part in a round.
        canaries: how many.
        space: of the canaries.
        sees: what the adversary sees.
        plain: whether its scores are plain sums of noisy steps.
        confidence: of the bounds.

    Raises:
        SpecError: (audit-claim) a mechanism that cannot be audited.
    """
    plan = plan_from(spec, size)
    if plan is None:
        raise ValueError("an audit of a run without a plan")
    claim = claimed(plan, sites=sites, sees=sees)
    kinds = kinds_of(space=space, plain=plain)
    return Case(
        claim=claim,
        prepared=prepare(claim, canaries, confidence=confidence, kinds=kinds),
        canaries=canaries,
        space=space,
        sees=sees,
        plain=plain,
        confidence=confidence,
    )


def in_run_case(spec: FederationSpec, *, size: int, sites: int) -> Case:
    """Return what is settled of the audit that ``spec`` itself asks for (``audit.canaries``).

    Raises:
        SpecError: (audit-claim) a mechanism that cannot be audited.
    """
    return case_of(
        spec,
        size=size,
        sites=sites,
        canaries=spec.audit.canaries or 0,
        space="gradient",
        sees=seen_in(spec),
        plain=plain_steps(spec),
        confidence=CONFIDENCE,
    )


def watch_of(spec: FederationSpec, layout: Layout) -> Watch | None:
    """Return what watches the canaries of ``audit.canaries``; ``None`` where the file plants none."""
    count, site = spec.audit.canaries, spec.audit.canary_site
    if count is None or site is None:
        return None
    columns = {site: range(count)} if seen_in(spec) == "update" else None
    return Watch(
        place=place_in(layout),
        canaries=count,
        columns=columns,
        site=site,
        counted=spec.privacy.unit == "record",
    )


def scores_of(watch: Watch, coins: Coins) -> Scores:
    """Return what was seen of the canaries, with their coins."""
    return Scores(values=watch.scores, included=coins.included)
