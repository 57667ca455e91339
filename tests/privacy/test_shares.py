"""Gaussian noise shares on integers: the lemma by exact probabilities, the code by what it sums to and by its noise."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from scipy import integrate, stats

from cloister.core.errors import DataError, SpecError
from cloister.core.randomness import SeededRandomness
from cloister.privacy.noise import cipher_generator
from cloister.privacy.updates import LEAST_SHARE, SHARE_BITS, ModularSum, ShareCode
from cloister.privacy.updates.shares import SHARE

SEEDED = SeededRandomness(5)
#: Integers on which the laws are compared: a small modulus, so that nothing has to be left out.
M = 128
SUPPORT = np.arange(-M // 2, M // 2)


def law(mean: float, tau: float) -> npt.NDArray[np.float64]:
    """P(⌊mean + N(0, τ²) + U⌋ = j) for each j, by quadrature over U; no characteristic function in it."""

    def at(j: int) -> float:
        def given(u: float) -> float:
            low, high = (j - mean - u) / tau, (j + 1 - mean - u) / tau
            return float(stats.norm.cdf(high) - stats.norm.cdf(low))

        return float(integrate.quad(given, 0, 1, epsabs=1e-15, epsrel=1e-12)[0])

    return np.array([at(int(j)) for j in SUPPORT])


def summed(*laws: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The law of a sum modulo M, by a plain double loop."""
    total = laws[0]
    for other in laws[1:]:
        found = np.zeros(M)
        for j, chance in zip(SUPPORT, other, strict=True):
            found += chance * np.roll(total, j)
        total = found
    return total


def rounded_once(mean: float, tau: float, sites: int) -> npt.NDArray[np.float64]:
    """The law of K: the Gaussian mechanism's output plus sites - 1 triangular variables, rounded; by a fine grid of the latter."""
    steps = 400
    grid = np.linspace(-1, 1, steps + 1)
    weights = (1 - abs(grid)) / (steps / 2)
    offsets, chances = np.zeros(1), np.ones(1)
    for _ in range(sites - 1):
        offsets, chances = (offsets[:, None] + grid).ravel(), (chances[:, None] * weights).ravel()
    spread = tau * math.sqrt(sites)
    # The triangle of the rounding itself, in closed form: second differences of E(x - N)⁺.
    z = (SUPPORT[:, None] + np.array([-1, 0, 1])[:, None, None] - mean - offsets) / spread
    plus = spread * (z * stats.norm.cdf(z) + stats.norm.pdf(z))
    found: npt.NDArray[np.float64] = (plus[0] - 2 * plus[1] + plus[2]) @ chances
    return found


def distance(p: npt.NDArray[np.float64], q: npt.NDArray[np.float64]) -> float:
    return float(abs(p - q).sum() / 2)


def eta(tau: float, sites: int, modulus: int) -> float:
    return 1.5 * math.sqrt(modulus) * (sites + 1) * math.exp(-(math.pi**2) * tau**2 / 2)


#: The same sum, 1.15, dealt out in two ways.
HERE, THERE = (0.5, 0.65), (0.0, 1.15)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [0.25, *(pytest.param(tau, marks=pytest.mark.slow) for tau in (0.5, 0.75))])
def test_with_little_noise_the_sum_tells_how_it_was_dealt_out_and_the_lemma_bounds_by_how_much(
    tau: float,
) -> None:
    apart = distance(summed(*(law(x, tau) for x in HERE)), summed(*(law(x, tau) for x in THERE)))
    assert apart > 1e-4, "the fixture must see the error that the lemma bounds"
    assert apart <= 2 * eta(tau, 2, M)


@pytest.mark.slow
@pytest.mark.parametrize("tau", [2.0, *(pytest.param(tau, marks=pytest.mark.slow) for tau in (1.5, 4.0))])
def test_with_more_noise_the_law_of_the_sum_depends_on_the_sum_alone(tau: float) -> None:
    apart = distance(summed(*(law(x, tau) for x in HERE)), summed(*(law(x, tau) for x in THERE)))
    assert apart < 1e-8
    if tau >= 2:
        assert apart < 1e-12, "float noise"


