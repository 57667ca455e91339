"""A site's gate: every message passes it, and nothing leaves that it did not let pass and write down.

Formal guarantees:

- A message reaches the ClientApp only if a user of the consortium signed the request that it carries, for this run, this federation file and this
  site, not longer ago than the policy says, and the policy in force allows the run: each is checked before anything is computed.
- A reply leaves only after the site's log holds what is in it. Where that cannot be written, a refusal leaves.
- The coins of canaries (``audit.canaries``) leave only after an update of the run's last round did, by the site's log; and once they left, nothing is trained
  for that run any more. So who holds the coins has nothing left to fit to them.
- What somebody at the site approved is a run on its terms: under the rule, the limits of the data set and the program of that time. On other terms
  it waits to be approved again.
- The vector of every training message is looked at before it is trained from (`cloister.client.gate.weights`).
- A changed policy, a longer list of revoked certificates, and what ``cloister site approve | deny | pause | resume`` wrote, hold from the next
  message on.

==========================================  ==============================================================================
case                                        answer: a refusal with this code
==========================================  ==============================================================================
no request, a forged or another one         request, identity, identity-revoked, signature, policy-request
paused, outside hours, another run busy     wait-paused, wait-hours, wait-busy: ask again later
not approved yet                            wait-approval
coins asked for early; training after them  canaries-early, canaries-opened
something else against it                   policy-…, budget, delta (`cloister.client.gate.judging`)
policy.toml cannot be read                  policy-unreadable
the log cannot be written                   log-…
==========================================  ==============================================================================
"""

from __future__ import annotations

import time
from collections import OrderedDict
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from flwr.app import Context, Message

from cloister.client.app import SiteSource
from cloister.client.charging import RunBounds
from cloister.client.deployed import ledger_of, run_files_of
from cloister.client.gate.asking import asked, check_request
from cloister.client.gate.case import MessageCase
from cloister.client.gate.decision import Allowed, Refused, decide
from cloister.client.gate.hours import within
from cloister.client.gate.in_force import InForce
from cloister.client.gate.judging import check_vector, refused
from cloister.client.gate.leaving import check_reply, contents, steps_of, told_of_ledger
from cloister.client.gate.limits import settle
from cloister.client.gate.log_state import LogState, RunState
from cloister.client.gate.policy import Allow, ReadPolicy
from cloister.client.gate.refusing import Refusals
from cloister.client.gate.site_log import LOG, Clock, SiteLog, log_key, utc_now
from cloister.client.gate.status import site_status
from cloister.client.gate.tidying import Tidying
from cloister.client.incoming import Job, parsed, read_job
from cloister.client.site_config import SiteConfig, state_folder
from cloister.core import protocol
from cloister.core._version import __version__
from cloister.core.digests import federation_digest
from cloister.core.errors import IntegrityError, PolicyError, SpecError
from cloister.core.spec import FederationSpec, parse_federation
from cloister.privacy.identity import Consortium
from cloister.privacy.identity.kit import Kit
from cloister.privacy.manifest import Floors

__all__ = ["Admitted", "Gate", "open_gate"]

