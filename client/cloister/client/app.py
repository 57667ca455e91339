"""A site as a Flower ClientApp: ``train``, ``evaluate``, ``query`` and the steps of secure sessions, on Flower's Message API.

What a site sends is the three replies of `cloister.core.protocol` and nothing else. Whatever goes wrong becomes a refusal with
a stable code: an exception's text, which may quote a record, stays at the site.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from cloister.client.book import ContextShelf, Credentials, SessionBook, Shelf
from cloister.client.canaries import CoinSource, coins_of, records_with_canaries
from cloister.client.charging import Charge, RunBounds, SiteLedger, afford, release
from cloister.client.controls import ContextControls, Controls, FileControls
from cloister.client.incoming import Job, read_job
from cloister.client.peers import groups_for
from cloister.client.protecting import MakeArray, measured_values, outgoing_for, training_values
from cloister.client.releasing import releasable
from cloister.client.run_files import FileShelf
from cloister.client.sessions import Setting, answer_step
from cloister.client.trainer import LocalResult, Trainer
from cloister.core import protocol
from cloister.core.data import Split
from cloister.core.digests import vectors_digest
from cloister.core.errors import CloisterError, DataError, IntegrityError, PolicyError
from cloister.core.metrics import Measurement, measure
from cloister.core.randomness import Randomness
from cloister.core.resolve import check_data
from cloister.core.spec import FederationSpec
from cloister.core.tasks.statistics import bare_statistic
from cloister.core.update import Vector
from cloister.privacy.plan import plan_from
from cloister.strategies.scaffold import client_control, correction

__all__ = ["Site", "SiteSource", "Workbench", "make_client_app", "refusal", "refusal_of"]

_log = logging.getLogger("cloister.client")
#: Characters of a refusal: some quote what the server sent.
_LONGEST_WORDS = 4000


@dataclass(frozen=True, kw_only=True)
class Workbench:
    """What a site needs for one federation, built once and used for every message of it; ``code_hash``: of what computes."""

    spec: FederationSpec
    trainer: Trainer
    randomness: Randomness
    code_hash: str = "unknown"

    def setting(self, site: Site, job: Job, message: Message) -> Setting:
        """Return what ``site`` knows for itself of the federation, and of the run that ``message`` is of."""
        task = self.trainer.task
        classes = len(task.classes) if task.kind == "classification" else 0
        return Setting(
            spec=self.spec,
            size=self.trainer.layout.size,
            classes=classes,
            tested=len(site.split.test) > 0,
            name=site.name,
            groups=groups_for(
                message,
                job,
                self.spec,
                consortium=None if site.credentials is None else site.credentials.consortium,
                peers=site.peers,
                randomness=self.randomness,
            ),
        )


@dataclass(frozen=True, kw_only=True)
class Site:
    """Who this is, what it holds, and what it keeps.

    Attributes:
        name: as the consortium knows it.
        split: its records.
        ledger: the account of what they have cost; ``None``: none is kept.
        credentials: what it proves to others; ``None``: it has no identity in a consortium.
        sessions: a file beside which it keeps what must outlive it of a run; ``None``: secure sessions beside the ledger, the rest in Flower's context.
        bounds: what a run may be charged at the most, beside the ledger's cap.
        peers: all sites of a simulation, itself among them; a real site reads them in the user's request.
        coins: where it has the coins of canaries, if a run plants some here.
    """

    name: str
    split: Split
    ledger: SiteLedger | None = None
    credentials: Credentials | None = None
    sessions: Path | None = None
    bounds: RunBounds = RunBounds()  # noqa: RUF009 - frozen
    peers: tuple[str, ...] = ()
    coins: CoinSource | None = None


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
        return _answer(message, lambda: _evaluate(message, context, source, make_array))

    @app.query()
    def query(message: Message, context: Context) -> Message:
        return _answer(message, lambda: _introduce(message, context, source))

    @app.query("secure")
    def secure(message: Message, context: Context) -> Message:
        return _answer(message, lambda: _secure(message, context, source))

    @app.query("seal")
    def seal(message: Message, context: Context) -> Message:
        return _answer(message, lambda: _canaries(message, context, source, opening=False))

    @app.query("open")
    def open_(message: Message, context: Context) -> Message:
        return _answer(message, lambda: _canaries(message, context, source, opening=True))

    return app


def _train(message: Message, context: Context, source: SiteSource, make_array: MakeArray) -> RecordDict:
    job, bench, site = _start(message, context, source)
    size = bench.trainer.layout.size
    given = {protocol.VECTOR: job.array(protocol.VECTOR, size)}
    if bench.spec.training.scaffold:
        given[protocol.CONTROL] = job.array(protocol.CONTROL, size)
    setting = bench.setting(site, job, message)
    outgoing = outgoing_for(
        "train",
        message,
        _book(site, job, context),
        job=job,
        setting=setting,
        given=given,
        randomness=bench.randomness,
        make_array=make_array,
    )
    done: list[LocalResult] = []
    controls = _controls(site, job, context, make_array)

    def compute() -> dict[str, npt.NDArray[Any]]:
        result, arrays = _round(job, bench, site, controls=controls, given=given)
        done.append(result)
        return outgoing.encode(arrays if outgoing.in_clear else training_values(setting, arrays, result))

    plan = plan_from(bench.spec, size)
    content = RecordDict()
    if site.ledger is not None and plan is not None:
        clip = np.array([] if job.clip is None else [job.clip])
        told = vectors_digest({protocol.VECTOR: given[protocol.VECTOR], protocol.CLIP: clip})
        charge = Charge(
            run=job.run,
            round_number=job.round_number,
            given=f"{told} {outgoing.form}",
            plan=plan,
            code_hash=bench.code_hash,
            told=job.told,
            bounds=site.bounds,
        )
        arrays, said = release(site.ledger, charge, compute)
        content[protocol.LEDGER] = ConfigRecord({protocol.LEDGER: said.to_json()})
    else:
        arrays = compute()
    content.update(outgoing.protect(arrays))
    if outgoing.in_clear and plan is None and done[0].loss is not None:  # else the update leaves alone
        content[protocol.REPORT] = MetricRecord(
            {"loss": done[0].loss, "records": done[0].records, "steps": done[0].steps}
        )
    return content


def _round(
    job: Job,
    bench: Workbench,
    site: Site,
    *,
    controls: Controls,
    given: dict[str, Vector],
) -> tuple[LocalResult, dict[str, npt.NDArray[Any]]]:
    """Train; return what training told, and what of it may leave under the federation's own privacy."""
    vector, control = given[protocol.VECTOR], given.get(protocol.CONTROL)
    own = None if control is None else controls.read(job.round_number, len(vector))
    try:
        result = bench.trainer.train(
            vector,
            records_with_canaries(
                site.split, bench.trainer.task, bench.spec, site.coins, site=site.name, run=job.run
            ),
            site=site.name,
            round_number=job.round_number,
            randomness=bench.randomness,
            drift=None if control is None or own is None else correction(control, own),
        )
    except DataError as error:
        if bench.spec.aggregation.protection == "plain" or error.code != "update-not-finite":
            raise
        # A refusal would be an answer about this site's records that no sum and no noise covers: an update of zeros is none.
        result = bench.trainer.nothing(site.split.train, private=bench.spec.privacy.unit != "none")
    arrays = releasable(result.change, bench.spec, job, site=site.name, randomness=bench.randomness)
    if control is not None and own is not None:
        end = vector + result.change
        new, change = client_control(
            client=own, server=control, start=vector, end=end, steps=result.steps, lr=result.learning_rate
        )
        controls.keep(job.round_number, before=own, after=new)
        arrays[protocol.CONTROL] = change
    return result, arrays


