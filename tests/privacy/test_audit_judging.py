"""Sealed coins, power that is computed beforehand, and the verdict."""

import math

import numpy as np
import pytest

from cloister.core.errors import IntegrityError, SpecError, UsageError
from cloister.core.randomness import SeededRandomness, SystemRandomness
from cloister.privacy.audit.claims import Claim
from cloister.privacy.audit.coins import Coins, opened
from cloister.privacy.audit.judging import judge
from cloister.privacy.audit.power import Canaries, decisive, prepare
from cloister.privacy.calibration import noise_multiplier_for
from cloister.privacy.events import Gaussian, Laplace, PoissonGaussian, SeveralRecords, Skellam

SURE = 0.95


def claim(epsilon: float, *, rate: float = 1.0, steps: int = 4) -> Claim:
    def event(sigma: float) -> PoissonGaussian:
        return PoissonGaussian(noise_multiplier=sigma, sampling_rate=rate, steps=steps)

    return Claim.of(event(noise_multiplier_for(epsilon, 1e-5, event)), epsilon=epsilon, delta=1e-5)


# ------------------------------------------------------------------ coins


def test_the_seal_opens_with_its_own_coins_only() -> None:
    coins = Coins.draw(1000, SeededRandomness(3))
    again = opened(coins.seal, coins.opening())
    assert np.array_equal(again.included, coins.included)
    assert 400 < coins.included.sum() < 600
    flipped = coins.included.copy()
    flipped[7] ^= True
    for wrong in (
        Coins(included=flipped, salt=coins.salt).opening(),
        Coins(included=coins.included, salt=bytes(16)).opening(),
        Coins(included=coins.included[:-1], salt=coins.salt).opening(),
        coins.opening() | {"coins": str(coins.opening()["coins"]) + "00"},
        coins.opening() | {"canaries": -1},
        {},
    ):
        with pytest.raises(IntegrityError, match="sealed"):
            opened(coins.seal, wrong)


def test_coins_are_the_systems_in_a_deployment_and_the_seeds_in_a_simulation() -> None:
    assert Coins.draw(64, SystemRandomness()).seal != Coins.draw(64, SystemRandomness()).seal
    assert Coins.draw(64, SeededRandomness(1)).seal == Coins.draw(64, SeededRandomness(1)).seal
    assert Coins.draw(64, SeededRandomness(1)).salt != Coins.draw(64, SeededRandomness(2)).salt
    with pytest.raises(UsageError, match="0 canaries"):
        Coins.draw(0, SystemRandomness())


# ------------------------------------------------------------------ claims


@pytest.mark.slow
def test_scores_of_a_claim_are_what_its_steps_release() -> None:
    """Against the mechanism itself, step by step, on 4000 canaries: two-sided, false alarms below 0.001."""
    sampled = claim(4.0, rate=0.25, steps=40)
    scores = sampled.scores(4000, np.random.default_rng(1))
    generator, sigma = np.random.default_rng(2), sampled.noise_multiplier
    released = np.zeros(4000)
    included = np.arange(4000) < 2000
    for _ in range(40):
        released += (generator.random(4000) < 0.25) * included + sigma * generator.standard_normal(4000)
    released /= sigma * math.sqrt(40)
    for inside in (True, False):
        found, expected = scores.values[scores.included == inside], released[included == inside]
        assert abs(found.mean() - expected.mean()) < 4 * expected.std() / math.sqrt(1000)
        assert found.std() == pytest.approx(expected.std(), rel=0.07)


def test_less_noise_costs_what_the_accountant_says() -> None:
    one = Claim.of(Gaussian(noise_multiplier=2.0, count=4), epsilon=5.0, delta=1e-5)
    assert one.epsilon_at(0.5) == pytest.approx(
        Claim.of(Gaussian(noise_multiplier=1.0, count=4), epsilon=5.0, delta=1e-5).epsilon_at(1.0)
    )
    skellam = Claim.of(Skellam(variance=4e6, l2=1000.0, l1=3000.0), epsilon=3.0, delta=1e-5)
    assert skellam.noise_multiplier == 2.0
    assert skellam.epsilon_at(0.5) > skellam.epsilon_at(1.0)
    person = SeveralRecords(records=3, event=PoissonGaussian(noise_multiplier=1.0, sampling_rate=0.5))
    assert Claim.of(person, epsilon=1.0, delta=1e-5).sampling_rate == 0.5
    for event, epsilon in ((Laplace(noise_multiplier=1.0), 1.0), (Gaussian(noise_multiplier=1.0), math.inf)):
        with pytest.raises(SpecError, match="cannot be audited"):
            Claim.of(event, epsilon=epsilon, delta=1e-5)


# ------------------------------------------------------------------ power and verdict


@pytest.mark.slow
def test_the_most_powerful_estimator_whose_assumptions_hold_decides() -> None:
    found = prepare(claim(4.0), 1000, confidence=SURE, kinds=Canaries())
    assert decisive(found).estimator.kind.name == "location"
    reach = {one.estimator.kind.name: one.reach for one in found}
    assert reach["one-run"] < reach["one-run f-dp"] < reach["gaussian-dp"] < reach["location"] < 4.0
    tied = prepare(claim(4.0), 1000, confidence=SURE, kinds=Canaries(independent=False))
    assert decisive(tied).estimator.kind.name == "one-run f-dp"
    assert [one.holds for one in tied] == [True, True, False, False, False]
    bounds = judge(
        claim(4.0), tied, claim(4.0).scores(1000, np.random.default_rng(1)), confidence=SURE
    ).bounds
    assert [bound is None for _, bound in bounds] == [False, False, True, True, True]


@pytest.mark.slow
def test_what_could_be_refuted_is_refuted_nine_times_in_ten() -> None:
    """By draws that the preparation did not see: 200 audits, 180 expected, below 165 or above 194 with a chance of 0.001."""
    made = claim(4.0)
    chosen = decisive(prepare(made, 500, confidence=SURE, kinds=Canaries()))
    low, high = 0.01, 1.0
    while high - low > 1e-4:  # the noise at which the mechanism costs just that
        noise = (low + high) / 2
        low, high = (noise, high) if made.epsilon_at(noise) > chosen.refutable else (low, noise)
    generator = np.random.default_rng(11)
    refuted = sum(
        chosen.estimator.bound(made.scores(500, generator, noise=low), delta=1e-5, confidence=SURE) > 4.0
        for _ in range(200)
    )
    assert 165 <= refuted <= 194


@pytest.mark.parametrize(
    ("epsilon", "noise", "verdict"),
    [(4.0, 1.0, "consistent"), (4.0, 0.5, "refuted"), (1.0, 1.0, "no power"), (1.0, 0.25, "refuted")],
)
def test_verdicts(epsilon: float, noise: float, verdict: str) -> None:
    made = claim(epsilon)
    prepared = prepare(made, 1000, confidence=SURE, kinds=Canaries())
    found = judge(made, prepared, made.scores(1000, np.random.default_rng(4), noise=noise), confidence=SURE)
    assert found.verdict == verdict
    told = found.as_dict()
    assert told["decided_by"] == "location"
    assert told["lower_bound"] == found.lower_bound
    assert "passed" not in found.reason
    if verdict == "no power":
        assert "could have refuted the claim of 1 only above an epsilon of 1.8" in found.reason
    if verdict == "consistent":
        assert 3.0 < found.lower_bound < 4.0
