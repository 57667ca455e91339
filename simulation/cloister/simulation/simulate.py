"""The main job: a federation file in, a run folder out.

Everything that can be refused is refused before the run folder is made; after that, whatever happens leaves a folder that
``--resume`` goes on with.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from cloister.core.checking import check_federation, check_records, expected_cohort, population
from cloister.core.errors import DataError, SpecError, TaskError, UsageError
from cloister.core.metrics import Measurement, measure
from cloister.core.preflight import try_task
from cloister.core.resolve import build_model, described, notes_of
from cloister.core.spec import Loaded
from cloister.core.update import Layout, Vector
from cloister.privacy.audit.canaries import CanaryTask, bare, released
from cloister.privacy.plan import predict
from cloister.privacy.protection import predict as predict_protection
from cloister.server.audit.canaries.watching import Watch
from cloister.server.conduct import Conduct, Opened, RunResult, conduct
from cloister.server.events import EventBus, Sink
from cloister.server.plan import SecureSeat
from cloister.server.release import try_model
from cloister.server.run_folder import RunFolder
from cloister.simulation.attacks.data import triggered
from cloister.simulation.baselines import baselines
from cloister.simulation.engines import Engine
from cloister.simulation.ledgers import SimulatedLedgers
from cloister.simulation.sites import SimulatedSites
from cloister.simulation.threads import one_thread

__all__ = ["AUDITED", "Audited", "RunResult", "check", "resume", "simulate"]

#: In the folder of an audit's run: what it is.
AUDITED = "audited.json"
#: Sites that are named one by one in the first event, and those whose records are counted for the partition's plot.
_NAMED, _COUNTED = 1000, 200


class Audited(Protocol):
    """A run that is made for an audit: other sites, two events more, and somebody who looks on."""

    def sites(self, federation: str, base: Path, ledgers: SimulatedLedgers | None) -> SimulatedSites:
        """Return the sites of the federation file in ``federation`` (JSON)."""
        ...

    def begun(self, folder: Path) -> None:
        """Keep in the run's new folder what a resume must know."""
        ...

    def watch(self, layout: Layout) -> Watch:
        """Return what looks at the canaries."""
        ...

    def sealed(self, layout: Layout) -> Mapping[str, Any]:
        """Return the ``audit`` event before training."""
        ...

    def opened(self) -> Mapping[str, Any]:
        """Return the ``audit`` event after it."""
        ...


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
    if audited is not None:
        audited.begun(folder.path)
    on_start(folder.path)
    return _run(folder, loaded, sites, prepared, engine=engine, sinks=sinks, audited=audited)


def resume(
    path: Path, *, engine: Engine, sinks: tuple[Sink, ...] = (), audited: Audited | None = None
) -> RunResult:
    """Go on with a run that was interrupted, to the result that it would have had.

    Args:
        path: the run's folder.
        engine: what carries the messages.
        sinks: who is told of events, beside the folder's own log.
        audited: canaries, where the run is an audit's.

    Raises:
        CloisterError: whatever refused it.
    """
    if audited is None and (path / AUDITED).exists():
        raise UsageError(
            f"'{path}' is an audit's run: nothing but its audit goes on with it",
            remedy=f"cloister audit privacy --resume {path}",
        )
    folder, loaded = RunFolder.reopen(path)
    try:
        ledgers = folder.ledgers
        kept = None if ledgers is None else SimulatedLedgers(ledgers)
        loaded, sites = _sites(loaded, kept, SimulatedSites if audited is None else audited.sites)
        prepared = _prepare(sites, loaded)
    except BaseException:
        folder.close()
        raise
    return _run(folder, loaded, sites, prepared, engine=engine, sinks=sinks, audited=audited)


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
    whole = task if isinstance(task, CanaryTask) and task.listed else bare(task)
    notes = [*check_federation(loaded, whole), *check_records(loaded, sites.owners)]
    notes += notes_of(task)
    names = [sites.roster.name(position) for position in range(len(sites.roster))]
    if loaded.spec.audit.canary_site not in {None, *names}:
        raise SpecError(
            f"audit.canary_site = '{loaded.spec.audit.canary_site}' is none of the {len(names)} sites",
            remedy=f"name one of {', '.join(names[:5])}",
            code="audit-site",
        )
    model = build_model(task, loaded.spec.federation.seed)
    layout = Layout.of(model)
    try_model(model, layout)
    first = next(iter(sites.owners.values())).train
    try_task(whole, model if whole is task else released(model), first)
    predict(loaded.spec, layout.size)  # a promise that cannot be kept, or has no bound, is refused here
    cohort = expected_cohort(loaded.spec, population(loaded.spec, sites.owners))
    predict_protection(loaded.spec, layout.size, classes=len(task.classes), cohort=round(cohort))
    if loaded.spec.privacy.hides_records:
        from cloister.client.private_steps import check_private

        check_private(loaded.spec, task, model, *first.batch(torch.arange(min(3, len(first)))))
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
    one = Conduct(
        folder=folder,
        loaded=loaded,
        task=sites.task,
        layout=prepared.layout,
        initial=prepared.initial,
        randomness=sites.randomness,
        fingerprint=prepared.fingerprint,
        central=prepared.measure
        if loaded.spec.evaluation.central and len(sites.roster.central_test)
        else None,
        facts=lambda: _facts(loaded, sites, prepared, engine),
        witnesses=sites.ledgers.witnesses(loaded.spec) if sites.ledgers else None,
        watch=None if audited is None else audited.watch(prepared.layout),
        before=lambda bus: _tell(bus, 0, None if audited is None else audited.sealed(prepared.layout)),
        after=partial(_compare, sites, prepared, audited),
    )

    @contextmanager
    def opened() -> Iterator[tuple[Opened, SecureSeat | None]]:
        with (
            one_thread(),
            engine.open(sites) as carrier,
            sites.consortium.seated(loaded.spec.aggregation.protection) as seat,
        ):
            yield carrier, seat

    return conduct(one, opened, sinks=sinks)


def _tell(bus: EventBus, number: int, found: Mapping[str, Any] | None) -> None:
    if found is not None:
        bus.emit("audit", number, **found)


def _compare(sites: SimulatedSites, prepared: _Prepared, audited: Audited | None, bus: EventBus) -> None:
    """Train what the federation is compared with, and open an audit's coins."""
    rounds = sites.spec.federation.rounds
    _tell(bus, rounds, None if audited is None else audited.opened())
    for baseline in baselines(sites, prepared.initial, prepared.measure):
        try:
            found = baseline.train()
        except (DataError, TaskError) as error:  # the federation's own model is there already: go on without
            bus.emit("warning", rounds, text=f"{baseline.where} could not be trained: {error.message}")
        else:
            bus.emit("evaluation", rounds, where=baseline.where, **vars(found))


def _facts(loaded: Loaded, sites: SimulatedSites, prepared: _Prepared, engine: Engine) -> dict[str, Any]:
    spec, roster, task = loaded.spec, sites.roster, sites.task
    size = len(roster)
    told = size <= _COUNTED and spec.privacy.unit == "none"  # a private run tells no number of records
    counted = {roster.name(i): roster.counts(i) for i in range(size)} if told else None
    return {
        "sites": size,
        "site_names": [roster.name(i) for i in range(min(size, _NAMED))],
        "engine": engine.name,
        "workers": engine.workers,
        "task": prepared.card,
        "partition": {"by": spec.cohort.partition.by, "classes": list(task.classes), "sites": counted}
        if counted
        else None,
        "notes": prepared.notes,
        "attack": spec.attack.name if spec.attack else None,
        "liars": sorted(roster.name(position) for position in sites.liars),
    }
