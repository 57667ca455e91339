"""Shamir's secret sharing of 32-byte strings over GF(2^255 - 19).

Formal guarantees:

- Any ``threshold`` shares of a secret rebuild it exactly, whatever its 256 bits are: it is shared as two halves of 128 bits, each the
  constant term of a polynomial of its own.
- Fewer shares say nothing about it: the other coefficients are uniform in the field, from the operating system (Shamir 1979).

Shares lie at points from 1; 0 is the secret's own.

==================================  ==============================================
case                                outcome
==================================  ==============================================
secret of another length            ``ValueError``
threshold below 1, above the count  ``ValueError``
point below 1, or twice             ``ValueError``
shares that were tampered with      another secret: see `cloister.privacy.masking.rebuilding`
==================================  ==============================================
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache

__all__ = ["FIELD", "SECRET", "SHARE", "combine", "split", "value_at"]

#: The field's order.
FIELD = (1 << 255) - 19
#: Bytes of a secret.
SECRET = 32
#: Bytes of a share: one field element for each half.
SHARE = 64

_HALF = SECRET // 2


def split(secret: bytes, *, threshold: int, points: Sequence[int]) -> list[bytes]:
    """Return one share of `SHARE` bytes for each of ``points``.

    Args:
        secret: 32 bytes, any.
        threshold: so many shares rebuild it.
        points: distinct, from 1.
    """
    if len(secret) != SECRET:
        raise ValueError(f"a secret has {SECRET} bytes, not {len(secret)}")
    if not 1 <= threshold <= len(points):
        raise ValueError(f"threshold = {threshold} is not from 1 to {len(points)} points")
    _check(points)
    polynomials = [
        [int.from_bytes(half), *(secrets.randbelow(FIELD) for _ in range(threshold - 1))]
        for half in (secret[:_HALF], secret[_HALF:])
    ]
    return [b"".join(_at(polynomial, point).to_bytes(32) for polynomial in polynomials) for point in points]


def combine(shares: Mapping[int, bytes]) -> bytes | None:
    """Return the secret that the polynomials through all of ``shares`` (point → share) hold at 0.

    None when that is no secret (a half has more than 128 bits): a share was tampered with.
    """
    if not all(len(share) == SHARE for share in shares.values()):
        raise ValueError(f"a share has {SHARE} bytes")
    halves = value_at(0, shares)
    if any(half >> (8 * _HALF) for half in halves):
        return None
    return b"".join(half.to_bytes(_HALF) for half in halves)


def value_at(point: int, shares: Mapping[int, bytes]) -> tuple[int, int]:
    """Return what the two polynomials of the least degree through ``shares`` are at ``point``."""
    points = tuple(sorted(shares))
    _check(points)
    weights = _weights(points, point)
    low = high = 0
    for weight, at in zip(weights, points, strict=True):
        share = shares[at]
        low += weight * int.from_bytes(share[:32])
        high += weight * int.from_bytes(share[32:])
    return low % FIELD, high % FIELD


def _at(polynomial: Sequence[int], point: int) -> int:
    """Return the polynomial's value, by Horner's rule."""
    value = 0
    for coefficient in reversed(polynomial):
        value = (value * point + coefficient) % FIELD
    return value


@lru_cache(maxsize=256)
def _weights(points: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Return Lagrange's weights of ``points`` for the value at ``at``: in a complete graph they are the same for every secret."""
    found = []
    for one in points:
        above = below = 1
        for other in points:
            if other != one:
                above = above * (at - other) % FIELD
                below = below * (one - other) % FIELD
        found.append(above * pow(below, -1, FIELD) % FIELD)
    return tuple(found)


def _check(points: Sequence[int]) -> None:
    if not points or min(points) < 1 or len(set(points)) != len(points):
        raise ValueError("points are not distinct numbers from 1")
