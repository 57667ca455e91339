"""The tests of uniformity: false alarms as rarely as they say, and every planted fault found."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from scipy import stats

from cloister.privacy.manifest import Manifest
from cloister.privacy.masking import parameters
from cloister.server.audit.transcript.collusion import collusion
from cloister.server.audit.transcript.power import power
from cloister.server.audit.transcript.uniformity import ALARM, Sample, judged
from cloister.server.audit.transcript.uniformity import tests_of as all_tests
from cloister.server.vector_facts import facts_of

Vector = np.ndarray[Any, Any]


def samples(vectors: Sequence[Vector], *, sites: int = 1) -> list[Sample]:
    """Vectors in turn of so many sites, a round after the other."""
    return [
        Sample(
            site=f"s{place % sites}",
            group="train",
            round=place // sites + 1,
            session=place // sites,
            facts=facts_of(vector),
        )
        for place, vector in enumerate(vectors)
    ]


def uniform(generator: np.random.Generator, count: int, size: int) -> list[Vector]:
    return list(generator.integers(0, 1 << 32, (count, size), dtype=np.uint32))


def plain(generator: np.random.Generator, count: int, size: int) -> list[Vector]:
    """Updates as they are summed: normal numbers of a hundredth of the reach, in fixed point."""
    return [generator.normal(0, 1 << 22, size).astype(np.int64).astype(np.uint32) for _ in range(count)]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sites", "rounds", "size"), [pytest.param(4, 6, 38, marks=pytest.mark.slow), (3, 3, 700), (2, 2, 6000)]
)
def test_false_alarms_are_as_rare_as_stated(sites: int, rounds: int, size: int) -> None:
    # Runs of uniform vectors, judged at the stated level and at two that so few runs can test: as many alarms as one such series in a
    # thousand would show are too many.
    generator, runs, least = np.random.default_rng(1), 200, []
    for _ in range(runs):
        tests = judged(all_tests(samples(uniform(generator, sites * rounds, size), sites=sites)))
        least.append(tests[0].adjusted)
    for level in (ALARM, 0.01, 0.05):
        assert sum(p <= level for p in least) <= stats.binom.ppf(0.999, runs, level)


def test_p_values_of_bytes_and_neighbours_are_uniform() -> None:
    generator = np.random.default_rng(2)
    for size in (100, 400, 6000):  # 4, 16 and 256 cells
        tests = [test for _ in range(150) for test in all_tests(samples(uniform(generator, 1, size)))]
        for name in ("bytes", "neighbours"):
            values = [test.p for test in tests if test.name.startswith(name)]
            assert len(values) >= 150
            # 4 cells: p lies on few values, and is never too small
            worst = stats.kstest(values, "uniform", alternative="greater" if size == 100 else "two-sided")
            assert worst.pvalue > 1e-4


def no_mask(generator: np.random.Generator, count: int, size: int) -> list[Vector]:
    return plain(generator, count, size)


def low_half(generator: np.random.Generator, count: int, size: int) -> list[Vector]:
    masks = generator.integers(0, 1 << 16, (count, size), dtype=np.uint32)
    return [one + mask for one, mask in zip(plain(generator, count, size), masks, strict=True)]


def high_half_of_whole_numbers(generator: np.random.Generator, count: int, size: int) -> list[Vector]:
    masks = generator.integers(0, 1 << 16, (count, size), dtype=np.uint32) << np.uint32(16)
    return [
        one // 65536 * 65536 + mask for one, mask in zip(plain(generator, count, size), masks, strict=True)
    ]


def one_mask_twice(generator: np.random.Generator, count: int, size: int) -> list[Vector]:
    (mask,) = uniform(generator, 1, size)
    vectors = uniform(generator, count, size)
    changed = plain(generator, 2, size)
    vectors[0], vectors[-1] = changed[0] + mask, changed[1] + mask
    return vectors


def one_byte_constant(generator: np.random.Generator, count: int, size: int) -> list[Vector]:
    return [
        vector & np.uint32(0xFF00FFFF) | np.uint32(0x00420000) for vector in uniform(generator, count, size)
    ]


def a_step_up_each(generator: np.random.Generator, count: int, size: int) -> list[Vector]:
    """Each number uniform, and not independent of the one before."""
    return [
        np.cumsum(generator.integers(0, 1 << 28, size), dtype=np.uint64).astype(np.uint32)
        for _ in range(count)
    ]


@pytest.mark.parametrize("size", [38, 600, 6000])
@pytest.mark.parametrize(
    ("fault", "names"),
    [
        (no_mask, {"near"}),
        (low_half, {"near"}),
        (high_half_of_whole_numbers, {"even"}),
        (one_mask_twice, {"difference of rounds"}),
        (one_byte_constant, {"bytes 3 of 4"}),
        (a_step_up_each, {"neighbours"}),
    ],
)
def test_a_planted_fault_is_found_by_the_test_that_is_for_it(
    fault: Callable[[np.random.Generator, int, int], list[Vector]], names: set[str], size: int
) -> None:
    generator = np.random.default_rng(3)
    good = uniform(generator, 30, size)
    bad = fault(generator, 10, size)
    vectors = [vector for place in range(10) for vector in (*good[3 * place : 3 * place + 3], bad[place])]
    failed = [test for test in judged(all_tests(samples(vectors, sites=4))) if test.failed]
    assert names <= {test.name for test in failed}
    assert {test.site for test in failed} <= {"s3", "all sites"}


def test_a_mask_that_two_sites_share_is_found() -> None:
    generator = np.random.default_rng(4)
    vectors = uniform(generator, 8, 50)
    vectors[5] = vectors[6] + plain(generator, 1, 50)[0]
    (failed,) = [test for test in judged(all_tests(samples(vectors, sites=4))) if test.failed]
    assert (failed.name, failed.rounds) == ("difference of sites", "2")


def test_too_uniform_is_not_uniform_either() -> None:
    vector = (np.arange(8192, dtype=np.uint64) * (1 << 19)).astype(np.uint32)
    np.random.default_rng(5).shuffle(vector)
    assert any(test.name == "bytes 4 of 4" for test in judged(all_tests(samples([vector]))) if test.failed)


@pytest.mark.parametrize("size", [0, 1, 2])
def test_a_vector_too_short_for_a_test_is_not_tested_by_it(size: int) -> None:
    tests = all_tests(samples([np.zeros(size, dtype=np.uint32)]))
    assert {test.name for test in tests} == {"near", "even"}


def test_power_tells_what_would_be_found_and_what_not() -> None:
    generator = np.random.default_rng(6)
    told = {one.fault: one for one in power("train", plain(generator, 5, 38), 1000)}
    assert {fault: one.found for fault, one in told.items()} == {
        "no mask": True,
        "low half masked": True,
        "high half masked": False,  # the low bits of these are noise: no test can tell
        "mask used twice": True,
    }
    assert told["no mask"].once < 1e-50


def manifest(count: int, **changes: Any) -> Manifest:
    degree, threshold = parameters(count)
    return Manifest(
        **{
            "run": "r", "round_number": 1, "serial": 1, "kind": "train", "federation": "0" * 64, "layout": "0" * 64,
            "model": "0" * 64, "cohort": "0" * 64, "cohort_size": count, "least": 3, "threshold": threshold,
            "degree": degree, "size": 5, "largest": 100, **changes,
        }
    )  # fmt: skip


@pytest.mark.parametrize(("count", "curious", "lying"), [(3, 2, 2), (4, 3, 2), (10, 7, 4), (50, 34, 18)])
def test_of_a_complete_graph_t_helpers_open_or_all_others_and_fewer_with_a_lying_server(
    count: int, curious: int, lying: int
) -> None:
    found = collusion(manifest(count), count)
    assert (found.curious, found.lying) == (curious, lying)
    assert "other sites" in found.which


def test_of_a_sparse_graph_helpers_are_neighbours() -> None:
    found = collusion(manifest(100), 100)
    degree, threshold = parameters(100)
    assert (found.among, found.curious) == (degree, threshold)
    assert found.lying >= 2 * threshold - degree
    assert "neighbours" in found.which
