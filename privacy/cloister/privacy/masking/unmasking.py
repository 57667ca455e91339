"""The masks that are left in a sum, rebuilt from shares and taken away.

In the sum of the survivors' vectors stand each survivor's own mask, and the pairwise masks between survivors and those that dropped after
sharing; the pairwise masks between survivors have cancelled (Bonawitz et al. 2017, section 4).

Formal guarantee: `Unmasking.unmask` takes away exactly these, or raises: each secret is checked against what its site signed.

Where secrets cannot be rebuilt, `Unmasking.suspects` names the sites whose they are, if they are fewer than half: the others' shares, from the same
holders, were good. Such a site has shared garbage, or more of its holders lie about its shares than there are to spare; which of the two cannot be told.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial

from cloister.core.errors import CloisterError, IntegrityError, PeersMissing
from cloister.privacy.manifest import Manifest
from cloister.privacy.masking import keys
from cloister.privacy.masking.messages import Advert, Reveal
from cloister.privacy.masking.rebuilding import Rebuilder
from cloister.privacy.masking.stream import add_streams
from cloister.privacy.updates.modular import Residues

__all__ = ["Unmasking"]

#: Streams that are subtracted in one pass over the sum.
_AT_ONCE = 64


class Unmasking:
    """The end of one session at the server.

    Args:
        manifest: the session's.
        adverts: by name.
        numbers: of each site in the cohort, from 0; its shares lie at this plus 1.
    """

    def __init__(self, manifest: Manifest, adverts: Mapping[str, Advert], numbers: Mapping[str, int]) -> None:
        self._manifest, self._adverts, self._numbers = manifest, adverts, numbers
        self._digest = manifest.digest
        self._rebuilder = Rebuilder(manifest.threshold)
        self._seeds: dict[str, dict[int, bytes]] = {}
        self._keys: dict[str, dict[int, bytes]] = {}
        self.suspects: tuple[str, ...] = ()

    def take(self, holder: str, reveal: Reveal) -> None:
        """Take the shares that ``holder`` revealed."""
        point = self._numbers[holder] + 1
        for owner, share in zip(reveal.seeds_of, reveal.seed_shares, strict=True):
            self._seeds.setdefault(owner, {})[point] = share
        for owner, share in zip(reveal.keys_of, reveal.key_shares, strict=True):
            self._keys.setdefault(owner, {})[point] = share

    def unmask(self, total: Residues, alive: Sequence[str], dropped: Mapping[str, Sequence[str]]) -> None:
        """Take the masks away from ``total``, in place, once all secrets are rebuilt.

        Args:
            total: (size,) uint32.
            alive: names of the survivors.
            dropped: of each site that dropped after sharing, its neighbours among the survivors.

        Raises:
            PeersMissing: (masking-short) there are too few shares of a secret.
            IntegrityError: (masking-shares) the shares of a secret do not agree.
        """
        broken: dict[str, CloisterError] = {}
        seeds, private = [], {}
        for owner in alive:
            secret = self._secret("seed", owner, self._seeds, partial(self._is_seed, owner), broken)
            seeds.append(secret)
        for owner, beside in dropped.items():
            if beside:
                private[owner] = self._secret(
                    "mask key", owner, self._keys, partial(self._is_key, owner), broken
                )
        if broken:
            alone = 2 * len(broken) < len(seeds) + len(private)
            self.suspects = tuple(sorted(broken)) if alone else ()
            raise next(iter(broken.values()))
        streams = list(self._streams(seeds, private, dropped))
        for begin in range(0, len(streams), _AT_ONCE):
            add_streams(total, streams[begin : begin + _AT_ONCE])

    def _streams(
        self, seeds: Sequence[bytes], private: Mapping[str, bytes], dropped: Mapping[str, Sequence[str]]
    ) -> Iterator[tuple[bytes, int]]:
        for seed in seeds:
            yield keys.self_key(seed, manifest=self._digest), -1
        for owner, drawn in private.items():
            secret = keys.private_key(drawn)
            for peer in dropped[owner]:
                low, high = sorted((owner, peer))
                public = self._adverts[peer].mask_key
                key = keys.pair_key(secret, public, manifest=self._digest, low=low, high=high)
                yield key, (-1 if peer == low else 1)  # against the sign that the survivor added it with

    def _secret(
        self,
        what: str,
        owner: str,
        shares: Mapping[str, Mapping[int, bytes]],
        holds: partial[bool],
        broken: dict[str, CloisterError],
    ) -> bytes:
        """Return a secret; or nothing, and note in ``broken`` why."""
        found = shares.get(owner, {})
        if len(found) < self._manifest.threshold:
            broken[owner] = PeersMissing(
                f"{len(found)} sites revealed a share of the {what} of '{owner}', and it takes {self._manifest.threshold}",
                remedy="run the round again when enough sites stay until its end",
                code="masking-short",
            )
            return b""
        secret = self._rebuilder.rebuilt(found, holds)
        if secret is None:
            broken[owner] = IntegrityError(
                f"unmasking: no {self._manifest.threshold} of {len(found)} shares of the {what} of '{owner}' give what it signed",
                remedy=f"find out which site sends wrong shares, '{owner}' or those that hold them: the sum is not released",
                code="masking-shares",
            )
        return secret or b""

    def _is_seed(self, owner: str, secret: bytes) -> bool:
        return keys.hashed("seed", self._digest, secret) == self._adverts[owner].commitment

    def _is_key(self, owner: str, secret: bytes) -> bool:
        return keys.public_of(secret) == self._adverts[owner].mask_key
