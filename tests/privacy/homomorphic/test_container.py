"""Containers: what is read, and what is refused before anything is done with it."""

import hashlib
import struct
import tracemalloc

import numpy as np
import pytest

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic import BFV, CKKS, Ciphertexts, Form, Parameters
from cloister.privacy.homomorphic.container import Residues, summed
from cloister.privacy.homomorphic.vectors import Vectors, new_key

KEY = hashlib.sha256(b"a key").hexdigest()
FORM = Form(parameters=BFV, key=KEY, size=10_000, lanes=2)


def drawn(form: Form, seed: int = 0) -> list[Residues]:
    generator = np.random.default_rng(seed)
    parameters = form.parameters
    shape = (2, len(parameters.primes), parameters.degree)
    limits = np.asarray(parameters.primes, dtype=np.uint64)[None, :, None]
    return [generator.integers(0, limits, shape, dtype=np.uint64) for _ in range(form.chunks)]


def refusal(container: bytes, form: Form = FORM) -> str:
    with pytest.raises(IntegrityError) as refused:
        Ciphertexts.read(container, form)
    return refused.value.code


@pytest.mark.parametrize("parameters", [BFV, CKKS])
@pytest.mark.parametrize(("size", "lanes"), [(1, 1), (4096, 1), (4097, 1)])
def test_what_is_written_is_read(parameters: Parameters, size: int, lanes: int) -> None:
    form = Form(parameters=parameters, key=KEY, size=size, lanes=lanes)
    residues = drawn(form)
    container = form.write(residues)
    found = Ciphertexts.read(container, form)
    assert len(container) == form.length
    assert len(found) == form.chunks == -(-size // (lanes * parameters.slots))
    assert all(np.array_equal(one, other) for one, other in zip(found, residues, strict=True))
    assert form.write(found) == container


def test_a_container_costs_ten_bytes_a_value() -> None:
    form = Form(parameters=BFV, key=KEY, size=8192 * 100, lanes=2)
    assert form.length / form.size == pytest.approx(10, abs=0.001)


@pytest.mark.parametrize("cut", [0, 1, 10, 63, 64, 100, FORM.length - 1])
def test_a_truncated_container_is_refused(cut: int) -> None:
    assert refusal(FORM.write(drawn(FORM))[:cut]) == "ciphertext-length"


def test_a_longer_container_is_refused() -> None:
    assert refusal(FORM.write(drawn(FORM)) + b"\0") == "ciphertext-length"


@pytest.mark.parametrize(
    ("at", "form", "value", "code"),
    [
        (0, "<4s", b"CLHF", "ciphertext-header"),
        (4, "<H", 2, "ciphertext-header"),
        (6, "<H", 2, "ciphertext-header"),
        (8, "<32s", bytes(32), "ciphertext-key"),
        (40, "<Q", (1 << 64) - 1, "ciphertext-header"),
        (40, "<Q", 9_999, "ciphertext-header"),
        (48, "<I", 1, "ciphertext-header"),
        (52, "<I", (1 << 32) - 1, "ciphertext-header"),
        (56, "<I", (1 << 32) - 1, "ciphertext-header"),
    ],
)
def test_a_header_that_is_not_the_session_s_is_refused(at: int, form: str, value: object, code: str) -> None:
    container = bytearray(FORM.write(drawn(FORM)))
    struct.pack_into(form, container, at, value)
    assert refusal(bytes(container)) == code


def test_a_huge_size_in_the_header_allocates_nothing() -> None:
    container = bytearray(FORM.write(drawn(FORM)))
    struct.pack_into("<Q", container, 40, 1 << 60)
    struct.pack_into("<I", container, 52, (1 << 32) - 1)
    tracemalloc.start()
    refusal(bytes(container))
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert most < 2 * FORM.length


@pytest.mark.parametrize("excess", [0, 1, (1 << 40) - 1 - BFV.primes[0]])
@pytest.mark.parametrize("chunk", [0, 1])
def test_a_residue_that_is_not_below_its_prime_is_refused(chunk: int, excess: int) -> None:
    residues = drawn(FORM)
    residues[chunk][1, 0, 17] = BFV.primes[0] + excess
    assert refusal(FORM.write(residues)) == "ciphertext-residue"


def test_the_largest_residue_is_accepted() -> None:
    residues = drawn(FORM)
    for number, limit in enumerate(BFV.primes):
        residues[0][:, number, :] = limit - 1
    Ciphertexts.read(FORM.write(residues), FORM)


@pytest.mark.parametrize("wrong", ["text", None, bytearray(FORM.length), memoryview(bytes(FORM.length))])
def test_what_is_not_bytes_is_refused(wrong: object) -> None:
    assert refusal(wrong) == "ciphertext-length"  # type: ignore[arg-type]


@pytest.mark.parametrize("parameters", [BFV, CKKS])
def test_the_sum_of_residues_is_seal_s_own_sum(parameters: Parameters) -> None:
    vectors = Vectors(parameters, new_key(parameters)[1])
    form = Form(parameters=parameters, key=KEY, size=parameters.slots, lanes=1)
    numbers = np.arange(parameters.slots, dtype=np.int64)
    one, other = vectors.encrypt(numbers), vectors.encrypt(-3 * numbers)
    ours = summed([Ciphertexts.read(form.write([residues]), form) for residues in (one, other)])
    assert np.array_equal(Ciphertexts.read(ours, form)[0], vectors.added(one, other))


def test_many_of_the_largest_residues_sum_without_wrapping() -> None:
    form = Form(parameters=CKKS, key=KEY, size=1, lanes=1)
    (prime,) = CKKS.primes
    container = form.write([np.full((2, 1, CKKS.degree), prime - 1, dtype=np.uint64)])
    found = Ciphertexts.read(summed([Ciphertexts.read(container, form)] * 3000), form)[0]
    assert set(found.ravel().tolist()) == {(prime - 3000) % prime}
