"""The bounds of a privacy-budget audit: against other libraries, by enumeration, and by how often they are wrong.

Figures "by jax-privacy" and "by opake" come from jax-privacy 2.0.0 (``jax_privacy.auditing._epsilon_one_run`` and ``_epsilon_one_run_fdp`` with a significance
of 0.05) and opake-auditing 0.16.1 (the p-value of its ``gdp()``, solved for μ).
"""

import math
from itertools import product

import numpy as np
import pytest
from scipy import integrate, optimize, special, stats

from cloister.core.errors import DataError
from cloister.privacy.audit.estimators import ESTIMATORS
from cloister.privacy.audit.gaussian import (
    epsilon_of_mu,
    mu_from_correct,
    mu_from_location,
    mu_of_epsilon,
)
from cloister.privacy.audit.guessing import epsilon_from_guesses, mu_from_guesses, refutes_mu
from cloister.privacy.audit.rates import epsilon_from_rates
from cloister.privacy.audit.scores import Counts, Scores, accused, guessed

DELTA, SURE = 1e-5, 0.95


def gaussian(mu: float, canaries: int, generator: np.random.Generator) -> Scores:
    included = generator.integers(0, 2, canaries).astype(bool)
    return Scores(values=mu * included + generator.standard_normal(canaries), included=included)


# ------------------------------------------------------------------ one run


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "delta", "by_jax_privacy"),
    [
        (1000, 1000, 680, 1e-5, 0.6402260),
        (1000, 200, 170, 1e-5, 1.3974589),
        (1000, 100, 100, 1e-5, 3.4653762),
        (200, 200, 150, 1e-5, 0.8211125),
        (1000, 1000, 680, 1e-3, 0.6058719),
        (50, 50, 50, 1e-6, 2.7845856),
        (1000, 1000, 500, 1e-5, 0.0),
    ],
)
def test_guesses_bound_epsilon_as_another_library_finds(
    canaries: int, guesses: int, correct: int, delta: float, by_jax_privacy: float
) -> None:
    found = epsilon_from_guesses(correct, guesses, canaries, delta=delta, confidence=SURE)
    assert found == pytest.approx(by_jax_privacy, abs=2e-5)


@pytest.mark.parametrize(
    ("canaries", "guesses", "correct", "by_jax_privacy"),
    [
        (1000, 1000, 680, 1.2062752),
        (1000, 200, 170, 2.2406909),
        (1000, 100, 100, 5.5490280),
        (200, 200, 150, 1.7348014),
        (1000, 1000, 500, 0.0),
    ],
)
def test_guesses_bound_mu_as_another_library_finds(
    canaries: int, guesses: int, correct: int, by_jax_privacy: float
) -> None:
    mu = mu_from_guesses(correct, guesses, canaries, confidence=SURE)
    assert epsilon_of_mu(mu, DELTA) == pytest.approx(by_jax_privacy, abs=1e-3)
    if mu:
        assert refutes_mu(correct, guesses, canaries, 0.999 * mu, confidence=SURE)
        assert not refutes_mu(correct, guesses, canaries, 1.001 * mu, confidence=SURE)


def test_pure_epsilon_is_refuted_at_exactly_the_binomial_tail() -> None:
    """With δ = 0, randomised response meets the bound: the p-value is its chance, summed here over every outcome of 8 coins."""
    epsilon, right = 1.1, 1 / (1 + math.exp(-1.1))
    for correct in range(9):
        chance = sum(
            right ** sum(outcome) * (1 - right) ** (8 - sum(outcome))
            for outcome in product((0, 1), repeat=8)
            if sum(outcome) >= correct
        )
        at, below = (
            epsilon_from_guesses(correct, 8, 8, delta=0.0, confidence=1 - chance * factor)
            for factor in (1.001, 0.999)
        )
        assert (at > epsilon) or correct == 0
        assert below < epsilon


