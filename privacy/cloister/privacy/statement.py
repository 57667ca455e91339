"""What a guarantee promises, to whom and against whom, in the words of somebody who has to sign for it.

A `PrivacyStatement` names its unit, ε, δ, relation, sampling, adversary and what it does not cover; guarantees for different
units are different statements and are never added to each other. The figures that explain ε are those of the best test that any
attacker could run, whatever the attacker knows (Kairouz, Oh & Viswanath 2015, Thm. 2.1): with false alarms on a share a of the
outsiders it finds at most a share ``min(e^ε·a + δ, 1 - e^-ε·(1 - δ - a))`` of the members.

===============  ==============================================================
ε                the text says
===============  ==============================================================
0                the result tells nothing about the unit
infinite         there is no guarantee
negative, NaN    `SpecError`
===============  ==============================================================
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from cloister.core.errors import SpecError
from cloister.privacy.accounting import Spent
from cloister.privacy.events import Relation

__all__ = ["PrivacyStatement", "SiteSpent", "Unit", "guess_rate", "hit_rate", "statement_for"]

#: Whose contribution is hidden, and from where on.
Unit = Literal["record", "record-distributed", "site", "site-local", "site-distributed"]

_PROTECTED: dict[str, str] = {
    "record": "each single record at each site",
    "record-distributed": "each single record at each honest site",
    "site": "each site: all that its data contributed, taken together",
    "site-local": "each site: all that its data contributed, taken together",
    "site-distributed": "each site: all that its data contributed, taken together",
}
_ADVERSARY: dict[str, str] = {
    "record": "everybody outside the site, the server and the other sites included, who sees every message of the site and "
    "every model, and who knows all other records",
    "record-distributed": "everybody who sees the sums and the models, the server included, as long as the protection of the messages hides "
    "the single ones and at least the stated number of honest sites took part; whoever attacks may know all other records",
    "site": "everybody who sees the models that the server releases, other sites included; the server itself is trusted",
    "site-local": "everybody outside the site, the server included, who sees every message of the site and every model",
    "site-distributed": "everybody who sees the sums, the server included, as long as the protection of the messages hides the single "
    "ones and at least the stated number of honest sites took part",
}
_RELATION: dict[Relation, str] = {
    Relation.ZERO_OUT: "A real contribution is compared with an empty one in its place; how many there are counts as public.",
    Relation.REPLACE_ONE: "A contribution is compared with any other in its place; how many there are counts as public.",
    Relation.ADD_OR_REMOVE: "A dataset is compared with the same one without the contribution.",
}
_NEVER_COVERED = (
    "what the results say about people in general, such as that a treatment helps: they say it with and without any one contribution",
    "the site's own machine, staff and backups, which hold the data itself",
    "which sites took part, when they answered and how large their messages were",
    "results that were released outside of this account",
)
_ONE_RECORD = "a single record, which has no bound of its own: two versions of a site's data may differ by up to twice what is bounded here"
_CONSPIRE = (
    "more sites that conspire with whoever attacks than privacy.colluders says: their noise does not count"
)
_ALSO_NOT_COVERED: dict[str, tuple[str, ...]] = {
    "record": (
        "a person with records at several sites, for whom each site's guarantee stands by itself and their costs add up",
    ),
    "record-distributed": (_CONSPIRE,),
    "site": (
        _ONE_RECORD,
        "the server, which sees each site's clipped update without noise unless the messages are protected",
    ),
    "site-local": (
        _ONE_RECORD,
        "the replacement of a site's data by any other: an update may then move by 2C and not C, which costs what half the noise costs",
    ),
    "site-distributed": (
        _ONE_RECORD,
        _CONSPIRE,
    ),
}


@dataclass(frozen=True, kw_only=True)
class SiteSpent:
    """What one site has spent.

    Attributes:
        epsilon: ε spent, infinite where something had no bound.
        delta: the δ at which it holds.
        allowed: the site's cap, ``None`` where it set none.
    """

    epsilon: float
    delta: float
    allowed: float | None = None

    def as_dict(self) -> dict[str, float | None]:
        """Return it as JSON values; an infinite ε is ``None``."""
        return {"epsilon": _finite(self.epsilon), "allowed": self.allowed, "delta": self.delta}


@dataclass(frozen=True, kw_only=True)
class PrivacyStatement:
    """One guarantee, in full.

    Attributes:
        unit: whose contribution is hidden.
        epsilon: ε, infinite where there is no bound.
        delta: δ in (0, 1).
        relation: the datasets that are compared.
        sampling: how batches or cohorts were drawn, in words, and what of it was secret.
        adversary: against whom it holds.
        not_covered: what it says nothing about, each in words.
        sites: what each site spent, by name.
        records_per_person: how many records of one person the bound counts for; 1 means records, not persons.
        seeded: whether the noise came from a seed, as in a simulation: then the figures show what a deployment would cost, and
            whoever knows the seed can take the noise away.
    """

    unit: Unit
    epsilon: float
    delta: float
    relation: Relation
    sampling: str
    adversary: str
    not_covered: tuple[str, ...]
    sites: Mapping[str, SiteSpent] = field(default_factory=dict)
    records_per_person: int = 1
    seeded: bool = False

    def __post_init__(self) -> None:
        """Check what could not be printed truthfully."""
        if self.unit not in get_args(Unit):
            raise _refused(f"unit must be one of {', '.join(get_args(Unit))}, not {self.unit!r}")
        if not self.epsilon >= 0:
            raise _refused(f"epsilon must be at least 0, not {self.epsilon!r}")
        if not 0 < self.delta < 1:
            raise _refused(f"delta must be above 0 and below 1, not {self.delta!r}")
        if self.records_per_person < 1:
            raise _refused(f"records_per_person must be at least 1, not {self.records_per_person!r}")

    def as_dict(self) -> dict[str, Any]:
        """Return what ``report.json`` says under ``privacy``; an infinite ε is ``None``."""
        bounded = math.isfinite(self.epsilon)
        return {
            "unit": self.unit,
            "epsilon": _finite(self.epsilon),
            "delta": self.delta,
            "relation": str(self.relation),
            "sampling": self.sampling,
            "adversary": self.adversary,
            "not_covered": list(self.not_covered),
            "sites": {name: site.as_dict() for name, site in self.sites.items()},
            "records_per_person": self.records_per_person,
            "seeded": self.seeded,
            "guess_rate": guess_rate(self.epsilon, self.delta) if bounded else None,
            "hit_rate": hit_rate(0.01, self.epsilon, self.delta) if bounded else None,
            "statement": self.text(),
        }

    def text(self) -> str:
        """Return the statement in plain language, one paragraph a line."""
        if math.isinf(self.epsilon):
            first = ["There is no guarantee: something was released whose effect on privacy has no bound."]
        else:
            first = [self._promise(), self._meaning(), _strength(self.epsilon)]
        return "\n".join(
            [
                *first,
                f"Against whom: {self.adversary}.",
                f"Sampling: {self.sampling}. {_RELATION[self.relation]}",
                *(
                    ["The noise came from a seed: this run shows a cost, and protects no real data."]
                    if self.seeded
                    else []
                ),
                "Not covered: " + "; ".join(self.not_covered) + ".",
            ]
        )

    def _promise(self) -> str:
        many = self.records_per_person
        where = "at all honest sites together" if self.unit == "record-distributed" else "at a site"
        whom = f"each person with up to {many} records {where}" if many > 1 else _PROTECTED[self.unit]
        return (
            f"Protected is {whom}, with ε = {_figure(self.epsilon)} and δ = {self.delta:g} over everything released: whatever is seen is "
            f"at most {_figure(_factor(self.epsilon))} times as likely with the contribution as without it, or the other way round, "
            f"except for a probability of {self.delta:g}."
        )

    def _meaning(self) -> str:
        if self.epsilon == 0:
            return "The results tell practically nothing about any one contribution."
        best, found = guess_rate(self.epsilon, self.delta), hit_rate(0.01, self.epsilon, self.delta)
        return (
            f"In odds: whoever holds it for as likely as not that a contribution was used, and then guesses from everything released, is "
            f"right at most {_share(best)} of the time; without any release it is 50%. Whoever may wrongly accuse 1 in 100 outsiders finds "
            f"at most {_share(found)} of those who were in; by chance it is 1%."
        )


def statement_for(
    unit: Unit,
    spent: Spent,
    *,
    sampling: str,
    sites: Mapping[str, SiteSpent] | None = None,
    records_per_person: int = 1,
    seeded: bool = False,
    also_not_covered: tuple[str, ...] = (),
) -> PrivacyStatement:
    """Return the statement of a guarantee with the adversary and the gaps that its unit has.

    Args:
        unit: whose contribution is hidden.
        spent: what was spent; of several sites, the one that spent most.
        sampling: how batches or cohorts were drawn, in words.
        sites: what each site spent, by name.
        records_per_person: k, where the events were `SeveralRecords`.
        seeded: whether the noise came from a seed.
        also_not_covered: what this run leaves open besides.

    Raises:
        SpecError: an unknown unit, or figures that state nothing.
    """
    if unit not in get_args(Unit):
        raise _refused(f"unit must be one of {', '.join(get_args(Unit))}, not {unit!r}")
    persons = (
        ("a person with several records, who is protected record by record and not as a person",)
        if unit in ("record", "record-distributed") and records_per_person == 1
        else ()
    )
    cohort = (
        ("anybody who learns which sites took part in a round: the cohort's secrecy is part of the bound",)
        if spent.hidden_cohort
        else ()
    )
    return PrivacyStatement(
        unit=unit,
        epsilon=spent.epsilon,
        delta=spent.delta,
        relation=spent.relation,
        sampling=sampling,
        adversary=_ADVERSARY[unit],
        not_covered=(*persons, *_ALSO_NOT_COVERED[unit], *cohort, *also_not_covered, *_NEVER_COVERED),
        sites=dict(sites or {}),
        records_per_person=records_per_person,
        seeded=seeded,
    )


def guess_rate(epsilon: float, delta: float) -> float:
    """Return how often the best guess is right when both answers are equally likely beforehand: ``(e^ε + δ)/(e^ε + 1)``."""
    return min((1 + delta * math.exp(-epsilon)) / (1 + math.exp(-epsilon)), 1.0)


def hit_rate(false_alarms: float, epsilon: float, delta: float) -> float:
    """Return the largest share of members that a test finds with a share ``false_alarms`` of outsiders wrongly accused."""
    few = _factor(epsilon) * false_alarms + delta
    many = 1 - math.exp(-epsilon) * (1 - delta - false_alarms)
    return max(min(few, many, 1.0), false_alarms)


def _strength(epsilon: float) -> str:
    """Place ε on the scale of Ponomareva et al. (2023, arXiv 2303.00654, section 5.2)."""
    if epsilon <= 1:
        return "This is a strong guarantee (ε of 1 or less)."
    if epsilon <= 10:
        return "This is a middling guarantee (ε between 1 and 10): the figures above are for an attacker who knows everything else."
    return "This is a weak guarantee (ε above 10): by itself it excludes next to nothing."


def _factor(epsilon: float) -> float:
    return math.exp(epsilon) if epsilon < 700 else math.inf


def _figure(value: float) -> str:
    if math.isinf(value):
        return "infinitely many"
    if value < 100:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value < 1e6 else f"{value:.1e}"


def _share(value: float) -> str:
    if value > 0.9999:
        return "practically 100%"
    return f"{value:.2%}" if value > 0.99 else f"{value:.1%}"


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _refused(message: str) -> SpecError:
    return SpecError(
        f"privacy statement: {message}",
        remedy="Make the statement from what cloister.privacy.accounting.spent returned.",
        code="privacy-statement",
    )
