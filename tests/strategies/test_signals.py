"""Signals of a round and their sums over rounds: right by the slow loop, silent where nobody lies, and told of who lies, in a few rounds."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest

from cloister.strategies.robust import Pipeline
from cloister.strategies.robust.rows import BLOCK_BYTES
from cloister.strategies.signals import (
    FEWEST,
    SIGNALS,
    Alert,
    Cusum,
    RowSignals,
    cosine,
    deviations,
    drift,
    row_signals,
    tail_share,
)

Rows = npt.NDArray[np.float64]


class TestOfARound:
    @pytest.mark.parametrize(("n", "dim"), [(1, 3), (5, 40), (7, BLOCK_BYTES // 8 // 7 + 11)])
    def test_they_are_those_of_the_slow_loop(self, n: int, dim: int) -> None:
        rows = np.random.default_rng(n).standard_normal((n, dim)).astype(np.float32)
        rows[:, 1] = 0
        found = row_signals(list(rows))
        point = np.median(rows.astype(np.float64), axis=0)
        for place, row in enumerate(rows.astype(np.float64)):
            assert found.norm[place] == pytest.approx(math.sqrt(sum(row**2)))
            assert found.cosine[place] == pytest.approx(
                row @ point / np.linalg.norm(row) / np.linalg.norm(point)
            )
            assert found.agreement is not None
            both = (row != 0) & (point != 0)
            assert found.agreement[place] == pytest.approx(
                np.mean(np.sign(row[both]) == np.sign(point[both]))
            )

    def test_rows_of_zeros_have_signals_of_zero(self) -> None:
        found = row_signals(np.zeros((5, 4)))
        assert not found.norm.any()
        assert not found.cosine.any()
        assert found.agreement is not None
        assert not found.agreement.any()
        assert not deviations(found).any()

    def test_fewer_than_the_fewest_stand_out_in_nothing(self) -> None:
        rows = np.array([[1.0, 1], [1, 1.1], [-90, -90]])
        assert len(rows) < FEWEST
        assert not deviations(row_signals(rows)).any()

    def test_a_deviation_is_in_units_of_the_scaled_median_absolute_one(self) -> None:
        cosines = np.array([0.1, 0.2, 0.3, 0.4, 0.9])
        z = deviations(RowSignals(np.ones(5), cosines, None))
        assert z[:, 1] == pytest.approx((cosines - 0.3) / (1.4826 * 0.1))
        assert not z[:, 0].any()
        assert not z[:, 2].any()

    def test_a_direction_s_share_in_the_last_layer_and_cosines_of_nothing(self) -> None:
        assert tail_share(np.array([3.0, 0, 4.0]), 1) == pytest.approx(0.8)
        assert tail_share(np.zeros(3), 1) == 0
        assert cosine(np.array([1.0, 2]), np.array([-2.0, -4])) == pytest.approx(-1)
        assert cosine(np.zeros(2), np.ones(2)) == 0


class TestShares:
    """What a pipeline says of the weight of each row."""

    ROWS = np.random.default_rng(3).standard_normal((9, 30))

    @pytest.mark.parametrize(
        "rule", ["krum", "multi-krum", "geometric-median", "arc | krum", "nnm | multi-krum"]
    )
    def test_of_a_linear_rule_are_the_direction(self, rule: str) -> None:
        joined = Pipeline.parse(rule).joined(self.ROWS, f=2)
        assert joined.shares @ self.ROWS == pytest.approx(joined.direction)
        assert np.array_equal(joined.direction, Pipeline.parse(rule).aggregate(self.ROWS, f=2))

    def test_of_mixing_are_low_for_a_row_that_is_nobody_s_neighbour(self) -> None:
        rows = self.ROWS.copy()
        rows[4] += 50
        shares = Pipeline.parse("arc | nnm | trimmed-mean").joined(rows, f=2).shares
        assert int(np.argmin(shares)) == 4
        assert 9 * shares[4] < 0.5
        assert Pipeline.parse("trimmed-mean").joined(rows, f=2).shares == pytest.approx(np.full(9, 1 / 9))


Lie = Callable[[Rows, Rows], Rows]


def flip(own: Rows, honest: Rows) -> Rows:
    return -own


def alie(own: Rows, honest: Rows) -> Rows:
    found: Rows = np.repeat((honest.mean(axis=0) - 0.6 * honest.std(axis=0))[None], len(own), axis=0)
    return found


def scaled(own: Rows, honest: Rows) -> Rows:
    return 20 * own


def watched(
    *,
    seed: int,
    n: int = 24,
    rounds: int = 12,
    liars: int = 0,
    lie: Lie | None = None,
    own: float = 0.5,
    noise: float = 1.0,
    group: int = 1,
) -> list[tuple[int, Alert]]:
    """Rounds of rows about a common mean: each site differs from it for good (``own``), and anew in each round (``noise``)."""
    draw, dim = np.random.default_rng(seed), 400
    mean, sites = 0.6 * draw.standard_normal(dim), own * draw.standard_normal((n, dim))
    cusum, found = Cusum.start(), []
    for number in range(1, rounds + 1):
        rows = mean + sites + noise * draw.standard_normal((n, dim))
        if lie is not None:
            rows[:liars] = lie(rows[:liars], rows[liars:])
        rows = rows.reshape(-1, group, dim).mean(axis=1)
        cusum, alerts = cusum.after([f"site-{place}" for place in range(len(rows))], row_signals(rows))
        found += [(number, alert) for alert in alerts]
    return found


class TestOverRounds:
    @pytest.mark.parametrize(("own", "noise"), [(0.5, 1.0), (1.0, 0.1), (0.0, 1.0)])
    @pytest.mark.parametrize("n", [5, 8, 24])
    def test_where_nobody_lies_nobody_stands_out(self, n: int, own: float, noise: float) -> None:
        """Ten seeds: stated chance of a false alert 1e-3 a run, so 1e-2 of this."""
        assert not [found for seed in range(10) if (found := watched(seed=seed, n=n, own=own, noise=noise))]

    @pytest.mark.parametrize(
        ("lie", "signal"),
        [(flip, "cosine"), (alie, "cosine"), (scaled, "norm")],
        ids=["flip", "alie", "scaled"],
    )
    def test_who_lies_stands_out_within_six_rounds_and_nobody_else(self, lie: Lie, signal: str) -> None:
        for seed in range(5):
            found = watched(seed=seed, liars=5, lie=lie, rounds=6)
            assert {alert.who for _, alert in found} == {f"site-{place}" for place in range(5)}
            assert {alert.who for _, alert in found if alert.signal == signal} == {
                f"site-{place}" for place in range(5)
            }

    def test_one_round_is_never_enough(self) -> None:
        assert min(number for number, _ in watched(seed=1, liars=5, lie=scaled)) == 3

    def test_a_group_with_a_liar_that_turns_its_update_round_stands_out(self) -> None:
        for seed in range(5):
            found = watched(seed=seed, liars=1, lie=flip, group=3)
            assert {alert.who for _, alert in found} == {"site-0"}

    def test_each_row_and_signal_alerts_once_and_what_is_not_there_keeps_its_sum(self) -> None:
        names = [f"site-{place}" for place in range(6)]
        odd = RowSignals(np.ones(6), np.array([0.5, 0.5, 0.5, 0.5, 0.5, -1]), None)
        cusum = Cusum.start()
        told: list[Alert] = []
        for _ in range(8):
            cusum, alerts = cusum.after(names, odd)
            told += alerts
        assert [(alert.who, alert.signal, alert.value, alert.middle) for alert in told] == [
            ("site-5", "cosine", -1.0, 0.5)
        ]
        kept = cusum.sums["site-5"]
        cusum, _ = cusum.after(names[:5], RowSignals(np.ones(5), np.full(5, 0.5), None))
        assert cusum.sums["site-5"] == kept
        assert kept[SIGNALS.index("cosine")] == pytest.approx(8 * drift(6))  # 2k - k a round

    def test_what_stands_out_no_more_is_forgotten(self) -> None:
        names = [f"site-{place}" for place in range(6)]
        odd = RowSignals(np.ones(6), np.array([0.5, 0.5, 0.5, 0.5, 0.5, -1]), None)
        even = RowSignals(np.ones(6), np.full(6, 0.5), None)
        cusum, _ = Cusum.start().after(names, odd)
        assert cusum.sums["site-5"][1] > 0
        cusum, _ = cusum.after(names, even)
        assert cusum.sums["site-5"][1] == 0
