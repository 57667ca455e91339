"""Secrets rebuilt from shares of which some may be lies.

Formal guarantee: `rebuilt` returns a secret only if ``holds`` accepts it (it gives the public key of the site's signed advert, or the hash that
the advert commits to): a share that was tampered with is left out or ends the attempt, and never changes the result.

The search is bounded: windows of t shares in a row, then `MOST_TRIES` draws of t. A share that does not lie on the polynomial found puts its
holder at the end of the list for all secrets to come, so that a session's liars are searched for once.

=====================================  ==================================================
case                                   outcome
=====================================  ==================================================
fewer shares than t                    None
up to (shares - t) liars among many    found soon: each draw is honest with C(h, t) / C(m, t)
no t shares agree                      None after the last try
=====================================  ==================================================
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping

from cloister.privacy.masking.shamir import combine, value_at

__all__ = ["MOST_TRIES", "Rebuilder"]

#: Most random sets of shares that are tried for one secret.
MOST_TRIES = 400


class Rebuilder:
    """Rebuilds the secrets of one session.

    Args:
        threshold: so many shares rebuild a secret.
    """

    def __init__(self, threshold: int) -> None:
        self._threshold = threshold
        self.suspects: set[int] = set()

    def rebuilt(self, shares: Mapping[int, bytes], holds: Callable[[bytes], bool]) -> bytes | None:
        """Return the secret, or None.

        Args:
            shares: holder's point → share.
            holds: tells the secret from anything else.
        """
        if len(shares) < self._threshold:
            return None
        for attempt, points in enumerate(self._tries(shares)):
            chosen = {point: shares[point] for point in points}
            secret = combine(chosen)
            if secret is not None and holds(secret):
                if attempt:
                    self._compare(shares, chosen)
                return secret
        return None

    def _tries(self, shares: Mapping[int, bytes]) -> Iterator[list[int]]:
        order = sorted(shares, key=lambda point: (point in self.suspects, point))
        count = len(order)
        yield order[: self._threshold]
        if count == self._threshold:
            return
        for begin in range(1, count):
            yield [order[(begin + step) % count] for step in range(self._threshold)]
        draws = random.Random(0)  # noqa: S311 - which shares to try is no secret
        for _ in range(MOST_TRIES):
            yield draws.sample(order, self._threshold)

    def _compare(self, shares: Mapping[int, bytes], honest: Mapping[int, bytes]) -> None:
        """Note whose shares do not lie on the polynomials through the ``honest`` ones."""
        for point in shares.keys() - honest.keys():
            low, high = value_at(point, honest)
            if low.to_bytes(32) + high.to_bytes(32) != shares[point]:
                self.suspects.add(point)
