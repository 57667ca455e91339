"""Secure sums: what goes in comes out as a sum, exactly where it says exactly, and never wraps."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cloister.core.errors import DataError, SpecError
from cloister.core.spec import FederationSpec
from cloister.privacy.sums import (
    CUT,
    LOSS,
    WEIGHT,
    Exact,
    Reals,
    Residues,
    SumCode,
    evaluation_parts,
    sum_code,
)
from cloister.privacy.updates import FixedPoint, centred, wrapped


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def summed(code: SumCode, values: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Sum the encodings as a protection does, modulo 2^bits, and decode."""
    total = sum(code.encode(one, rng(seed)) for seed, one in enumerate(values))
    if code.bits == 32:
        total = centred(wrapped(np.asarray(total), 32), 32)
    return code.decode(np.asarray(total), count=len(values))


@pytest.mark.parametrize("bits", [27, 32])
@pytest.mark.parametrize("most", [3, 50, 1000])
def test_sums_are_exact_to_the_unit_for_each_site(bits: int, most: int) -> None:
    part = Reals(name="v", size=500, reach=2.0)
    code = SumCode(parts=(part, Exact(name="x", size=3)), most=most, bits=bits)
    sites = min(most, 40)
    values: list[dict[str, np.ndarray]] = [
        {"v": rng(site).uniform(-2, 2, 500).astype(np.float32), "x": rng(site).normal(0, 1e5, 3)}
        for site in range(sites)
    ]
    found = summed(code, values)
    assert np.abs(found["v"] - sum(one["v"].astype(float) for one in values)).max() < sites * part.unit(
        most, bits
    )
    assert np.abs(found["x"] - sum(one["x"] for one in values)).max() < sites * 2**-20


@pytest.mark.parametrize("bits", [27, 32])
def test_the_worst_case_does_not_wrap(bits: int) -> None:
    most = 1000
    code = SumCode(parts=(Reals(name="v", size=2, reach=4.0), Exact(name="x")), most=most, bits=bits)
    one = code.encode({"v": np.array([4.0, -4.0]), "x": np.array([2.0**40])}, rng())
    assert most * int(np.abs(one).max()) < 2 ** (bits - 1)
    found = code.decode(one * most, count=most)
    assert found["v"] == pytest.approx([4000, -4000], rel=1e-3)
    assert found["x"] == pytest.approx(most * 2.0**31, rel=1e-9)


def test_rounding_keeps_the_mean_and_rejects_a_shifted_one() -> None:
    code = FixedPoint(scale=10.0)
    drawn = code.encode(np.full(40_000, 0.123), rng(3)) / 10.0
    error = 3.3 * 0.1 * np.sqrt(0.23 * 0.77 / 40_000)  # two-sided, false alarm 1e-3
    assert abs(drawn.mean() - 0.123) < error
    assert abs(drawn.mean() - 0.12) > error
    assert set(np.unique(drawn)) == {0.1, 0.2}


def test_updates_that_are_cut_to_a_reach_that_is_no_float32_do_not_wrap() -> None:
    part = Reals(name="v", size=1, reach=0.1)  # the nearest float32 is larger
    code = SumCode(parts=(part,), most=3, bits=32)
    assert part.cuts(np.array([0.1], dtype=np.float32))
    assert not part.cuts(np.array([0.1]))
    one = {"v": np.array([7.0], dtype=np.float32)}
    total = sum(code.residues(one, rng(seed)) for seed in range(3))
    assert code.decode(centred(np.asarray(total), 32), count=3)["v"] == pytest.approx([0.3])


def test_what_is_beyond_the_reach_is_cut_and_told() -> None:
    part = Reals(name="v", size=3, reach=1.0)
    assert not part.cuts(np.array([1.0, -1.0, 0.0]))
    assert part.cuts(np.array([0.0, -1.5, 0.0]))
    code = SumCode(parts=(part,), most=3, bits=32)
    found = summed(code, [{"v": np.array([0.5, -1.5, 9.0])}])
    assert found["v"] == pytest.approx([0.5, -1.0, 1.0], abs=1e-8)


def test_rounding_at_random_leaves_integers_alone_and_is_the_same_modulo_two_to_the_32_however_far() -> None:
    code = FixedPoint(scale=1.0)
    whole = np.arange(-200_000, 200_001).astype(np.float64)
    assert np.array_equal(code.encode(whole, rng(1)), whole)
    for reach in (1e3, 2.0**31, 2.0**50, 2.0**61):  # in the first three all is below 2^51
        values = rng(2).uniform(-reach, reach, 70_001)
        integers = code.encode(values, rng(3))
        assert np.abs(integers - values).max() <= max(1.0, reach * 2.0**-52)
        assert np.array_equal(code.residues(values, rng(3)), wrapped(integers, 32))


@given(st.lists(st.integers(0, 2**20 - 1), min_size=1, max_size=9))
@settings(derandomize=True, deadline=None)
def test_residues_sum_modulo_their_own_modulus(values: list[int]) -> None:
    code = SumCode(parts=(Residues(name="v", size=1, modulus_bits=20),), most=9, bits=32)
    found = summed(code, [{"v": np.array([value], dtype=np.uint32)} for value in values])
    assert found["v"].tolist() == [sum(values) % 2**20]


