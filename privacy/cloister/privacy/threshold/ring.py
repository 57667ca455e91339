"""Polynomials modulo X^N + 1 and three primes, in the form that OpenFHE keeps them: what a proof about ciphertexts is computed with.

A polynomial is (primes, N) uint64 residues of its values at the odd powers of a root ψ of order 2N, in bit-reversed order: value k is that at
ψ^(2·br(k) + 1). ψ is the least such root, as OpenFHE chooses it; `tests/privacy/threshold/test_engine.py` holds what OpenFHE encodes against it. Sums and
products are value by value.

Products of residues below 2^60 do not fit into 64 bits. One factor w is prepared (Shoup: w' = floor(w·2^64 / p)); then a·w - floor(a·w' / 2^64)·p is the product
modulo p but for a small multiple of p, whatever is dropped of the low halves.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from cloister.privacy.homomorphic.container import Residues, limits
from cloister.privacy.homomorphic.parameters import THRESHOLD

__all__ = ["Prepared", "inverse", "minus", "monomials", "plus", "prepared", "times", "transformed", "turned"]

_N = THRESHOLD.degree
_BITS = _N.bit_length() - 1
_P = limits(THRESHOLD)[0]
#: Of each prime the least root of unity of order 2N.
_ROOTS = (25959043411404, 100406242475323, 45474351589225)
_LOW = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)

#: Small coefficients, (…, N).
Coefficients = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Prepared:
    """A factor of products.

    Attributes:
        values: (primes, …) residues.
        quotients: floor(values·2^64 / p).
    """

    values: Residues
    quotients: Residues


def prepared(values: Residues) -> Prepared:
    """Return residues, (primes, N), as a factor of products."""
    rest, found = values.copy(), np.zeros_like(values)
    for _ in range(16):
        digit, rest = np.divmod(rest << np.uint64(4), _P)
        found = (found << np.uint64(4)) + digit
    return Prepared(values, found)


def times(one: Residues, other: Prepared) -> Residues:
    """Return the product."""
    return _product(one, other.values, other.quotients, _P)


def plus(one: Residues, other: Residues) -> Residues:
    """Return the sum."""
    made: Residues = one + other
    return _least(made, made - _P)


def minus(one: Residues, other: Residues) -> Residues:
    """Return the difference."""
    made: Residues = one - other
    return _least(made, made + _P)


def transformed(coefficients: Coefficients) -> Residues:
    """Return the polynomial with small integer coefficients, (N,) below 2^59 in magnitude."""
    residues: Residues = np.mod(coefficients, _P.astype(np.int64)).astype(np.uint64)
    values, quotients = _twiddles()
    for stage in range(_BITS):
        groups = 1 << stage
        whole = residues.reshape(len(_P), groups, 2, -1)
        first, second = whole[:, :, 0], whole[:, :, 1]
        factor = slice(groups, 2 * groups)
        turn = _product(second, values[:, factor, None], quotients[:, factor, None], _P[:, :, None])
        made = np.empty_like(whole)
        above, below = first + turn, first - turn
        np.minimum(above, above - _P[:, :, None], out=made[:, :, 0])
        np.minimum(below, below + _P[:, :, None], out=made[:, :, 1])
        residues = made.reshape(len(_P), -1)
    return residues


def inverse(residues: Residues) -> list[int]:
    """Return the N coefficients modulo the product of the primes, each nearest to 0. Slow: for tests."""
    product = int(np.prod([int(prime) for prime in THRESHOLD.primes], dtype=object))
    total = [0] * _N
    for row, prime, root in zip(residues, THRESHOLD.primes, _ROOTS, strict=True):
        values = [int(row[k]) for k in range(_N)]
        span = 1
        powers = _powers(prime, pow(root, -1, prime))
        for stage in range(_BITS - 1, -1, -1):
            groups = 1 << stage
            for group in range(groups):
                factor = powers[groups + group]
                for at in range(2 * group * span, (2 * group + 1) * span):
                    one, other = values[at], values[at + span]
                    values[at], values[at + span] = (one + other) % prime, (one - other) * factor % prime
            span *= 2
        unit = pow(_N, -1, prime) * (product // prime) * pow(product // prime, -1, prime)
        total = [(old + value * unit) % product for old, value in zip(total, values, strict=True)]
    return [value - product if value > product // 2 else value for value in total]


def monomials(exponents: npt.NDArray[np.int64]) -> Residues:
    """Return X^i for each exponent i from 0 to 2N - 1, (…, primes, N)."""
    odd = 2 * _reversed(_N) + 1
    return np.moveaxis(_root_powers()[:, (exponents[..., None] * odd) % (2 * _N)], 0, -2)


def turned(coefficients: Coefficients, exponent: int) -> Coefficients:
    """Return the coefficients of X^i times a polynomial, (…, N), for i from 0 to 2N - 1."""
    by = exponent % _N
    made = np.roll(coefficients, by, axis=-1)
    made[..., :by] *= -1
    return -made if exponent >= _N else made


def _product(one: Residues, other: Residues, quotients: Residues, primes: Residues) -> Residues:
    low, high = one & _LOW, one >> _HALF
    below, above = quotients & _LOW, quotients >> _HALF
    whole = high * above + ((high * below) >> _HALF) + ((low * above) >> _HALF)
    made: Residues = one * other - whole * primes  # of the true product at most 3 p too much
    made = _least(made, made - (primes << np.uint64(1)))
    return _least(made, made - primes)


def _least(one: Residues, other: Residues) -> Residues:
    """Return the lesser, number by number: of r and r - p that which did not wrap below 0, if r is below 2 p."""
    made: Residues = np.minimum(one, other)
    return made


@cache
def _twiddles() -> tuple[Residues, Residues]:
    values = [_powers(prime, root) for prime, root in zip(THRESHOLD.primes, _ROOTS, strict=True)]
    quotients = [
        [(value << 64) // prime for value in row] for row, prime in zip(values, THRESHOLD.primes, strict=True)
    ]
    return np.array(values, dtype=np.uint64), np.array(quotients, dtype=np.uint64)


@cache
def _root_powers() -> Residues:
    rows = []
    for prime, root in zip(THRESHOLD.primes, _ROOTS, strict=True):
        row = [1]
        for _ in range(2 * _N - 1):
            row.append(row[-1] * root % prime)
        rows.append(row)
    return np.array(rows, dtype=np.uint64)


def _powers(prime: int, root: int) -> list[int]:
    """Return the powers of ``root`` by the bit-reversed exponent."""
    row = [1]
    for _ in range(_N - 1):
        row.append(row[-1] * root % prime)
    return [row[int(k)] for k in _reversed(_N)]


def _reversed(size: int) -> npt.NDArray[np.int64]:
    found = np.zeros(1, dtype=np.int64)
    while len(found) < size:
        found = np.concatenate([2 * found, 2 * found + 1])
    return found
