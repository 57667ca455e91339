"""Robust rules: equal to slow loops on rows where all differ, equivariant, exact at f = 0, right up to their bound and refused beyond it."""

from __future__ import annotations

import itertools
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.strategies import robust_oracles as slow

from cloister.core.errors import InfeasibleByzantineBound, SpecError
from cloister.core.spec.pipelines import STAGES, fewest_rows, read_pipeline
from cloister.strategies.robust import (
    Pipeline,
    aggregate_groups,
    arc,
    bucketing,
    bulyan,
    centered_clipping,
    coordinate_median,
    dnc,
    fltrust,
    geometric_median,
    krum,
    multi_krum,
    nnm,
    norm_bound,
    trimmed_mean,
)

Rows = npt.NDArray[Any]
N, F, DIM = 11, 2, 6
TRUSTED = np.array([1.0, 0.5, 0.2, -0.3, 0.1, 0.4])
START = np.array([0.5, 0.0, -0.5, 0.25, 0.1, 0.2])


def some_rows(seed: int = 0, n: int = N, dim: int = DIM, kind: type = np.float32) -> Rows:
    """Rows of which f are far off, each on a side of its own: on these every rule answers differently."""
    rng = np.random.default_rng(seed)
    rows = rng.standard_normal((n, dim)) * np.linspace(0.5, 2.0, n)[:, None] + np.linspace(-1, 1, dim)
    rows[1, 0] += 9
    rows[n - 2] += 3 * (-1.0) ** np.arange(dim)
    return rows.astype(kind)


def draws(seed: int = 5) -> np.random.Generator:
    return np.random.default_rng(seed)


#: Every rule at (N, F): ours, and what it is.
RULES: dict[str, tuple[Callable[[Rows], Rows], Callable[[list[Rows]], Rows]]] = {
    "mean": (lambda x: Pipeline.parse("mean").aggregate(x, f=0), slow.mean),
    "median": (lambda x: coordinate_median(x, F), slow.median),
    "trimmed-mean": (lambda x: trimmed_mean(x, F), lambda x: slow.trimmed_mean(x, F)),
    "geometric-median": (lambda x: geometric_median(x, F), slow.geometric_median),
    "krum": (lambda x: krum(x, F), lambda x: slow.krum(x, F)),
    "multi-krum": (lambda x: multi_krum(x, F), lambda x: slow.multi_krum(x, F)),
    "bulyan": (lambda x: bulyan(x, F), lambda x: slow.bulyan(x, F)),
    "centered-clipping": (
        lambda x: centered_clipping(x, 1.5, F, start=START),
        lambda x: slow.centered_clipping(x, 1.5, START, 3),
    ),
    "centered-clipping, its own radius": (
        lambda x: centered_clipping(x, None, F),
        lambda x: slow.centered_clipping(x, None, np.zeros(DIM), 3),
    ),
    "norm-bound": (lambda x: norm_bound(x, 2.0, F), lambda x: slow.norm_bound(x, 2.0)),
    "fltrust": (lambda x: fltrust(x, TRUSTED, F), lambda x: slow.fltrust(x, TRUSTED)),
    "dnc": (lambda x: dnc(x, F, draws()), lambda x: slow.dnc(x, F)),
    "arc | nnm | trimmed-mean": (
        lambda x: Pipeline.parse("arc | nnm | trimmed-mean").aggregate(x, f=F),
        lambda x: slow.trimmed_mean(slow.nnm(slow.arc(x, F), F), F),
    ),
    "nnm | krum": (
        lambda x: Pipeline.parse("nnm | krum").aggregate(x, f=F),
        lambda x: slow.krum(slow.nnm(x, F), F),
    ),
    "nnm | arc | geometric-median": (
        lambda x: Pipeline.parse("nnm | arc | geometric-median").aggregate(x, f=F),
        lambda x: slow.geometric_median(slow.arc(slow.nnm(x, F), F)),
    ),
    "norm-bound(2) | median": (
        lambda x: Pipeline.parse("norm-bound(2) | median").aggregate(x, f=F),
        lambda x: slow.median([slow.clipped(row, 2.0) for row in x]),
    ),
    "nnm | fltrust": (
        lambda x: Pipeline.parse("nnm | fltrust").aggregate(x, f=F, trusted=TRUSTED),
        lambda x: slow.fltrust(slow.nnm(x, F), TRUSTED),
    ),
    "nnm | centered-clipping(1)": (
        lambda x: Pipeline.parse("nnm | centered-clipping(1)").aggregate(x, f=F, start=START),
        lambda x: slow.centered_clipping(slow.nnm(x, F), 1.0, START, 3),
    ),
}
#: Those that know where zero is (or take a point that stays behind).
ANCHORED = {
    name for name in RULES if any(word in name for word in ("arc", "norm-bound", "fltrust", "centered"))
}
BY_FUNCTION: dict[str, Callable[[Rows, int], Rows]] = {
    "median": coordinate_median,
    "trimmed-mean": trimmed_mean,
    "geometric-median": geometric_median,
    "krum": krum,
    "multi-krum": multi_krum,
    "bulyan": bulyan,
    "centered-clipping": lambda x, f: centered_clipping(x, None, f),
    "dnc": lambda x, f: dnc(x, f, draws()),
    "arc": lambda x, f: np.mean(arc(x, f), axis=0),
    "nnm": lambda x, f: np.mean(nnm(x, f), axis=0),
    "norm-bound": lambda x, f: norm_bound(x, 1.0, f),
    "fltrust": lambda x, f: fltrust(x, np.ones(x.shape[1]), f),
}


