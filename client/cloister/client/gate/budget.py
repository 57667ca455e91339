"""A whole run against a data set's ledger, before anything is computed: the policy's cap is set there, and what the run would cost is asked."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.client.charging import RunBounds, SiteLedger
from cloister.core.errors import PolicyError
from cloister.privacy.events import to_json
from cloister.privacy.ledger import Cap, Ledger
from cloister.privacy.ledger.budget import RELATION
from cloister.privacy.ledger.telling import ToSite
from cloister.privacy.plan import Plan

__all__ = ["Cost", "check_budget"]


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a run costs, and what there is.

    Attributes:
        run: ε of the whole run alone, at its own δ: what it was charged, repeated rounds too, and what it has still to charge.
        delta: δ of all other figures here.
        before: ε of everything charged to the unit.
        after: ε of that and what the run has still to charge.
        cap: the most that is allowed; ``None``: nothing bounds it.
    """

    run: float
    delta: float
    before: float
    after: float
    cap: float | None


def check_budget(
    ledger: SiteLedger,
    plan: Plan,
    *,
    run: str,
    cap: Cap | None,
    told: ToSite,
    bounds: RunBounds = RunBounds(),  # noqa: B008 - frozen
) -> Cost:
    """Check that the rounds of ``run`` which are not charged yet may all be charged; nothing is.

    Args:
        ledger: the data set's.
        plan: what a round costs.
        run: its name: rounds that it was charged for count as spent.
        cap: what the site's policy allows; set in the ledger where that says otherwise.
        told: what others saw of the ledger.
        bounds: what the run may be charged at the most, beside the cap.

    Raises:
        PolicyError: (budget, delta, relation, policy-epsilon) the site does not allow it.
        IntegrityError: the ledger does not hold, or is older than what others saw.
    """
    with ledger.open(create=not told.heads) as book:
        book.check_witnessed(told.heads)
        if cap is not None and _cap_of(book) != cap:
            book.set_cap(cap.epsilon, cap.delta, rate=cap.rate)
        done = {
            entry.round
            for entry in book.entries
            if entry.kind == "RESERVE" and (entry.run, entry.unit) == (run, plan.unit)
        }
        left = max(plan.rounds - len(done), 0)
        events = [to_json(plan.event(left))] if left else []
        whole = book.spent_by(run, unit=plan.unit, delta=plan.delta, more=events)
        if not bounds.allow(whole):
            raise PolicyError(
                f"the whole run costs ε = {whole:.4g} at δ = {plan.delta:g}, with the rounds that it was charged more than once; "
                f"at most {bounds.epsilon:g} a run",
                remedy="ask the site's officer: epsilon_run in policy.toml",
                code="policy-epsilon",
            )
        after = book.afford(events, unit=plan.unit, relation=RELATION, delta=plan.delta)
        budget = next((one for one in book.budgets() if one.unit == plan.unit), None)
        delta = plan.delta if cap is None else cap.delta
        return Cost(
            run=whole,
            delta=delta if budget is None else budget.delta,
            before=0.0 if budget is None else budget.epsilon,
            after=after,
            cap=(None if cap is None else cap.epsilon) if budget is None else budget.cap,
        )


def _cap_of(book: Ledger) -> Cap | None:
    """Return the cap for all units that was set last."""
    set_before = [
        Cap.from_event(entry.data)
        for entry in book.entries
        if entry.kind == "POLICY" and entry.data.get("policy") == "cap" and entry.data.get("unit") is None
    ]
    return set_before[-1] if set_before else None