#: What is remembered of how many runs.
_RUNS = 64


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
        self._folder, self._config, self._kit, self._now = folder, config, kit, now
        self._decisions: OrderedDict[tuple[str, ...], Allowed | Refused] = OrderedDict()
        self._specs: OrderedDict[str, FederationSpec] = OrderedDict()
        self._active: dict[str, float] = {}
        self._rule: Allow | None = None
        self._state = LogState()
        self._tidying = Tidying(
            run_files_of(folder, config), state_folder(folder, config) / "ledgers", durable=durable
        )
        self._closed = False
        self._in_force = InForce(folder, config, kit, changed=self._changed)
        read = self._in_force.policy()
        path = state_folder(folder, config) / LOG
        self._log = SiteLog(
            path,
            key=log_key(path),
            identity=kit.identity,
            took=self._state.take,
            durable=durable,
            now=now,
        )
        self._refusals = Refusals(self._log)
        self._log.append("started", {"version": __version__, "policy": read.digest})
        if self._state.policy != read.digest:
            self._changed(read)
        settle(read.policy.limits)

    @property
    def floors(self) -> Floors:
        """What the site demands of every secure session (`cloister.client.book.Credentials`)."""
        return self._policy().policy.floors

    def dataset_for(self, spec: FederationSpec) -> str | None:
        """Return the name of the ``[data.NAME]`` that a run is trained on, by policy; ``None`` where no rule is about its task."""
        rules = self._policy().policy.rules_for(spec.task.use)
        return rules[0].dataset if rules else None

    def consortium(self) -> Consortium:
        """Return whom the site believes: users, the server and other sites, less those who were revoked since."""
        return self._in_force.consortium()

    def bounds_for(self, spec: FederationSpec) -> RunBounds:
        """Return what a run may be charged at the most: by the rule that let the newest message in; nothing where there is none."""
        rule = self._rule
        if rule is None or rule.task != spec.task.use:
            return RunBounds(repeats=0, epsilon=0.0)
        return RunBounds(repeats=rule.repeated_rounds, epsilon=rule.epsilon_run)

    def status(self) -> dict[str, Any]:
        """Return what ``cloister site status --json`` prints."""
        self._log.refresh()
        return site_status(state_folder(self._folder, self._config), self._state, self._policy().policy)

    def tidy(self) -> None:
        """Remove what is kept of runs that no message is let in of any more, if it is time (`cloister.client.gate.tidying`)."""
        if not self._tidying.due:
            return
        with suppress(PolicyError):  # a policy that cannot be read says nothing of what is over
            days = self._policy().policy.who.request_days
            denied = [name for name, run in self._state.runs.items() if run.state == "denied"]
            self._tidying.tidy(denied=denied, before=self._now() - timedelta(days=days))

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
        self._rule = None
        self._log.refresh()
        job, read = read_job(message), self._policy()
        user, request = check_request(
            message,
            job,
            self._in_force.consortium(),
            site=self._kit.identity.name,
            now=self._now(),
            days=read.policy.who.request_days,
        )
        if (before := self._state.runs.get(job.run)) is not None and before.state == "denied":
            self._active.pop(job.run, None)
            raise refused(
                "policy-denied", "this site's officer denied the run", "ask them; a new request is a new run"
            )
        _check_user(read, user, before)
        self._check_time(read)
        spec = self._spec(job.federation)
        if before is None:
            self._log.append("asked", asked(user, request, spec))
        decision = self._decided(read, job, user, spec, context, source)
        self._check_approval(job.run, decision, read)
        self._check_canaries(message, self._state.runs[job.run], last=spec.federation.rounds)
        self._check_busy(message, job, read, last=spec.federation.rounds)
        if message.metadata.message_type.startswith("train"):
            vector = job.array(protocol.VECTOR, decision.layout.size)
            check_vector(read.policy, decision.layout, vector, decision.layers)
        self._rule = decision.rule
        return Admitted(job=job, spec=spec, rule=decision.rule)

    def let_out(self, admitted: Admitted, message: Message, reply: Message) -> None:
        """Write down what a reply holds: after this it may leave.

        Raises:
            PolicyError: it holds what the policy lets nobody have.
            IntegrityError: it could not be written down.
        """
        kind, run = message.metadata.message_type, admitted.job.run
        said = reply.content.config_records.get(protocol.REFUSAL)
        if said is not None and len(reply.content) == 1:
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
        """Write a refusal down, as `cloister.client.gate.refusing.Refusals` has it."""
        self._refusals.note(run, kind, code, message, by=by)

    def _decided(  # noqa: PLR0917 - all of one message
        self,
        read: ReadPolicy,
        job: Job,
        user: str,
        spec: FederationSpec,
        context: Context,
        source: SiteSource,
    ) -> Allowed:
        """Return what was decided of the run under this policy, or decide it.

        Raises:
            PolicyError: it is not allowed.
        """
        # Not of the text: of that the server may make as many as it likes.
        key = (job.run, federation_digest(parsed(job.federation)), user, read.digest)
        found = self._decisions.get(key)
        if found is None:
            dataset = self.dataset_for(spec)
            case = MessageCase(
                user=user,
                site=self._kit.identity.name,
                spec=spec,
                federation=job.federation,
                folder=self._folder,
                table=None if dataset is None else self._config.data[dataset],
                context=context,
                source=source,
            )
            ledgers = {
                name: ledger_of(self._folder, self._config, self._kit, name) for name in self._config.data
            }
            found = decide(read.policy, case, job=job, ledgers=ledgers)
            if isinstance(found, Allowed):
                self._log.append("allowed", {"run": job.run, "policy": read.digest, **found.facts()})
            if isinstance(found, Allowed) or not found.passing:
                _remember(self._decisions, key, found)
        if isinstance(found, Refused):
            raise refused(found.code, found.message)
        return found

    def _check_time(self, read: ReadPolicy) -> None:
        if (paused := self._state.paused) is not None:
            raise refused(
                "wait-paused", f"this site is paused since {paused['since'][:16]} UTC", "ask again later"
            )
        when = read.policy.when
        if not within(when.hours, self._now().astimezone(ZoneInfo(when.time_zone))):
            hours = ", ".join(when.hours)
            raise refused("wait-hours", f"this site trains {hours} ({when.time_zone}) only", "ask again then")

    def _check_approval(self, run: str, decision: Allowed, read: ReadPolicy) -> None:
        approval, before = decision.rule.approval, self._state.runs[run]
        if approval == "never" or (before.state == "approved" and before.terms == decision.terms):
            return
        if approval == "first" and decision.grounds in self._state.grounds:
            return
        if before.state != "held" or before.said.get("terms") != decision.terms:
            self._log.append("held", {"run": run, "policy": read.digest, **decision.facts()})
        raise refused(
            "wait-approval",
            "the run waits until somebody at this site approves it",
            "ask again later; at the site: cloister site status",
        )

    def _check_canaries(self, message: Message, run: RunState, *, last: int) -> None:
        kind = message.metadata.message_type
        if kind == protocol.OPEN_QUERY and run.trained < last:
            raise refused(
                "canaries-early",
                f"the coins of the canaries stay sealed until this site's update of round {last} has left",
                "ask after the last round",
            )
        if run.opened and kind.startswith("train"):
            raise refused(
                "canaries-opened",
                "the coins of this run's canaries have left: nothing is trained for it any more",
                "start a new run",
            )

    def _check_busy(self, message: Message, job: Job, read: ReadPolicy, *, last: int) -> None:
        kind = message.metadata.message_type
        asks_leave = kind == "query" and job.afford
        if kind == protocol.SEAL_QUERY or (kind == "query" and not asks_leave):
            return  # it tells what this site has sealed, or who it is
        if job.round_number >= last:  # what is left of it does not stand in another's way
            self._active.pop(job.run, None)
            return
        now, limits = time.monotonic(), read.policy.limits
        self._active = {name: at for name, at in self._active.items() if now - at < 60 * limits.idle_minutes}
        if job.run not in self._active and len(self._active) >= limits.runs:
            raise refused("wait-busy", "another run is under way at this site", "ask again when it has ended")
        if not asks_leave:
            self._active[job.run] = now

    def _spec(self, federation: str) -> FederationSpec:
        found = self._specs.get(federation)
        if found is None:
            found = parse_federation(parsed(federation), base=self._folder, name="the job's federation").spec
            _remember(self._specs, federation, found)
        return found

    def _policy(self) -> ReadPolicy:
        """Return the policy in force.

        Raises:
            PolicyError: (policy-unreadable) the file cannot be read any more.
        """
        try:
            return self._in_force.policy()
        except SpecError as error:
            self.note_refusal("", "policy", error.code, error.message, by="gate")
            raise refused(
                "policy-unreadable", "this site's policy cannot be read; its own log says more"
            ) from None

    def _changed(self, read: ReadPolicy) -> None:
        self._decisions.clear()
        self._log.append("policy", {"sha256": read.digest})


def open_gate(
    folder: Path, config: SiteConfig, kit: Kit, *, now: Clock = utc_now, durable: bool = True
) -> Gate:
    """Open the gate of the site in ``folder``; see `Gate`.

    Raises:
        IntegrityError: (log-unwritable) the state folder cannot be made; and as `Gate` does.
    """
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


def _check_user(read: ReadPolicy, user: str, before: RunState | None) -> None:
    """Refuse whom the policy does not look at before anything is kept of the run, and a run under another user's name.

    A run's name is that of the request without who signed it: another user's signature of the same bytes is no right to what this one was allowed.
    """
    if read.policy.who.users != "*" and user not in read.policy.who.users:
        raise refused("policy-user", f"user '{user}' is not among those whose requests this site looks at")
    if before is not None and before.said.get("user", user) != user:
        raise refused("policy-user", f"the run was asked for by another user than '{user}'")


def _remember(shelf: OrderedDict[Any, Any], key: Any, value: Any) -> None:
    shelf[key] = value
    while len(shelf) > _RUNS:
        shelf.popitem(last=False)


def _step(message: Message) -> str:
    said = message.content.config_records.get(protocol.SECURE)
    return "" if said is None else str(said.get(protocol.STEP, ""))[:16]
