"""Randomness keyed by what it is for."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.core.randomness import SeededRandomness, SystemRandomness

keys = st.lists(st.integers(0, 2**40) | st.text(max_size=8), min_size=1, max_size=3).map(tuple)
seeds = st.integers(0, 2**63 - 1)


@given(seeds, keys)
def test_the_same_seed_and_key_give_the_same_draws(seed: int, key: tuple[Any, ...]) -> None:
    one, other = SeededRandomness(seed), SeededRandomness(seed)
    other.generator("something else").random(5)
    assert one.bits(*key) == other.bits(*key)
    assert one.torch_seed(*key) == other.torch_seed(*key)
    assert np.array_equal(one.generator(*key).random(4), other.generator(*key).random(4))


@given(seeds, keys, seeds, keys)
def test_another_seed_or_key_gives_other_bits(
    seed: int, key: tuple[Any, ...], seed2: int, key2: tuple[Any, ...]
) -> None:
    same = (seed, key) == (seed2, key2)
    assert (SeededRandomness(seed).bits(*key) == SeededRandomness(seed2).bits(*key2)) is same


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (("a", 1), ("a", "1")),
        (("ab",), ("a", "b")),
        (("a", 12), ("a1", 2)),
        (("a",), ("a", 0)),
        (("a", "[1"), ("a[", 1)),
    ],
)
def test_keys_that_look_alike_are_different(one: tuple[Any, ...], other: tuple[Any, ...]) -> None:
    assert SeededRandomness(0).bits(*one) != SeededRandomness(0).bits(*other)


def test_the_bits_of_a_key_are_fixed_for_all_versions() -> None:
    # printf '[7, "train", 3, "cleveland"]' | sha256sum | head -c 32. A change would break every run that is to be repeated.
    expected = 0xE45E656C6E9855EB43723FC9C16FC145
    assert SeededRandomness(7).bits("train", 3, "cleveland") == expected
    assert SeededRandomness(7).torch_seed("train", 3, "cleveland") == expected >> 65


def test_a_generator_s_draws_are_fixed_for_all_versions() -> None:
    assert SeededRandomness(7).generator("cohort", 1).integers(0, 1000, 5).tolist() == [
        131,
        764,
        755,
        467,
        585,
    ]


def test_generators_of_neighbouring_keys_are_uncorrelated() -> None:
    """Two-sided: 200 correlations of 2000 draws; |mean| stays within 4.5 standard errors (false alarm 7e-6)."""
    source = SeededRandomness(11)
    draws = np.stack(
        [source.generator("train", round_number).standard_normal(2000) for round_number in range(201)]
    )
    correlations = np.array([np.corrcoef(a, b)[0, 1] for a, b in itertools.pairwise(draws)])
    assert abs(correlations.mean()) < 4.5 / math.sqrt(200 * 2000)
    assert correlations.std() == pytest.approx(1 / math.sqrt(2000), rel=4.5 / math.sqrt(2 * 200))


def test_a_generator_s_draws_are_uniform() -> None:
    """Two-sided chi-square over 64 cells of first draws of 6400 keys: within 5 standard deviations of 63 (false alarm < 1e-5)."""
    source = SeededRandomness(3)
    first = np.array([source.generator("site", number).random() for number in range(6400)])
    counts = np.histogram(first, bins=64, range=(0, 1))[0]
    statistic = float((((counts - 100) ** 2) / 100).sum())
    assert abs(statistic - 63) < 5 * math.sqrt(2 * 63)


def test_a_torch_seed_fits_a_torch_generator() -> None:
    seeds_drawn = [SeededRandomness(1).torch_seed("x", number) for number in range(200)]
    assert all(0 <= seed < 2**63 for seed in seeds_drawn)
    assert max(seeds_drawn) >= 2**62


def test_seeded_says_that_it_is_reproducible_and_the_system_that_it_is_not() -> None:
    assert SeededRandomness(0).reproducible
    assert not SystemRandomness().reproducible


def test_the_system_never_repeats_a_key() -> None:
    source = SystemRandomness()
    assert len({source.bits("a") for _ in range(100)}) == 100
    assert source.generator("a").random() != source.generator("a").random()
    assert all(0 <= source.bits("a") < 2**128 for _ in range(100))
