"""What travels between a site and the server in one masked session.

==============  =================  ==========================================================
message         from, to           bytes (n sites, k neighbours each, a certificate of c bytes)
==============  =================  ==========================================================
`Advert`        site → server      160 + c
`Roster`        server → site      n (32 + a name) + k (160 + c)
`SealedShares`  site → server      k (156 + a name)
`Deliveries`    server → site      k (156 + a name)
vector          site → server      4 a value
`Survivors`     server → site      n names
`Confirmation`  site → server      64
`Confirmations` server → site      n (64 + a name), and n c when the graph is sparse
`Reveal`        site → server      k (64 + a name)
==============  =================  ==========================================================

Formal guarantee: a message that exists has the counts, lengths and order that its class states; see `cloister.privacy.masking.fields`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Self

from cloister.privacy.identity.members import LONGEST
from cloister.privacy.masking.fields import Fields, Message, malformed, need_blobs, need_names
from cloister.privacy.masking.keys import KEY, OVERHEAD, framed, hashed
from cloister.privacy.masking.shamir import SHARE

__all__ = [
    "SEALED",
    "Advert",
    "Confirmation",
    "Confirmations",
    "Deliveries",
    "Reveal",
    "Roster",
    "SealedShares",
    "Survivors",
    "advert_bound",
    "sealed_bound",
    "survivors_bound",
]

#: Bytes of one sealed message: a share of the seed and a share of the mask key.
SEALED = 2 * SHARE + OVERHEAD
_DIGEST = 32
_SIGNATURE = 64


@dataclass(frozen=True, kw_only=True)
class Advert(Message):
    """A site's public keys for one session.

    Attributes:
        name: the site's.
        mask_key: X25519 public key, 32 bytes, that pairwise masks come from.
        seal_key: X25519 public key, 32 bytes, that shares are sealed to.
        commitment: hash of the seed of the site's own mask, 32 bytes.
        signature: over `signed_bytes`, 64 bytes.
        certificate: the site's, DER.
    """

    name: str
    mask_key: bytes
    seal_key: bytes
    commitment: bytes
    signature: bytes
    certificate: bytes

    def __post_init__(self) -> None:
        need_names(Advert, "name", [self.name])
        for field in ("mask_key", "seal_key", "commitment"):
            need_blobs(Advert, field, [getattr(self, field)], size=KEY, count=1)
        need_blobs(Advert, "signature", [self.signature], size=_SIGNATURE, count=1)
        if not 0 < len(self.certificate) <= LONGEST:
            raise malformed(Advert, f"certificate has not from 1 to {LONGEST} bytes")

    def signed_bytes(self, manifest: bytes) -> bytes:
        """Return what the site signs: the session's manifest (its digest), its name and its keys."""
        return advert_bound(manifest, self.name, self.mask_key, self.seal_key, self.commitment)

    def digest(self, manifest: bytes) -> bytes:
        """Return the hash of the signed advert, 32 bytes."""
        return hashed("advert", self.signed_bytes(manifest), self.signature)


@dataclass(frozen=True, kw_only=True)
class Roster(Message):
    """Who takes part: a hash of everybody's advert, and the adverts of one site's neighbours.

    Attributes:
        cohort: the names of all that were asked, sorted; a site's number is its place in here.
        digests: `Advert.digest` of each, empty for one that has not answered.
        adverts: of the neighbours of the site that this is for, sorted by name.
    """

    cohort: tuple[str, ...]
    digests: tuple[bytes, ...]
    adverts: tuple[Advert, ...]

    def __post_init__(self) -> None:
        need_names(Roster, "cohort", self.cohort)
        if len(self.digests) != len(self.cohort) or {len(digest) for digest in self.digests} - {0, _DIGEST}:
            raise malformed(Roster, f"digests does not hold one of {_DIGEST} bytes or none for each name")
        need_names(Roster, "adverts", [advert.name for advert in self.adverts])

    @cached_property
    def present(self) -> tuple[int, ...]:
        """The numbers of those that have answered."""
        return tuple(number for number, digest in enumerate(self.digests) if digest)

    def digest(self, manifest: bytes) -> bytes:
        """Return the hash of all signed adverts, 32 bytes: the same for all sites that were shown the same."""
        return hashed("roster", manifest, *(name.encode() for name in self.cohort), *self.digests)

    def to_fields(self) -> Fields:
        """Return it as a flat mapping; the adverts' fields are columns."""
        columns: Fields = {"cohort": list(self.cohort), "digests": list(self.digests)}
        for field in fields(Advert):
            columns[f"advert_{field.name}"] = [getattr(advert, field.name) for advert in self.adverts]
        return columns

    @classmethod
    def from_fields(cls, given: Mapping[str, object]) -> Self:
        """Read it from a flat mapping.

        Raises:
            IntegrityError: (masking-message) it is none.
        """
        kinds: dict[str, type] = {"cohort": str, "digests": bytes}
        kinds |= {f"advert_{field.name}": str if field.type == "str" else bytes for field in fields(Advert)}
        if set(given) != set(kinds):
            raise malformed(cls, "it has other fields than it should")
        lists: dict[str, list[object]] = {}
        for name, kind in kinds.items():
            value = given[name]
            if type(value) is not list or len(value) > cls.most_entries:
                raise malformed(cls, f"{name} is no list, or too long")
            if any(type(entry) is not kind for entry in value):
                raise malformed(cls, f"an entry of {name} has another type")
            lists[name] = value
        columns = {name.removeprefix("advert_"): lists[name] for name in kinds if name.startswith("advert_")}
        if len({len(column) for column in columns.values()}) != 1:
            raise malformed(cls, "its adverts are not complete")
        rows = zip(*columns.values(), strict=True)
        adverts = tuple(Advert.from_fields(dict(zip(columns, row, strict=True))) for row in rows)
        return cls(cohort=tuple(lists["cohort"]), digests=tuple(lists["digests"]), adverts=adverts)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class SealedShares(Message):
    """A site's shares for its neighbours.

    Attributes:
        recipients: names, sorted.
        sealed: `SEALED` bytes for each, that only the recipient can open.
    """

    recipients: tuple[str, ...]
    sealed: tuple[bytes, ...]

    def __post_init__(self) -> None:
        need_names(SealedShares, "recipients", self.recipients)
        need_blobs(SealedShares, "sealed", self.sealed, size=SEALED, count=len(self.recipients))


