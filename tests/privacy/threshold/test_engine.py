"""OpenFHE in its process: sums are exact, noise floods, and whatever fails is one refusal."""

import multiprocessing
import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cloister.core.errors import IntegrityError, SpecError
from cloister.privacy.homomorphic.container import Residues, limits
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.threshold.engine import PYTHON, Engine, engine
from cloister.privacy.threshold.proofs import noise, small
from cloister.privacy.threshold.ring import Prepared, inverse, minus, plus, prepared, times, transformed
from cloister.privacy.threshold.shares import common
from joint import needs_openfhe

PRIMES = limits(THRESHOLD)[0]


def summed(parts: list[Residues]) -> Residues:
    total = np.zeros_like(parts[0])
    for part in parts:
        total = (total + part) % PRIMES
    return total


@dataclass
class Keys:
    """A joint key and the holders' secrets, made with what `shares` is made of."""

    a: Prepared
    b: Prepared
    secrets: list[Residues]

    @classmethod
    def of(cls, holders: int) -> "Keys":
        a = prepared(common("run", 1))
        secrets = [transformed(small()) for _ in range(holders)]
        return cls(a, prepared(summed([minus(transformed(noise()), times(s, a)) for s in secrets])), secrets)

    def encrypt(self, row: np.ndarray[Any, Any]) -> Residues:
        u = transformed(small())
        c0 = plus(times(u, self.b), engine().encoded(row))
        return np.stack([c0, plus(times(u, self.a), transformed(noise()))])


def multiple(residues: Residues, factor: int) -> Residues:
    rows = [
        [int(number) * factor % prime for number in row]
        for row, prime in zip(residues, THRESHOLD.primes, strict=True)
    ]
    return np.array(rows, dtype=np.uint64)


@needs_openfhe
@pytest.mark.parametrize("holders", [2, 3, 8])
def test_all_holders_together_open_the_sum_and_without_any_one_of_them_it_is_noise(holders: int) -> None:
    own, generator, keys = engine(), np.random.default_rng(holders), Keys.of(holders)
    most = (THRESHOLD.plain_modulus // 2 - 1) // 4
    rows = generator.integers(-most, most, (4, THRESHOLD.slots), endpoint=True)
    rows[:, 0], rows[:, 1] = most, -most
    total = summed([keys.encrypt(row) for row in rows])
    parts = [own.partial(secret, total[1]) for secret in keys.secrets]
    assert np.array_equal(own.opened(summed([total[0], *parts])), rows.sum(0))
    for missing in range(holders):
        rest = [part for number, part in enumerate(parts) if number != missing]
        found = own.opened(summed([total[0], *rest]))
        assert np.mean(found == rows.sum(0)) < 0.01


@needs_openfhe
def test_a_partial_decryption_is_flooded_by_noise_of_119_bits_fresh_each_time() -> None:
    """Of polynomial 1 = 0 the noise is all there is. It opens to 0 as long as it is below Δ/2 = 2^151, so a multiple of it tells how large it is."""
    own = engine()
    secret = transformed(small())
    nothing = np.zeros_like(PRIMES + np.zeros((1, THRESHOLD.degree), dtype=np.uint64))
    noise, again = own.partial(secret, nothing), own.partial(secret, nothing)
    assert np.mean(noise == again) < 0.01
    assert not own.opened(multiple(noise, 2**31)).any()
    assert np.mean(own.opened(multiple(noise, 2**34)) != 0) > 0.5
    # Nor does it cancel: the difference of two partial decryptions of one ciphertext is noise as large.
    difference = (noise + (PRIMES - again)) % PRIMES
    assert np.mean(own.opened(multiple(difference, 2**34)) != 0) > 0.5


@needs_openfhe
def test_what_is_encoded_is_scaled_with_small_fresh_noise() -> None:
    """Δ is the modulus over the plain modulus; the noise is OpenFHE's, of standard deviation 3.19, below 12 of them."""
    values = np.arange(THRESHOLD.slots, dtype=np.int64)
    one, other = (engine().encoded(values) for _ in range(2))
    difference = inverse(minus(one, other))
    assert 0 < max(map(abs, difference)) < 80
    assert 4.3 < float(np.std(np.array(difference))) < 4.7
    assert np.array_equal(engine().opened(one), values)


@needs_openfhe
@pytest.mark.parametrize("wrong", [THRESHOLD.plain_modulus // 2, -(THRESHOLD.plain_modulus // 2)])
def test_values_that_do_not_fit_are_a_fault_of_the_caller(wrong: int) -> None:
    values = np.zeros(THRESHOLD.slots, dtype=np.int64)
    values[7] = wrong
    with pytest.raises(ValueError, match="expected 8192 integers"):
        engine().encoded(values)
    with pytest.raises(ValueError, match="expected 8192 integers"):
        engine().encoded(values[:5])
    with pytest.raises(ValueError, match="expected uint64"):
        engine().opened(common("run", 1)[:, :100])


@needs_openfhe
def test_a_process_that_dies_costs_one_order_and_the_next_starts_another() -> None:
    own = Engine(engine()._python)
    own.check()
    assert own._child is not None
    own._child.kill()
    own._child.wait()
    own.encoded(np.zeros(THRESHOLD.slots, dtype=np.int64))
    with pytest.raises(IntegrityError) as refused:
        own._ask(b"p", [b"short", b"short"], (8,))
    assert refused.value.code == "threshold-failed"
    own.encoded(np.zeros(THRESHOLD.slots, dtype=np.int64))
    slow = Engine(own._python, limit_s=1e-4)
    with pytest.raises(SpecError, match="it crashed"):
        slow.check()
    own.close()


@needs_openfhe
def test_a_forked_process_has_an_engine_of_its_own() -> None:
    own = engine()
    own.check()
    assert own._child is not None
    context = multiprocessing.get_context("fork")
    queue = context.Queue()

    def forked() -> None:
        other = engine()
        other.check()
        queue.put((other is own, None if other._child is None else other._child.pid))
        other.close()

    process = context.Process(target=forked)
    process.start()
    same, pid = queue.get(timeout=60)
    process.join()
    assert not same
    assert pid != own._child.pid


@pytest.mark.parametrize(
    ("python", "says"),
    [
        (str(Path(os.devnull).parent / "nowhere"), "cannot be started"),
        (sys.executable, "No module named 'openfhe'"),
        ("/bin/false", "it crashed"),
    ],
)
def test_where_openfhe_is_not_it_says_so_and_what_to_do(
    monkeypatch: pytest.MonkeyPatch, python: str, says: str
) -> None:
    monkeypatch.setenv(PYTHON, python)
    with pytest.raises(SpecError, match=says) as refused:
        engine().check()
    assert refused.value.code == "threshold-missing"
    assert "'masked'" in refused.value.remedy
    assert PYTHON in refused.value.remedy
