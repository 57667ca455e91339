"""The main job: a federation file in, a run folder out.

Everything that can be refused is refused before the run folder is made; after that, whatever happens leaves a folder that
``--resume`` goes on with.
"""

from __future__ import annotations

import base64
import contextlib
import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cloister.client.adversarial import adversary_source
from cloister.client.private_steps import RecordLoss
from cloister.core._version import __version__
from cloister.core.checking import check_federation, check_records, expected_cohort, population
from cloister.core.errors import CloisterError, DataError, PolicyError, TaskError
from cloister.core.metrics import Measurement, measure
from cloister.core.preflight import try_task
from cloister.core.resolve import build_model, described, notes_of
from cloister.core.spec import Loaded
from cloister.core.update import Layout, Vector
from cloister.privacy.adversarial import check_attack_for_dp
from cloister.privacy.plan import predict
from cloister.privacy.protection import predict as predict_protection
from cloister.privacy.refusals import check_on_records
from cloister.server.checkpoints import CheckpointStore
from cloister.server.events import EventBus, EventLog, Sink, read_events
from cloister.server.plan import RunPlan
from cloister.server.release import try_model, write_model
from cloister.server.report import write_report
from cloister.server.run_folder import RunFolder
from cloister.server.tracking import tracking_sinks
from cloister.server.transcript import LIMITS, Transcript
from cloister.simulation.attacks.data import triggered
from cloister.simulation.baselines import baselines
from cloister.simulation.engines import Engine, Opened
from cloister.simulation.ledgers import SimulatedLedgers
from cloister.simulation.sites import SimulatedSites
from cloister.simulation.threads import one_thread

__all__ = ["Audited", "RunResult", "check", "resume", "simulate"]

#: Sites that are named one by one in the first event, and those whose records are counted for the partition's plot.
_NAMED, _COUNTED = 1000, 200
_MODEL = "model.safetensors"


class Audited(Protocol):
    """A run with canaries: other sites, and two events more."""

    def sites(self, federation: str, base: Path, ledgers: SimulatedLedgers | None) -> SimulatedSites:
        """Return the sites of the federation file in ``federation`` (JSON)."""
        ...

    def sealed(self, layout: Layout) -> Mapping[str, Any]:
        """Return the ``audit`` event before training."""
        ...

    def opened(self) -> Mapping[str, Any]:
        """Return the ``audit`` event after it."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a simulation made: its folder, its report and the figures in it."""

    run: Path
    report: Path
    model: Path
    figures: dict[str, Any]


def check(loaded: Loaded) -> str:
    """Refuse what `simulate` would refuse before it makes a folder, and train nothing.

    Returns:
        What the run would compute with: `SimulatedSites.fingerprint`.

    Raises:
        CloisterError: whatever refused the run.
    """
    loaded, sites = _sites(loaded, None)
    return _prepare(sites, loaded).fingerprint


def simulate(
    loaded: Loaded,
    *,
    out: Path,
    engine: Engine,
    sinks: tuple[Sink, ...] = (),
    on_start: Callable[[Path], None] = lambda _: None,
    ledgers: Path | None = None,
    audited: Audited | None = None,
) -> RunResult:
    """Run a federation on this machine.

    Args:
        loaded: the federation file.
        out: where the run folder is made.
        engine: what carries the messages.
        sinks: who is told of events, beside the folder's own log.
        on_start: told of the run folder as soon as it is there.
        ledgers: the folder in which the sites of a private run keep their ledgers; ``None``: they keep none.
        audited: canaries, where the run is an audit's.

    Raises:
        CloisterError: whatever refused the run.
    """
    kept = (
        None
        if loaded.spec.privacy.unit == "none" or ledgers is None
        else SimulatedLedgers(ledgers.absolute())
    )
    loaded, sites = _sites(loaded, kept, SimulatedSites if audited is None else audited.sites)
    prepared = _prepare(sites, loaded)
    folder = RunFolder.create(out, loaded, ledgers=ledgers if kept else None)
    on_start(folder.path)
    return _run(folder, loaded, sites, prepared, engine=engine, sinks=sinks, audited=audited)


def resume(path: Path, *, engine: Engine, sinks: tuple[Sink, ...] = ()) -> RunResult:
    """Go on with a run that was interrupted, to the result that it would have had.

    Raises:
        CloisterError: whatever refused it.
    """
    folder, loaded = RunFolder.reopen(path)
    try:
        ledgers = folder.ledgers
        kept = None if ledgers is None else SimulatedLedgers(ledgers)
        loaded, sites = _sites(loaded, kept)
        prepared = _prepare(sites, loaded)
    except BaseException:
        folder.close()
        raise
    return _run(folder, loaded, sites, prepared, engine=engine, sinks=sinks)


