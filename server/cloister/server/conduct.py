"""One run from its folder to its report, whatever carries its messages: in process, over Ray, or over a SuperLink.

Everything that can be refused has been refused before; from here on, whatever happens leaves a folder that a resume goes on with.
"""

from __future__ import annotations

import base64
import contextlib
import json
import platform
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

from cloister.core._version import __version__
from cloister.core.errors import CloisterError, PolicyError
from cloister.core.metrics import Measurement
from cloister.core.randomness import Randomness
from cloister.core.resolve import build_model
from cloister.core.spec import Loaded
from cloister.core.task import Task
from cloister.core.update import Layout, Vector
from cloister.privacy.audit.canaries import bare, released
from cloister.privacy.request import SignedRequest
from cloister.server.audit.canaries.claiming import watch_of
from cloister.server.audit.canaries.watching import Watch
from cloister.server.audit.canaries.writing import write_in_run
from cloister.server.checkpoints import CheckpointStore
from cloister.server.events import EventBus, EventLog, Sink, read_events
from cloister.server.plan import RunPlan, SecureSeat
from cloister.server.release import write_model
from cloister.server.report import write_report
from cloister.server.run_folder import RunFolder
from cloister.server.tracking import tracking_sinks
from cloister.server.transcript import LIMITS, Transcript
from cloister.server.witnessing import Witnesses

__all__ = ["Conduct", "Opened", "RunResult", "conduct", "run_facts"]

_MODEL = "model.safetensors"


class Opened(Protocol):
    """What carries messages, ready."""

    def run(self, plan: RunPlan) -> Vector:
        """Run a plan to its end and return the model."""
        ...


@dataclass(frozen=True, kw_only=True)
class RunResult:
    """What a run made: its folder, its report and the figures in it."""

    run: Path
    report: Path
    model: Path
    figures: dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Conduct:
    """What one run needs, before anything carries its messages.

    Attributes:
        folder: where all of it goes; closed when the run is over.
        loaded: the federation file.
        task: what is learned; its data may be elsewhere.
        layout: what lies where in the model's vector.
        initial: (size,) the model as it was built.
        randomness: seeded in simulation, the operating system's in deployment.
        fingerprint: what the run computes with.
        central: measures a model at the server, or ``None``.
        facts: what the first event says of the run, beside `run_facts`; asked for once, when what carries messages is ready.
        witnesses: what the server knows of the sites' ledgers, where they keep any.
        request: who asked for it, in a deployment.
        watch: what is seen of an audit's canaries; what the file itself plants unless given.
        before: what is done before the first round; when the run goes on after an interruption, not again.
        after: what is done with the model when the rounds are over.
    """

    folder: RunFolder
    loaded: Loaded
    task: Task
    layout: Layout
    initial: Vector
    randomness: Randomness
    fingerprint: str
    central: Callable[[Vector], Measurement] | None
    facts: Callable[[], Mapping[str, Any]]
    witnesses: Witnesses | None = None
    request: SignedRequest | None = None
    watch: Watch | None = None
    before: Callable[[EventBus], None] = lambda _: None
    after: Callable[[EventBus], None] = lambda _: None


