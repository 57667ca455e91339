"""Poisson sampling: every record joins every step by itself, with a probability that is public.

Tests on draws have a fixed seed and are two-sided at p > 1e-3: one seed in a thousand would fail.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from cloister.core.errors import SpecError
from cloister.core.randomness import SeededRandomness
from cloister.privacy.noise import cipher_generator
from cloister.privacy.poisson import poisson_batches, poisson_rows

RECORDS, STEPS = 60, 4000


def generator(key: int = 0) -> np.random.Generator:
    return cipher_generator(SeededRandomness(5), "poisson", key)


def joined(probability: float, records: int = RECORDS, steps: int = STEPS) -> np.ndarray:
    """(steps, records) which record joined which step."""
    table = np.zeros((steps, records), bool)
    for step, rows in enumerate(poisson_batches(records, probability, steps=steps, generator=generator())):
        table[step, rows.numpy()] = True
    return table


def passes(counts: np.ndarray, records: int, probability: float) -> bool:
    """Chi-square of batch sizes against the binomial, cells of at least 8 expected."""
    expected = stats.binom.pmf(np.arange(records + 1), records, probability) * len(counts)
    kept = expected >= 8
    observed = np.bincount(counts, minlength=records + 1)
    cells = np.append(observed[kept], observed[~kept].sum()), np.append(expected[kept], expected[~kept].sum())
    return bool(stats.chisquare(*cells).pvalue > 1e-3)


@pytest.mark.parametrize("probability", [0.02, 0.25, 0.5, 0.9])
def test_batch_sizes_are_binomial(probability: float) -> None:
    counts = joined(probability).sum(1)
    assert passes(counts, RECORDS, probability)
    # What must not pass: another probability, a fixed size, shuffled passes of the private n.
    assert not passes(counts, RECORDS, probability * 0.9)
    assert not passes(np.full(STEPS, round(RECORDS * probability)), RECORDS, probability)


@pytest.mark.parametrize("probability", [0.02, 0.25, 0.9])
def test_every_record_joins_with_the_given_probability(probability: float) -> None:
    found = joined(probability).sum(0)
    spread = math.sqrt(STEPS * probability * (1 - probability))
    z = (found - STEPS * probability) / spread
    assert stats.chi2(RECORDS).sf((z**2).sum()) > 1e-3
    assert stats.chi2(RECORDS).cdf((z**2).sum()) > 1e-3
    assert np.abs(z).max() < stats.norm.isf(1e-3 / 2 / RECORDS)


@pytest.mark.parametrize("probability", [0.05, 0.25, 0.9])
def test_records_join_independently_of_each_other_and_of_other_steps(probability: float) -> None:
    z = (joined(probability) - probability) / math.sqrt(probability * (1 - probability))
    pairs = (z.T @ z / math.sqrt(STEPS))[np.triu_indices(RECORDS, 1)]
    assert stats.kstest(pairs, "norm").pvalue > 1e-3
    assert abs((z[1:] * z[:-1]).sum() / math.sqrt((STEPS - 1) * RECORDS)) < 3.29


@given(records=st.integers(0, 500), probability=st.floats(1e-9, 1.0), key=st.integers(0, 100))
def test_rows_are_distinct_ascending_and_inside(records: int, probability: float, key: int) -> None:
    rows = poisson_rows(records, probability, generator(key))
    assert rows.dtype == torch.int64
    assert (rows[1:] > rows[:-1]).all()
    assert not len(rows) or (rows[0] >= 0 and rows[-1] < records)


def test_a_rare_draw_from_many_records_costs_only_what_it_takes() -> None:
    found = [len(poisson_rows(10**12, 1e-11, generator(key))) for key in range(200)]
    assert abs(sum(found) - 2000) < 3.29 * math.sqrt(2000)
    assert not any(len(poisson_rows(10**6, 1e-300, generator(key))) for key in range(5))


def test_exactly_as_many_batches_as_steps_come_also_when_they_are_empty() -> None:
    assert [len(rows) for rows in poisson_batches(0, 0.5, steps=3, generator=generator())] == [0, 0, 0]
    empty = [len(rows) == 0 for rows in poisson_batches(10, 0.01, steps=500, generator=generator())]
    assert len(empty) == 500
    assert any(empty)
    assert not list(poisson_batches(10, 0.5, steps=0, generator=generator()))


def test_probability_one_takes_every_record() -> None:
    assert torch.equal(poisson_rows(7, 1.0, generator()), torch.arange(7))


def test_the_first_records_are_drawn_the_same_however_many_follow() -> None:
    """q is public: another record changes nothing for those before it."""
    few, many = (poisson_rows(records, 0.1, generator()) for records in (200, 201))
    assert torch.equal(few, many[many < 200])


def test_a_seed_gives_the_same_batches_again() -> None:
    first, again = (list(poisson_batches(100, 0.1, steps=20, generator=generator())) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    other = poisson_batches(100, 0.1, steps=20, generator=generator(1))
    assert not all(torch.equal(a, b) for a, b in zip(first, other, strict=True))


@pytest.mark.parametrize("probability", [0.0, -0.1, 1.0000001, math.nan, math.inf])
def test_a_number_that_is_no_probability_is_refused(probability: float) -> None:
    with pytest.raises(SpecError, match=r"not in \(0, 1\]") as refused:
        poisson_rows(5, probability, generator())
    assert refused.value.code == "privacy-sampling"


def test_a_negative_number_of_records_is_refused() -> None:
    with pytest.raises(SpecError, match="-1 records"):
        poisson_rows(-1, 0.5, generator())
