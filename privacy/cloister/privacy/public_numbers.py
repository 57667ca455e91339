"""The public numbers of a federation file that private sums rest on: how many sites a sum has, and at the most.

None of them depends on who answers, or on any record.
"""

from __future__ import annotations

import math
from typing import TypeVar

from cloister.core.errors import SpecError
from cloister.core.spec import Cohort, FederationSpec, PoissonCohort
from cloister.core.spec.grouping import group_sizes
from cloister.privacy.updates.encoding import WRAP_SIGMAS

__all__ = ["given", "largest_cohort", "most_in_sum", "public_cohort", "sites_in_sum"]

_Number = TypeVar("_Number", int, float)


def public_cohort(cohort: Cohort) -> float:
    """Return n, the public size of a round: a fixed number, or the mean of the draw.

    Raises:
        SpecError: neither ``per_round`` nor ``sites`` is a number.
    """
    per_round = cohort.per_round
    if isinstance(per_round, int):
        return float(per_round)
    if cohort.sites is None:
        raise SpecError(
            "the sum of a private round is divided by a public number of sites, and the file has none",
            remedy="give cohort.sites, or cohort.per_round as a number",
            code="privacy-divisor",
        )
    return cohort.sites * per_round.poisson if isinstance(per_round, PoissonCohort) else float(cohort.sites)


def largest_cohort(cohort: Cohort) -> int:
    """Return the most sites in a round, for a Poisson cohort up to a chance of about 1e-15."""
    mean = public_cohort(cohort)
    if not isinstance(cohort.per_round, PoissonCohort):
        return math.ceil(mean)
    far = mean + WRAP_SIGMAS * math.sqrt(mean * (1 - cohort.per_round.poisson)) + WRAP_SIGMAS
    return min(math.ceil(far), cohort.sites or math.ceil(far))


def sites_in_sum(spec: FederationSpec) -> float:
    """Return the public number of sites that a round's sum is divided by: the cohort's, or the smallest group's.

    Raises:
        SpecError: the file has no such number.
    """
    size = spec.aggregation.group_size
    n = public_cohort(spec.cohort)
    return n if size is None else float(group_sizes(math.ceil(n), size)[-1])


def most_in_sum(spec: FederationSpec) -> int:
    """Return the most sites in one sum of a round: the cohort's, or the largest group's."""
    size, most = spec.aggregation.group_size, largest_cohort(spec.cohort)
    return most if size is None else group_sizes(most, size)[0]


def given(value: _Number | None, key: str) -> _Number:
    """Return a key that the file's own checks have asked for.

    Raises:
        SpecError: it is not there.
    """
    if value is None:
        raise SpecError(f"the federation file has no {key}", remedy=f"give {key}")
    return value
