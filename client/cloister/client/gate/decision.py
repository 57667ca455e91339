"""What a site decides of a run, once: it holds as long as its policy does."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass
from typing import Any

from cloister.client.app import refusal_of
from cloister.client.charging import RunBounds, SiteLedger
from cloister.client.gate.budget import Cost, check_budget
from cloister.client.gate.case import MessageCase
from cloister.client.gate.judging import judge
from cloister.client.gate.policy import Allow, Policy
from cloister.client.gate.weights import measuring_layers
from cloister.client.incoming import Job
from cloister.core import protocol
from cloister.core.errors import CloisterError
from cloister.core.exposure import exposure
from cloister.core.update import Layout
from cloister.privacy.ledger.entry import canonical_json
from cloister.privacy.plan import Plan

__all__ = ["Allowed", "Refused", "decide"]


@dataclass(frozen=True, kw_only=True)
class Allowed:
    """A run that the policy allows.

    Attributes:
        rule: what allows it.
        cost: of a private run.
        grounds: digest of what kind of run it is: user, task, program, data set, protection and unit.
        terms: digest of what an officer approves: the grounds, the rule that allows the run, and the data set's limits.
        server_sees: what the server can learn, sentence by sentence.
        layers: the model's tensors that are looked at in each round.
        layout: the model's.
    """

    rule: Allow
    cost: Cost | None
    grounds: str
    terms: str
    server_sees: tuple[str, ...]
    layers: frozenset[str]
    layout: Layout

    def facts(self) -> dict[str, Any]:
        """Return what somebody who is to approve it wants to know, as plain data; an ε without a bound is ``None``."""
        cost = None if self.cost is None else {k: _finite(v) for k, v in asdict(self.cost).items()}
        return {
            "dataset": self.rule.dataset,
            "grounds": self.grounds,
            "terms": self.terms,
            "cost": cost,
            "server_sees": list(self.server_sees),
        }


@dataclass(frozen=True, kw_only=True)
class Refused:
    """A run that it does not: the code and the words of the refusal, and whether to decide anew when asked again."""

    code: str
    message: str
    passing: bool = False


def decide(
    policy: Policy, case: MessageCase, *, job: Job, ledgers: dict[str, SiteLedger]
) -> Allowed | Refused:
    """Return what ``policy`` and the data set's ledger say of a run; nothing is charged.

    Args:
        policy: in force.
        case: the run.
        job: its message.
        ledgers: of the site, by data set.
    """
    try:
        verdict = judge(policy, case)
        rule = verdict.require()
        cost = _cost(policy, rule, verdict.plan, job, ledgers)
        _, model, layout = case.built()
        spec = case.spec
        grounds = [
            case.user,
            rule.task,
            case.code(),
            rule.dataset,
            spec.aggregation.protection,
            spec.privacy.unit,
            *_planting(case),
        ]
        return Allowed(
            rule=rule,
            cost=cost,
            grounds=_digest(grounds),
            terms=_digest(
                [
                    grounds,
                    rule.model_dump(mode="json"),
                    policy.limits_of(rule.dataset).model_dump(mode="json"),
                ]
            ),
            server_sees=exposure(spec).server,
            layers=measuring_layers(model),
            layout=layout,
        )
    except CloisterError as error:
        code, words = _words(error)
        return Refused(code=code, message=words, passing=error.code == "ledger-busy")


def _cost(
    policy: Policy, rule: Allow, plan: Plan | None, job: Job, ledgers: dict[str, SiteLedger]
) -> Cost | None:
    if plan is None:
        return None
    cap = policy.limits_of(rule.dataset).cap
    bounds = RunBounds(repeats=rule.repeated_rounds, epsilon=rule.epsilon_run)
    return check_budget(ledgers[rule.dataset], plan, run=job.run, cap=cap, told=job.told, bounds=bounds)


def _planting(case: MessageCase) -> list[str]:
    """Return what a run's canaries add to its kind: here, or at another site."""
    if case.spec.audit.canaries is None:
        return []
    return ["canaries here" if case.spec.audit.canary_site == case.site else "canaries"]


def _digest(what: Any) -> str:
    return hashlib.sha256(canonical_json(what).encode()).hexdigest()


def _words(error: CloisterError) -> tuple[str, str]:
    """Return code and message of a reason; of one that a task raised, nothing that the task wrote."""
    if error.__traceback__ is None:
        return error.code, error.message
    said = refusal_of(error).config_records[protocol.REFUSAL]
    return str(said["code"]), str(said["message"])


def _finite(value: Any) -> Any:
    return None if isinstance(value, float) and value == float("inf") else value