def leaking_all(mu: float, canaries: int, generator: np.random.Generator) -> Scores:
    """A mechanism that is μ-GDP for each canary by itself, and leaks all of them together in 1 of 20 runs.

    It answers by randomised response at ε = 2 with probability 0.05, and says nothing else: its trade-off lies above that of μ = 0.92 everywhere.
    """
    included = generator.integers(0, 2, canaries).astype(bool)
    values = generator.standard_normal(canaries)
    if generator.random() < 0.05:
        values += 10.0 * np.where(generator.random(canaries) < special.expit(2.0), included, ~included)
    return Scores(values=values, included=included)


def test_the_leak_of_all_canaries_together_is_as_private_for_each_as_gaussian_noise() -> None:
    for epsilon in np.linspace(0.0, 2.0, 41):
        leaks = 0.05 * (math.exp(2.0) - math.exp(epsilon)) / (1 + math.exp(2.0))
        allowed = special.ndtr(0.46 - epsilon / 0.92) - math.exp(epsilon) * special.ndtr(
            -0.46 - epsilon / 0.92
        )
        assert leaks <= allowed


def test_one_run_bounds_hold_where_canaries_leak_together_and_the_others_do_not() -> None:
    """What "independent" is about: half of those leaks (2.5% of the runs and more) would be taken for a refutation."""
    wrong = dict.fromkeys(ESTIMATORS, 0)
    generator = np.random.default_rng(5)
    for _ in range(40):
        while True:  # only the runs that leak
            scores = leaking_all(0.92, 300, generator)
            if np.abs(scores.values).max() > 6:
                break
        for name, kind in ESTIMATORS.items():
            bound = kind.taking(kind.shares[0]).bound(scores, delta=DELTA, confidence=0.96)
            wrong[name] += bound > epsilon_of_mu(0.92, DELTA)
    assert wrong["one-run"] == wrong["one-run f-dp"] == 0
    assert wrong["gaussian-dp"] == wrong["location"] == 40
    assert not ESTIMATORS["one-run"].independent
    assert ESTIMATORS["gaussian-dp"].independent
    assert ESTIMATORS["location"].independent


# ------------------------------------------------------------------ Gaussian


@pytest.mark.parametrize("mu", [0.2, 0.92, 3.0])
def test_epsilon_of_mu_is_that_of_quadrature(mu: float) -> None:
    x = np.linspace(-12, 16, 400_001)
    epsilon = epsilon_of_mu(mu, 1e-4)
    excess = np.maximum(stats.norm.pdf(x, mu) - math.exp(epsilon) * stats.norm.pdf(x), 0.0)
    assert float(integrate.simpson(excess, x=x)) == pytest.approx(1e-4, rel=1e-3)
    assert mu_of_epsilon(epsilon, 1e-4) == pytest.approx(mu, rel=1e-4)


@pytest.mark.parametrize(
    ("canaries", "correct", "by_opake"), [(1000, 680, 0.73753), (1000, 760, 1.20964), (200, 150, 0.89470)]
)
def test_the_exact_tail_is_a_little_above_chernoffs(canaries: int, correct: int, by_opake: float) -> None:
    found = mu_from_correct(correct, canaries, SURE)
    assert by_opake < found < by_opake + 0.15
    assert stats.binom.sf(correct - 1, canaries, stats.norm.cdf(found / 2)) == pytest.approx(0.05, rel=1e-6)


def test_location_bound_solves_the_noncentral_t() -> None:
    scores = gaussian(0.8, 120, np.random.default_rng(1))
    bound = mu_from_location(scores, SURE)
    inside, outside = scores.values[scores.included], scores.values[~scores.included]
    t = stats.ttest_ind(inside, outside).statistic
    size = math.sqrt(len(inside) * len(outside) / 120)
    solved = optimize.brentq(lambda nc: stats.nct.cdf(t, 118, nc) - SURE, 0, 20)
    assert bound == pytest.approx(solved / size, rel=1e-6)