@dataclass(frozen=True, kw_only=True)
class Deliveries(Message):
    """What a site's neighbours sealed for it. Whoever is missing here is masked with by nobody.

    Attributes:
        senders: names, sorted.
        sealed: `SEALED` bytes from each.
    """

    senders: tuple[str, ...]
    sealed: tuple[bytes, ...]

    def __post_init__(self) -> None:
        need_names(Deliveries, "senders", self.senders)
        need_blobs(Deliveries, "sealed", self.sealed, size=SEALED, count=len(self.senders))


@dataclass(frozen=True, kw_only=True)
class Survivors(Message):
    """Whose masked vectors arrived. All others dropped: there is no second list that could contradict this one.

    Attributes:
        names: sorted.
    """

    names: tuple[str, ...]

    def __post_init__(self) -> None:
        need_names(Survivors, "names", self.names)


@dataclass(frozen=True, kw_only=True)
class Confirmation(Message):
    """A survivor's signature over who survived.

    Attributes:
        signature: over `survivors_bound`, 64 bytes.
    """

    signature: bytes

    def __post_init__(self) -> None:
        need_blobs(Confirmation, "signature", [self.signature], size=_SIGNATURE, count=1)


@dataclass(frozen=True, kw_only=True)
class Confirmations(Message):
    """The signatures of the survivors that answered.

    Attributes:
        names: sorted.
        signatures: 64 bytes of each.
        certificates: of each, DER; none at all when every site knows all others from its roster.
    """

    names: tuple[str, ...]
    signatures: tuple[bytes, ...]
    certificates: tuple[bytes, ...]

    def __post_init__(self) -> None:
        need_names(Confirmations, "names", self.names)
        need_blobs(Confirmations, "signatures", self.signatures, size=_SIGNATURE, count=len(self.names))
        if len(self.certificates) not in (0, len(self.names)):
            raise malformed(Confirmations, "certificates are not as many as names, or none")
        if not all(0 < len(certificate) <= LONGEST for certificate in self.certificates):
            raise malformed(Confirmations, f"a certificate has not from 1 to {LONGEST} bytes")


@dataclass(frozen=True, kw_only=True)
class Reveal(Message):
    """A site's shares: of a survivor the seed of its own mask, of one that dropped its mask key, of nobody both.

    Attributes:
        seeds_of: names of survivors, sorted.
        seed_shares: `SHARE` bytes for each.
        keys_of: names of those that dropped, sorted.
        key_shares: `SHARE` bytes for each.
    """

    seeds_of: tuple[str, ...]
    seed_shares: tuple[bytes, ...]
    keys_of: tuple[str, ...]
    key_shares: tuple[bytes, ...]

    def __post_init__(self) -> None:
        need_names(Reveal, "seeds_of", self.seeds_of)
        need_names(Reveal, "keys_of", self.keys_of)
        need_blobs(Reveal, "seed_shares", self.seed_shares, size=SHARE, count=len(self.seeds_of))
        need_blobs(Reveal, "key_shares", self.key_shares, size=SHARE, count=len(self.keys_of))
        if set(self.seeds_of) & set(self.keys_of):
            raise malformed(Reveal, "both secrets of one site are revealed")


def advert_bound(manifest: bytes, name: str, mask_key: bytes, seal_key: bytes, commitment: bytes) -> bytes:
    """Return what a site signs of its keys: they count for one manifest (its digest) and one name."""
    return framed(manifest, name.encode(), mask_key, seal_key, commitment)


def sealed_bound(manifest: bytes, roster: bytes, *, source: str, target: str) -> bytes:
    """Return what a sealed share is bound to: the digests of manifest and roster, sender and receiver."""
    return framed(b"share", manifest, roster, source.encode(), target.encode())


def survivors_bound(manifest: bytes, roster: bytes, survivors: Survivors) -> bytes:
    """Return what a survivor signs: the digests of manifest and roster, and all names."""
    return framed(manifest, roster, *(name.encode() for name in survivors.names))
