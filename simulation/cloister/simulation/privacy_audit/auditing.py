"""The whole audit: a federation file in, an audited run and its findings out.

In this order, and each step in the run's events before the next begins:

1. coins are drawn and sealed; what each estimator could find, and which of them decides, is computed from the claim alone;
2. the run trains, with the canaries whose coins fell so among its records (or sites), charged to ledgers as any run is;
3. the coins are opened; scores are read off what the adversary saw; the verdict follows from the rule that was settled in 1.

The adversary sees what the claim says that it may see: every update of the site, or the models of all rounds, and it knows all but the coins.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file

from cloister.core.errors import IntegrityError, UsageError
from cloister.core.randomness import Randomness, SeededRandomness
from cloister.core.resolve import build_model
from cloister.core.spec import FederationSpec
from cloister.core.update import Layout
from cloister.privacy.audit.claims import Claim
from cloister.privacy.audit.coins import Coins, opened
from cloister.privacy.audit.judging import Judgement, judge, plan_of
from cloister.privacy.audit.power import Canaries, Prepared, prepare
from cloister.privacy.audit.scores import Scores
from cloister.privacy.plan import Plan, plan_from
from cloister.privacy.record_plans import DistributedRecordPlan
from cloister.privacy.site_plans import DistributedPlan, SitePlan
from cloister.server.events import Sink, read_events
from cloister.simulation.engines import Engine
from cloister.simulation.ledgers import SimulatedLedgers
from cloister.simulation.privacy_audit.canaries import LAYER
from cloister.simulation.privacy_audit.planning import Design
from cloister.simulation.privacy_audit.planting import AuditedSites, Planting
from cloister.simulation.privacy_audit.watching import Seen
from cloister.simulation.simulate import RunResult, simulate

__all__ = ["Audit", "Found"]

CHECK = "privacy"


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an audit found.

    Attributes:
        run: what the audited run made.
        judgement: the verdict.
        scores: of the canaries.
        design: what was run.
        site: at which site canary records were; ``None``: each canary was a site.
        seal: of the coins, as the events hold it.
    """

    run: RunResult
    judgement: Judgement
    scores: Scores
    design: Design
    site: str | None
    seal: str


