"""The whole audit: a federation file in, an audited run and its findings out.

In this order, and each step in the run's events before the next begins:

1. coins are drawn and sealed; what each estimator could find, and which of them decides, is computed from the claim alone;
2. the run trains, with the canaries whose coins fell so among its records (or sites), charged to ledgers as any run is;
3. the coins are opened; scores are read off what the adversary saw; the verdict follows from the rule that was settled in 1.

The adversary sees what the claim says that it may see: every update of the site, or the models of all rounds, and it knows all but the coins.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.numpy import load_file

from cloister.core.errors import IntegrityError, UsageError
from cloister.core.files import write_whole
from cloister.core.randomness import Randomness, SeededRandomness
from cloister.core.resolve import build_model
from cloister.core.spec import FederationSpec, load_federation
from cloister.core.update import Layout
from cloister.privacy.audit.canaries import place_in
from cloister.privacy.audit.coins import Coins
from cloister.privacy.audit.judging import Judgement
from cloister.privacy.audit.scores import Scores
from cloister.server.audit.canaries.claiming import CHECK, Case, case_of
from cloister.server.audit.canaries.watching import Watch
from cloister.server.audit.canaries.writing import sealed_and_opened
from cloister.server.events import Sink
from cloister.simulation.engines import Engine
from cloister.simulation.ledgers import SimulatedLedgers
from cloister.simulation.privacy_audit.planning import Design
from cloister.simulation.privacy_audit.planting import AuditedSites, Planting
from cloister.simulation.simulate import AUDITED, RunResult, resume, simulate

__all__ = ["Audit", "Found", "sealed_and_opened"]


@dataclass(frozen=True, kw_only=True)
class Found:
    """What an audit found.

    Attributes:
        run: what the audited run made.
        case: what was settled before it.
        judgement: the verdict.
        scores: of the canaries.
        design: what was run.
        site: at which site canary records were; ``None``: each canary was a site.
        seal: of the coins, as the events hold it.
    """

    run: RunResult
    case: Case
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
    _case: Case | None = field(init=False, default=None)
    _watch: Watch | None = field(init=False, default=None)
    _layout: Layout | None = field(init=False, default=None)
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

    @classmethod
    def of_run(cls, path: Path) -> Audit:
        """Return the audit whose run in ``path`` was interrupted, as it was begun.

        Raises:
            UsageError: (audit-resume) that folder is no audit's run.
            IntegrityError: (run-folder) it does not say what the audit was.
        """
        if not (path / AUDITED).is_file():
            raise UsageError(
                f"'{path}' is not the run of an audit that could go on: it has no {AUDITED}",
                remedy="name a folder that `cloister audit privacy` has made",
                code="audit-resume",
            )
        try:
            said = json.loads((path / AUDITED).read_text(encoding="utf-8"))
            design = Design(loaded=load_federation(path / "federation.toml"), **said["design"])
            return cls(design=design, confidence=float(said["confidence"]), site=said["site"])
        except (OSError, ValueError, KeyError, TypeError):
            raise IntegrityError(
                f"'{path / AUDITED}' does not say what the audit was",
                remedy="restore that file, or run the audit again",
                code="run-folder",
            ) from None

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
        return self._found(made)

    def resume(self, path: Path, *, engine: Engine, sinks: tuple[Sink, ...] = ()) -> Found:
        """Go on with an audit that was interrupted, to the verdict that it would have had; see `cloister.simulation.simulate.resume`.

        Raises:
            CloisterError: whatever refused it.
        """
        return self._found(resume(path, engine=engine, sinks=sinks, audited=self))

    def _found(self, made: RunResult) -> Found:
        seal, coins = sealed_and_opened(made.run / "events.jsonl")
        scores = Scores(values=self._read(made), included=coins.included)
        case = self._settled()
        return Found(
            run=made,
            case=case,
            judgement=case.judged(scores),
            scores=scores,
            design=self.design,
            site=self._planter,
            seal=seal,
        )

    @property
    def _planter(self) -> str | None:
        """The site whose records the canaries are among; ``None``: each canary is a site."""
        planting = self._sites.planting
        return None if self.design.sites_are_canaries or planting is None else planting.site

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

    def begun(self, folder: Path) -> None:
        """Keep what a resume must know; coins follow from the seed."""
        design = {
            "audited": self.design.audited,
            "space": self.design.space,
            "sees": self.design.sees,
            "canaries": self.design.canaries,
            "sites_are_canaries": self.design.sites_are_canaries,
            "plain": self.design.plain,
        }
        said = {"design": design, "confidence": self.confidence, "site": self.site}
        if self.randomness is None:
            write_whole(folder / AUDITED, json.dumps(said, indent=1) + "\n")

    def watch(self, layout: Layout) -> Watch:
        """Return what looks at the canaries."""
        self._layout, design = layout, self.design
        self._watch = Watch(
            place=place_in(layout) if design.space == "gradient" else 0,
            canaries=design.canaries if design.space == "gradient" else 0,
            columns=self._sites.columns() if design.sees == "update" else None,
            site=self._planter,  # the others may be away: their noise is missing, and no canary
            counted=design.loaded.spec.privacy.unit == "record",
        )
        return self._watch

    def sealed(self, layout: Layout) -> Mapping[str, Any]:
        """Return the event before training: the coins' seal, the claim, and what was settled of each estimator."""
        self._layout = layout
        return self._settled().sealed(self._coins.seal)

    def _settled(self) -> Case:
        if self._case is None:
            if self._layout is None:
                raise ValueError("an audit before its run")
            self._case = case_of(
                self.design.loaded.spec,
                size=self._layout.size,
                sites=len(self._sites.roster),
                canaries=self.design.canaries,
                space=self.design.space,
                sees=self.design.sees,
                plain=self.design.plain,
                confidence=self.confidence,
            )
        return self._case

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
        )

    def _read(self, made: RunResult) -> npt.NDArray[np.float64]:
        """Return the canaries' scores: how far everything that was seen lies in the direction that each of them pulls."""
        if self.design.space == "input":
            return self._losses_fell(made)
        if self._watch is None:
            raise ValueError("an audit before its run")
        if self._watch.rounds != self.design.loaded.spec.federation.rounds:
            raise IntegrityError(
                "a site did not answer in each round: its canaries were not seen whole",
                remedy="find out why it refused, and run the audit again",
                code="audit-incomplete",
            )
        return self._watch.scores

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
