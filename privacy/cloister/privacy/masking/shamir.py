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

import math
import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from itertools import accumulate

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
    """Return what the two polynomials of the least degree through ``shares`` are at ``point``, which is none of theirs."""
    points = tuple(sorted(shares))
    _check(points)
    if point in shares:
        raise ValueError(f"there is a share at {point}")
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


@lru_cache(maxsize=64)
def _weights(points: tuple[int, ...], at: int) -> tuple[int, ...]:
    """Return Lagrange's weights of ``points`` for the value at ``at``: in a complete graph they are the same for every secret.

    Points are small, so that the products are exact integers until the end; all are inverted at once (Montgomery 1987, section 10.3.1).
    """
    above = math.prod(at - one for one in points)
    below = [
        (at - one) * math.prod(one - other for other in points if other != one) % FIELD for one in points
    ]
    before = list(accumulate(below, lambda product, factor: product * factor % FIELD, initial=1))
    inverse = pow(before.pop(), -1, FIELD)
    weights = []
    for product, factor in zip(reversed(before), reversed(below), strict=True):
        weights.append(above * inverse * product % FIELD)
        inverse = inverse * factor % FIELD
    return tuple(reversed(weights))


def _check(points: Sequence[int]) -> None:
    if not points or min(points) < 1 or len(set(points)) != len(points):
        raise ValueError("points are not distinct numbers from 1")
