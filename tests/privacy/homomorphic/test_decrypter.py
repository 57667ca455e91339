"""The process that decrypts: its limits, its end, and what it may answer."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic import BFV, CKKS, Vault
from cloister.privacy.homomorphic.child import Decrypter
from cloister.privacy.homomorphic.container import Residues
from cloister.privacy.homomorphic.vault import SessionKey
from cloister.privacy.homomorphic.vectors import Vectors

COHORT = "c" * 64


@pytest.fixture(scope="module")
def key() -> SessionKey:
    return Vault.in_memory().issue("run", 1, COHORT, "bfv")


@pytest.fixture
def decrypter() -> Iterator[Decrypter]:
    made = Decrypter()
    yield made
    made.close()


def fresh(key: SessionKey, value: int = 7) -> Residues:
    parameters = key.public.parameters
    return Vectors(parameters, key.public.context).encrypt(np.full(parameters.slots, value, dtype=np.int64))


def gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


@pytest.mark.parametrize("scheme", ["bfv", "ckks"])
def test_what_was_encrypted_is_decrypted(decrypter: Decrypter, scheme: str) -> None:
    key = Vault.in_memory().issue("run", 1, COHORT, scheme)  # type: ignore[arg-type]
    (found,) = decrypter.decrypt(key, [fresh(key, -3)])
    assert np.allclose(found[0], -3, atol=0.01)
    assert found[1] in (
        (18, 19) if scheme == "bfv" else (0,)
    )  # bits left: the noise of a fresh ciphertext is drawn


def test_one_child_serves_one_key_after_another(decrypter: Decrypter, key: SessionKey) -> None:
    other = Vault.in_memory().issue("run", 2, COHORT, "ckks")
    for one, value in ((key, 5), (other, 6), (key, 7)):
        (found,) = decrypter.decrypt(one, [fresh(one, value)])
        assert np.allclose(found[0], value, atol=0.01)
    first = decrypter.pid
    list(decrypter.decrypt(key, [fresh(key)]))
    assert decrypter.pid == first


def test_a_ciphertext_under_another_key_has_no_noise_budget(decrypter: Decrypter, key: SessionKey) -> None:
    other = Vault.in_memory().issue("run", 2, COHORT, "bfv")
    ((_, budget),) = decrypter.decrypt(key, [fresh(other)])
    assert budget == 0


@pytest.mark.parametrize("wrong", [np.zeros((2, 2, 4095)), np.full((2, 2, 4096), 2.0**41)])
def test_what_seal_finds_not_valid_is_refused_and_the_next_is_served(
    decrypter: Decrypter, key: SessionKey, wrong: npt.NDArray[np.float64]
) -> None:
    with pytest.raises(IntegrityError) as refused:
        list(decrypter.decrypt(key, [wrong.astype(np.uint64)]))
    assert refused.value.code == "decryption-failed"
    ((numbers, _),) = decrypter.decrypt(key, [fresh(key)])
    assert set(numbers.tolist()) == {7}


def test_a_child_that_dies_is_a_refusal_and_the_next_session_has_another(
    decrypter: Decrypter, key: SessionKey
) -> None:
    answers = decrypter.decrypt(key, [fresh(key)] * 2)
    next(answers)
    dead = decrypter.pid
    assert dead is not None
    os.kill(dead, signal.SIGKILL)
    with pytest.raises(IntegrityError) as refused:
        next(answers)
    assert refused.value.code == "decryption-failed"
    ((numbers, _),) = decrypter.decrypt(key, [fresh(key)])
    assert set(numbers.tolist()) == {7}
    assert decrypter.pid != dead
    assert gone(dead)


def test_a_child_that_takes_too_long_is_killed(key: SessionKey) -> None:
    decrypter = Decrypter(limit_s=20)
    answers = decrypter.decrypt(key, [fresh(key)] * 2)
    next(answers)
    stuck = decrypter.pid
    assert stuck is not None
    os.kill(stuck, signal.SIGSTOP)
    decrypter._limit_s = 0.5
    began = time.monotonic()
    with pytest.raises(IntegrityError) as refused:
        next(answers)
    assert refused.value.code == "decryption-failed"
    assert time.monotonic() - began < 10
    assert gone(stuck)
    decrypter.close()


def test_the_child_has_limits_and_leaves_no_core(decrypter: Decrypter, key: SessionKey) -> None:
    list(decrypter.decrypt(key, [fresh(key)]))
    limits = {
        line[:26].strip(): line[26:46].strip()
        for line in Path(f"/proc/{decrypter.pid}/limits").read_text().splitlines()
    }
    assert limits["Max core file size"] == "0"
    assert limits["Max file size"] == "0"
    assert 0 < int(limits["Max address space"]) <= 4 << 30


def test_the_key_is_in_no_argument_and_no_variable(decrypter: Decrypter, key: SessionKey) -> None:
    list(decrypter.decrypt(key, [fresh(key)]))
    seen = b"".join(Path(f"/proc/{decrypter.pid}/{name}").read_bytes() for name in ("cmdline", "environ"))
    middle = key.secret[5000:5016]
    assert middle not in seen
    assert middle.hex().encode() not in seen


def test_an_authority_needs_no_torch(decrypter: Decrypter, key: SessionKey) -> None:
    list(decrypter.decrypt(key, [fresh(key)]))
    assert "libtorch" not in Path(f"/proc/{decrypter.pid}/maps").read_text()


def test_a_key_is_forgotten_after_its_session_however_that_ended(
    decrypter: Decrypter, key: SessionKey
) -> None:
    """A ciphertext without a key before it is answered with nothing: the child does as if it was told to forget."""
    answers = decrypter.decrypt(key, [fresh(key)] * 3)
    next(answers)
    child = decrypter._child
    answers.close()
    assert child is not None
    assert decrypter._child is child
    assert decrypter._ask(child, b"C" + fresh(key).tobytes(), 0) == b""
    ((numbers, _),) = decrypter.decrypt(key, [fresh(key)])
    assert set(numbers.tolist()) == {7}


def test_a_sum_of_a_thousand_equal_ciphertexts_is_exact() -> None:
    """The worst case of the noise, which no thousand sites that encrypt by themselves come near: equal noise adds up n-fold."""
    for parameters in (BFV, CKKS):
        key = Vault.in_memory().issue("run", 1, COHORT, parameters.scheme)
        most = ((1 << 25) - 1) // 1000
        slots = np.resize(np.array([most + (most << 27), -most - (most << 27), most - (most << 27), 0]), 4096)
        if parameters is CKKS:
            slots = np.resize(np.array([most, -most, 0]), 2048)
        one = Vectors(parameters, key.public.context).encrypt(slots)
        primes = np.asarray(parameters.primes, dtype=np.uint64)[None, :, None]
        total = np.zeros_like(one)
        for _ in range(1000):
            total = (total + one) % primes
        decrypter = Decrypter()
        ((numbers, budget),) = decrypter.decrypt(key, [total])
        decrypter.close()
        assert np.array_equal(np.rint(numbers).astype(np.int64), 1000 * slots)
        if parameters is BFV:
            assert 8 <= budget <= 10
        else:
            assert np.abs(numbers - np.rint(numbers)).max() < 0.25


@pytest.mark.slow
def test_a_sum_of_a_thousand_fresh_ciphertexts_keeps_its_noise_budget() -> None:
    key = Vault.in_memory().issue("run", 1, COHORT, "bfv")
    vectors = Vectors(BFV, key.public.context)
    primes = np.asarray(BFV.primes, dtype=np.uint64)[None, :, None]
    most = ((1 << 25) - 1) // 1000
    slots = np.full(4096, most + (most << 27), dtype=np.int64)
    total = np.zeros((2, 2, 4096), dtype=np.uint64)
    for _ in range(1000):
        total = (total + vectors.encrypt(slots)) % primes
    decrypter = Decrypter()
    ((numbers, budget),) = decrypter.decrypt(key, [total])
    decrypter.close()
    assert np.array_equal(numbers, 1000 * slots)
    assert budget >= 13
