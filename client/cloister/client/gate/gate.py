"""A site's gate: every message passes it, and nothing leaves that it did not let pass and write down.

Formal guarantees:

- A message reaches the ClientApp only if a user of the consortium signed the request that it carries, for this run, this federation file and this
  site, not longer ago than the policy says, and the policy in force allows the run: each is checked before anything is computed.
- A reply leaves only after the site's log holds what is in it. Where that cannot be written, a refusal leaves.
- The vector of every training message is looked at before it is trained from (`cloister.client.gate.weights`).
- A changed policy, and what ``cloister site approve | deny | pause | resume`` wrote, hold from the next message on.

==========================================  ==============================================================================
case                                        answer: a refusal with this code
==========================================  ==============================================================================
no request, a forged or another one         request, identity, identity-revoked, signature, policy-request
paused, outside hours, another run busy     wait-paused, wait-hours, wait-busy: ask again later
not approved yet                            wait-approval
something else against it                   policy-…, budget, delta (`cloister.client.gate.judging`)
policy.toml cannot be read                  policy-unreadable
the log cannot be written                   log-…
==========================================  ==============================================================================
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import torch
from flwr.app import Context, Message, RecordDict

from cloister.client.app import SiteSource, refusal, refusal_of
from cloister.client.deployed import ledger_of
from cloister.client.gate.budget import Cost, check_budget
from cloister.client.gate.hours import within
from cloister.client.gate.judging import check_vector, judge, refused
from cloister.client.gate.leaving import check_reply, contents, steps_of, told_of_ledger
from cloister.client.gate.limits import bounded, settle
from cloister.client.gate.log_state import LogState
from cloister.client.gate.policy import POLICY, Allow, ReadPolicy, check_datasets, read_policy
from cloister.client.gate.program import program_digest
from cloister.client.gate.site_log import LOG, Clock, SiteLog, utc_now
from cloister.client.gate.status import site_status
from cloister.client.gate.weights import measuring_layers
from cloister.client.incoming import Job, read_job
from cloister.client.site_config import DataTable, SiteConfig
from cloister.core import protocol
from cloister.core._version import __version__
from cloister.core.digests import federation_digest
from cloister.core.errors import CloisterError, IntegrityError, SpecError
from cloister.core.exposure import exposure
from cloister.core.resolve import build_model
from cloister.core.spec import FederationSpec, parse_federation
from cloister.core.task import Task
from cloister.core.update import Layout
from cloister.privacy.identity import Consortium
from cloister.privacy.identity.kit import Kit
from cloister.privacy.ledger import load_or_create_key
from cloister.privacy.ledger.entry import canonical_json
from cloister.privacy.manifest import Floors
from cloister.privacy.request import JobRequest, SignedRequest

__all__ = ["Admitted", "Gate", "GatedApp", "open_gate", "state_folder"]

#: How far ahead of this site's clock a request may be dated.
_AHEAD = timedelta(minutes=10)
#: Decisions that are remembered, and seconds until the same refusal is written down again.
_DECISIONS, _AGAIN_S = 64, 60.0

App = Callable[[Message, Context], Message]


@dataclass(frozen=True, kw_only=True)
class Admitted:
    """A message that may pass.

    Attributes:
        job: what it asks for.
        spec: the federation file.
        rule: what allows it.
    """

    job: Job
    spec: FederationSpec
    rule: Allow


@dataclass(frozen=True, kw_only=True)
class _Decision:
    """What the policy says of a run; ``code`` and ``message`` of a refusal, else the rest."""

    code: str = ""
    message: str = ""
    rule: Allow | None = None
    cost: Cost | None = None
    grounds: str = ""
    layers: frozenset[str] = frozenset()
    layout: Layout | None = None


@dataclass(kw_only=True)
class _Repeated:
    """A refusal that was written down, and how often it came since."""

    at: float
    times: int = 0


class Gate:
    """The gate of one site; made by `open_gate`.

    Args:
        folder: the site's.
        config: its ``site.toml``.
        kit: who it is, and whom it believes.
        now: the time.
        durable: whether the log survives a power cut.

    Raises:
        SpecError: there is no policy, or it is refused.
        IntegrityError: the log does not hold.
    """

    def __init__(
        self, folder: Path, config: SiteConfig, kit: Kit, *, now: Clock = utc_now, durable: bool = True
    ) -> None:
        self._folder = folder
        self._config = config
        self._kit = kit
        self._now = now
        self._durable = durable
        self._consortium = kit.consortium
        self._decisions: dict[tuple[str, ...], _Decision] = {}
        self._specs: dict[str, FederationSpec] = {}
        self._active: dict[str, float] = {}
        self._repeated: dict[tuple[str, str, str], _Repeated] = {}
        self._stamp: tuple[int, ...] = ()
        self._read: ReadPolicy | None = None
        self._state = LogState()
        self._closed = False
        read = self._reread()  # refused here, and not at the first message
        state = state_folder(folder, config)
        self._log = SiteLog(
            state / LOG,
            site=kit.identity.name,
            key=load_or_create_key(_key_path(state)),
            identity=kit.identity,
            took=self._state.take,
            durable=durable,
            now=now,
        )
        self._log.append("started", {"version": __version__, "policy": read.digest})
        self._note_policy(read)
        settle(read.policy.limits)

    @property
    def floors(self) -> Floors:
        """What the site demands of every secure session (`cloister.client.book.Credentials`)."""
        return self._policy().policy.floors

    @property
    def consortium(self) -> Consortium:
        """Whom the gate believes."""
        return self._consortium

    @consortium.setter
    def consortium(self, consortium: Consortium) -> None:
        """Believe ``consortium`` from the next message on: another list of certificates that were taken back."""
        self._consortium = consortium

    def dataset_for(self, spec: FederationSpec) -> str | None:
        """Return the name of the ``[data.NAME]`` that a run is trained on, by policy; ``None`` where no rule is about its task."""
        rules = self._policy().policy.rules_for(spec.task.use)
        return rules[0].dataset if rules else None

    def status(self) -> dict[str, Any]:
        """Return what ``cloister site status --json`` prints."""
        self._log.refresh()
        return site_status(state_folder(self._folder, self._config), self._state, self._policy().policy)

    def close(self) -> None:
        """Write down that the site stops; a second call does nothing."""
        if not self._closed:
            self._closed = True
            self._log.append("stopped", {})

    def memory(self) -> int | None:
        """Return the MiB that may be held while a message is worked on; ``None``: no limit."""
        return self._policy().policy.limits.memory_mb

    def admit(self, message: Message, context: Context, source: SiteSource) -> Admitted:
        """Return what a message may pass as.

        Args:
            message: what came.
            context: Flower's, for ``source``.
            source: where model and records are found, once the policy allows their program.

        Raises:
            CloisterError: it may not pass.
        """
        self._log.refresh()
        job = read_job(message)
        user, request = self._request(message, job)
        read = self._policy()
        if (before := self._state.runs.get(job.run)) is not None and before.state == "denied":
            raise refused(
                "policy-denied",
                "this site's officer denied the run",
                "ask the officer; a new request is a new run",
            )
        self._check_time(read)
        spec = self._spec(job.federation)
        if before is None:
            self._log.append("asked", _asked(job.run, user, request, spec))
        key = (job.run, hashlib.sha256(job.federation.encode()).hexdigest(), user, read.digest)
        decision = self._decisions.get(key)
        if decision is None:
            decision = self._decide(read, job, user, spec, context, source)
            while len(self._decisions) >= _DECISIONS:
                del self._decisions[next(iter(self._decisions))]
            if decision.code != _LEDGER_BUSY:
                self._decisions[key] = decision
        if decision.rule is None:
            raise refused(decision.code, decision.message)
        self._check_approval(job.run, request, decision, spec)
        self._check_busy(message, job.run, read)
        if message.metadata.message_type.startswith("train") and decision.layout is not None:
            vector = job.array(protocol.VECTOR, decision.layout.size)
            check_vector(read.policy, decision.layout, vector, decision.layers)
        return Admitted(job=job, spec=spec, rule=decision.rule)

    def let_out(self, admitted: Admitted, message: Message, reply: Message) -> None:
        """Write down what a reply holds: after this it may leave.

        Raises:
            PolicyError: it holds what the policy lets nobody have.
            IntegrityError: it could not be written down.
        """
        kind, run = message.metadata.message_type, admitted.job.run
        said = reply.content.config_records.get(protocol.REFUSAL) if reply.has_content() else None
        if said is not None:
            self.note_refusal(run, kind, str(said.get("code", "")), str(said.get("message", "")), by="site")
            return
        check_reply(reply, admitted.spec, admitted.rule)
        self._log.append(
            "left",
            {
                "run": run,
                "round": admitted.job.round_number,
                "message": kind,
                "step": _step(message),
                "records": contents(reply),
                "after": steps_of(admitted.spec, kind),
                "ledger": told_of_ledger(reply),
            },
        )

    def note_refusal(self, run: str, kind: str, code: str, message: str, *, by: str) -> None:
        """Write a refusal down; the same one again within a minute is counted.

        Args:
            run: of which run, as far as it is known.
            kind: the message's type.
            code: the refusal's.
            message: the refusal's.
            by: ``gate`` or ``site``.

        Raises:
            IntegrityError: it could not be written down.
        """
        now = time.monotonic()
        known = self._repeated.get((run, kind, code))
        if known is not None and now - known.at < _AGAIN_S:
            known.times += 1
            return
        said: dict[str, Any] = {"run": run, "message": kind, "code": code, "why": message, "by": by}
        if known is not None and known.times:
            said["times"] = known.times + 1
        if len(self._repeated) >= 10 * _DECISIONS:
            self._repeated.clear()
        self._repeated[run, kind, code] = _Repeated(at=now)
        self._log.append("refused", said)

    def _request(self, message: Message, job: Job) -> tuple[str, JobRequest]:
        """Return who asks for what, checked against the job."""
        record = message.content.config_records.get(protocol.REQUEST)
        user, request = SignedRequest.from_fields({} if record is None else dict(record)).opened(
            self._consortium
        )
        if request.run != job.run:
            raise _not_this("it is for another run than the message")
        if request.federation != federation_digest(_parsed(job.federation)):
            raise _not_this("it is for another federation file than the message's")
        if request.sites and self._kit.identity.name not in request.sites:
            raise _not_this("it does not ask this site")
        now, days = self._now(), self._policy().policy.who.request_days
        if request.time > now + _AHEAD:
            raise _not_this("it is dated later than this site's clock")
        if now - request.time > timedelta(days=days):
            raise _not_this(f"it was signed more than {days:g} days ago")
        return user.name, request

    def _decide(
        self,
        read: ReadPolicy,
        job: Job,
        user: str,
        spec: FederationSpec,
        context: Context,
        source: SiteSource,
    ) -> _Decision:
        dataset = self.dataset_for(spec)
        table = None if dataset is None else self._config.data[dataset]
        case = _MessageCase(user, spec, job.federation, self._folder, table, context, source)
        try:
            verdict = judge(read.policy, case)
            rule = verdict.require()
            cost = None
            if verdict.plan is not None:
                ledger = ledger_of(self._folder, self._config, self._kit, rule.dataset)
                cap = read.policy.limits_of(rule.dataset).cap
                cost = check_budget(ledger, verdict.plan, run=job.run, cap=cap, told=job.told)
            _, model, layout = case.built()
            grounds = [
                user,
                rule.task,
                case.code(),
                rule.dataset,
                spec.aggregation.protection,
                spec.privacy.unit,
            ]
        except CloisterError as error:
            code, words = _words(error)
            return _Decision(code=code, message=words)
        if (before := self._state.runs.get(job.run)) is None or before.state == "asked":
            self._log.append("allowed", {"run": job.run, "dataset": rule.dataset, "policy": read.digest})
        return _Decision(
            rule=rule,
            cost=cost,
            grounds=hashlib.sha256(canonical_json(grounds).encode()).hexdigest(),
            layers=measuring_layers(model),
            layout=layout,
        )

    def _check_time(self, read: ReadPolicy) -> None:
        if (paused := self._state.paused) is not None:
            raise refused(
                "wait-paused",
                f"this site is paused since {paused['since'][:16]}",
                "ask again when it is resumed",
            )
        when = read.policy.when
        if not within(when.hours, self._now().astimezone(ZoneInfo(when.time_zone))):
            raise refused(
                "wait-hours",
                f"this site trains {', '.join(when.hours)} ({when.time_zone}) only",
                "ask again then",
            )

    def _check_approval(
        self, run: str, request: JobRequest, decision: _Decision, spec: FederationSpec
    ) -> None:
        rule, before = decision.rule, self._state.runs.get(run)
        known = before is not None and before.state == "approved"
        if rule is None or known or rule.approval == "never":
            return
        if rule.approval == "first" and decision.grounds in self._state.grounds:
            return
        if before is None or before.state != "held":
            cost = decision.cost
            said = {
                "run": run,
                "dataset": rule.dataset,
                "grounds": decision.grounds,
                "cost": None
                if cost is None
                else {
                    "run": cost.run,
                    "delta": cost.delta,
                    "before": cost.before,
                    "after": cost.after,
                    "cap": cost.cap,
                },
                "server_sees": list(exposure(spec).server),
            }
            self._log.append("held", said)
        raise refused(
            "wait-approval",
            f"the run '{request.run}' waits until somebody at this site approves it",
            "ask again later; at the site: cloister site status",
        )

    def _check_busy(self, message: Message, run: str, read: ReadPolicy) -> None:
        if message.metadata.message_type == "query":
            return
        now, limits = time.monotonic(), read.policy.limits
        self._active = {name: at for name, at in self._active.items() if now - at < 60 * limits.idle_minutes}
        if run not in self._active and len(self._active) >= limits.runs:
            raise refused("wait-busy", "another run is under way at this site", "ask again when it has ended")
        self._active[run] = now

    def _spec(self, federation: str) -> FederationSpec:
        found = self._specs.get(federation)
        if found is None:
            found = parse_federation(_parsed(federation), base=self._folder, name="the job's federation").spec
            while len(self._specs) >= _DECISIONS:
                del self._specs[next(iter(self._specs))]
            self._specs[federation] = found
        return found

    def _policy(self) -> ReadPolicy:
        """Return the policy in force.

        Raises:
            PolicyError: (policy-unreadable) the file cannot be read any more.
        """
        try:
            return self._reread()
        except SpecError as error:
            self.note_refusal("", "policy", error.code, error.message, by="gate")
            raise refused(
                "policy-unreadable", "this site's policy cannot be read; its own log says more"
            ) from None

    def _reread(self) -> ReadPolicy:
        path = self._folder / POLICY
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size, status.st_ino)
        except OSError:
            stamp = ()
        if self._read is None or stamp != self._stamp or not stamp:
            read = read_policy(path)
            check_datasets(read.policy, self._config)
            known, self._read, self._stamp = self._read, read, stamp
            if known is not None and known.digest != read.digest:
                self._decisions.clear()
                self._note_policy(read)
        return self._read

    def _note_policy(self, read: ReadPolicy) -> None:
        if self._state.policy != read.digest:
            self._log.append("policy", {"sha256": read.digest})


class GatedApp:
    """A ClientApp behind a gate: one message at a time.

    Args:
        app: the ClientApp.
        gate: the gate.
        source: what ``app`` finds its workbench and records with.
    """

    def __init__(self, app: App, gate: Gate, source: SiteSource) -> None:
        self._app = app
        self._gate = gate
        self._source = source
        self._one = threading.Lock()

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer a message: with what the app says, or with a refusal."""
        with self._one:
            try:
                admitted = self._gate.admit(message, context, self._source)
                with bounded(self._gate.memory()):
                    reply = self._app(message, context)
                self._gate.let_out(admitted, message, reply)
            except Exception as error:  # noqa: BLE001 - nothing of it may leave but what `refusal_of` lets through
                return Message(self._refused(message, error), reply_to=message)
            return reply

    def _refused(self, message: Message, error: Exception) -> RecordDict:
        content = refusal_of(error)
        said = content.config_records[protocol.REFUSAL]
        try:
            self._gate.note_refusal(
                _run_of(message),
                message.metadata.message_type,
                str(said["code"]),
                str(said["message"]),
                by="gate",
            )
        except CloisterError as unwritten:
            return refusal(
                unwritten.code, "this site's log cannot be written, and nothing leaves that is not in it"
            )
        return content


