"""Partitions: every record at one site, the seed decides, and the skew is the one that was asked for."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats
from torch import nn

from cloister.core.data import Split, TensorData
from cloister.core.errors import CloisterError, DataError, SpecError
from cloister.core.randomness import SeededRandomness
from cloister.core.resolve import POOLED
from cloister.core.spec import Cohort, Partition
from cloister.core.task import Task
from cloister.simulation.dealing import deal_by_class, deal_by_size, deal_evenly, deal_like, deal_shards
from cloister.simulation.partition import Roster, make_roster


class Classes(Task):
    """Ten classes; data is handed over by the tests."""

    classes = tuple("0123456789")

    def model(self) -> nn.Module:
        return nn.Linear(1, 10)

    def data(self) -> Split:
        raise NotImplementedError


class SeveralClasses(Classes):
    """A site must have two classes."""

    allows_single_class = False


class Values(Task):
    """A regression."""

    kind = "regression"

    def model(self) -> nn.Module:
        return nn.Linear(1, 1)

    def data(self) -> Split:
        raise NotImplementedError


def numbered(targets: npt.NDArray[Any]) -> TensorData:
    """Record i has the input i, so that a record is known again wherever it went."""
    return TensorData(torch.arange(len(targets)).float().reshape(-1, 1), torch.from_numpy(targets))


def pool(train: int = 400, test: int = 120, seed: int = 0) -> dict[str, Split]:
    rng = np.random.default_rng(seed)
    return {POOLED: Split(numbered(rng.integers(0, 10, train)), numbered(rng.integers(0, 10, test)))}


def cohort(sites: int | None, by: Any, **keys: Any) -> Cohort:
    return Cohort(sites=sites, partition=Partition(by=by, **keys))


def roster(
    sites: int | None,
    by: Any,
    *,
    seed: int = 1,
    data: dict[str, Split] | None = None,
    task: Task | None = None,
    **keys: Any,
) -> Roster:
    return make_roster(cohort(sites, by, **keys), data or pool(), task or Classes(), SeededRandomness(seed))


def records(part: Any) -> list[int]:
    """The record numbers that a site holds."""
    inputs, targets = part.batch(torch.arange(len(part)))
    assert torch.equal(targets, part.targets)
    return [int(value) for value in inputs.reshape(-1)]


def layout(made: Roster) -> list[tuple[list[int], list[int]]]:
    return [(records(made.split(index).train), records(made.split(index).test)) for index in range(len(made))]


DEALT: dict[str, dict[str, Any]] = {
    "iid": {"by": "iid"},
    "dirichlet": {"by": "dirichlet", "alpha": 0.5},
    "shards": {"by": "shards", "per_site": 2},
    "quantity": {"by": "quantity", "skew": 0.5},
}
dealt = pytest.mark.parametrize("how", DEALT.values(), ids=DEALT)


# Invariants --------------------------------------------------------------------------------------------------------------------


@dealt
@given(
    sites=st.integers(1, 15), train=st.integers(120, 300), test=st.integers(0, 90), seed=st.integers(0, 10**6)
)
def test_every_record_is_at_exactly_one_site_and_no_site_is_empty(
    how: dict[str, Any], sites: int, train: int, test: int, seed: int
) -> None:
    made = roster(sites, data=pool(train, test, seed), seed=seed, **how)
    held = layout(made)
    assert len(made) == len(held) == sites
    assert sorted(row for rows, _ in held for row in rows) == list(range(train))
    assert sorted(row for _, rows in held for row in rows) == list(range(test))
    assert all(rows for rows, _ in held)


@dealt
def test_the_seed_decides(how: dict[str, Any]) -> None:
    assert layout(roster(7, seed=3, **how)) == layout(roster(7, seed=3, **how))
    assert layout(roster(7, seed=3, **how)) != layout(roster(7, seed=4, **how))


def test_the_partitions_differ_from_one_another() -> None:
    made = {name: str(layout(roster(7, **how))) for name, how in DEALT.items()}
    assert len(set(made.values())) == len(DEALT)


@dealt
def test_counts_are_the_sites_training_records_by_class(how: dict[str, Any]) -> None:
    made = roster(6, **how)
    targets = pool()[POOLED].train.targets.numpy()
    for index, (rows, _) in enumerate(layout(made)):
        assert made.counts(index) == [int((targets[rows] == label).sum()) for label in range(10)]


@dealt
def test_several_owners_are_pooled_before_they_are_dealt(how: dict[str, Any]) -> None:
    whole = pool(300, 60)[POOLED]
    rows = np.arange(300)
    owners = {
        "north": Split(whole.train.subset(rows[:100]), whole.test),
        "south": Split(whole.train.subset(rows[100:]), whole.test.subset(rows[:0])),
    }
    made = roster(5, data=owners, **how)
    assert not made.natural
    assert sorted(row for train, _ in layout(made) for row in train) == list(range(300))
    assert records(made.pooled_train) == list(range(300))
    assert records(made.central_test) == list(range(60))


def test_names_are_padded_to_one_width_and_sort_as_they_count() -> None:
    assert [roster(3, "iid").name(index) for index in range(3)] == ["site-001", "site-002", "site-003"]
    many = roster(2000, "iid", per_site=5)
    assert many.name(0) == "site-0001"
    assert many.name(1999) == "site-2000"
    names = [many.name(index) for index in range(2000)]
    assert names == sorted(names)
    assert len(set(names)) == 2000


@pytest.mark.parametrize("index", [-1, 4])
@pytest.mark.parametrize("keys", [{}, {"per_site": 5}])
def test_a_site_that_does_not_exist_is_refused(index: int, keys: dict[str, Any]) -> None:
    made = roster(4, "iid", **keys)
    for ask in (made.name, made.split, made.counts):
        with pytest.raises(IndexError, match=f"no site {index}: the simulation has 4"):
            ask(index)


# By owner ------------------------------------------------------------------------------------------------------------------------


def owned() -> dict[str, Split]:
    rng = np.random.default_rng(5)
    return {
        name: Split(numbered(rng.integers(0, 10, size)), numbered(rng.integers(0, 10, size // 3)))
        for name, size in {"oslo": 30, "lima": 12}.items()
    }


def test_by_site_keeps_the_owners_names_order_and_records() -> None:
    data = owned()
    made = roster(None, "site", data=data)
    assert made.natural
    assert [made.name(index) for index in range(len(made))] == ["oslo", "lima"]
    assert made.split(1) is data["lima"]
    assert len(made.pooled_train) == 42
    assert len(made.central_test) == 14
    assert sum(made.counts(0)) == 30
    assert len(roster(2, "site", data=data)) == 2
    with pytest.raises(IndexError):
        made.split(2)


def test_by_site_with_another_number_of_sites_is_refused() -> None:
    with pytest.raises(SpecError, match=r"cohort\.sites = 3, but the data comes with 2 owners") as refused:
        roster(3, "site", data=owned())
    assert refused.value.code == "partition"
    assert refused.value.remedy


def test_by_site_without_owners_names_another_partition() -> None:
    with pytest.raises(SpecError, match="one pool") as refused:
        roster(None, "site")
    assert "iid" in refused.value.remedy


# IID -----------------------------------------------------------------------------------------------------------------------------


@given(records=st.integers(1, 200), sites=st.integers(1, 40), seed=st.integers(0, 99))
def test_equal_parts_differ_by_one_record_at_most(records: int, sites: int, seed: int) -> None:
    sizes = np.bincount(deal_evenly(records, sites, np.random.default_rng(seed)), minlength=sites)
    assert sizes.max() - sizes.min() <= 1


def test_equal_parts_are_shuffled_without_bias() -> None:
    # 3000 deals of 6 records over 3 sites: each (record, site) 1000 times. Chi-square of 6 · 2 degrees, two-sided at 0.1%.
    table = np.zeros((6, 3))
    for seed in range(3000):
        table[np.arange(6), deal_evenly(6, 3, np.random.default_rng([7, seed]))] += 1
    statistic = float(((table - 1000) ** 2 / 1000).sum())
    low, high = stats.chi2(12).ppf([0.0005, 0.9995])
    assert low < statistic < high


def test_a_virtual_site_draws_its_number_of_different_records_and_the_same_again() -> None:
    made = roster(1000, "iid", per_site=20)
    first, second = made.split(17), made.split(17)
    assert records(first.train) == records(second.train)
    assert records(first.test) == records(second.test)
    assert len(set(records(first.train))) == 20
    assert len(set(records(first.test))) == 6  # 20 · 120 / 400
    assert records(first.train) != records(made.split(18).train)
    assert sum(made.counts(17)) == 20


def test_a_virtual_site_does_not_depend_on_who_was_asked_before_or_on_how_many_there_are() -> None:
    one, other = roster(1000, "iid", per_site=20), roster(500, "iid", per_site=20)
    one.split(3)
    assert records(one.split(400).train) == records(other.split(400).train)


def test_a_virtual_site_has_a_test_record_wherever_there_is_one() -> None:
    assert len(roster(10, "iid", per_site=1).split(0).test) == 1
    assert len(roster(10, "iid", data=pool(100, 0), per_site=1).split(0).test) == 0
    assert len(roster(10, "iid", data=pool(100, 1), per_site=100).split(0).test) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "per_site"), [(60, 5), (20_000, 5)]
)  # numpy draws small and large pools in two ways
def test_virtual_sites_draw_every_record_equally_often(train: int, per_site: int) -> None:
    made = roster(4000, "iid", data=pool(train, 1), per_site=per_site)
    drawn = np.concatenate([records(made.split(index).train) for index in range(4000)])
    cells = np.bincount(drawn * 20 // train, minlength=20)
    expected = 4000 * per_site / 20
    # Drawing without replacement shrinks the variance by (1 - per_site / train).
    statistic = float(((cells - expected) ** 2 / expected).sum()) / (1 - per_site / train)
    low, high = stats.chi2(19).ppf([0.0005, 0.9995])
    assert low < statistic < high


def test_more_records_a_site_than_there_are_is_refused() -> None:
    with pytest.raises(SpecError, match=r"per_site = 401, but there are 400 training records"):
        roster(3, "iid", per_site=401)
    assert len(roster(3, "iid", per_site=400).split(0).train) == 400


# Dirichlet -----------------------------------------------------------------------------------------------------------------------


def share_variance(alpha: float, sites: int = 20, draws: int = 40) -> float:
    """Mean squared deviation of a site's share of a class from 1/N, over sites, classes and draws."""
    labels = np.repeat(np.arange(10), 2000)
    squared = []
    for draw in range(draws):
        site_of = deal_by_class(labels, sites, alpha, np.random.default_rng([11, draw]))
        counts = np.zeros((sites, 10))
        np.add.at(counts, (site_of, labels), 1)
        squared.append(((counts / 2000 - 1 / sites) ** 2).mean())
    return float(np.mean(squared))


