"""What was spent of a data set, what may still be spent, and the refusal of what may not.

Formal guarantees:

- What a unit has spent is the ε of the composition of everything charged to it, in whatever run, at the cap's δ.
- Nothing passes `refuse_beyond` with which that composition, or that of the rate's window, would be above its limit.
- Units are kept apart: a cap without a unit holds for each unit by itself.

============================================  =======================================================================
case                                          outcome
============================================  =======================================================================
exactly at the cap                            allowed
a δ above the cap's                           refused (``delta``): the promise would be weaker than the site allows
no cap                                        allowed and charged; δ is then the run's own
another relation than zero-out                refused (``relation``)
nothing new                                   allowed, even above a cap that was lowered since
============================================  =======================================================================
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime, timedelta
from typing import Any

from cloister.core.errors import PolicyError
from cloister.privacy.ledger.budget import RELATION, Cap, Composer
from cloister.privacy.ledger.chain import Chain

__all__ = [
    "Budget",
    "budget_of",
    "epsilon_of",
    "how_many_more",
    "refuse_beyond",
    "stated_delta",
    "window_epsilon",
]

_MOST = 10_000


@dataclass(frozen=True, kw_only=True)
class Budget:
    """One unit's account.

    Attributes:
        unit: whose privacy.
        relation: the neighbouring relation.
        delta: at which all ε's here are.
        epsilon: spent: everything charged, composed.
        cap: the most that may be spent, or ``None``.
        left: cap minus spent. Not an amount to hand out: ε's do not add up, so ask `how_many_more` instead.
        window_epsilon: what was charged within the rate's days, composed by itself; ``None`` without a rate.
        window_left: the rate minus that.
        window_days: the rate's days.
        committed: how many reservations left something.
        open: how many neither left nor were given back, by a crash or a run in progress; charged in full.
        aborted: how many were given back before noise was drawn; not charged.
    """

    unit: str
    relation: str | None
    delta: float
    epsilon: float
    cap: float | None
    left: float | None
    window_epsilon: float | None
    window_left: float | None
    window_days: float | None
    committed: int
    open: int
    aborted: int

    def as_dict(self) -> dict[str, Any]:
        """Return it as ``--json`` prints it."""
        return asdict(self)


def epsilon_of(chain: Chain, unit: str, delta: float, composer: Composer) -> float:
    """Return ε at ``delta`` of everything charged to ``unit``."""
    return composer.epsilon(chain.charged(unit), delta)


def stated_delta(chain: Chain, unit: str, delta: float) -> float:
    """Return the δ at which ε is stated: the cap's, or without a cap the run's own ``delta``."""
    cap = chain.cap(unit)
    return delta if cap is None else cap.delta


def budget_of(chain: Chain, unit: str, composer: Composer, *, now: datetime) -> Budget | None:
    """Return the account of ``unit``; ``None`` where it has neither a cap nor a charge, so that there is no δ to state it at."""
    cap = chain.cap(unit)
    mine = [holding for holding in chain.holdings if holding.reserve.unit == unit]
    if cap is None and not mine:
        return None
    delta = cap.delta if cap is not None else float(mine[-1].reserve.delta or 0.0)
    epsilon = epsilon_of(chain, unit, delta, composer)
    rate = cap.rate if cap is not None else None
    window = None if rate is None else window_epsilon(chain, unit, Counter(), composer, now=now)
    states = [holding.state for holding in mine]
    return Budget(
        unit=unit,
        relation=chain.relation(unit),
        delta=delta,
        epsilon=epsilon,
        cap=None if cap is None else cap.epsilon,
        left=None if cap is None else max(0.0, cap.epsilon - epsilon),
        window_epsilon=window,
        window_left=None if rate is None or window is None else max(0.0, rate.epsilon - window),
        window_days=None if rate is None else rate.days,
        committed=states.count("committed"),
        open=states.count("open"),
        aborted=states.count("aborted"),
    )


def refuse_beyond(
    chain: Chain,
    events: Sequence[str],
    composer: Composer,
    *,
    unit: str,
    relation: str,
    delta: float,
    now: datetime,
) -> float:
    """Check that ``events`` may be charged to ``unit`` on top of everything charged; return the ε that they would bring it to.

    Args:
        chain: the ledger's.
        events: canonical JSON.
        composer: the accounting.
        unit: whose privacy.
        relation: the neighbouring relation the events are stated under.
        delta: the δ that the run states.
        now: for the rate.

    Raises:
        PolicyError: (``budget``) the cap or the rate would be passed; (``delta``) the run's δ is above the cap's;
            (``relation``) it is another relation than zero-out.
    """
    if relation != RELATION:
        raise PolicyError(
            f"the relation '{relation}' is not '{RELATION}', under which this site accounts for what is spent",
            remedy=f"state the mechanism under '{RELATION}'; epsilons under different relations do not compose",
            code="relation",
        )
    cap = chain.cap(unit)
    if cap is not None and delta > cap.delta:
        raise PolicyError(
            f"privacy.delta = {delta:g} is above the {cap.delta:g} that this site allows for this data set",
            remedy=f"state delta = {cap.delta:g} or less",
            code="delta",
        )
    charged, new = chain.charged(unit), Counter(events)
    at = stated_delta(chain, unit, delta)
    epsilon = composer.epsilon(charged + new, at)
    if cap is None or not events:
        return epsilon
    if epsilon > cap.epsilon:
        spent = composer.epsilon(charged, at)
        raise PolicyError(
            f"this would bring the data set's spent epsilon for the unit '{unit}' from {spent:.4g} to {epsilon:.4g}, "
            f"above its cap of {cap.epsilon:.4g} at delta = {cap.delta:g}",
            remedy="ask for less (more noise, fewer rounds); only the site itself can raise its cap",
            code="budget",
        )
    if cap.rate is not None:
        window = window_epsilon(chain, unit, new, composer, now=now)
        if window > cap.rate.epsilon:
            raise PolicyError(
                f"this would bring what was charged within {cap.rate.days:g} days for the unit '{unit}' to an epsilon of {window:.4g}, "
                f"above the rate of {cap.rate.epsilon:.4g} at delta = {cap.delta:g}",
                remedy="wait until earlier charges leave the window, or ask for less",
                code="budget",
            )
    return epsilon


def how_many_more(chain: Chain, event: str, composer: Composer, *, unit: str, cap: Cap) -> int:
    """Return how many more charges of ``event`` fit under ``cap`` (the rate apart), at most 10,000.

    ε grows with every charge, so the number is found by doubling and halving.
    """
    charged = chain.charged(unit)

    def fits(number: int) -> bool:
        return composer.epsilon(charged + Counter({event: number}), cap.delta) <= cap.epsilon

    low, high = 0, 1
    while high <= _MOST and fits(high):
        low, high = high, 2 * high
    high = min(high, _MOST + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def window_epsilon(
    chain: Chain, unit: str, events: Counter[str], composer: Composer, *, now: datetime
) -> float:
    """Return ε of what was reserved for ``unit`` within its rate's days before ``now``, with ``events`` on top; 0 without a rate."""
    cap = chain.cap(unit)
    if cap is None or cap.rate is None:
        return 0.0
    recent = chain.charged(unit, since=now - timedelta(days=cap.rate.days))
    return composer.epsilon(recent + events, cap.delta)