class TestOracles:
    @pytest.mark.parametrize("name", RULES)
    @pytest.mark.parametrize("kind", [np.float32, np.float64])
    def test_a_rule_is_what_the_slow_loop_says(self, name: str, kind: type) -> None:
        ours, oracle = RULES[name]
        for seed in range(4):
            rows = some_rows(seed, kind=kind)
            tolerance = 1e-6 if "geometric" in name else 1e-10
            assert ours(rows) == pytest.approx(oracle(list(rows)), rel=tolerance, abs=tolerance)

    def test_on_these_rows_all_rules_differ(self) -> None:
        # Mixing makes many rows the mean of one neighbourhood; a rule that picks one of them may then meet MultiKrum or DnC.
        picks = {"nnm | krum", "nnm | arc | geometric-median"}
        answers = {name: ours(some_rows()) for name, (ours, _) in RULES.items() if name not in picks}
        for one, other in itertools.combinations(answers, 2):
            assert np.abs(answers[one] - answers[other]).max() > 1e-3, (one, other)

    def test_the_steps_are_what_the_slow_loops_say(self) -> None:
        rows = some_rows()
        assert nnm(rows, F) == pytest.approx(np.array(slow.nnm(list(rows), F)), rel=1e-12)
        assert arc(rows, F) == pytest.approx(np.array(slow.arc(list(rows), F)), rel=1e-12)
        order = draws().permutation(N)
        buckets = [rows[order[start : start + 3]].astype(np.float64).mean(axis=0) for start in range(0, N, 3)]
        assert bucketing(rows, 3, draws()) == pytest.approx(np.array(buckets), rel=1e-12)

    def test_krum_answers_with_a_row_to_the_last_bit(self) -> None:
        rows = some_rows()
        assert any((krum(rows, F) == row).all() for row in rows)

    def test_the_geometric_median_stands_on_a_row_that_outweighs_the_others(self) -> None:
        rows = np.array([[0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [5.0, 1.0], [-3.0, 9.0]])
        assert geometric_median(rows) == pytest.approx([0.0, 0.0], abs=1e-12)
        # Three corners, the angle at the first is above 120°: the median is that corner (Fermat), where plain Weiszfeld may stall.
        corner = np.array([[0.0, 0.0], [10.0, 1.0], [-10.0, 1.0]])
        assert geometric_median(corner) == pytest.approx([0.0, 0.0], abs=1e-6)


class TestEquivariance:
    @pytest.mark.parametrize("name", RULES)
    def test_the_order_of_the_rows_does_not_matter(self, name: str) -> None:
        ours, _ = RULES[name]
        rows = some_rows()
        tolerance = 1e-6 if "geometric" in name else 1e-9
        for seed in range(3):
            order = np.random.default_rng(seed).permutation(N)
            assert ours(rows[order]) == pytest.approx(ours(rows), rel=tolerance, abs=tolerance)

    @pytest.mark.parametrize("name", sorted(set(RULES) - ANCHORED))
    def test_a_translation_of_all_rows_translates_the_answer(self, name: str) -> None:
        ours, _ = RULES[name]
        rows, shift = some_rows(kind=np.float64), np.linspace(-30, 50, DIM)
        tolerance = 1e-6 if "geometric" in name else 1e-9
        assert ours(rows + shift) == pytest.approx(ours(rows) + shift, rel=tolerance, abs=tolerance)

    @pytest.mark.parametrize("radius", [1.0, None])
    def test_centered_clipping_moves_with_rows_and_start(self, radius: float | None) -> None:
        rows, shift = some_rows(kind=np.float64), np.linspace(-3, 5, DIM)
        moved = centered_clipping(rows + shift, radius, F, start=START + shift)
        assert moved == pytest.approx(centered_clipping(rows, radius, F, start=START) + shift, rel=1e-9)

    @pytest.mark.parametrize(
        "name",
        sorted(
            ANCHORED
            - {"norm-bound", "norm-bound(2) | median"}
            - {n for n in RULES if "clipping" in n or "fltrust" in n}
        ),
    )
    def test_what_knows_zero_still_scales(self, name: str) -> None:
        ours, _ = RULES[name]
        rows = some_rows(kind=np.float64)
        assert ours(1024 * rows) == pytest.approx(1024 * ours(rows), rel=1e-6)

    def test_bucketing_is_the_same_for_the_same_draw_and_another_for_another(self) -> None:
        rows = some_rows()
        assert (bucketing(rows, 2, draws(1)) == bucketing(rows, 2, draws(1))).all()
        assert not (bucketing(rows, 2, draws(1)) == bucketing(rows, 2, draws(2))).all()


class TestNoLiars:
    @pytest.mark.parametrize("name", ["trimmed-mean", "multi-krum", "bulyan", "dnc", "arc", "nnm"])
    def test_at_f_0_it_is_the_mean(self, name: str) -> None:
        rows = some_rows()
        assert BY_FUNCTION[name](rows, 0) == pytest.approx(slow.mean(list(rows)), rel=1e-12)

    def test_at_f_0_arc_keeps_every_row(self) -> None:
        rows = some_rows()
        assert (arc(rows, 0) == rows).all()

    @pytest.mark.parametrize(
        "name", sorted(set(BY_FUNCTION) - {"norm-bound", "fltrust", "centered-clipping"})
    )
    @pytest.mark.parametrize("f", [0, 1, 2])
    def test_identical_rows_give_that_row(self, name: str, f: int) -> None:
        row = np.linspace(-2, 3, DIM).astype(np.float32)
        assert BY_FUNCTION[name](np.stack([row] * N), f) == pytest.approx(row, rel=1e-7)


class TestBounds:
    @pytest.mark.parametrize("name", BY_FUNCTION)
    @pytest.mark.parametrize("f", [1, 2, 3])
    def test_one_row_fewer_than_the_bound_is_refused_and_the_bound_is_not(self, name: str, f: int) -> None:
        least = STAGES[name].least(f)
        assert least is not None
        BY_FUNCTION[name](some_rows(n=max(least, 3)), f)
        with pytest.raises(InfeasibleByzantineBound) as caught:
            BY_FUNCTION[name](some_rows(n=30)[: least - 1], f)
        assert (caught.value.n, caught.value.f, caught.value.needed) == (least - 1, f, least)
        assert f"needs at least {least}" in caught.value.message

    def test_the_bounds_are_those_of_the_papers(self) -> None:
        found = {name: kind.least(5) for name, kind in STAGES.items()}
        assert found == {
            "mean": None, "median": 11, "trimmed-mean": 11, "geometric-median": 11, "krum": 13, "multi-krum": 13, "bulyan": 23,
            "centered-clipping": 11, "norm-bound": 11, "fltrust": 6, "dnc": 11, "arc": 11, "nnm": 11, "bucketing": 11,
        }  # fmt: skip

    @pytest.mark.parametrize(
        "text",
        ["median", "trimmed-mean", "geometric-median", "krum", "multi-krum", "bulyan", "arc | nnm | trimmed-mean", "nnm | krum"],
    )  # fmt: skip
    @pytest.mark.parametrize("size", [1e2, 1e8, 1e30])
    def test_at_its_bound_f_liars_of_any_size_leave_the_answer_among_the_honest(
        self, text: str, size: float
    ) -> None:
        f = 3
        pipeline = Pipeline.parse(text)
        n = pipeline.least(f)
        assert n is not None
        rng = np.random.default_rng(1)
        honest = rng.standard_normal((n - f, 40)).astype(np.float32) + 1
        reach = np.linalg.norm(honest - honest.mean(axis=0), axis=1).max()
        for lie in (np.full((f, 40), size), np.full((f, 40), -size), size * rng.standard_normal((f, 40))):
            rows = np.concatenate([lie.astype(np.float32), honest])
            answer = pipeline.aggregate(rows, f=f)
            # Within a few times the honest spread, whatever the liars send: κ of the geometric median at its bound is the largest.
            assert np.linalg.norm(answer - honest.mean(axis=0)) < 12 * reach

    @pytest.mark.parametrize("text", ["median", "trimmed-mean", "geometric-median", "nnm | trimmed-mean"])
    def test_one_liar_more_than_half_breaks_it(self, text: str) -> None:
        rng = np.random.default_rng(1)
        honest = rng.standard_normal((4, 10)).astype(np.float32)
        rows = np.concatenate([np.full((5, 10), 1e6, np.float32), honest])
        assert np.linalg.norm(Pipeline.parse(text).aggregate(rows, f=4)) > 1e5

    def test_one_liar_breaks_the_mean(self) -> None:
        rows = np.concatenate([np.full((1, 4), 1e9, np.float32), np.zeros((9, 4), np.float32)])
        assert np.linalg.norm(Pipeline.parse("mean").aggregate(rows, f=0)) > 1e8
        with pytest.raises(InfeasibleByzantineBound, match="tolerates no lying site"):
            Pipeline.parse("mean").aggregate(rows, f=1)

    @given(
        st.integers(0, 2**32 - 1),
        st.sampled_from(["trimmed-mean", "median", "krum", "nnm | trimmed-mean", "nnm | median"]),
    )
    @settings(max_examples=60, deadline=None)
    def test_no_answer_is_further_from_the_honest_mean_than_kappa_allows(self, seed: int, text: str) -> None:
        rng = np.random.default_rng(seed)
        f, pipeline = int(rng.integers(1, 4)), Pipeline.parse(text)
        n = int(rng.integers(2 * f + 3, 15))
        honest = rng.standard_normal((n - f, 5)) * rng.uniform(0.1, 3, (n - f, 1))
        lies = honest.mean(axis=0) + rng.standard_normal((f, 5)) * 10 ** rng.uniform(-2, 3)
        answer = pipeline.aggregate(np.concatenate([honest, lies]), f=f)
        spread = float(np.mean(np.sum((honest - honest.mean(axis=0)) ** 2, axis=1)))
        kappa = pipeline.kappa(n=n, f=f)
        assert kappa is not None
        assert float(np.sum((answer - honest.mean(axis=0)) ** 2)) <= kappa * spread * (1 + 1e-9)

    def test_kappa_of_pipelines_by_hand(self) -> None:
        # n = 20, f = 5: r = 1/2; trimmed mean 6·½·1½ = 4.5; nnm: 8·5/15·5.5 = 44/3; arc: + 1
        assert Pipeline.parse("trimmed-mean").kappa(n=20, f=5) == pytest.approx(4.5)
        assert Pipeline.parse("nnm | trimmed-mean").kappa(n=20, f=5) == pytest.approx(44 / 3)
        assert Pipeline.parse("arc | nnm | trimmed-mean").kappa(n=20, f=5) == pytest.approx(44 / 3 + 1)
        assert Pipeline.parse("krum").kappa(n=20, f=5) == pytest.approx(9)
        assert Pipeline.parse("median").kappa(n=20, f=5) == pytest.approx(9)
        assert Pipeline.parse("arc | nnm | trimmed-mean").kappa(n=20, f=0) == 0
        assert Pipeline.parse("bulyan").kappa(n=23, f=5) is None
        assert Pipeline.parse("nnm | bucketing(2) | median").kappa(n=40, f=5) is None


class TestNumbers:
    def test_at_relative_size_1e_4_and_dim_a_million_the_chosen_set_is_that_of_float64(self) -> None:
        rng = np.random.default_rng(0)
        dim, n, f = 1_000_000, 10, 2
        base = rng.standard_normal(dim).astype(np.float32)
        # Of ten rows eight differ by 1.000, the liars by 1.001: a distance in float32 cannot tell them apart.
        rows = [
            (
                base
                + np.float32(1e-4 * (1.001 if place < f else 1.0))
                * rng.standard_normal(dim).astype(np.float32)
            )
            for place in range(n)
        ]
        exact = np.zeros((n, n))
        for i, j in itertools.combinations(range(n), 2):
            gap = rows[i].astype(np.float64) - rows[j]
            exact[i, j] = exact[j, i] = float(gap @ gap)
        order = np.argsort(exact, axis=1, kind="stable")
        mixed = nnm(rows, f)
        for place in range(n):
            kept = order[place, : n - f]
            assert np.allclose(mixed[place], np.mean([rows[k].astype(np.float64) for k in kept], axis=0), rtol=1e-12)  # fmt: skip
        scores = np.sort(exact, axis=1)[:, 1 : n - f].sum(axis=1)
        assert (krum(rows, f) == rows[int(np.argmin(scores))]).all()

    @pytest.mark.parametrize(
        "text", ["krum", "nnm | trimmed-mean", "geometric-median", "multi-krum", "bulyan"]
    )
    def test_a_liar_of_1e30_does_not_cost_the_honest_rows_their_digits(self, text: str) -> None:
        rng = np.random.default_rng(2)
        honest = rng.standard_normal((20, 30)).astype(np.float32)
        pipeline = Pipeline.parse(text)
        near = np.concatenate([honest, np.full((2, 30), 1e4, np.float32)])
        far = np.concatenate([honest, np.full((2, 30), 1e30, np.float32)])
        assert pipeline.aggregate(far, f=2) == pytest.approx(
            pipeline.aggregate(near, f=2), rel=1e-3, abs=1e-3
        )

    def test_equal_rows_tie_and_the_first_wins(self) -> None:
        rng = np.random.default_rng(4)
        a, b = rng.standard_normal((2, 1000)).astype(np.float32)
        rows = [a, b, a, b, a, b]
        assert (krum(rows, 1) == a).all()
        assert (krum(rows[1:] + rows[:1], 1) == b).all()

    @pytest.mark.parametrize("seed", range(6))
    def test_scores_that_are_equal_but_for_rounding_tie(self, seed: int) -> None:
        # The shifts of one vector: every row has the same distances to the others, summed in another order.
        vector = np.random.default_rng(seed).standard_normal(31)
        rows = np.stack([np.roll(vector, shift) for shift in range(31)])
        assert (krum(rows, 3) == rows[0]).all()
        assert multi_krum(rows, 3) == pytest.approx(rows[:28].mean(axis=0), rel=1e-12)

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("text", ["mean", "median", "krum", "arc | nnm | trimmed-mean"])
    def test_a_value_that_is_not_finite_is_refused_first(self, value: float, text: str) -> None:
        rows = some_rows()
        rows[4, 2] = value
        with pytest.raises(ValueError, match="not finite"):
            Pipeline.parse(text).aggregate(rows, f=0)

    def test_rows_of_another_shape_or_type_are_refused(self) -> None:
        pipeline = Pipeline.parse("median")
        for rows in (
            [np.zeros(3), np.zeros(4)],
            [np.zeros((2, 2))] * 3,
            [np.zeros(3, np.int64)] * 3,
            [np.zeros(0)],
        ):
            with pytest.raises(ValueError, match="expected"):
                pipeline.aggregate(rows, f=0)
        with pytest.raises(InfeasibleByzantineBound):
            pipeline.aggregate([], f=0)

    def test_rows_are_never_written(self) -> None:
        rows = some_rows()
        before = rows.copy()
        for ours, _ in RULES.values():
            ours(rows)
        assert (rows == before).all()

    @pytest.mark.parametrize("text", ["arc | nnm | trimmed-mean", "geometric-median", "bulyan"])
    def test_memory_beyond_the_rows_is_the_answer_and_a_few_blocks(self, text: str) -> None:
        rows = np.random.default_rng(0).standard_normal((12, 400_000)).astype(np.float32)
        tracemalloc.start()
        try:
            Pipeline.parse(text).aggregate(rows, f=2)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 8 * 400_000 + 12 * (1 << 20)  # the rows themselves in float64 would be 38 MB

    def test_blocks_do_not_change_the_answer(self, monkeypatch: pytest.MonkeyPatch) -> None:
        rows = some_rows(dim=3000)
        whole = {text: Pipeline.parse(text).aggregate(rows, f=F) for text in ("bulyan", "nnm | trimmed-mean")}
        monkeypatch.setattr("cloister.strategies.robust.rows.BLOCK_BYTES", 1)  # 256 columns at a time
        for text, answer in whole.items():
            assert Pipeline.parse(text).aggregate(rows, f=F) == pytest.approx(answer, rel=1e-12)


class TestPipelines:
    @pytest.mark.parametrize(
        ("text", "written"),
        [
            ("arc|nnm|trimmed-mean", "arc | nnm | trimmed-mean"),
            (" bucketing( 2 ) | median ", "bucketing(2) | median"),
            ("norm-bound(1.50)", "norm-bound(1.5)"),
            ("norm-bound(2) | krum", "norm-bound(2) | krum"),
            ("centered-clipping", "centered-clipping"),
        ],
    )
    def test_it_is_written_in_one_way(self, text: str, written: str) -> None:
        assert Pipeline.parse(text).name == written
        assert Pipeline.parse(written) == Pipeline.parse(text)

    @pytest.mark.parametrize(
        ("text", "why"),
        [
            ("men", "did you mean 'mean'"),
            ("trimmed_mean", "'trimmed_mean' is no stage"),
            ("arc | nnm", "end with a rule, for example 'arc | nnm | trimmed-mean'"),
            ("median | nnm", "nothing can come after it"),
            ("", "is no stage"),
            ("arc | | mean", "is no stage"),
            ("bucketing | mean", "needs its updates a bucket in brackets"),
            ("bucketing(1.5) | mean", "whole number"),
            ("norm-bound", "needs its bound"),
            ("norm-bound(0)", "positive number"),
            ("norm-bound(1e400)", "positive number"),
            ("norm-bound(1.2.3)", "positive number"),
            ("krum(3)", "takes no number"),
            (" | ".join(["arc"] * 9), "at most 8"),
        ],
    )
    def test_what_is_no_pipeline_is_refused_with_the_reason(self, text: str, why: str) -> None:
        with pytest.raises(SpecError, match=why.replace("(", r"\(").replace("|", r"\|")) as caught:
            Pipeline.parse(text)
        assert caught.value.code == "rule"

    @pytest.mark.parametrize(
        ("text", "f", "least"),
        [
            ("arc | nnm | trimmed-mean", 5, 11),
            ("nnm | krum", 5, 13),
            ("bucketing(2) | median", 5, 21),
            ("bucketing(3) | bulyan", 1, 19),
            ("nnm | mean", 1, None),
            ("nnm | mean", 0, 1),
        ],
    )
    def test_its_bound_is_that_of_all_its_stages(self, text: str, f: int, least: int | None) -> None:
        assert fewest_rows(read_pipeline(text), f) == least

    def test_buckets_are_what_the_rule_sees(self) -> None:
        # 21 rows in buckets of 2 make 11, the fewest for f = 5; 20 make 10.
        pipeline = Pipeline.parse("bucketing(2) | median")
        pipeline.aggregate(some_rows(n=21), f=5, generator=draws())
        with pytest.raises(InfeasibleByzantineBound):
            pipeline.aggregate(some_rows(n=20), f=5, generator=draws())

    @pytest.mark.parametrize("text", ["bucketing(2) | median", "dnc", "fltrust"])
    def test_what_a_stage_needs_must_be_given(self, text: str) -> None:
        with pytest.raises(ValueError, match="needs"):
            Pipeline.parse(text).aggregate(some_rows(), f=1)

    def test_a_group_counts_as_one_row(self) -> None:
        pipeline = Pipeline.parse("trimmed-mean")
        means = some_rows(n=5)
        assert aggregate_groups(pipeline, means, f=2) == pytest.approx(slow.trimmed_mean(list(means), 2))
        with pytest.raises(InfeasibleByzantineBound) as caught:
            aggregate_groups(pipeline, means, f=3)
        assert (caught.value.n, caught.value.needed) == (5, 7)

    def test_fltrust_without_agreement_stands_still_and_refuses_a_zero(self) -> None:
        rows = -np.abs(some_rows())
        assert (fltrust(rows, np.ones(DIM)) == 0).all()
        with pytest.raises(ValueError, match="zero"):
            fltrust(rows, np.zeros(DIM))