@dataclass(frozen=True, kw_only=True)
class _Prepared:
    layout: Layout
    initial: Vector
    measure: Callable[[Vector], Measurement]
    notes: list[str]
    card: dict[str, Any]
    fingerprint: str


def _sites(
    loaded: Loaded,
    ledgers: SimulatedLedgers | None,
    make: Callable[[str, Path, SimulatedLedgers | None], SimulatedSites] = SimulatedSites,
) -> tuple[Loaded, SimulatedSites]:
    """Return the sites, and the file with what it left to their number."""
    sites = make(json.dumps(loaded.effective()), loaded.base, ledgers)
    settled = loaded if loaded.spec.cohort.sites else loaded.settled(len(sites.owners))
    if settled is loaded:
        return loaded, sites
    return settled, make(json.dumps(settled.effective()), loaded.base, ledgers)


def _prepare(sites: SimulatedSites, loaded: Loaded) -> _Prepared:
    """Build and try everything that a run needs; refuse here what can be refused."""
    task = sites.task
    notes = [*check_federation(loaded, task), *check_records(loaded, sites.owners)]
    notes += notes_of(task)
    model = build_model(task, loaded.spec.federation.seed)
    layout = Layout.of(model)
    try_model(model, layout)
    first = next(iter(sites.owners.values())).train
    try_task(task, model, first)
    predict(loaded.spec, layout.size)  # a promise that cannot be kept, or has no bound, is refused here
    cohort = expected_cohort(loaded.spec, population(loaded.spec, sites.owners))
    predict_protection(loaded.spec, layout.size, classes=len(task.classes), cohort=round(cohort))
    if loaded.spec.privacy.hides_records:
        inputs, targets = first.batch(torch.arange(min(3, len(first))))
        loss = RecordLoss(task, loaded.spec.training.class_weights)
        check_on_records(model.train(), loss, inputs, targets)
        adversaries = adversary_source(loaded.spec.training, task, loss)
        if adversaries is not None:
            check_attack_for_dp(adversaries.trial, model, inputs, targets)
    if loaded.spec.evaluation.central or loaded.spec.evaluation.sites:
        measure(
            task, model, first, rows=np.arange(min(2, len(first)))
        )  # also loads the metrics, once, before workers are forked

    backdoored = None  # what tells how often a planted trigger works
    if sites.liars and sites.trigger is not None:
        backdoored = triggered(sites.roster.central_test, sites.trigger)

    def measure_centrally(vector: Vector) -> Measurement:
        layout.write(model, vector)
        found = measure(task, model, sites.roster.central_test)
        if backdoored is None:
            return found
        worked = measure(task, model, backdoored).metrics["accuracy"]
        return replace(found, metrics={**found.metrics, "attack_success": worked})

    return _Prepared(
        layout=layout,
        initial=layout.read(model),
        measure=measure_centrally,
        notes=notes,
        card=described(task),
        fingerprint=sites.fingerprint,
    )


def _run(
    folder: RunFolder,
    loaded: Loaded,
    sites: SimulatedSites,
    prepared: _Prepared,
    *,
    engine: Engine,
    sinks: tuple[Sink, ...],
    audited: Audited | None = None,
) -> RunResult:
    spec = loaded.spec
    try:
        store = CheckpointStore(folder.checkpoints)
        checkpoint = store.newest(
            digest=loaded.digest(),
            layout=prepared.layout.digest,
            size=prepared.layout.size,
            fingerprint=prepared.fingerprint,
        )
        with (
            one_thread(),
            engine.open(sites) as opened,
            sites.consortium.seated(spec.aggregation.protection) as seat,
        ):  # first: workers are forked before any sink starts a thread
            log = EventLog(folder.events)
            log.truncate(checkpoint.events_offset if checkpoint else 0)
            bus = EventBus(log, [*sinks, *tracking_sinks(spec.tracking, folder.path)])
            transcript = _transcript(folder, loaded, sites)
            try:
                if checkpoint is not None:
                    bus.recall(read_events(folder.events))
                if checkpoint is None:
                    bus.emit("run", 0, **_facts(loaded, sites, prepared, engine))
                if audited is not None:
                    bus.emit("audit", 0, **audited.sealed(prepared.layout))
                plan = RunPlan(
                    loaded=loaded,
                    layout=prepared.layout,
                    initial=prepared.initial,
                    classes=len(sites.task.classes),
                    randomness=sites.randomness,
                    bus=bus,
                    store=store,
                    central=prepared.measure
                    if spec.evaluation.central and len(sites.roster.central_test)
                    else None,
                    resume=checkpoint,
                    fingerprint=prepared.fingerprint,
                    run=folder.run,
                    witnesses=sites.ledgers.witnesses(spec) if sites.ledgers else None,
                    secure=seat,
                    transcript=transcript,
                )
                release = partial(_release, folder, sites, prepared)
                trained = _rounds(opened, plan, bus, release)
                if audited is not None:
                    bus.emit("audit", spec.federation.rounds, **audited.opened())
                _finish(folder, sites, prepared, trained, bus)
            finally:
                if transcript is not None:
                    transcript.close()
                bus.close()
        paths = write_report(folder.path)
    except (CloisterError, KeyboardInterrupt):
        with contextlib.suppress(CloisterError, OSError):
            write_report(folder.path)  # what there is so far
        raise
    finally:
        folder.close()
    figures: dict[str, Any] = json.loads(paths.json.read_text())
    return RunResult(run=folder.path, report=paths.html, model=folder.model, figures=figures)


