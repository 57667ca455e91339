"""Is the ε that a run states what its rounds cost? Recomputed from the federation file and the events, whatever the run says of itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from cloister.core.evidence import Finding
from cloister.privacy.ledger.verification import TOLERANCE
from cloister.privacy.plan import Plan
from cloister.server.audit.budget.runs import ChargedRun, read_run
from cloister.server.audit.sections import Section, shown_as
from cloister.server.audit.subject import AuditSubject

__all__ = ["Charged", "charged_in", "check_accounting"]

#: Survivors of a round whose sum did not come about: the plan charges the fewest.
_UNKNOWN = 0


@dataclass(frozen=True, kw_only=True)
class Charged:
    """What one site is charged for a run.

    Attributes:
        rounds: survivors of a round's sum (0: not known) → in how many such rounds the site was asked.
        epsilon: what they cost together.
        stated: what the run says.
    """

    rounds: Mapping[int, int]
    epsilon: float
    stated: float | None

    @property
    def pairs(self) -> list[list[int]]:
        """The rounds as a certificate holds them."""
        return [[survivors, count] for survivors, count in sorted(self.rounds.items())]


def charged_in(run: ChargedRun) -> dict[str, Charged]:
    """Return what each site that the run asked is charged."""
    found = {}
    for site, numbers in sorted(run.asked.items()):
        rounds = Counter(run.survivors.get(number, _UNKNOWN) for number in numbers)
        said = run.stated.get(site, {}).get("epsilon")
        epsilon = _cost(run.plan, frozenset(rounds.items()))  # type: ignore[arg-type]  # a plan is frozen, so hashable
        found[site] = Charged(rounds=rounds, epsilon=epsilon, stated=said)
    return found


@lru_cache(maxsize=256)
def _cost(plan: Plan, rounds: frozenset[tuple[int, int]]) -> float:
    """Return ε of rounds by survivors; most sites of a run, and of several looks at it, share one."""
    return plan.spent_by(dict(rounds)).epsilon


def _section(found: Finding) -> Section:
    section = Section()
    rows = [
        (
            name,
            str(one["rounds"]),
            f"{one['epsilon']:.4g}",
            "–" if one["stated"] is None else f"{one['stated']:.4g}",
        )
        for name, one in list(found.figures.get("sites", {}).items())[:100]
    ]
    if rows:
        section.table(("Site", "Rounds asked", "ε recomputed", "ε stated"), rows)
    return section


@shown_as("Privacy accounting", _section)
def check_accounting(subject: AuditSubject) -> Finding:
    """Recompute each site's ε from the events, and hold it against what the run states."""
    run = read_run(subject.path) if subject.path.is_dir() else None
    if run is None or not run.asked:
        return Finding(
            name="accounting",
            verdict="no power",
            sentence="The run promises no differential privacy: there is no epsilon to recompute.",
            power="It needs a run under [privacy].",
        )
    charged = charged_in(run)
    most = max(one.epsilon for one in charged.values())
    low = sorted(
        site
        for site, one in charged.items()
        if one.stated is not None and one.stated < one.epsilon * (1 - TOLERANCE)
    )
    faults = [*run.faults.values(), *(f"site '{site}' spent more than the run states" for site in low)]
    figures: dict[str, Any] = {
        "unit": run.plan.unit,
        "delta": run.plan.delta,
        "epsilon": most,
        "noise_multiplier": run.plan.noise_multiplier,
        "sites": {
            site: {"rounds": sum(one.rounds.values()), "epsilon": one.epsilon, "stated": one.stated}
            for site, one in charged.items()
        },
        "faults": faults,
    }
    return Finding(
        name="accounting",
        verdict="fail" if faults else "pass",
        sentence=f"{faults[0][0].upper()}{faults[0][1:]}."
        if faults
        else f"The rounds cost epsilon = {most:.4g} at delta = {run.plan.delta:g} for the unit '{run.plan.unit}', as the run states.",
        figures=figures,
        power="It could have shown a stated epsilon below what the rounds in the server's events cost. It cannot show that the noise was "
        "really added: that is what `cloister audit privacy` looks at.",
    )