def _evaluate(message: Message, context: Context, source: SiteSource, make_array: MakeArray) -> RecordDict:
    job, bench, site = _start(message, context, source)
    if bench.spec.privacy.unit != "none":
        raise PolicyError(
            "a private run releases no measurement of a site's records",
            remedy="measure elsewhere",
            code="withheld",
        )
    if not bench.spec.evaluation.sites:
        raise PolicyError(
            "the federation's user did not ask that sites measure the model",
            remedy="set evaluation.sites = true, and submit it anew",
            code="withheld",
        )
    given = {protocol.VECTOR: job.array(protocol.VECTOR, bench.trainer.layout.size)}
    setting = bench.setting(site, job, message)
    outgoing = outgoing_for(
        "evaluate",
        message,
        _book(site, job, context),
        job=job,
        setting=setting,
        given=given,
        randomness=bench.randomness,
        make_array=make_array,
    )
    bench.trainer.load(given[protocol.VECTOR])
    found = None
    if len(site.split.test):
        found = measure(
            bench.trainer.task, bench.trainer.model, site.split.test, device=str(bench.trainer.device)
        )
    if outgoing.in_clear:
        return RecordDict({protocol.REPORT: _reported(found)})
    if found is None:
        raise IntegrityError("a site without test records is in no sum of measurements", code="session-none")
    return outgoing.protect(outgoing.encode(measured_values(found, setting.classes)))