@dataclass(kw_only=True)
class Audit:
    """An audited run; `cloister.simulation.simulate.Audited`.

    Attributes:
        design: what is run.
        confidence: of the bounds.
        site: at which site canary records are; the first unless given.
        randomness: where coins come from; the run's seed unless given.
    """

    design: Design
    confidence: float = 0.95
    site: str | None = None
    randomness: Randomness | None = None
    _coins: Coins = field(init=False)
    _seen: Seen | None = field(init=False, default=None)
    _claim: Claim = field(init=False)
    _prepared: tuple[Prepared, ...] = field(init=False, default=())
    _sites: AuditedSites = field(init=False)

    def __post_init__(self) -> None:
        if not 0.5 < self.confidence < 1:
            raise UsageError(
                f"a confidence of {self.confidence} is not above 0.5 and below 1",
                remedy="give 0.95, for example",
            )
        spec = self.design.loaded.spec
        self._coins = Coins.draw(
            self.design.canaries, self.randomness or SeededRandomness(spec.federation.seed)
        )
        if self.design.sees == "update":
            self._seen = Seen()

    def run(
        self,
        *,
        out: Path,
        engine: Engine,
        sinks: tuple[Sink, ...] = (),
        on_start: Callable[[Path], None] = lambda _: None,
        ledgers: Path | None = None,
    ) -> Found:
        """Run it and judge: see `cloister.simulation.simulate.simulate` for the arguments.

        Raises:
            CloisterError: whatever refused the run.
        """
        made = simulate(
            self.design.loaded,
            out=out,
            engine=engine,
            sinks=sinks,
            on_start=on_start,
            ledgers=ledgers,
            audited=self,
        )
        seal, coins = sealed_and_opened(made.run / "events.jsonl")
        scores = Scores(values=self._read(made), included=coins.included)
        return Found(
            run=made,
            judgement=judge(self._claim, self._prepared, scores, confidence=self.confidence),
            scores=scores,
            design=self.design,
            site=None
            if self.design.sites_are_canaries
            else self._sites.planting.site
            if self._sites.planting
            else None,
            seal=seal,
        )

    def sites(self, federation: str, base: Path, ledgers: SimulatedLedgers | None) -> AuditedSites:
        """Return the sites of the audited run."""
        spec = self.design.loaded.spec
        site = None
        if not self.design.sites_are_canaries:
            site = self.site or AuditedSites(federation, base, None, self._planting(spec, "")).roster.name(0)
        self._sites = AuditedSites(federation, base, ledgers, self._planting(spec, site))
        names = [self._sites.roster.name(position) for position in range(len(self._sites.roster))]
        if site is not None and site not in names:
            raise UsageError(
                f"there is no site '{site}'", remedy=f"name one of {', '.join(names[:5])}", code="audit-site"
            )
        return self._sites

    def sealed(self, layout: Layout) -> Mapping[str, Any]:
        """Return the event before training: the coins' seal, the claim, and what was settled of each estimator."""
        plan = plan_from(self.design.loaded.spec, layout.size)
        if plan is None:
            raise ValueError("an audit of a run without a plan")
        self._claim = Claim.of(
            plan.event(plan.rounds),
            epsilon=plan.spent(plan.rounds).epsilon,
            delta=plan.delta,
            dilution=self._dilution(plan),
        )
        if self._seen is not None:
            self._seen.start = _place(layout)
        kinds = Canaries(
            independent=self.design.space == "gradient",
            normal=self.design.plain,
            worst=self.design.plain and self.design.space == "gradient",
        )
        self._prepared = prepare(self._claim, self.design.canaries, confidence=self.confidence, kinds=kinds)
        return {
            "check": CHECK,
            "verdict": "sealed",
            "seal": self._coins.seal,
            "canaries": self.design.canaries,
            "space": self.design.space,
            "sees": self.design.sees,
            "claim": {"epsilon": self._claim.epsilon, "delta": self._claim.delta},
            "confidence": self.confidence,
            "estimators": [plan_of(one) for one in self._prepared],
        }

    def opened(self) -> Mapping[str, Any]:
        """Return the event after training: the coins."""
        return {
            "check": CHECK,
            "verdict": "opened",
            "seal": self._coins.seal,
            "opening": self._coins.opening(),
        }

    def _planting(self, spec: FederationSpec, site: str | None) -> Planting:
        return Planting(
            coins=self._coins,
            space=self.design.space,
            norm=self.design.norm,
            site=site,
            copies=spec.privacy.max_records_per_person or 1,
            seen=self._seen,
        )

    def _dilution(self, plan: Plan) -> float:
        """Return how much more noise the adversary sees than the claim counts on, as a ratio of deviations."""
        sites = len(self._sites.roster)
        if isinstance(plan, DistributedPlan | DistributedRecordPlan):
            return math.sqrt(sites / plan.honest)
        if isinstance(plan, SitePlan):
            return plan.update_noise / plan.noise_multiplier
        return math.sqrt(sites) if self.design.sees == "model" else 1.0

    def _read(self, made: RunResult) -> npt.NDArray[np.float64]:
        """Return the canaries' scores: how far everything that was seen lies in the direction that each of them pulls."""
        if self.design.space == "input":
            return self._losses_fell(made)
        if self._seen is None:
            weights = load_file(made.model)[LAYER].reshape(-1)[: self.design.canaries]
            return -weights.astype(np.float64)
        rounds = [
            np.concatenate([parts[node] for node in sorted(parts)]) for parts in self._seen.rounds.values()
        ]
        total = np.zeros(self.design.canaries)
        for part in rounds:
            if len(part) != self.design.canaries:
                raise IntegrityError(
                    "a site did not answer in each round: its canaries were not seen whole",
                    remedy="find out why it refused, and run the audit again",
                    code="audit-incomplete",
                )
            total += part
        return -total

    def _losses_fell(self, made: RunResult) -> npt.NDArray[np.float64]:
        task, canaries = self._sites.task, self._sites.mislabelled
        model = build_model(task, self.design.loaded.spec.federation.seed).eval()

        def losses() -> npt.NDArray[np.float64]:
            with torch.inference_mode():
                found = task.loss(model(canaries.inputs), canaries.targets)
            return found.double().numpy()

        before = losses()
        model.load_state_dict(
            {name: torch.from_numpy(value) for name, value in load_file(made.model).items()}
        )
        return before - losses()


def sealed_and_opened(path: Path) -> tuple[str, Coins]:
    """Return the seal in a run's events and the coins that were opened after training.

    Raises:
        IntegrityError: (audit-coins) there was no seal before the first round, or other coins were opened.
    """
    seal: str | None = None
    for event in read_events(path):
        if event["kind"] == "round" and seal is None:
            break
        if event["kind"] == "audit" and event.get("check") == CHECK:
            if event["verdict"] == "sealed" and seal is None:
                seal = str(event["seal"])
            elif event["verdict"] == "opened" and seal is not None:
                return seal, opened(seal, event["opening"])
    raise IntegrityError(
        "the run's events hold no coins that were sealed before its first round and opened after its last",
        remedy="run the audit again",
        code="audit-coins",
    )


def _place(layout: Layout) -> int:
    start = 0
    for entry in layout.entries:
        if entry.name == LAYER:
            return start
        start += entry.size if entry.kind == "averaged" else 0
    raise ValueError("the model has no canaries")
