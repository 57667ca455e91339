"""Membership inference as pure functions: each attack on models whose answer is known, rates against counts by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy import stats

from cloister.core.randomness import SeededRandomness
from cloister.privacy.audit.membership import (
    area,
    confidence,
    curve,
    halves,
    lira_scores,
    most_allowed,
    rate_at,
    rmia_scores,
    share_interval,
)


def leaky(
    records: int, shadows: int, effect: float, seed: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Records of very different difficulty, each a known step surer under a model that saw it."""
    rng = np.random.default_rng(seed)
    hard = rng.normal(0, 5, records)
    member = halves([records], shadows + 2, SeededRandomness(seed))
    values = hard + effect * member + rng.normal(0, 1, member.shape)
    return values[0], values[2:], member[2:], member[0]


class TestAttacks:
    def test_lira_finds_what_the_theory_says_where_the_loss_finds_nothing(self) -> None:
        target, shadows, member, truth = leaky(8_000, 64, effect=2.0, seed=1)
        found = rate_at(lira_scores(target, shadows, member), truth, 0.01)
        # A Gaussian shifted by two deviations: Φ(2 - 2.326) at 1% false alarms, less what 64 shadows miss.
        expected = stats.norm.cdf(2 - stats.norm.ppf(0.99))
        assert expected - 0.05 < found.share < expected + 0.02
        assert rate_at(target, truth, 0.01).share < 0.03
        assert rate_at(rmia_scores(target, shadows, member), truth, 0.01).share > 0.15
        assert rate_at(lira_scores(target, shadows, member, online=False), truth, 0.01).share > 0.25

    @pytest.mark.parametrize("online", [True, False])
    def test_no_attack_finds_members_where_training_leaves_no_trace(self, online: bool) -> None:
        target, shadows, member, truth = leaky(10_000, 24, effect=0.0, seed=2)
        for scores in (
            lira_scores(target, shadows, member, online=online),
            rmia_scores(target, shadows, member),
        ):
            found = rate_at(scores, truth, 0.01)
            assert (
                0.004 < found.share < 0.018
            )  # 5 000 members at 1%: a deviation of 0.0014, and the threshold's own
            assert abs(area(scores, truth) - 0.5) < 0.015

    def test_the_order_of_rmia_does_not_depend_on_the_reference(self) -> None:
        target, shadows, member, _ = leaky(300, 8, effect=1.0, seed=3)
        whole = rmia_scores(target, shadows, member)
        some = rmia_scores(target, shadows, member, reference=np.arange(300) % 2 == 0)
        assert stats.spearmanr(whole, some).statistic > 0.999

    def test_a_record_without_a_shadow_on_one_side_is_refused(self) -> None:
        target, shadows, member, _ = leaky(50, 8, effect=1.0, seed=4)
        with pytest.raises(ValueError, match="without it"):
            lira_scores(target, shadows, np.ones_like(member))
        with pytest.raises(ValueError, match="with it"):
            lira_scores(target, shadows, np.zeros_like(member))
        with pytest.raises(ValueError, match="finite"):
            lira_scores(target * np.nan, shadows, member)

    def test_confidence_is_the_logit_of_the_labels_probability_and_does_not_saturate(self) -> None:
        scores = torch.tensor([[1.0, 2.0, 0.5], [200.0, 0.0, 0.0]])
        p = scores[0].double().softmax(0)[1]
        found = confidence(scores, torch.tensor([1, 0]))
        assert found[0] == pytest.approx(float(torch.log(p / (1 - p))))
        assert found[1] == 50.0  # cut, and no infinity


class TestRates:
    def test_ties_count_against_the_attack(self) -> None:
        member = np.array([True] * 50 + [False] * 100)
        assert rate_at(np.zeros(150), member, 0.01).found == 0

    def test_rate_and_interval_by_hand(self) -> None:
        scores = np.concatenate([np.arange(100.0) + 150.5, np.arange(200.0)])
        member = np.arange(300) < 100
        found = rate_at(scores, member, 0.01)  # two of 200 may pass: the threshold is 197
        assert (found.alarms, found.found) == (2, 53)
        assert (found.low, found.high) == pytest.approx(
            stats.binomtest(53, 100).proportion_ci(method="exact")
        )
        assert share_interval(0, 10)[0] == 0.0

    def test_fewer_others_than_the_rate_allow_no_false_alarm(self) -> None:
        member = np.arange(60) < 10
        found = rate_at(np.random.default_rng(0).normal(size=60), member, 0.001)
        assert found.alarms == 0

    def test_area_is_the_chance_that_a_member_scores_higher(self) -> None:
        rng = np.random.default_rng(5)
        scores, member = rng.integers(0, 6, 80).astype(float), rng.random(80) < 0.4
        pairs = scores[member][:, None] - scores[~member][None]
        assert area(scores, member) == pytest.approx(((pairs > 0) + 0.5 * (pairs == 0)).mean())

    def test_the_curve_goes_through_the_rates(self) -> None:
        rng = np.random.default_rng(6)
        member = rng.random(2000) < 0.5
        scores = rng.normal(size=2000) + member
        alarms, found = curve(scores, member)
        for place in (0, 40, len(alarms) - 1):
            assert found[place] == pytest.approx(rate_at(scores, member, alarms[place]).share)

    def test_the_promise_bounds_any_attack(self) -> None:
        # Randomised response with ε = 1 is the best that an attack can face: e^ε/(1+e^ε) at 1/(1+e^ε).
        at = 1 / (1 + np.e)
        assert most_allowed(at, 1.0, 0.0) == pytest.approx(np.e / (1 + np.e))
        assert most_allowed(0.01, 0.0, 0.0) == pytest.approx(0.01)
        assert most_allowed(0.01, 2000.0, 0.0) == 1.0


class TestDesign:
    def test_every_record_is_in_half_of_the_shadows_and_in_one_of_each_pair(self) -> None:
        member = halves([11, 6], 8, SeededRandomness(0))
        assert (member.sum(0) == 4).all()
        assert (member[::2] ^ member[1::2]).all()
        assert set(member[:, :11].sum(1)) == {5, 6}
        assert (member[:, 11:].sum(1) == 3).all()
        assert not (member[0] == member[2]).all()

    def test_an_odd_number_is_refused(self) -> None:
        with pytest.raises(ValueError, match="pairs"):
            halves([10], 7, SeededRandomness(0))