def _reported(found: Measurement | None) -> MetricRecord:
    if found is None:
        return MetricRecord({"records": 0})
    report = MetricRecord({"loss": found.loss, "records": found.records})
    for name, value in found.metrics.items():
        report[protocol.METRIC + name] = value
    if found.confusion is not None:
        report[protocol.CONFUSION] = [count for row in found.confusion for count in row]
    return report


def _introduce(message: Message, context: Context, source: SiteSource) -> RecordDict:
    job = read_job(message)
    bench = source.workbench(job.federation)
    site = source.site(context, bench)
    plan = plan_from(bench.spec, bench.trainer.layout.size)
    if job.afford and site.ledger is not None and plan is not None:
        afford(site.ledger, plan, plan.rounds - job.round_number, job.told)
    return RecordDict({protocol.SITE: ConfigRecord({"name": site.name})})


def _secure(message: Message, context: Context, source: SiteSource) -> RecordDict:
    job, bench, site = _start(message, context, source)
    said = message.content.config_records.get(protocol.SECURE)
    book = _book(site, job, context)
    if book is None or said is None:
        raise IntegrityError(
            "the message is no step of a secure session, or this site has no identity in a consortium",
            remedy="enrol the site",
            code="session-none",
        )
    return answer_step(said, book, job, bench.setting(site, job, message))


def _canaries(message: Message, context: Context, source: SiteSource, *, opening: bool) -> RecordDict:
    """Return the seal of the coins of this site's canaries, or what opens it."""
    job, bench, site = _start(message, context, source)
    coins = coins_of(site.coins, bench.spec, site=site.name, run=job.run, draw=not opening)
    told = ConfigRecord({"canaries": len(coins.included)})
    told.update(coins.opening() if opening else {protocol.SEAL: coins.seal})
    return RecordDict({protocol.CANARIES: told})


def _book(site: Site, job: Job, context: Context) -> SessionBook | None:
    """Return where ``site`` keeps what it must remember."""
    if site.credentials is None:
        return None
    ledger = site.ledger
    durable = ledger is None or ledger.durable
    place = site.sessions or (None if ledger is None else ledger.path)
    shelf: Shelf = (
        ContextShelf(context.state) if place is None else FileShelf(place, job.run, durable=durable)
    )
    return SessionBook(shelf, site.credentials)


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
    bare = bare_statistic(bench.spec, bench.trainer.task)
    if bare:
        raise PolicyError(
            bare, remedy="ask with 'cloister statistics', which writes a sound file", code="statistic-bare"
        )
    if not 1 <= job.round_number <= bench.spec.federation.rounds:
        raise IntegrityError(
            f"the job is for round {job.round_number}, and the federation has {bench.spec.federation.rounds}",
            code="job-malformed",
        )
    check_data(bench.trainer.task, site.split.train, owner=site.name, part="training")
    return job, bench, site


def _controls(site: Site, job: Job, context: Context, make_array: MakeArray) -> Controls:
    """Return where ``site`` keeps SCAFFOLD's control."""
    if site.sessions is None:
        return ContextControls(context, job.run, make_array)
    return FileControls(site.sessions, job.run)


def _answer(message: Message, work: Callable[[], RecordDict]) -> Message:
    """Reply with what ``work`` returns, or with a refusal that holds no data."""
    try:
        content = work()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - nothing of it may leave but what `refusal_of` lets through
        own = isinstance(error, CloisterError) and error.code.startswith("ledger")
        _log.error(
            "message refused: %s",
            error if own else _kind(error),
            exc_info=bool(os.environ.get("CLOISTER_DEBUG")),
        )
        content = refusal_of(error)
    return Message(content, reply_to=message)


def refusal_of(error: BaseException) -> RecordDict:
    """Return a refusal that quotes Cloister's own messages, which hold no data, and never those of a task or a library."""
    if isinstance(error, CloisterError) and error.code.startswith("ledger"):
        return refusal(error.code, "the site's ledger does not allow it; the site's own log says more")
    if isinstance(error, CloisterError) and _raised_by_us(error):
        return refusal(error.code, error.message)
    return refusal("site-failed", f"the site's code raised {_kind(error)}")


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


def refusal(code: str, message: str) -> RecordDict:
    """Return the content of a reply that refuses: a stable code, and words without data."""
    sendable = (
        message[:_LONGEST_WORDS].encode(errors="replace").decode()
    )  # half a surrogate pair cannot be sent
    return RecordDict({protocol.REFUSAL: ConfigRecord({"code": code, "message": sendable})})