@pytest.mark.parametrize("alpha", [0.1, 1.0, 10.0])
def test_a_classs_spread_is_that_of_its_alpha_and_of_no_other(alpha: float) -> None:
    def expected(other: float) -> float:
        return (1 / 20) * (1 - 1 / 20) / (20 * other + 1)

    found = share_variance(alpha)
    assert found == pytest.approx(expected(alpha), rel=0.1)
    for other in (alpha / 1.5, alpha * 1.5):
        assert found != pytest.approx(expected(other), rel=0.1)


def test_small_alpha_skews_and_large_alpha_does_not() -> None:
    def largest_share(alpha: float) -> float:
        made = roster(8, "dirichlet", alpha=alpha, data=pool(4000, 0))
        return float(np.mean([max(made.counts(index)) / sum(made.counts(index)) for index in range(8)]))

    assert largest_share(0.05) > 0.4
    assert 0.1 < largest_share(1000.0) < 0.14


def test_a_dirichlet_that_leaves_a_site_empty_is_drawn_again() -> None:
    data = pool(60, 0)
    labels = data[POOLED].train.targets.numpy()
    alpha, sites = 0.3, 10
    first_draws_that_fail = 0
    for seed in range(30):
        site_of = deal_by_class(
            labels, sites, alpha, SeededRandomness(seed).generator("partition", "dirichlet", 0)
        )
        first_draws_that_fail += int(len(np.unique(site_of)) < sites)
        made = roster(sites, "dirichlet", alpha=alpha, data=data, seed=seed)
        assert all(sum(made.counts(index)) for index in range(sites))
    assert first_draws_that_fail > 3  # so that the second draw was needed


