"""Which sites take part in a round."""

from __future__ import annotations

import numpy as np

from cloister.core.spec import Cohort

__all__ = ["choose_cohort"]


def choose_cohort(cohort: Cohort, sites: int, generator: np.random.Generator) -> list[int]:
    """Draw the positions of a round's cohort, ascending.

    The cost grows with the cohort, not with ``sites``. A Poisson cohort is drawn as a binomial size and then as many sites
    without replacement, which is the same distribution as one coin a site.

    Args:
        cohort: the ``[cohort]`` table.
        sites: how many sites there are.
        generator: where the draw comes from.
    """
    if cohort.per_round == "all":
        return list(range(sites))
    size = (
        min(cohort.per_round, sites)
        if isinstance(cohort.per_round, int)
        else int(generator.binomial(sites, cohort.per_round.poisson))
    )
    return sorted(generator.choice(sites, size=size, replace=False, shuffle=False).tolist())
