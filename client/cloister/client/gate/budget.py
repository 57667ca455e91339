"""A whole run against a data set's ledger, before anything is computed: the policy's cap is set there, and what the run would cost is asked."""

from __future__ import annotations

from dataclasses import dataclass

from cloister.client.charging import SiteLedger
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
        run: ε of the whole run alone, at its own δ.
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


def check_budget(ledger: SiteLedger, plan: Plan, *, run: str, cap: Cap | None, told: ToSite) -> Cost:
    """Check that the rounds of ``run`` which are not charged yet may all be charged; nothing is.

    Args:
        ledger: the data set's.
        plan: what a round costs.
        run: its name: rounds that it was charged for count as spent.
        cap: what the site's policy allows; set in the ledger where that says otherwise.
        told: what others saw of the ledger.

    Raises:
        PolicyError: (budget, delta, relation) the site does not allow it.
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
        after = book.afford(events, unit=plan.unit, relation=RELATION, delta=plan.delta)
        budget = next((one for one in book.budgets() if one.unit == plan.unit), None)
        delta = plan.delta if cap is None else cap.delta
        return Cost(
            run=plan.spent(plan.rounds).epsilon,
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