class _MessageCase:
    """What can be asked of the run that a message is of."""

    def __init__(
        self,
        user: str,
        spec: FederationSpec,
        federation: str,
        folder: Path,
        table: DataTable | None,
        context: Context,
        source: SiteSource,
    ) -> None:
        self.user: str | None = user
        self.spec = spec
        self._federation = federation
        self._folder = folder
        self._table = table
        self._context = context
        self._source = source

    def code(self) -> str:
        """Return the digest of the task's program."""
        return program_digest(self._table, self.spec.task, self._folder)

    def built(self) -> tuple[Task, torch.nn.Module, Layout]:
        """Return the task, a new model and its layout."""
        return self._built

    def records(self) -> int | None:
        """Return how many records the site trains on."""
        bench = self._source.workbench(self._federation)
        return len(self._source.site(self._context, bench).split.train)

    @cached_property
    def _built(self) -> tuple[Task, torch.nn.Module, Layout]:
        trainer = self._source.workbench(self._federation).trainer
        return trainer.task, build_model(trainer.task, self.spec.federation.seed), trainer.layout


def open_gate(
    folder: Path, config: SiteConfig, kit: Kit, *, now: Clock = utc_now, durable: bool = True
) -> Gate:
    """Open the gate of the site in ``folder``; see `Gate`."""
    state = state_folder(folder, config)
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise IntegrityError(
            f"the site's state folder '{state}' cannot be made: {error.strerror}",
            remedy="name a folder of the site's own in site.toml",
            code="log-unwritable",
        ) from None
    return Gate(folder, config, kit, now=now, durable=durable)


