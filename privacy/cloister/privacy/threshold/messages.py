"""The messages of a session under a joint key, as flat mappings that are read strictly: see `cloister.privacy.masking.fields`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.homomorphic.sealed import Sealed
from cloister.privacy.homomorphic.summation import SumRequest
from cloister.privacy.identity.members import LONGEST
from cloister.privacy.manifest import SignedManifest
from cloister.privacy.masking.fields import Message, malformed, need_blobs, need_names

__all__ = ["SHARE_BYTES", "KeyShare", "OpenRequest", "PublicShares", "ShareCommitments"]

#: Bytes of a public share.
SHARE_BYTES = 8 * len(THRESHOLD.primes) * THRESHOLD.degree

_HASH, _SIGNATURE = 32, 64


@dataclass(frozen=True)
class ShareCommitments(Message):
    """What the server tells every holder of every holder.

    Attributes:
        names: the holders, sorted.
        digests: each one's commitment to its public share.
    """

    names: tuple[str, ...]
    digests: tuple[bytes, ...]

    def __post_init__(self) -> None:
        need_names(ShareCommitments, "names", self.names)
        need_blobs(ShareCommitments, "digests", self.digests, size=_HASH, count=len(self.names))


@dataclass(frozen=True)
class KeyShare(Message):
    """What a holder shows.

    Attributes:
        share: its public share, residues.
        proof: that it is well formed.
        signature: its own, over the session, all commitments, the share and its name.
        certificate: its own, DER.
    """

    share: bytes
    proof: bytes
    signature: bytes
    certificate: bytes

    def __post_init__(self) -> None:
        need_blobs(KeyShare, "share", [self.share], size=SHARE_BYTES, count=1)
        need_blobs(KeyShare, "proof", [self.proof], size=THRESHOLD.proof_bytes, count=1)
        need_blobs(KeyShare, "signature", [self.signature], size=_SIGNATURE, count=1)
        if not 0 < len(self.certificate) <= LONGEST:
            raise malformed(KeyShare, f"certificate has not from 1 to {LONGEST} bytes")


@dataclass(frozen=True)
class PublicShares(Message):
    """Every holder's, as the server hands them on.

    Attributes:
        names: the holders, sorted.
        shares: as of `KeyShare`, like the rest.
        proofs: see there.
        signatures: see there.
        certificates: see there.
    """

    names: tuple[str, ...]
    shares: tuple[bytes, ...]
    proofs: tuple[bytes, ...]
    signatures: tuple[bytes, ...]
    certificates: tuple[bytes, ...]

    def __post_init__(self) -> None:
        count = len(self.names)
        need_names(PublicShares, "names", self.names)
        lists = (self.shares, self.proofs, self.signatures, self.certificates)
        if any(len(one) != count for one in lists):
            raise malformed(PublicShares, "its lists differ in length")
        self.each()

    @classmethod
    def of(cls, shown: Mapping[str, KeyShare]) -> PublicShares:
        """Return the shares of all holders, by name."""
        names = tuple(sorted(shown))
        return cls(
            names=names,
            shares=tuple(shown[name].share for name in names),
            proofs=tuple(shown[name].proof for name in names),
            signatures=tuple(shown[name].signature for name in names),
            certificates=tuple(shown[name].certificate for name in names),
        )

    def each(self) -> list[KeyShare]:
        """Return each holder's."""
        lists = (self.shares, self.proofs, self.signatures, self.certificates)
        return [KeyShare(*one) for one in zip(*lists, strict=True)]


@dataclass(frozen=True)
class OpenRequest(Message):
    """What the server asks the holders with: a `SumRequest`.

    Attributes:
        session: the bytes of its manifest.
        signed: the server's signature over them.
        server: the server's certificate.
        cohort: the names of all sites that were asked.
        names: of those that committed to a ciphertext, sorted.
        digests: their commitments.
        digest: SHA-256 of the sum.
        signature: the server's, over manifest and digest.
        containers: the ciphertexts in the sum.
        signatures: of their sites.
        certificates: of their sites.
    """

    session: bytes
    signed: bytes
    server: bytes
    cohort: tuple[str, ...]
    names: tuple[str, ...]
    digests: tuple[bytes, ...]
    digest: bytes
    signature: bytes
    containers: tuple[bytes, ...]
    signatures: tuple[bytes, ...]
    certificates: tuple[bytes, ...]

    def __post_init__(self) -> None:
        need_names(OpenRequest, "cohort", self.cohort)
        need_names(OpenRequest, "names", self.names)
        need_blobs(OpenRequest, "digests", self.digests, size=_HASH, count=len(self.names))
        if not len(self.containers) == len(self.signatures) == len(self.certificates) <= len(self.names):
            raise malformed(OpenRequest, "its lists differ in length")

    @classmethod
    def of(cls, request: SumRequest) -> OpenRequest:
        """Return ``request`` as it travels."""
        names = tuple(sorted(request.commitments))
        return cls(
            session=request.manifest.encoded,
            signed=request.manifest.signature,
            server=request.manifest.certificate,
            cohort=request.cohort,
            names=names,
            digests=tuple(request.commitments[name] for name in names),
            digest=request.digest,
            signature=request.signature,
            containers=tuple(one.container for one in request.sealed),
            signatures=tuple(one.signature for one in request.sealed),
            certificates=tuple(one.certificate for one in request.sealed),
        )

    def request(self) -> SumRequest:
        """Return it as it was made; nothing of it is checked but its form.

        Raises:
            IntegrityError: it has none.
        """
        if len(self.digest) != _HASH:
            raise IntegrityError("the sum's digest is not 32 bytes", code="session-step")
        return SumRequest(
            manifest=SignedManifest(encoded=self.session, signature=self.signed, certificate=self.server),
            cohort=self.cohort,
            commitments=dict(zip(self.names, self.digests, strict=True)),
            digest=self.digest,
            signature=self.signature,
            sealed=tuple(
                Sealed(container=container, signature=signature, certificate=certificate)
                for container, signature, certificate in zip(
                    self.containers, self.signatures, self.certificates, strict=True
                )
            ),
        )
