"""Who is whose neighbour: a complete graph, or a Harary graph over a permutation that no single party chose.

Formal guarantees:

- Neighbours are mutual, nobody is its own, and everybody has ``degree`` of them (one vertex has one more when both the degree and the
  number of sites are odd), or all others where they are no more than ``degree``.
- The graph depends on the digest of the roster only, that is on every signed advert: each site computes it itself, and two sites that
  were shown different adverts have different graphs.
- A site's neighbours are a uniformly random set of the others for anybody who cannot choose the digest. A server with corrupt sites can try
  adverts until it likes the graph; the digest is stretched by scrypt (Percival and Josefsson, RFC 7914) so that each try costs it about
  50 ms and 16 MiB, and 2^20 tries, which take 20 bits off the bounds of `cloister.privacy.masking.parameters`, over half a day of a core.

Bell et al. (2020), section 3: Harary graphs are connected unless two runs of ``degree / 2`` vertices in a row are missing.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

from cryptography.hazmat.primitives.kdf.scrypt import Scrypt

from cloister.privacy.masking.keys import hashed

__all__ = ["neighbours"]

_SALT = b"cloister/masking/graph"


def neighbours(present: Sequence[int], degree: int, roster: bytes) -> dict[int, tuple[int, ...]]:
    """Return the sorted neighbours of each site.

    Args:
        present: the sites' numbers, distinct.
        degree: how many neighbours each has.
        roster: `Roster.digest`.
    """
    if degree >= len(present) - 1:
        everybody = sorted(present)
        return {one: tuple(other for other in everybody if other != one) for one in everybody}
    stretched = _stretched(roster)
    ring = sorted(present, key=lambda number: hashed("place", stretched, number.to_bytes(4)))
    return {
        ring[place]: tuple(sorted(ring[at] for at in beside)) for place, beside in _harary(len(ring), degree)
    }


@lru_cache(maxsize=16)
def _stretched(roster: bytes) -> bytes:
    return Scrypt(salt=_SALT, length=32, n=1 << 14, r=8, p=1).derive(roster)


def _harary(count: int, degree: int) -> list[tuple[int, set[int]]]:
    """Return the neighbours of every place on a ring (Harary 1962)."""
    beside: list[set[int]] = [set() for _ in range(count)]
    for place in range(count):
        for step in range(1, degree // 2 + 1):
            beside[place] |= {(place + step) % count, (place - step) % count}
    if degree % 2:
        far = count // 2
        for place in range((count + 1) // 2):
            beside[place].add(place + far)
            beside[place + far].add(place)
    return list(enumerate(beside))