def _transcript(folder: RunFolder, loaded: Loaded, sites: SimulatedSites) -> Transcript | None:
    spec = loaded.spec
    if spec.audit.transcript == "off":
        return None
    protected = spec.aggregation.protection != "plain"
    authority = base64.b64encode(sites.consortium.consortium.certificate).decode() if protected else None
    return Transcript(
        folder.transcript,
        limit=LIMITS[spec.audit.transcript],
        protected=protected,
        about={"run": folder.run, "federation": loaded.digest(), "authority": authority},
    )


def _rounds(opened: Opened, plan: RunPlan, bus: EventBus, release: Callable[[Vector, int], None]) -> Vector:
    try:
        return opened.run(plan)
    except KeyboardInterrupt:
        bus.emit(
            "end",
            0,
            status="interrupted",
            code="interrupted",
            message="interrupted; go on with --resume",
            model=None,
        )
        raise
    except PolicyError as error:
        # A cap was reached in the middle of the run: what was spent has bought a model, the best so far.
        best = plan.store.best()
        if best is None or not best.round_number:
            bus.emit("end", 0, status="failed", code=error.code, message=error.message, model=None)
            raise
        release(best.arrays["model"], best.round_number)
        text = f"{error.message}; the model of round {best.round_number} is released"
        bus.emit("end", best.round_number, status="failed", code=error.code, message=text, model=_MODEL)
        raise PolicyError(text, remedy=error.remedy, code=error.code) from None
    except CloisterError as error:
        bus.emit("end", 0, status="failed", code=error.code, message=error.message, model=None)
        raise


def _finish(
    folder: RunFolder, sites: SimulatedSites, prepared: _Prepared, vector: Vector, bus: EventBus
) -> None:
    rounds = sites.spec.federation.rounds
    _release(folder, sites, prepared, vector, rounds)
    for baseline in baselines(sites, prepared.initial, prepared.measure):
        try:
            found = baseline.train()
        except (DataError, TaskError) as error:  # the federation's own model is there already: go on without
            bus.emit("warning", rounds, text=f"{baseline.where} could not be trained: {error.message}")
        else:
            bus.emit("evaluation", rounds, where=baseline.where, **vars(found))
    bus.emit("end", rounds, status="done", code="done", message="", model=_MODEL)


def _release(
    folder: RunFolder, sites: SimulatedSites, prepared: _Prepared, vector: Vector, rounds: int
) -> None:
    model = build_model(sites.task, sites.spec.federation.seed)
    about = {
        "federation": sites.spec.federation.name,
        "rounds": rounds,
        "layout": prepared.layout.digest,
        "cloister": __version__,
    }
    write_model(folder.model, model, prepared.layout, vector, about)


def _facts(loaded: Loaded, sites: SimulatedSites, prepared: _Prepared, engine: Engine) -> dict[str, Any]:
    spec, roster, task = loaded.spec, sites.roster, sites.task
    size = len(roster)
    told = size <= _COUNTED and spec.privacy.unit == "none"  # a private run tells no number of records
    counted = {roster.name(i): roster.counts(i) for i in range(size)} if told else None
    return {
        "name": spec.federation.name,
        "digest": loaded.digest(),
        "layout": prepared.layout.digest,
        "parameters": prepared.layout.size,
        "seed": spec.federation.seed,
        "reproducible": sites.randomness.reproducible,
        "sites": size,
        "site_names": [roster.name(i) for i in range(min(size, _NAMED))],
        "engine": engine.name,
        "workers": engine.workers,
        "versions": {name: version(name) for name in ("flwr", "torch", "numpy", "opacus")}
        | {"cloister": __version__, "python": platform.python_version()},
        "rounds": spec.federation.rounds,
        "task": prepared.card,
        "classes": list(task.classes),
        "partition": {"by": spec.cohort.partition.by, "classes": list(task.classes), "sites": counted}
        if counted
        else None,
        "notes": prepared.notes,
        "protection": spec.aggregation.protection,
        "rule": spec.aggregation.rule,
        "optimizer": spec.aggregation.optimizer.name,
        "byzantine": spec.aggregation.byzantine,
        "attack": spec.attack.name if spec.attack else None,
        "liars": sorted(roster.name(position) for position in sites.liars),
        "resumed_from": None,
    }