def test_what_is_private_modulo_less_than_the_masks_goes_with_random_multiples() -> None:
    code = SumCode(parts=(Residues(name="v", size=4000, modulus_bits=20),), most=3, bits=32)
    values = {"v": np.arange(4000, dtype=np.uint32)}
    found = code.residues(values, rng(5))
    high = found >> 20
    assert np.array_equal(found & (2**20 - 1), values["v"])
    assert len(np.unique(high)) > 2000, "of 4096 multiples"
    assert abs(high.mean() - 2047.5) < 3.3 * 4096 / np.sqrt(12 * 4000)  # two-sided, false alarm 1e-3
    assert np.array_equal(code.decode(centred(found + found, 32), count=2)["v"], 2 * values["v"])


def test_residues_that_do_not_fit_without_wrapping_are_refused() -> None:
    part = Residues(name="v", size=1, modulus_bits=20)
    assert SumCode(parts=(part,), most=100, bits=27).largest == 2**19
    with pytest.raises(SpecError, match="do not fit into 27 bits"):
        SumCode(parts=(part,), most=200, bits=27)


def test_a_number_that_is_not_finite_never_enters_a_sum() -> None:
    code = SumCode(parts=(Reals(name="v", size=1, reach=1.0), Exact(name="x")), most=3, bits=32)
    for v, x in ((np.nan, 0.0), (-np.inf, 0.0), (0.0, np.nan), (0.0, np.inf)):
        for write in (code.encode, code.residues):
            with pytest.raises(DataError):
                write({"v": np.array([v]), "x": np.array([x])}, rng())


def test_residues_are_the_integers_modulo_two_to_the_32() -> None:
    parts = (
        Reals(name="v", size=100_003, reach=2.0),
        Exact(name="x", size=3),
        Residues(name="r", size=5, modulus_bits=32),
    )
    code = SumCode(parts=parts, most=3, bits=32)
    values = {
        "v": rng(1).uniform(-2.5, 2.5, 100_003).astype(np.float32),
        "x": np.array([-(2.0**30), 0.125, 7.0]),
        "r": np.array([0, 1, 2**31, 2**32 - 1, 5], dtype=np.uint32),
    }
    assert np.array_equal(code.residues(values, rng(5)), wrapped(code.encode(values, rng(5)), 32))


def test_other_names_and_lengths_are_refused() -> None:
    code = SumCode(parts=(Exact(name="x", size=2), Reals(name="v", size=2, reach=1.0)), most=3, bits=32)
    two = np.zeros(2)
    for wrong in (
        {"y": two, "v": two},
        {"x": two},
        {"x": two, "v": np.zeros(1)},
        {"x": np.zeros(3), "v": two},
    ):
        for write in (code.encode, code.residues):
            with pytest.raises(ValueError, match="expected numbers"):
                write(wrong, rng())
    with pytest.raises(ValueError, match="expected a sum"):
        code.decode(np.zeros(1, dtype=np.int64), count=1)
    with pytest.raises(ValueError, match="expected a sum"):
        code.decode(np.zeros(code.size, dtype=np.int64), count=4)


def _spec(**tables: object) -> FederationSpec:
    document = {"federation": {"name": "t", "rounds": 2}, "task": {"use": "x"}, **tables}
    return FederationSpec.model_validate(document)


PRIVATE = {"epsilon": 8.0, "delta": 1e-5, "clip": 0.5}


@pytest.mark.parametrize(
    ("tables", "names"),
    [
        ({}, ["vector", LOSS, CUT]),
        ({"training": {"scaffold": True}}, ["vector", "control", LOSS, CUT]),
        ({"aggregation": {"weighting": {"records_cap": 9}}}, ["vector", WEIGHT, LOSS, CUT]),
        (
            {"training": {"local_steps": 1}, "privacy": {"unit": "record", "sampling_rate": 0.1, **PRIVATE}},
            ["vector", CUT],
        ),
        ({"cohort": {"sites": 20}, "privacy": {"unit": "site", **PRIVATE}}, ["vector"]),
        (
            {"cohort": {"sites": 20}, "privacy": {"unit": "site", "adaptive_clip": {}, **PRIVATE}},
            ["vector", "within"],
        ),
        ({"cohort": {"sites": 20}, "privacy": {"unit": "site-local", **PRIVATE}}, ["vector", CUT]),
        (
            {"cohort": {"sites": 100, "min_sites": 90}, "privacy": {"unit": "site-distributed", **PRIVATE}},
            ["vector"],
        ),
    ],
)
def test_nothing_of_a_private_run_is_summed_but_the_update(
    tables: dict[str, object], names: list[str]
) -> None:
    code = sum_code(_spec(**tables), "train", size=64, classes=2, most=100, bits=32, clip=None)
    assert [part.name for part in code.parts] == names


def test_measurements_hold_no_record_of_one_site() -> None:
    parts = [part.name for part in evaluation_parts(3)]
    assert {"loss", "confusion", "metric.accuracy"} <= set(parts)
    assert "metric.auroc" not in parts, "where one site's records define it, its sum is that site's"
    assert len(parts) == len(set(parts))
    assert all(a != b for a, b in pairwise(parts))