def conduct(
    one: Conduct,
    opened: Callable[[], AbstractContextManager[tuple[Opened, SecureSeat | None]]],
    *,
    sinks: tuple[Sink, ...] = (),
) -> RunResult:
    """Carry a run out, or on, to its end.

    Args:
        one: the run.
        opened: makes ready what carries its messages, and says who the server is to the consortium.
        sinks: who is told of events, beside the folder's own log.

    Raises:
        CloisterError: whatever ended it before its end; the report says what there is so far.
    """
    folder, spec = one.folder, one.loaded.spec
    watch = one.watch or watch_of(spec, one.layout)
    try:
        store = CheckpointStore(folder.checkpoints)
        checkpoint = store.newest(
            digest=one.loaded.digest(),
            layout=one.layout.digest,
            size=one.layout.size,
            fingerprint=one.fingerprint,
        )
        with opened() as (carrier, seat):  # first: workers are forked before any sink starts a thread
            log = EventLog(folder.events)
            log.truncate(checkpoint.events_offset if checkpoint else 0)
            bus = EventBus(log, [*sinks, *tracking_sinks(spec.tracking, folder.path)])
            transcript = _transcript(one, seat)
            try:
                if checkpoint is not None:
                    bus.recall(read_events(folder.events))
                if checkpoint is None:
                    bus.emit("run", 0, **run_facts(one), **one.facts())
                    one.before(bus)
                plan = RunPlan(
                    loaded=one.loaded,
                    layout=one.layout,
                    initial=one.initial,
                    classes=len(one.task.classes),
                    randomness=one.randomness,
                    bus=bus,
                    store=store,
                    central=one.central if spec.evaluation.central else None,
                    resume=checkpoint,
                    fingerprint=one.fingerprint,
                    run=folder.run,
                    witnesses=one.witnesses,
                    secure=seat,
                    transcript=transcript,
                    request=one.request,
                    watch=watch,
                )
                vector = _rounds(carrier, plan, bus, partial(_release, one))
                _release(one, vector, spec.federation.rounds)
                if spec.audit.canaries is not None and watch is not None:
                    write_in_run(
                        folder.path,
                        spec,
                        size=one.layout.size,
                        sites=watch.sites,
                        watch=watch,
                        ledgers=one.witnesses is not None,
                        bus=bus,
                    )
                one.after(bus)
                bus.emit("end", spec.federation.rounds, status="done", code="done", message="", model=_MODEL)
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


def run_facts(one: Conduct) -> dict[str, Any]:
    """Return what the first event says of every run."""
    spec = one.loaded.spec
    return {
        "name": spec.federation.name,
        "digest": one.loaded.digest(),
        "layout": _released_layout(one).digest,
        "parameters": one.layout.size - spec.audit.canary_weights,
        "seed": spec.federation.seed,
        "reproducible": one.randomness.reproducible,
        "versions": {name: version(name) for name in ("flwr", "torch", "numpy", "opacus")}
        | {"cloister": __version__, "python": platform.python_version()},
        "rounds": spec.federation.rounds,
        "classes": list(one.task.classes),
        "protection": spec.aggregation.protection,
        "rule": spec.aggregation.rule,
        "optimizer": spec.aggregation.optimizer.name,
        "byzantine": spec.aggregation.byzantine,
        "resumed_from": None,
    }


def _transcript(one: Conduct, seat: SecureSeat | None) -> Transcript | None:
    spec = one.loaded.spec
    if spec.audit.transcript == "off":
        return None
    authority = None if seat is None else base64.b64encode(seat.consortium.certificate).decode()
    return Transcript(
        one.folder.transcript,
        limit=LIMITS[spec.audit.transcript],
        protected=spec.aggregation.protection != "plain",
        about={"run": one.folder.run, "federation": one.loaded.digest(), "authority": authority},
    )


def _rounds(carrier: Opened, plan: RunPlan, bus: EventBus, release: Callable[[Vector, int], None]) -> Vector:
    try:
        return carrier.run(plan)
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


def _release(one: Conduct, vector: Vector, rounds: int) -> None:
    model = build_model(one.task, one.loaded.spec.federation.seed)
    layout = one.layout
    if one.loaded.spec.audit.canaries is not None:
        layout.write(model, vector)
        model = released(model)  # no record uses the canaries' layer
        layout = Layout.of(model)
        vector = layout.read(model)
    about = {
        "federation": one.loaded.spec.federation.name,
        "rounds": rounds,
        "layout": layout.digest,
        "cloister": __version__,
    }
    write_model(one.folder.model, model, layout, vector, about)


def _released_layout(one: Conduct) -> Layout:
    """Return the layout of the model that is released: without canaries."""
    if one.loaded.spec.audit.canaries is None:
        return one.layout
    return Layout.of(build_model(bare(one.task), one.loaded.spec.federation.seed))
