"""Proofs that a polynomial is well formed, and the ring that they are computed in."""

import random

import numpy as np
import pytest

from cloister.privacy.homomorphic.container import Residues, limits
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.threshold.proofs import REPEATS, _read, holds, noise, proved, small
from cloister.privacy.threshold.ring import (
    inverse,
    minus,
    monomials,
    plus,
    prepared,
    times,
    transformed,
    turned,
)

N, PRIMES = THRESHOLD.degree, limits(THRESHOLD)[0]
ABOUT = [b"a test", b"site-1"]


def uniform(seed: int) -> Residues:
    generator = np.random.default_rng(seed)
    return np.stack([generator.integers(0, prime, N, np.uint64) for prime in THRESHOLD.primes])


A = prepared(uniform(1))
U, E = small(), noise()
C = plus(times(transformed(U), A), transformed(E))
PROOF = proved(A, C, U, E, ABOUT)


class TestRing:
    def test_products_sums_and_differences_are_modulo_the_primes_also_at_the_edges(self) -> None:
        one, other = uniform(2), uniform(3)
        for place, prime in enumerate(THRESHOLD.primes):
            one[place, :4], other[place, :4] = (
                (0, 1, prime - 1, prime - 1),
                (prime - 1, prime - 1, prime - 1, 1),
            )
        exact = [
            (int(x) * int(y) % p, (int(x) + int(y)) % p, (int(x) - int(y)) % p)
            for row, second, p in zip(one, other, THRESHOLD.primes, strict=True)
            for x, y in zip(row, second, strict=True)
        ]
        found = times(one, prepared(other)), plus(one, other), minus(one, other)
        assert list(zip(*(part.ravel().tolist() for part in found), strict=True)) == exact

    def test_it_is_the_ring_of_polynomials_modulo_x_to_the_n_plus_1(self) -> None:
        generator = random.Random(1)
        first, second = (np.zeros(N, dtype=np.int64) for _ in range(2))
        wanted = [0] * N
        terms = [(generator.randrange(N), generator.randrange(-99, 99)) for _ in range(40)]
        others = [(generator.randrange(N), generator.randrange(-99, 99)) for _ in range(40)]
        for at, value in terms:
            first[at] += value
        for at, value in others:
            second[at] += value
        for at, value in terms:
            for place, factor in others:
                wanted[(at + place) % N] += value * factor * (1 if at + place < N else -1)
        assert inverse(times(transformed(first), prepared(transformed(second)))) == wanted

    @pytest.mark.parametrize("exponent", [0, 1, 17, N - 1, N, N + 1, 2 * N - 1])
    def test_a_monomial_turns_the_coefficients(self, exponent: int) -> None:
        turn = prepared(monomials(np.array(exponent)))
        assert np.array_equal(times(transformed(E), turn), transformed(turned(E, exponent)))


class TestDraws:
    def test_what_is_drawn_has_the_stated_distribution(self) -> None:
        """Two-sided: N draws of a variance v have a sample variance within 5 standard deviations, 5·sqrt(2/N)."""
        drawn = np.concatenate([small() for _ in range(10)])
        assert set(np.unique(drawn)) == {-1, 0, 1}
        assert all(abs(np.mean(drawn == value) - 1 / 3) < 0.009 for value in (-1, 0, 1))
        errors = np.concatenate([noise() for _ in range(10)])
        assert int(np.abs(errors).max()) <= 21
        assert abs(float(np.var(errors)) / 10.5 - 1) < 5 * (2 / len(errors)) ** 0.5
        assert abs(float(np.mean(errors))) < 5 * (10.5 / len(errors)) ** 0.5
        assert not np.array_equal(small(), small())


