"""Caps and rates of a site, and the one way in which a ledger computes ε: from events, all of them at once.

The ledger knows no mechanism. It is handed an `Account`: a function that composes a list of events and returns the ε of their
composition at a δ. ε's are never added.

Formal guarantees:

- `Composer.epsilon` returns what the account returns for exactly the events given; nothing charged is 0.
- An answer that is no ε (NaN, negative, not a number) is refused, and what the account refuses is not recorded.

=====================  =================================================
case                   outcome
=====================  =================================================
no event               ε = 0, without asking the account
the account says ∞     ∞: above every cap
the account says NaN   ``PolicyError`` (ledger-account)
cap or rate of 0       allowed: nothing more may be spent
cap or rate of ∞, NaN  ``PolicyError`` (ledger-input)
δ outside (0, 1)       ``PolicyError`` (ledger-input)
=====================  =================================================
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.ledger.entry import checked_name, checked_number

__all__ = ["RELATION", "Account", "Cap", "Composer", "Rate"]

#: (events as plain data, one a charge; δ) → ε of their composition. It must not change them: equal ones may be one object.
Account = Callable[[Sequence[Mapping[str, Any]], float], float]
#: The platform's neighbouring relation, which an account computes ε for: one unit's contribution is replaced by zero.
RELATION = "zero-out"
_KEPT = 256


@dataclass(frozen=True, kw_only=True)
class Rate:
    """At most ``epsilon`` may be charged within any ``days`` days, composed on its own at the cap's δ."""

    epsilon: float
    days: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", checked_number("the rate's epsilon", self.epsilon))
        object.__setattr__(
            self, "days", checked_number("the rate's days", self.days, below=36525, open_end=True)
        )


@dataclass(frozen=True, kw_only=True)
class Cap:
    """What a site allows to be spent on a data set.

    Attributes:
        epsilon: the most that everything charged to a unit may compose to.
        delta: at which δ that is measured; a run that states a larger δ is refused.
        rate: a limit on how fast, or none.
        unit: the unit it holds for; ``None``: for every unit without a cap of its own, each by itself.
    """

    epsilon: float
    delta: float
    rate: Rate | None = None
    unit: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", checked_number("the cap's epsilon", self.epsilon))
        object.__setattr__(
            self, "delta", checked_number("the cap's delta", self.delta, below=1, open_end=True)
        )
        if self.unit is not None:
            checked_name("the cap's unit", self.unit)

    def as_event(self) -> dict[str, Any]:
        """Return the cap as a POLICY entry holds it."""
        rate = None if self.rate is None else {"epsilon": self.rate.epsilon, "days": self.rate.days}
        return {
            "policy": "cap",
            "unit": self.unit,
            "epsilon": self.epsilon,
            "delta": self.delta,
            "rate": rate,
        }

    @classmethod
    def from_event(cls, event: Mapping[str, Any]) -> Cap:
        """Read a POLICY entry's cap.

        Raises:
            IntegrityError: (``ledger-entry``) it holds none.
        """
        try:
            rate = None if event["rate"] is None else Rate(**event["rate"])
            cap = cls(epsilon=event["epsilon"], delta=event["delta"], unit=event["unit"], rate=rate)
        except (KeyError, TypeError, PolicyError) as error:
            raise IntegrityError(f"a POLICY entry holds no cap: {error}", code="ledger-entry") from None
        return cap


class Composer:
    """An `Account` that remembers its latest answers: the order of events does not matter."""

    def __init__(self, account: Account) -> None:
        self._account = account
        self._known: dict[tuple[frozenset[tuple[str, int]], float], float] = {}

    def epsilon(self, events: Counter[str], delta: float) -> float:
        """Return the ε of ``events`` (how often each canonical JSON text was charged) composed, at ``delta``.

        Raises:
            PolicyError: (``ledger-account``) the account's answer is no ε. What the account raises itself passes through.
        """
        number = events.total()
        if not number:
            return 0.0
        key = (frozenset(events.items()), delta)
        if key not in self._known:
            plain = [event for text, count in events.items() for event in [json.loads(text)] * count]
            found = self._account(plain, delta)
            if not isinstance(found, int | float) or math.isnan(found) or found < 0:
                raise PolicyError(
                    f"the accounting answered {found!r} for {number} events at delta = {delta:g}, which is no epsilon",
                    remedy="the ledger charges nothing that it cannot account for: use a mechanism that is accounted for",
                    code="ledger-account",
                )
            while len(self._known) >= _KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = float(found)
        return self._known[key]
