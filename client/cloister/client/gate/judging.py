"""What a policy says of a run: every reason against it, from the cheapest question to the dearest.

The federation file is asked first, then the task's program, and only a program that is allowed is let build its model. A run is allowed by the first
rule that has nothing against it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch

from cloister.client.gate.policy import Allow, Policy
from cloister.client.gate.weights import check_architecture, check_weights, measuring_layers
from cloister.core._version import __version__
from cloister.core.errors import CloisterError, PolicyError
from cloister.core.metrics import METRIC_RANGES
from cloister.core.randomness import SystemRandomness
from cloister.core.spec import FederationSpec
from cloister.core.spec.grouping import least_in_sum
from cloister.core.task import Task
from cloister.core.update import Layout
from cloister.privacy.plan import Plan, plan_from
from cloister.privacy.protection import colluders_borne

__all__ = ["Case", "Verdict", "check_vector", "judge", "refused"]


class Case(Protocol):
    """What can be asked of a run; each answer is found when it is asked for."""

    @property
    def user(self) -> str | None:
        """Who asks; ``None``: not to be judged."""
        ...

    @property
    def spec(self) -> FederationSpec:
        """The federation file."""
        ...

    @property
    def site(self) -> str | None:
        """The site's name; ``None``: not known, so it may be any that the file names."""
        ...

    def code(self) -> str:
        """Return the digest of the task's program."""
        ...

    def built(self) -> tuple[Task, torch.nn.Module, Layout]:
        """Return the task, its model and the model's layout."""
        ...

    def records(self) -> int | None:
        """Return how many records would be trained on; ``None``: not known here."""
        ...


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What a policy says.

    Attributes:
        rule: the rule that allows the run, or the one that is nearest to it; ``None``: there is none for its task.
        reasons: each thing that is against it; empty: allowed.
        plan: what it costs, where that was asked.
    """

    rule: Allow | None
    reasons: tuple[CloisterError, ...]
    plan: Plan | None = None

    def require(self) -> Allow:
        """Return the rule that allows the run.

        Raises:
            CloisterError: the first reason against it, with how many more there are.
        """
        if self.rule is not None and not self.reasons:
            return self.rule
        first, more = self.reasons[0], len(self.reasons) - 1
        if more:
            first.message += f" (and {more} more: cloister policy check names them)"
        raise first


def judge(policy: Policy, case: Case) -> Verdict:
    """Return what ``policy`` says of a run."""
    rules = policy.rules_for(case.spec.task.use)
    if not rules:
        known = ", ".join(sorted({rule.task for rule in policy.allow})) or "none"
        return Verdict(
            rule=None,
            reasons=(
                refused(
                    "policy-task", f"no rule allows the task '{case.spec.task.use}'; allowed here: {known}"
                ),
            ),
        )
    verdicts = []
    for rule in rules:
        found = _judge(policy, rule, case)
        if not found.reasons:
            return found
        verdicts.append(found)
    return min(verdicts, key=lambda verdict: len(verdict.reasons))


def check_vector(policy: Policy, layout: Layout, vector: np.ndarray, layers: frozenset[str]) -> None:
    """Check the weights that a server sent.

    Raises:
        PolicyError: (policy-imprint, policy-weights) they copy records into the update.
    """
    check_weights(
        layout,
        vector,
        layers,
        parallel_rows=policy.models.parallel_rows,
        norm_ratio=policy.models.norm_ratio,
        generator=SystemRandomness().generator("imprint"),
    )


def refused(
    code: str,
    message: str,
    remedy: str = "ask the site's officer; cloister policy check tells the reasons beforehand",
) -> PolicyError:
    """Return a refusal by the site's policy."""
    return PolicyError(message, remedy=remedy, code=code)


def _judge(policy: Policy, rule: Allow, case: Case) -> Verdict:
    """Ask the next questions only where all before were answered well."""
    plan: Plan | None = None
    reasons: list[CloisterError] = [
        *_of_user(policy, rule, case.user),
        *_of_file(rule, case.spec),
        *_of_canaries(rule, case),
        *_of_machine(policy, case.spec),
    ]
    if not reasons:
        reasons = _of_code(rule, case)
    if not reasons:
        try:
            task, model, layout = case.built()
            plan = plan_from(case.spec, layout.size)
            reasons = [
                *_of_model(policy, rule, model, layout),
                *_of_metrics(rule, case.spec, task),
                *_of_cost(rule, plan),
            ]
            if not reasons:
                reasons = _of_records(policy, rule, case)
        except (
            CloisterError
        ) as error:  # the task, its model or its records are refused, or the promise cannot be kept
            reasons = [error]
    return Verdict(rule=rule, reasons=tuple(reasons), plan=plan)


def _of_user(policy: Policy, rule: Allow, user: str | None) -> Iterator[PolicyError]:
    if user is None:
        return
    if policy.who.users != "*" and user not in policy.who.users:
        yield refused("policy-user", f"user '{user}' is not among those whose requests this site looks at")
    elif rule.users != "*" and user not in rule.users:
        yield refused("policy-user", f"user '{user}' may not train '{rule.task}' here")