@pytest.mark.parametrize("tau", [0.25, 0.5, 1.0, 2.0])
def test_the_sum_is_the_gaussian_mechanism_rounded_once(tau: float) -> None:
    """Two sites against K; the grid of K is good to about 1e-5."""
    apart = distance(summed(*(law(x, tau) for x in HERE)), rounded_once(sum(HERE), tau, 2))
    assert apart <= eta(tau, 2, M) + 1e-5
    assert distance(rounded_once(sum(HERE), tau, 2), rounded_once(sum(HERE) + 1, tau, 2)) > 1e-2


def test_the_error_is_nothing_at_the_least_share() -> None:
    """log₁₀ of d·T·η, for a billion numbers, a million rounds and a million sites."""
    log = math.log(1.5 * 2 ** (SHARE_BITS / 2) * 1e6) - (math.pi * LEAST_SHARE) ** 2 / 2 + math.log(1e15)
    assert log / math.log(10) < -2100
    assert SHARE >= LEAST_SHARE


def code(share: float, **changes: Any) -> ShareCode:
    return ShareCode.choose(**{"share": share, "reach": 50.0, "most": 6, "least": 3} | changes)


def total(made: ShareCode, rows: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Encode each row as a site would, sum modulo 2³² and decode."""
    summing = ModularSum(rows.shape[1], SHARE_BITS)
    for site, row in enumerate(rows):
        summing.add(made.encode(row, cipher_generator(SEEDED, "rounding", site)))
    return made.decode(summing.result())


def test_a_sum_of_integers_is_the_sum_of_the_reals_to_a_unit_a_site() -> None:
    rows = np.random.default_rng(2).uniform(-8, 8, (6, 4000))
    made = code(0.5)
    off = total(made, rows) - rows.sum(axis=0)
    assert abs(off).max() <= 6 / made.scale
    assert abs(off.mean()) < 4 * off.std() / math.sqrt(4000), "rounding at random has no bias"


def test_a_share_is_a_thousand_units_where_there_is_room_and_fewer_where_there_is_not() -> None:
    assert code(0.5).scale * 0.5 == pytest.approx(SHARE)
    tight = code(0.5, reach=5e6)
    assert LEAST_SHARE < tight.scale * 0.5 < SHARE / 2


@pytest.mark.parametrize("reach", [5.0, 5e6])
def test_what_reaches_as_far_as_is_foreseen_does_not_wrap_around(reach: float) -> None:
    """The farthest sum, plus eight standard deviations of the noise of all sites, on either side."""
    made = code(0.5, reach=reach)
    far = reach + 8 * 0.5 * math.sqrt(6)
    rows = np.full((6, 2), far / 6) * [1, -1]
    np.testing.assert_allclose(total(made, rows), [far, -far], atol=6 / made.scale)
    with_more = total(made, np.full((6, 1), 2.0**33 / made.scale / 6))
    assert abs(with_more[0] - 2.0**33 / made.scale) > far, "the fixture must be able to wrap"


def test_too_few_bits_are_refused_with_the_reason() -> None:
    with pytest.raises(SpecError, match="32 bits do not suffice") as refused:
        code(0.5, reach=1e9)
    assert refused.value.code == "privacy-bits"
    assert refused.value.exit_code == 3


@pytest.mark.parametrize("value", [math.nan, math.inf, 1e300])
def test_what_is_not_finite_or_far_too_large_is_refused(value: float) -> None:
    with pytest.raises(DataError):
        code(0.5).encode(np.array([0.0, value]), cipher_generator(SEEDED, "rounding"))


def test_a_number_of_the_model_that_is_zero_at_all_sites_is_zero_in_the_sum() -> None:
    assert not total(code(0.5), np.zeros((6, 50))).any()