def test_a_dirichlet_that_cannot_fill_its_sites_says_what_to_change() -> None:
    with pytest.raises(
        SpecError, match=r"alpha = 1e-06 did not give each of 20 sites at least one record in 100 draws"
    ) as refused:
        roster(20, "dirichlet", alpha=1e-6)
    assert refused.value.remedy == "raise alpha, or lower cohort.sites"


def test_a_dirichlet_is_drawn_again_until_every_site_has_the_classes_the_task_needs() -> None:
    for seed in range(10):
        made = roster(5, "dirichlet", alpha=0.1, task=SeveralClasses(), seed=seed)
        assert all(np.count_nonzero(made.counts(index)) >= 2 for index in range(5))
    assert any(
        np.count_nonzero(roster(5, "dirichlet", alpha=0.1, seed=seed).counts(index)) == 1
        for seed in range(10)
        for index in range(5)
    )


def test_a_regression_has_no_classes_to_spread() -> None:
    with pytest.raises(SpecError, match="a regression has none") as refused:
        roster(2, "dirichlet", alpha=1.0, data=valued(), task=Values())
    assert "quantity" in refused.value.remedy


# Shards and quantity -------------------------------------------------------------------------------------------------------------


@given(per_site=st.integers(1, 4), sites=st.integers(2, 20), seed=st.integers(0, 999))
def test_a_site_of_shards_knows_few_classes(per_site: int, sites: int, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(10), 100))
    site_of = deal_shards(labels, sites, per_site, np.random.default_rng(seed))
    spanned = 1 + int(np.ceil(1000 / (sites * per_site) / 100))  # classes that one shard can touch
    for site in range(sites):
        held = labels[site_of == site]
        assert len(np.unique(held)) <= per_site * spanned
        assert abs(len(held) - 1000 / sites) <= per_site