def _of_file(rule: Allow, spec: FederationSpec) -> Iterator[PolicyError]:
    protection, unit, least = spec.aggregation.protection, spec.privacy.unit, least_in_sum(spec)
    if protection not in rule.protection:
        yield refused(
            "policy-protection",
            f"aggregation.protection = '{protection}'; allowed: {', '.join(rule.protection)}",
        )
    if unit not in rule.units:
        yield refused("policy-unit", f"privacy.unit = '{unit}'; allowed: {', '.join(rule.units)}")
    if least < rule.sites_in_sum:
        yield refused(
            "policy-sites",
            f"{_sum_of(spec)} = {least}; at least {rule.sites_in_sum} sites must be in every sum of a round",
        )
    if rule.colluders:
        yield from _of_colluders(rule.colluders, spec)
    if rule.rounds is not None and spec.federation.rounds > rule.rounds:
        yield refused("policy-rounds", f"federation.rounds = {spec.federation.rounds}; at most {rule.rounds}")
    yield from _of_outputs(rule, spec)
    if rule.cloister is not None and __version__ not in rule.cloister:
        yield refused(
            "policy-version",
            f"this site runs Cloister {__version__}, and its policy was agreed for {', '.join(rule.cloister)}",
        )


def _of_canaries(rule: Allow, case: Case) -> Iterator[PolicyError]:
    audit = case.spec.audit
    if audit.canaries is not None and case.site in {None, audit.canary_site} and not rule.canaries:
        yield refused(
            "policy-canaries",
            f"audit.canaries = {audit.canaries} made-up records would be trained on at '{audit.canary_site}', and the site's policy does not allow that",
        )


def _sum_of(spec: FederationSpec) -> str:
    """What says how many sites are in a sum: in groups a sum counts with fewer than the round."""
    return (
        "cohort.min_sites"
        if spec.aggregation.group_size is None
        else "the fewest sites in a group's sum (aggregation.group_size)"
    )


def _of_colluders(wanted: int, spec: FederationSpec) -> Iterator[PolicyError]:
    least = least_in_sum(spec)
    size = spec.aggregation.group_size
    sums = {least} if size is None else {size, size + 1}  # groups differ by one site
    if spec.aggregation.protection == "masked" and (borne := min(map(colluders_borne, sums))) < wanted:
        yield refused(
            "policy-colluders",
            f"masks over {min(sums)} sites bear {borne} that side with the server; {wanted} are asked for",
        )
    if spec.privacy.shares_noise and (spec.privacy.colluders or 0) < wanted:
        yield refused(
            "policy-colluders", f"privacy.colluders = {spec.privacy.colluders or 0}; at least {wanted}"
        )


def _of_outputs(rule: Allow, spec: FederationSpec) -> Iterator[PolicyError]:
    """Ask for each kind of output that a run under ``spec`` sends."""
    clear, private = spec.aggregation.protection == "plain", spec.privacy.unit != "none"
    needed = {
        "update": True,
        "metrics": clear and (spec.evaluation.sites or not private),
        "sums of metrics": not clear and spec.evaluation.sites,
        "control": spec.training.scaffold,
    }
    why = {
        "update": "the model's update leaves",
        "metrics": "figures on this site's records leave in clear",
        "sums of metrics": "evaluation.sites = true: measurements on this site's records leave, in a sum",
        "control": "training.scaffold = true: the control variate leaves",
    }
    for output, leaves in needed.items():
        if leaves and output not in rule.outputs:
            yield refused("policy-output", f"{why[output]}, and '{output}' is not among the allowed outputs")


def _of_machine(policy: Policy, spec: FederationSpec) -> Iterator[PolicyError]:
    if policy.limits.gpu:
        return
    device = spec.training.device
    if device == "cuda" or (device == "auto" and torch.cuda.is_available()):
        yield refused(
            "policy-gpu",
            f"training.device = '{device}' would use this site's GPU; set training.device = 'cpu'",
        )


def _of_code(rule: Allow, case: Case) -> list[CloisterError]:
    try:
        if rule.codes is not None and (code := case.code()) not in rule.codes:
            return [
                refused(
                    "policy-code", f"the program of task '{rule.task}' is {code[:16]}…, which no rule allows"
                )
            ]
    except CloisterError as error:
        return [error]
    return []


def _of_model(policy: Policy, rule: Allow, model: torch.nn.Module, layout: Layout) -> Iterator[CloisterError]:
    if rule.layouts is not None and layout.digest not in rule.layouts:
        yield refused(
            "policy-layout", f"the model's layout is {layout.digest[:16]}…, which is not among those allowed"
        )
    try:
        check_architecture(model, widest=policy.models.widest)
        check_vector(policy, layout, layout.read(model), measuring_layers(model))
    except PolicyError as error:
        yield error


def _of_metrics(rule: Allow, spec: FederationSpec, task: Task) -> Iterator[PolicyError]:
    if rule.metrics == "*":
        return
    sent: list[str] = []
    if spec.evaluation.sites:
        counts = ["confusion"] if task.kind == "classification" else []
        sent += ["loss", *METRIC_RANGES[task.kind], *counts]
    if spec.aggregation.protection == "plain" and spec.privacy.unit == "none":
        sent += ["loss", "records", "steps"]
    if odd := [name for name in dict.fromkeys(sent) if name not in rule.metrics]:
        yield refused(
            "policy-metric", f"{', '.join(odd)} would leave, and the policy's metrics do not name them"
        )


def _of_cost(rule: Allow, plan: Plan | None) -> Iterator[PolicyError]:
    if plan is None or rule.epsilon_run is None:
        return
    epsilon = plan.spent(plan.rounds).epsilon
    if epsilon > rule.epsilon_run:
        yield refused(
            "policy-epsilon",
            f"the whole run costs ε = {epsilon:.4g} at δ = {plan.delta:g}; at most {rule.epsilon_run:g} a run",
        )


def _of_records(policy: Policy, rule: Allow, case: Case) -> list[CloisterError]:
    least = policy.limits_of(rule.dataset).min_records
    found = case.records() if least > 1 else None
    if found is not None and found < least:
        return [refused("policy-records", f"fewer than {least} training records are here")]
    return []
