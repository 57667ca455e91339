"""From what mechanisms did to ε: one composition over all steps, rounds and jobs, never a sum of ε's.

Guarantee: if every event states truly what was done to one dataset, all results together satisfy (ε, δ)-differential privacy
for the stated relation. ε is the smaller of two bounds that each hold by themselves; both are shown. A bound that does not
cover an event is left out, with the reason; where neither covers the composition there is an error and no ε.

Equal events are merged before anything is computed, so that 10,000 rounds cost as much as one, and what was computed is kept:
ε after each round, for a plot, costs one composition a round.

====================  ==========================================================================
events                ε
====================  ==========================================================================
none, or no steps     0
`NonPrivate`          infinite
something else        `SpecError`, never a guess
====================  ==========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from numbers import Real
from typing import Any, Literal

from cloister.core.errors import SpecError
from cloister.privacy.bounds import Bound, pld_bound, pld_delta, rdp_bound, rdp_delta
from cloister.privacy.events import Event, Relation, from_json
from cloister.privacy.tally import Merged, Tally

__all__ = ["Spent", "account", "delta_at", "spent", "spent_by_round"]


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What a composition costs.

    Attributes:
        epsilon: the smaller of the valid bounds; ``inf`` where something has no bound.
        delta: the δ at which it holds.
        relation: the datasets that are compared.
        pld: ε by privacy loss distributions; ``None`` where they do not cover the composition.
        rdp: ε by Rényi divergences; ``None`` where they do not cover the composition.
        bound_used: which of the two ``epsilon`` is.
        left_out: bound → why it has no value, or no finite one.
        hidden_cohort: whether the caller stated that nobody learns which sites took part.
    """

    epsilon: float
    delta: float
    relation: Relation
    pld: float | None
    rdp: float | None
    bound_used: Literal["pld", "rdp"]
    left_out: Mapping[str, str]
    hidden_cohort: bool

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON values; an infinite ε is ``None`` with its reason in ``left_out``."""
        return {
            "epsilon": _finite(self.epsilon),
            "delta": self.delta,
            "relation": str(self.relation),
            "pld": _finite(self.pld),
            "rdp": _finite(self.rdp),
            "bound_used": self.bound_used,
            "left_out": dict(self.left_out),
            "hidden_cohort": self.hidden_cohort,
        }


def spent(
    events: Event | Iterable[Event],
    delta: float,
    *,
    relation: Relation = Relation.ZERO_OUT,
    hidden_cohort: bool = False,
) -> Spent:
    """Return what ``events`` cost together, at ``delta``.

    Args:
        events: everything that was done to one dataset, over all rounds and jobs, in any order.
        delta: δ in (0, 1).
        relation: the datasets that are compared.
        hidden_cohort: state that nobody who sees a result learns which sites took part. Without it the sampling of cohorts
            protects nothing, and each participation is charged in full.

    Raises:
        SpecError: an event that neither bound covers together with the others, or a δ outside (0, 1).
    """
    tally = Tally(hidden_cohort=hidden_cohort)
    tally.add(events)
    return _spent(tally.merged(), _delta(delta), _relation(relation), hidden_cohort)


def spent_by_round(
    rounds: Iterable[Event | Iterable[Event]],
    delta: float,
    *,
    relation: Relation = Relation.ZERO_OUT,
    hidden_cohort: bool = False,
    before: Event | Iterable[Event] = (),
) -> list[Spent]:
    """Return what was spent after each round, everything before it included.

    Args:
        rounds: what each round did; an empty one costs nothing.
        delta: as for `spent`, like ``relation`` and ``hidden_cohort``.
        relation: see there.
        hidden_cohort: see there.
        before: what had been spent on the dataset before the first round.

    Raises:
        SpecError: as `spent`.
    """
    tally, found = Tally(hidden_cohort=hidden_cohort), []
    tally.add(before)
    for events in rounds:
        tally.add(events)
        found.append(_spent(tally.merged(), _delta(delta), _relation(relation), hidden_cohort))
    return found


def delta_at(
    events: Event | Iterable[Event],
    epsilon: float,
    *,
    relation: Relation = Relation.ZERO_OUT,
    hidden_cohort: bool = False,
) -> float:
    """Return the smallest δ at which ``events`` together are known to satisfy (``epsilon``, δ)-differential privacy.

    Args:
        events: as for `spent`, like the other arguments.
        epsilon: at least 0, finite.
        relation: see there.
        hidden_cohort: see there.

    Raises:
        SpecError: as `spent`, or an ε that is negative or not finite.
    """
    if not 0 <= epsilon < math.inf:
        raise SpecError(
            f"epsilon must be at least 0 and finite, not {epsilon!r}",
            remedy="Give the ε at which δ is asked for.",
            code="privacy-epsilon",
        )
    tally = Tally(hidden_cohort=hidden_cohort)
    tally.add(events)
    merged, relation = tally.merged(), _relation(relation)
    deltas = (pld_delta(merged, relation, epsilon), rdp_delta(merged, relation, epsilon))
    known = [delta for delta in deltas if delta is not None]
    if not known:
        raise _unbounded(merged, relation, pld_bound(merged, relation, 0.5), rdp_bound(merged, relation, 0.5))
    return min(known)


def account(events: Iterable[object], delta: float) -> float:
    """Return ε of events as a ledger keeps them, in plain JSON values: zero-out, and every cohort known.

    Raises:
        IntegrityError: an event that cannot be read.
        SpecError: as `spent`.
    """
    return spent([from_json(event) for event in events], delta).epsilon


@lru_cache(maxsize=8192)
def _spent(merged: Merged, delta: float, relation: Relation, hidden: bool) -> Spent:
    if merged.empty:
        bounds = {"pld": Bound(0.0), "rdp": Bound(0.0)}
    else:
        bounds = {"pld": pld_bound(merged, relation, delta), "rdp": rdp_bound(merged, relation, delta)}
    pld, rdp = bounds["pld"].epsilon, bounds["rdp"].epsilon
    if pld is None and rdp is None:
        raise _unbounded(merged, relation, bounds["pld"], bounds["rdp"])
    use_pld = pld is not None and (rdp is None or pld <= rdp)
    epsilon = pld if use_pld else rdp
    return Spent(
        epsilon=math.inf if epsilon is None else epsilon,
        delta=delta,
        relation=relation,
        pld=pld,
        rdp=rdp,
        bound_used="pld" if use_pld else "rdp",
        left_out={name: bound.reason for name, bound in bounds.items() if bound.reason},
        hidden_cohort=hidden,
    )


def _unbounded(merged: Merged, relation: Relation, pld: Bound, rdp: Bound) -> SpecError:
    kinds = ", ".join(
        sorted({unit.kind for unit, _ in merged.counts} | ({"gaussian"} if merged.precision else set()))
    )
    return SpecError(
        f"no bound covers {kinds} together under {relation}: {pld.reason}; {rdp.reason}",
        remedy="Use mechanisms that one accountant covers: the table in cloister.privacy.events says which.",
        code="privacy-unbounded",
    )


def _delta(delta: float) -> float:
    if isinstance(delta, bool) or not isinstance(delta, Real) or not 0 < delta < 1:
        raise SpecError(
            f"delta must be above 0 and below 1, not {delta!r}",
            remedy="Give a δ well below one over the number of records, such as 1e-5.",
            code="privacy-delta",
        )
    return float(delta)


def _relation(relation: Relation | str) -> Relation:
    try:
        return Relation(relation)
    except ValueError:
        raise SpecError(
            f"unknown neighbouring relation: {relation!r}",
            remedy=f"Use one of {', '.join(Relation)}.",
            code="privacy-relation",
        ) from None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None
