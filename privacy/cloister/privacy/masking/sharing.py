"""A site's secrets as shares sealed for its neighbours, and its neighbours' shares opened.

Formal guarantees: only the neighbour that a share is sealed for opens it, and only as part of this session with this roster; shares that
cannot be opened (a corrupt neighbour's, or changed by the server) come out empty, so that one liar does not stop an honest site.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from cloister.privacy.masking import keys
from cloister.privacy.masking.messages import Advert, Deliveries, sealed_bound
from cloister.privacy.masking.shamir import split

__all__ = ["Channel", "shares_of"]


def shares_of(seed: bytes, mask_private: bytes, *, threshold: int, points: Sequence[int]) -> list[bytes]:
    """Return for each point a share of the seed and one of the mask key, one behind the other."""
    both = [split(secret, threshold=threshold, points=points) for secret in (seed, mask_private)]
    return [of_seed + of_key for of_seed, of_key in zip(*both, strict=True)]


class Channel:
    """What one site seals and opens in one session.

    Args:
        own: the site's name.
        seal_private: its private key for shares, 32 bytes.
        manifest: the manifest's digest.
        roster: the roster's digest.
    """

    def __init__(self, own: str, seal_private: bytes, *, manifest: bytes, roster: bytes) -> None:
        self._own, self._private = own, keys.private_key(seal_private)
        self._manifest, self._roster = manifest, roster

    def sealed(self, advert: Advert, share: bytes) -> bytes:
        """Return ``share`` as only the site of ``advert`` can open it."""
        ends = {"source": self._own, "target": advert.name}
        key = keys.sealing_key(self._private, advert.seal_key, manifest=self._manifest, **ends)
        return keys.sealed(key, share, bound=sealed_bound(self._manifest, self._roster, **ends))

    def opened(self, deliveries: Deliveries, adverts: Mapping[str, Advert]) -> tuple[bytes, ...]:
        """Return what each sender sealed, empty where it cannot be opened."""
        found = []
        for sender, ciphertext in zip(deliveries.senders, deliveries.sealed, strict=True):
            ends = {"source": sender, "target": self._own}
            key = keys.sealing_key(self._private, adverts[sender].seal_key, manifest=self._manifest, **ends)
            bound = sealed_bound(self._manifest, self._roster, **ends)
            found.append(keys.opened(key, ciphertext, bound=bound) or b"")
        return tuple(found)