class TestProofs:
    def test_a_proof_of_a_well_formed_polynomial_holds(self) -> None:
        assert len(PROOF) == THRESHOLD.proof_bytes
        assert holds(A, C, PROOF, ABOUT)
        assert proved(A, C, U, E, ABOUT) != PROOF

    @pytest.mark.parametrize(
        "change", ["about", "a", "c", "challenge", "response", "short", "empty", "swapped", "zeros"]
    )
    def test_it_holds_of_nothing_else(self, change: str) -> None:
        a, c, proof, about = A, C, PROOF, ABOUT
        raw = bytearray(proof)
        if change == "about":
            about = [b"a test", b"site-2"]
        elif change == "a":
            a = prepared(uniform(9))
        elif change == "c":
            c = plus(c, transformed(np.eye(1, N, 5, dtype=np.int64)[0]))
        elif change == "challenge":
            raw[0] ^= 1
        elif change == "response":
            raw[2 * REPEATS + 3 * 77] ^= 1
        elif change == "swapped":
            raw[0:2], raw[2:4] = raw[2:4], raw[0:2]
        elif change == "zeros":
            raw[:] = bytes(len(raw))
        proof = {"short": proof[:-1], "empty": b""}.get(change, bytes(raw))
        assert not holds(a, c, proof, about)

    @pytest.mark.parametrize("bits", [40, 130])
    def test_a_polynomial_with_something_large_in_it_cannot_be_proved_of(self, bits: int) -> None:
        """Neither with the honest secrets, nor with a response of the size that the equation would need."""
        far = np.zeros((3, N), dtype=np.uint64) + np.array(
            [[pow(2, bits, prime)] for prime in THRESHOLD.primes], dtype=np.uint64
        )
        moved = plus(C, far)
        assert not holds(A, moved, proved(A, moved, U, E, ABOUT), ABOUT)
        with pytest.raises(ValueError, match="too large"):
            proved(A, moved, U, E + 2**20, ABOUT)

    def test_a_response_is_the_mask_and_the_turned_secret_and_is_drawn_anew_where_it_would_tell(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Each response is y + X^i·(u, e), with a y of its own; a y at the edge of its range is drawn again with all others."""
        generator = np.random.default_rng(5)
        length = 3 * REPEATS * 2 * N
        edge = generator.integers(0, 256, length, np.uint8)
        edge[:3] = 255  # y = 2^23 - 1: with anything added to it, it is beyond what may leave
        draws = [edge.tobytes(), generator.integers(0, 256, length, np.uint8).tobytes()]
        masks = [_read(np.frombuffer(one, dtype=np.uint8)) for one in draws]
        given = iter(draws)
        monkeypatch.setattr("cloister.privacy.threshold.proofs.os.urandom", lambda _: next(given))
        u, e = np.ones(N, dtype=np.int64), np.full(N, 21)
        proof = proved(A, plus(times(transformed(u), A), transformed(e)), u, e, ABOUT)
        assert next(given, None) is None
        challenges = np.frombuffer(proof, dtype="<u2", count=REPEATS).astype(int)
        z = _read(np.frombuffer(proof, dtype=np.uint8, offset=2 * REPEATS))
        for one, mask, challenge in zip(z, masks[1], challenges, strict=True):
            assert np.array_equal(one, mask + turned(np.stack([u, e]), int(challenge)))

    def test_no_two_masks_are_alike(self) -> None:
        """Of two responses under one mask the difference would be (X^i - X^j)·(u, e): small, and the secret."""
        proofs = [PROOF, proved(A, C, U, E, ABOUT)]
        z = np.concatenate([_read(np.frombuffer(one, dtype=np.uint8, offset=2 * REPEATS)) for one in proofs])
        for one in range(len(z)):
            for other in range(one):
                for part in range(2):
                    assert np.mean(np.abs(z[one, part] - z[other, part]) < 2**16) < 0.05

    def test_responses_are_centred_and_uniform(self) -> None:
        """Their mean, turned back by the challenges, is 0, and their standard deviation that of the range: 5 standard deviations, either side."""
        bound = 2**23 - 21
        for u, e in (
            (np.ones(N, dtype=np.int64), np.full(N, 21)),
            (-np.ones(N, dtype=np.int64), np.full(N, -21)),
        ):
            c = plus(times(transformed(u), A), transformed(e))
            means = []
            for _ in range(3):
                proof = proved(A, c, u, e, ABOUT)
                challenges = np.frombuffer(proof, dtype="<u2", count=REPEATS).astype(int)
                z = _read(np.frombuffer(proof, dtype=np.uint8, offset=2 * REPEATS))
                assert int(np.abs(z).max()) < bound
                means += [
                    turned(one, (2 * N - int(i)) % (2 * N)) for one, i in zip(z, challenges, strict=True)
                ]
            whole = np.stack(means).astype(float)
            deviation = bound / 3**0.5 / whole.size**0.5
            assert abs(whole.mean()) < 5 * deviation
            assert abs(whole.std() / (bound / 3**0.5) - 1) < 0.01
