"""Cohorts: the size that was asked for, every site as likely as any other, drawn by the key alone."""

from __future__ import annotations

import numpy as np
import pytest

from cloister.core import SeededRandomness
from cloister.core.spec import Cohort, PoissonCohort
from cloister.server.cohort import choose_cohort


def draw(cohort: Cohort, sites: int, number: int = 1) -> list[int]:
    return choose_cohort(cohort, sites, SeededRandomness(5).generator("cohort", number, 1))


def test_all_means_every_site_in_order() -> None:
    assert draw(Cohort(per_round="all"), 5) == [0, 1, 2, 3, 4]


def test_a_number_draws_that_many_different_sites_ascending() -> None:
    found = draw(Cohort(per_round=50), 1_000_000)
    assert len(set(found)) == 50
    assert found == sorted(found)
    assert found != draw(Cohort(per_round=50), 1_000_000, number=2)
    assert found == draw(Cohort(per_round=50), 1_000_000)


@pytest.mark.parametrize("per_round", [7, PoissonCohort(poisson=0.35)])
def test_every_site_is_drawn_equally_often(per_round: int | PoissonCohort) -> None:
    """20 sites, 4000 rounds: each site's count is binomial(4000, .35); 4.5 σ two-sided, false alarm 20 · 7e-6."""
    counts = np.zeros(20)
    for number in range(4000):
        counts[draw(Cohort(per_round=per_round), 20, number)] += 1
    deviation = np.abs(counts - 4000 * 0.35) / np.sqrt(4000 * 0.35 * 0.65)
    assert deviation.max() < 4.5
    assert deviation.max() > 0.2, "counts this even are not random"


def test_poisson_sizes_are_binomial() -> None:
    """Mean 7, variance 4.55 over 4000 rounds; 5 σ two-sided."""
    sizes = np.array([len(draw(Cohort(per_round=PoissonCohort(poisson=0.35)), 20, n)) for n in range(4000)])
    assert abs(sizes.mean() - 7) < 5 * np.sqrt(4.55 / 4000)
    assert abs(sizes.var() - 4.55) < 5 * 4.55 * np.sqrt(2 / 4000)
