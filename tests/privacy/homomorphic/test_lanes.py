"""Parameters and lanes: what fits, and that it adds exactly."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cloister.core.errors import SpecError
from cloister.privacy.homomorphic import BFV, CKKS, SUM_BITS, WARNING, Parameters, parameters_of
from cloister.privacy.homomorphic.lanes import packed, unpacked
from cloister.privacy.homomorphic.parameters import LANE_BITS


def prime(number: int) -> bool:
    """Miller-Rabin with the bases that decide every number below 3.3e24."""
    odd, twos = number - 1, 0
    while not odd % 2:
        odd, twos = odd // 2, twos + 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37, 41):
        powers = [pow(base, odd << k, number) for k in range(twos)]
        if powers[0] != 1 and number - 1 not in powers:
            return False
    return True


@pytest.mark.parametrize("parameters", [BFV, CKKS])
def test_the_primes_are_those_that_seal_chooses(parameters: Parameters) -> None:
    from tenseal import sealapi  # type: ignore[import-untyped]

    chosen = sealapi.CoeffModulus.Create(parameters.degree, list(parameters.coefficient_bits))
    assert tuple(modulus.value() for modulus in chosen)[:-1] == parameters.primes


@pytest.mark.parametrize("parameters", [BFV, CKKS])
def test_the_moduli_are_within_what_the_standard_admits_at_128_bits(parameters: Parameters) -> None:
    assert (parameters.degree, sum(parameters.coefficient_bits) <= 109) == (4096, True)


@pytest.mark.parametrize("parameters", [BFV, CKKS])
def test_a_residue_fits_into_its_bytes(parameters: Parameters) -> None:
    assert max(parameters.primes) < 1 << (8 * parameters.width)


def test_the_plain_modulus_is_a_prime_that_has_slots() -> None:
    assert prime(BFV.plain_modulus)
    assert BFV.plain_modulus % (2 * BFV.degree) == 1


def test_the_widest_sum_of_two_lanes_stays_below_half_the_plain_modulus() -> None:
    most = (1 << (LANE_BITS - 1)) - 1
    assert most + (most << LANE_BITS) <= BFV.plain_modulus // 2
    assert 1 << (BFV.reach - 2) <= BFV.plain_modulus // 2


@pytest.mark.parametrize(
    ("scheme", "bits", "lanes"),
    [("bfv", 8, 2), ("bfv", 26, 2), ("bfv", 27, 1), ("bfv", 52, 1), ("ckks", 8, 1), ("ckks", 26, 1)],
)
def test_lanes_follow_from_the_bits_of_a_sum(scheme: str, bits: int, lanes: int) -> None:
    assert parameters_of(scheme).lanes(bits) == lanes


@pytest.mark.parametrize(("scheme", "bits"), [("bfv", 53), ("bfv", 62), ("ckks", 27)])
def test_a_sum_that_does_not_fit_is_refused(scheme: str, bits: int) -> None:
    with pytest.raises(SpecError) as refused:
        parameters_of(scheme).lanes(bits)
    assert refused.value.code == "protection-range"


@pytest.mark.parametrize("scheme", ["masked", "threshold-bfv", "", "BFV"])
def test_a_scheme_without_a_key_authority_is_refused(scheme: str) -> None:
    with pytest.raises(SpecError) as refused:
        parameters_of(scheme)
    assert refused.value.code == "protection-scheme"


def test_the_warning_names_the_attack_and_the_default() -> None:
    assert "Li & Micciancio 2021" in WARNING
    assert "bfv" in WARNING


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(st.data())
def test_packed_arrays_add_as_the_arrays_do(data: st.DataObject) -> None:
    lanes = data.draw(st.sampled_from([1, 2]))
    count = data.draw(st.integers(1, 6))
    size = data.draw(st.integers(1, 40))
    most = ((1 << (SUM_BITS - 1)) - 1) // count
    number = st.one_of(st.sampled_from([-most, most, 0, -1, 1]), st.integers(-most, most))
    arrays = [
        np.array(data.draw(st.lists(number, min_size=size, max_size=size)), dtype=np.int64)
        for _ in range(count)
    ]
    total = np.sum([packed(array, lanes=lanes, slots=8) for array in arrays], axis=0)
    found = unpacked(total, lanes=lanes)
    assert np.array_equal(found[:size], np.sum(arrays, axis=0))
    assert not found[size:].any()


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("count", [1, 7, 1000])
def test_the_worst_case_of_all_sites_is_exact(count: int, sign: int) -> None:
    most = ((1 << (SUM_BITS - 1)) - 1) // count
    for one in ([sign * most, sign * most], [sign * most, -sign * most]):
        array = np.array(one, dtype=np.int64)
        total = count * packed(array, lanes=2, slots=1)
        assert abs(int(total[0, 0])) <= BFV.plain_modulus // 2
        assert np.array_equal(unpacked(total, lanes=2), count * array)


def test_a_lane_that_overflows_is_seen_to_be_wrong() -> None:
    array = np.array([1 << (LANE_BITS - 1), 0], dtype=np.int64)
    assert not np.array_equal(unpacked(packed(array, lanes=2, slots=1), lanes=2), array)