# ------------------------------------------------------------------ rates


def test_rates_bound_epsilon_by_exact_tails() -> None:
    counts = Counts(hits=40, false_alarms=3, inside=500, outside=500)
    found = epsilon_from_rates(counts, delta=1e-5, confidence=SURE)
    low = optimize.brentq(lambda p: stats.binom.sf(39, 500, p) - 0.025, 1e-6, 0.5)
    high = optimize.brentq(lambda p: stats.binom.cdf(3, 500, p) - 0.025, 1e-6, 0.5)
    assert high == pytest.approx(0.01743367, rel=1e-5)  # by jax-privacy
    assert found == pytest.approx(math.log((low - 1e-5) / high), rel=1e-9)


# ------------------------------------------------------------------ how often they are wrong


@pytest.mark.slow
@pytest.mark.parametrize("name", list(ESTIMATORS))
@pytest.mark.parametrize("mu", [0.27, 0.92])
def test_a_true_epsilon_is_below_its_bound_in_at_most_1_of_20_runs(name: str, mu: float) -> None:
    """400 runs of Gaussian noise: 20 are expected where the bound is exact; above 34 has a chance of 0.001."""
    generator, truth, kind = np.random.default_rng(7), epsilon_of_mu(mu, DELTA), ESTIMATORS[name]
    for share in (kind.shares[0], kind.shares[-1]):
        estimator = kind.taking(share)
        wrong = sum(
            estimator.bound(gaussian(mu, 200, generator), delta=DELTA, confidence=SURE) > truth
            for _ in range(400)
        )
        assert wrong <= 34
        if name == "location":
            assert wrong >= 8  # and it is exact


def test_a_threshold_picked_on_the_answer_would_be_wrong_much_more_often() -> None:
    generator, wrong = np.random.default_rng(3), 0
    truth = 0.92
    for _ in range(200):
        scores = gaussian(truth, 200, generator)
        best = max(
            int((scores.included == (scores.values >= threshold)).sum()) for threshold in scores.values
        )
        wrong += mu_from_correct(best, 200, SURE) > truth
    assert wrong > 20  # 10 would be right


# ------------------------------------------------------------------ edges


def test_edges() -> None:
    nobody = Scores(values=np.arange(10.0), included=np.zeros(10, bool))
    for kind in ESTIMATORS.values():
        assert kind.taking(kind.shares[0]).bound(nobody, delta=DELTA, confidence=SURE) == 0.0
    parted = Scores(values=np.repeat([0.0, 1.0], 50), included=np.repeat([False, True], 50))
    found = {
        name: kind.taking(1.0 if name != "rates" else 0.5).bound(parted, delta=DELTA, confidence=SURE)
        for name, kind in ESTIMATORS.items()
    }
    assert found["location"] > 1000
    assert found["one-run"] == pytest.approx(
        -math.log(0.05 ** (-1 / 100) - 1), abs=0.02
    )  # the most that 100 can show
    assert all(math.isfinite(bound) for bound in found.values())
    with pytest.raises(DataError, match="not finite"):
        Scores(values=np.array([1.0, math.nan]), included=np.array([True, False]))
    with pytest.raises(ValueError, match="right of"):
        epsilon_from_guesses(5, 4, 10, delta=DELTA, confidence=SURE)


def test_guesses_are_by_rank_alone() -> None:
    scores = Scores(
        values=np.array([5.0, -3.0, 2.0, 0.0, 9.0, 1.0]),
        included=np.array([True, False, False, False, True, True]),
    )
    assert guessed(scores, 6) == 4  # in: 9, 5, 2; out: 1, 0, -3
    assert guessed(scores, 3) == 3  # in: 9, 5; out: -3
    assert accused(scores, 3) == Counts(hits=2, false_alarms=1, inside=3, outside=3)
    stretched = Scores(values=np.exp(scores.values), included=scores.included)
    assert guessed(stretched, 6) == 4