def state_folder(folder: Path, config: SiteConfig) -> Path:
    """Return where a site keeps its state."""
    return folder / config.site.state


def _key_path(state: Path) -> Path:
    """Return the key that signs the site's log: never replaced, while certificates are."""
    return state / "log.pem"


def _parsed(federation: str) -> dict[str, Any]:
    try:
        found = json.loads(federation)
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise IntegrityError("the job's federation is not JSON", code="job-malformed")
    return found


def _asked(run: str, user: str, request: JobRequest, spec: FederationSpec) -> dict[str, Any]:
    return {
        "run": run,
        "user": user,
        "name": request.name,
        "purpose": request.purpose,
        "signed": request.at,
        "federation": request.federation,
        "task": spec.task.use,
        "protection": spec.aggregation.protection,
        "unit": spec.privacy.unit,
        "rounds": spec.federation.rounds,
        "min_sites": spec.cohort.min_sites,
    }


def _words(error: CloisterError) -> tuple[str, str]:
    """Return code and message of a reason; of one that a task raised, nothing that the task wrote."""
    if error.__traceback__ is None:
        return error.code, error.message
    said = refusal_of(error).config_records[protocol.REFUSAL]
    return str(said["code"]), str(said["message"])


def _run_of(message: Message) -> str:
    """Return the run's name as the message has it, which nobody may have vouched for; empty where it has none."""
    try:
        return read_job(message).run
    except CloisterError:
        return ""


def _step(message: Message) -> str:
    said = message.content.config_records.get(protocol.SECURE)
    return "" if said is None else str(said.get(protocol.STEP, ""))[:16]


def _not_this(why: str) -> IntegrityError:
    return IntegrityError(
        f"the request to run a federation was refused: {why}",
        remedy="submit it anew",
        code="policy-request",
    )


#: Somebody else writes to the ledger at this moment: asked again, it may be free.
_LEDGER_BUSY = "ledger-busy"