def test_mcmahans_hundred_sites_of_two_shards_know_four_classes_at_most() -> None:
    made = roster(100, "shards", per_site=2, data=pool(6000, 0))
    assert max(np.count_nonzero(made.counts(index)) for index in range(100)) <= 4
    assert 1.5 < np.mean([np.count_nonzero(made.counts(index)) for index in range(100)]) < 3


@pytest.mark.parametrize("skew", [0.2, 2.0])
def test_site_sizes_spread_as_their_skew_says_and_no_other(skew: float) -> None:
    sites, total = 10, 10_000
    shares = np.array(
        [
            np.bincount(deal_by_size(total, sites, skew, np.random.default_rng([3, draw])), minlength=sites)
            / total
            for draw in range(400)
        ]
    )

    def expected(other: float) -> float:
        return (1 / sites) * (1 - 1 / sites) / (sites * other + 1)

    found = float(((shares - 1 / sites) ** 2).mean())
    assert found == pytest.approx(expected(skew), rel=0.1)
    assert found != pytest.approx(expected(skew * 1.5), rel=0.1)
    assert found != pytest.approx(expected(skew / 1.5), rel=0.1)
    assert shares.min() * total >= 1


def test_quantity_skew_leaves_the_classes_mixed() -> None:
    made = roster(3, "quantity", skew=5.0, data=pool(6000, 0))
    for index in range(3):
        counts = np.array(made.counts(index))
        assert counts.max() / counts.sum() < 0.2


def test_one_record_a_site_is_possible_and_no_more_sites_than_records() -> None:
    for how in ({"by": "iid"}, {"by": "quantity", "skew": 0.1}, {"by": "shards", "per_site": 1}):
        made = roster(30, data=pool(30, 0), **how)
        assert all(sum(made.counts(index)) == 1 for index in range(30))
        with pytest.raises(
            SpecError, match=r"cohort\.sites = 31.* asks for at least 31 training records, and there are 30"
        ) as refused:
            roster(31, data=pool(30, 0), **how)
        assert refused.value.remedy


def test_too_many_shards_are_refused() -> None:
    with pytest.raises(
        SpecError,
        match=r"cohort\.sites = 100 with per_site = 5 asks for at least 500 training records, and there are 400",
    ):
        roster(100, "shards", per_site=5)


@pytest.mark.parametrize("how", [{"by": "shards", "per_site": 1}])
def test_a_site_of_one_class_is_refused_where_the_task_needs_more(how: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match=r"leaves site-0.. with records of one class") as refused:
        roster(20, task=SeveralClasses(), **how)
    assert "allow_single_class" in refused.value.remedy
    assert len(roster(20, task=Classes(), **how)) == 20


def test_a_virtual_site_of_one_class_is_refused_when_it_is_drawn() -> None:
    made = roster(1000, "iid", per_site=1, task=SeveralClasses())
    with pytest.raises(DataError, match="site 'site-0008'"):
        made.split(7)


@pytest.mark.parametrize("by", ["iid", "dirichlet", "shards", "quantity"])
def test_the_number_of_sites_must_be_given_where_data_is_dealt_anew(
    by: Literal["iid", "dirichlet", "shards", "quantity"],
) -> None:
    with pytest.raises(SpecError, match=rf"by = '{by}' .* cohort\.sites is missing") as refused:
        roster(None, **DEALT[by])
    assert "sites = 10" in refused.value.remedy


