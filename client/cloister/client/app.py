"""A site as a Flower ClientApp: ``train``, ``evaluate`` and ``query`` on Flower's Message API.

What a site sends is the three replies of `cloister.core.protocol` and nothing else. Whatever goes wrong becomes a refusal with
a stable code: an exception's text, which may quote a record, stays at the site.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from cloister.client.charging import Charge, SiteLedger, afford, release
from cloister.client.incoming import Job, read_job
from cloister.client.kept import digest_of
from cloister.client.releasing import releasable
from cloister.client.trainer import LocalResult, Trainer
from cloister.core import protocol
from cloister.core.data import Split
from cloister.core.errors import CloisterError, IntegrityError, PolicyError
from cloister.core.metrics import measure
from cloister.core.randomness import Randomness
from cloister.core.resolve import check_data
from cloister.core.spec import FederationSpec
from cloister.core.update import Vector
from cloister.privacy.plan import plan_from
from cloister.strategies.scaffold import client_control, correction

__all__ = ["Site", "SiteSource", "Workbench", "make_client_app"]

_log = logging.getLogger("cloister.client")

MakeArray = Callable[[npt.NDArray[Any]], Array]


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """What a site needs for one federation, built once and used for every message of it; ``code_hash``: of what computes."""

    spec: FederationSpec
    trainer: Trainer
    randomness: Randomness
    code_hash: str = "unknown"


@dataclass(frozen=True, kw_only=True)
class Site:
    """Who this is, what it holds, and where it keeps the account of it (``None``: nowhere, in a simulation)."""

    name: str
    split: Split
    ledger: SiteLedger | None = None


class SiteSource(Protocol):
    """Where the ClientApp finds its workbench and its records: a simulation's partition, or a real site's folder."""

    def workbench(self, federation: str) -> Workbench:
        """Return the workbench for the effective federation file in ``federation`` (JSON)."""
        ...

    def site(self, context: Context, bench: Workbench) -> Site:
        """Return the site that ``context`` stands for."""
        ...


def make_client_app(source: SiteSource, *, make_array: MakeArray = Array) -> ClientApp:
    """Return the ClientApp of a site.

    Args:
        source: where it finds its workbench and records.
        make_array: how a flat vector becomes a Flower ``Array``; an engine on one machine gives one that does not copy.
    """
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        return _answer(message, lambda: _train(message, context, source, make_array))

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        return _answer(message, lambda: _evaluate(message, context, source))

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return _answer(message, lambda: _introduce(message, context, source))

    return app


def _train(message: Message, context: Context, source: SiteSource, make_array: MakeArray) -> RecordDict:
    job, bench, site = _start(message, context, source)
    size = bench.trainer.layout.size
    vector = job.array(protocol.VECTOR, size)
    control, own = None, None
    if bench.spec.training.scaffold:
        control = job.array(protocol.CONTROL, size)
        own = _own_control(context, size)

    def compute() -> LocalResult:
        return bench.trainer.train(
            vector,
            site.split.train,
            site=site.name,
            round_number=job.round_number,
            randomness=bench.randomness,
            drift=None if control is None or own is None else correction(control, own),
        )

    def send(result: LocalResult) -> dict[str, npt.NDArray[Any]]:
        return releasable(result.change, bench.spec, job, site=site.name, randomness=bench.randomness)

    update = ArrayRecord()  # filled item by item: its constructor would copy and serialise each array
    plan = plan_from(bench.spec, size)
    if site.ledger is not None and plan is not None:
        clip = np.array([] if job.clip is None else [job.clip])
        charge = Charge(
            run=job.run,
            round_number=job.round_number,
            given=digest_of({protocol.VECTOR: vector, protocol.CLIP: clip}),
            plan=plan,
            code_hash=bench.code_hash,
            told=job.told,
        )
        arrays, told = release(site.ledger, charge, lambda: send(compute()))
        update.update({name: make_array(array) for name, array in arrays.items()})
        return RecordDict(
            {
                protocol.UPDATE: update,
                protocol.LEDGER: ConfigRecord({protocol.LEDGER: told.to_json()}),
            }
        )
    result = compute()
    update.update({name: make_array(array) for name, array in send(result).items()})
    if control is not None and own is not None:
        end = vector + result.change
        new, change = client_control(
            client=own, server=control, start=vector, end=end, steps=result.steps, lr=result.learning_rate
        )
        kept = ArrayRecord()
        kept[protocol.CONTROL] = make_array(new)
        context.state[protocol.CONTROL] = kept
        update[protocol.CONTROL] = make_array(change)
    content = RecordDict({protocol.UPDATE: update})
    if plan is None and result.loss is not None:  # a private run releases the update alone
        content[protocol.REPORT] = MetricRecord(
            {"loss": result.loss, "records": result.records, "steps": result.steps}
        )
    return content


def _evaluate(message: Message, context: Context, source: SiteSource) -> RecordDict:
    job, bench, site = _start(message, context, source)
    if bench.spec.privacy.unit != "none":
        raise PolicyError(
            "a private run releases no measurement of a site's records",
            remedy="measure elsewhere",
            code="withheld",
        )
    bench.trainer.load(job.array(protocol.VECTOR, bench.trainer.layout.size))
    if len(site.split.test) == 0:
        return RecordDict({protocol.REPORT: MetricRecord({"records": 0})})
    found = measure(
        bench.trainer.task, bench.trainer.model, site.split.test, device=str(bench.trainer.device)
    )
    report = MetricRecord({"loss": found.loss, "records": found.records})
    for name, value in found.metrics.items():
        report[protocol.METRIC + name] = value
    if found.confusion is not None:
        report[protocol.CONFUSION] = [count for row in found.confusion for count in row]
    return RecordDict({protocol.REPORT: report})


def _introduce(message: Message, context: Context, source: SiteSource) -> RecordDict:
    job = read_job(message)
    bench = source.workbench(job.federation)
    site = source.site(context, bench)
    plan = plan_from(bench.spec, bench.trainer.layout.size)
    if job.afford and site.ledger is not None and plan is not None:
        afford(site.ledger, plan, plan.rounds - job.round_number, job.told)
    return RecordDict({protocol.SITE: ConfigRecord({"name": site.name})})


def _start(message: Message, context: Context, source: SiteSource) -> tuple[Job, Workbench, Site]:
    job = read_job(message)
    bench = source.workbench(job.federation)
    job.check_layout(bench.trainer.layout)
    site = source.site(context, bench)
    if site.ledger is not None and bench.spec.privacy.unit == "none":
        raise PolicyError(
            "this site keeps a ledger, and takes part under differential privacy only",
            remedy="give the federation file a [privacy] table",
            code="budget",
        )
    if not 1 <= job.round_number <= bench.spec.federation.rounds:
        raise IntegrityError(
            f"the job is for round {job.round_number}, and the federation has {bench.spec.federation.rounds}",
            code="job-malformed",
        )
    check_data(bench.trainer.task, site.split.train, owner=site.name, part="training")
    return job, bench, site


def _own_control(context: Context, size: int) -> Vector:
    if protocol.CONTROL in context.state:
        stored: Vector = context.state.array_records[protocol.CONTROL][protocol.CONTROL].numpy()
        return stored
    return np.zeros(size, dtype=np.float32)


def _answer(message: Message, work: Callable[[], RecordDict]) -> Message:
    """Reply with what ``work`` returns, or with a refusal that holds no data."""
    try:
        content = work()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - nothing of it may leave but what `_told` lets through
        own = isinstance(error, CloisterError) and error.code.startswith("ledger")
        _log.error(
            "message refused: %s",
            error if own else _kind(error),
            exc_info=bool(os.environ.get("CLOISTER_DEBUG")),
        )
        content = _told(error)
    return Message(content, reply_to=message)


def _told(error: BaseException) -> RecordDict:
    """Return a refusal that quotes Cloister's own messages, which hold no data, and never those of a task or a library."""
    if isinstance(error, CloisterError) and error.code.startswith("ledger"):
        return _refusal(error.code, "the site's ledger does not allow it; the site's own log says more")
    if isinstance(error, CloisterError) and _raised_by_us(error):
        return _refusal(error.code, error.message)
    return _refusal("site-failed", f"the site's code raised {_kind(error)}")


def _raised_by_us(error: BaseException) -> bool:
    """Whether the ``raise`` stands in a module of Cloister: a task may raise our errors with words of its own."""
    traceback = error.__traceback__
    while traceback is not None and traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback is not None and str(traceback.tb_frame.f_globals.get("__name__", "")).startswith(
        "cloister."
    )


def _kind(error: BaseException) -> str:
    """Return the error's type where it is a well-known one: a task may name a class after what it read."""
    kind = type(error)
    known = kind.__module__.split(".")[0] in ("builtins", "torch", "numpy", "cloister")
    return kind.__name__ if known else "an error of its own"


def _refusal(code: str, message: str) -> RecordDict:
    return RecordDict({protocol.REFUSAL: ConfigRecord({"code": code, "message": message})})
