"""The numbers of the graph: what they bound, and that a site accepts no worse ones."""

from __future__ import annotations

import math
import tracemalloc
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cloister.core.errors import PolicyError, SpecError
from cloister.privacy.masking import parameters, quorum
from cloister.privacy.masking.graph import neighbours
from cloister.privacy.masking.parameters import check_graph, security_bits, tail
from cloister.privacy.masking.rehearsal import Stage


class TestParameters:
    def test_are_those_that_are_documented(self) -> None:
        assert parameters(100) == (31, 21)
        assert parameters(100, corrupt=0.2) == (41, 31)
        assert parameters(1000) == (95, 66)

    @pytest.mark.parametrize("n", range(3, 51))
    def test_up_to_fifty_sites_all_are_neighbours_and_two_contradictory_majorities_cannot_be(
        self, n: int
    ) -> None:
        degree, threshold = parameters(n)
        assert (degree, threshold) == (n - 1, 2 * n // 3 + 1)
        for corrupt in range(math.ceil(n / 3)):
            assert 2 * threshold > n + corrupt
        assert threshold <= n

    @pytest.mark.parametrize(
        ("n", "corrupt", "dropout"), [(100, 0.1, 0.1), (100, 0.2, 0.1), (300, 0.1, 0.2), (1000, 0.1, 0.1)]
    )
    def test_both_failures_are_as_rare_as_promised_and_no_smaller_degree_does(
        self, n: int, corrupt: float, dropout: float
    ) -> None:
        def fine(k: int, t: int) -> bool:
            bad = stats.hypergeom(n - 1, round(corrupt * n), k).sf(2 * t - k - 1)
            gone = stats.hypergeom(n - 1, round(dropout * n), k).sf(k - t)
            return bool(n * bad <= 2.0**-40 and n * gone <= 2.0**-20)

        degree, threshold = parameters(n, corrupt=corrupt, dropout=dropout)
        assert fine(degree, threshold)
        assert not fine(degree, threshold - 1)
        assert not any(fine(degree - 1, t) for t in range(degree // 2, degree))

    @pytest.mark.parametrize(
        ("n", "corrupt", "dropout"), [(2, 0.1, 0.1), (10, 0.34, 0.1), (10, -0.1, 0.1), (60, 0.3, 0.6)]
    )
    def test_what_cannot_be_safe_is_refused(self, n: int, corrupt: float, dropout: float) -> None:
        with pytest.raises(SpecError) as refusal:
            parameters(n, corrupt=corrupt, dropout=dropout)
        assert refusal.value.code == "masking-parameters"

    @pytest.mark.parametrize(
        ("population", "marked", "drawn"), [(99, 10, 31), (999, 100, 95), (20, 20, 5), (20, 0, 5)]
    )
    def test_the_tail_is_the_hypergeometric_one(self, population: int, marked: int, drawn: int) -> None:
        for least in range(drawn + 2):
            expected = stats.hypergeom(population, marked, drawn).sf(least - 1)
            assert tail(population, marked, drawn, least) == pytest.approx(expected, rel=1e-8, abs=1e-300)


class TestQuorum:
    @pytest.mark.parametrize(("n", "corrupt"), [(3, 2), (4, 1), (10, 3), (50, 17), (100, 31), (1000, 374)])
    def test_two_quorums_share_an_honest_site_with_so_many_corrupt_ones(
        self, n: int, corrupt: int, stage: Stage
    ) -> None:
        degree, threshold = parameters(n)
        manifest = stage.manifest(4, cohort_size=n, degree=degree, threshold=threshold)
        least = quorum(manifest)
        assert least >= threshold
        assert 2 * least > n + corrupt


class TestCheckGraph:
    @pytest.mark.parametrize("n", [3, 4, 5, 9, 50, 51, 60, 100, 200, 400])
    def test_accepts_its_own_parameters(self, n: int, stage: Stage) -> None:
        degree, threshold = parameters(n)
        check_graph(stage.manifest(4, cohort_size=n, degree=degree, threshold=threshold))

    @pytest.mark.parametrize(
        "numbers",
        [
            {"cohort_size": 4, "degree": 3, "threshold": 2},
            {"cohort_size": 5, "degree": 4, "threshold": 3},  # a majority, but not with one corrupt site
            {"cohort_size": 20, "degree": 19, "threshold": 11},
            {"cohort_size": 100, "degree": 3, "threshold": 3},
            {"cohort_size": 100, "degree": 31, "threshold": 18},
            {"cohort_size": 1000, "degree": 60, "threshold": 42},
        ],
    )
    def test_refuses_numbers_that_are_not_safe_with_a_tenth_of_the_cohort_corrupt(
        self, numbers: dict[str, Any], stage: Stage
    ) -> None:
        with pytest.raises(PolicyError) as refusal:
            check_graph(stage.manifest(4, **numbers))
        assert refusal.value.code == "masking-graph"

    @pytest.mark.parametrize(
        ("n", "degree", "threshold"),
        [
            (65_536, 60_000, 45_000),  # passes every other check, and costs 200 GiB and more
            (4_097, 200, 150),
            (1_000, 191, 140),
            (100, 63, 50),
            (60, 58, 45),
            (201, 200, 150),
            (4_096, 4_095, 3_000),
            (1 << 20, (1 << 20) - 1, 800_000),
        ],
    )
    def test_refuses_a_graph_that_costs_a_site_its_memory(
        self, n: int, degree: int, threshold: int, stage: Stage
    ) -> None:
        numbers = {"cohort_size": n, "degree": degree, "threshold": threshold, "largest": 1}
        tracemalloc.start()
        with pytest.raises(PolicyError, match="computes none of more than") as refusal:
            check_graph(stage.manifest(4, **numbers))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert refusal.value.code == "masking-graph"
        assert peak < 1 << 20

    @pytest.mark.parametrize(
        ("n", "degree", "threshold"), [(1_000, 190, 140), (100, 62, 46), (200, 199, 134), (4_096, 150, 110)]
    )
    def test_accepts_a_graph_up_to_the_bounds(
        self, n: int, degree: int, threshold: int, stage: Stage
    ) -> None:
        numbers = {"cohort_size": n, "degree": degree, "threshold": threshold, "largest": 1}
        check_graph(stage.manifest(4, **numbers))

    def test_one_threshold_more_is_one_threshold_safer(self) -> None:
        bits = [security_bits(1000, 95, t, corrupt=0.1) for t in range(60, 80)]
        assert bits == sorted(bits)


class TestGraph:
    @pytest.mark.parametrize(
        ("count", "degree"), [(60, 19), (60, 20), (61, 19), (61, 20), (101, 31), (7, 3), (8, 3), (6, 4)]
    )
    def test_neighbours_are_mutual_distinct_and_as_many_as_the_degree(self, count: int, degree: int) -> None:
        present = range(5, 5 + count)
        graph = neighbours(present, degree, b"x" * 32)
        assert sorted(graph) == list(present)
        for one, beside in graph.items():
            assert one not in beside
            assert list(beside) == sorted(set(beside))
            assert all(one in graph[other] for other in beside)
        degrees = sorted(len(beside) for beside in graph.values())
        more = degree % 2 and count % 2
        assert degrees == [degree] * (count - more) + [degree + 1] * more

    @pytest.mark.parametrize("degree", [5, 6, 100])
    def test_all_others_where_there_are_no_more(self, degree: int) -> None:
        assert neighbours([1, 3, 4, 7, 8, 9], degree, b"x" * 32)[4] == (1, 3, 7, 8, 9)

    def test_depends_on_the_roster_only(self) -> None:
        first, again, other = (
            neighbours(range(60), 19, roster) for roster in (b"a" * 32, b"a" * 32, b"b" * 32)
        )
        assert first == again
        assert first != other

    def test_a_sites_neighbours_are_drawn_evenly(self) -> None:
        """Over 400 graphs each of the others is a neighbour of site 0 about as often: chi-square, two-sided, fixed seeds."""
        found = np.zeros(60)
        for seed in range(400):
            found[list(ring_neighbours(seed))] += 1
        expected = 400 * 19 / 59
        # Neighbours are drawn without replacement, so the statistic is (59 - 19) / 58 times a chi-square of 58 degrees of freedom.
        statistic = float(((found[1:] - expected) ** 2 / expected).sum()) * 58 / 40
        assert 1e-4 < stats.chi2(58).cdf(statistic) < 1 - 1e-4
        assert found[0] == 0


def ring_neighbours(seed: int) -> tuple[int, ...]:
    """As `neighbours`, without the 50 ms that a try costs."""
    from cloister.privacy.masking import graph

    stretched = graph._stretched
    try:
        graph._stretched = lambda roster: roster  # type: ignore[assignment]
        return neighbours(range(60), 19, seed.to_bytes(32))[0]
    finally:
        graph._stretched = stretched