# Test records ----------------------------------------------------------------------------------------------------------------------


@given(seed=st.integers(0, 999), sites=st.integers(1, 12), records=st.integers(0, 200))
def test_each_classs_test_records_spread_as_its_training_records_do_to_one_record(
    seed: int, sites: int, records: int
) -> None:
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 20, (sites, 5)) * (rng.random((sites, 5)) < 0.6)
    counts[:, 4] = 0  # a class that nobody trains on
    counts[0, 0] += 1
    labels = rng.integers(0, 5, records)
    site_of = deal_like(labels, counts, rng)
    for label in range(5):
        shares = (
            counts[:, label] / counts[:, label].sum()
            if counts[:, label].sum()
            else counts.sum(axis=1) / counts.sum()
        )
        found = np.bincount(site_of[labels == label], minlength=sites)
        assert (np.abs(found - shares * (labels == label).sum()) < 1 + 1e-9).all()


def test_rounding_starves_no_site_on_average() -> None:
    # 4 sites with equal shares of 2 test records a class: each has 0 or 1 of a class, and 0.5 on average.
    counts = np.ones((4, 50), dtype=np.int64)
    labels = np.repeat(np.arange(50), 2)
    totals = np.bincount(
        np.concatenate([deal_like(labels, counts, np.random.default_rng([5, draw])) for draw in range(40)])
    )
    # 2000 classes: standard deviation of a site's total is √(2000 / 4) = 22.
    assert all(abs(int(total) - 1000) < 4 * 22.4 for total in totals)


def test_a_class_without_a_test_record_and_no_test_records_at_all_are_fine() -> None:
    made = roster(4, "dirichlet", alpha=0.5, data=pool(400, 0))
    assert all(len(made.split(index).test) == 0 for index in range(4))
    assert len(made.central_test) == 0


# Regression --------------------------------------------------------------------------------------------------------------------------


def valued(train: int = 300, test: int = 100) -> dict[str, Split]:
    rng = np.random.default_rng(2)
    return {
        POOLED: Split(
            numbered(rng.standard_normal(train).astype(np.float32)),
            numbered(rng.standard_normal(test).astype(np.float32)),
        )
    }


@pytest.mark.parametrize(
    "how", [DEALT["iid"], DEALT["quantity"], DEALT["shards"]], ids=["iid", "quantity", "shards"]
)
def test_a_regressions_records_are_each_at_one_site(how: dict[str, Any]) -> None:
    made = roster(6, data=valued(), task=Values(), **how)
    held = layout(made)
    assert sorted(row for rows, _ in held for row in rows) == list(range(300))
    assert sorted(row for _, rows in held for row in rows) == list(range(100))
    assert [made.counts(index) for index in range(6)] == [[len(rows)] for rows, _ in held]


def test_a_regressions_shards_are_runs_of_neighbouring_values_and_the_test_records_follow() -> None:
    data = valued(3000, 1000)
    made = roster(5, "shards", per_site=1, data=data, task=Values())
    values, test_values = data[POOLED].train.targets.numpy(), data[POOLED].test.targets.numpy()
    spans = sorted((float(values[rows].min()), float(values[rows].max())) for rows, _ in layout(made))
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(spans))
    for rows, test_rows in layout(made):
        assert np.mean(test_values[test_rows]) == pytest.approx(np.mean(values[rows]), abs=0.2)


# Speed -----------------------------------------------------------------------------------------------------------------------------


def seconds(act: Callable[[], object]) -> float:
    """Shortest of three, so that a neighbour's work on this machine does not count."""
    taken = []
    for _ in range(3):
        start = time.perf_counter()
        act()
        taken.append(time.perf_counter() - start)
    return min(taken)


@dealt
def test_a_hundred_sites_over_sixty_thousand_records_are_dealt_within_a_second(how: dict[str, Any]) -> None:
    data = pool(60_000, 10_000)
    assert seconds(lambda: roster(100, data=data, **how)) < 1


def test_a_million_virtual_sites_cost_nothing_until_they_are_drawn() -> None:
    data = pool(60_000, 10_000)
    assert seconds(lambda: roster(1_000_000, "iid", data=data, per_site=60)) < 0.1
    made = roster(1_000_000, "iid", data=data, per_site=60)
    assert seconds(lambda: (made.name(123_456), made.split(123_456))) < 0.005


def test_every_refusal_is_one_of_ours() -> None:
    with pytest.raises(CloisterError):
        roster(None, "iid")
