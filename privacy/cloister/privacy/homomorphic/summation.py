"""The server's side: commitments, then containers, checked as they arrive, summed, and handed to the authority.

The server adds residues and calls no library on a site's bytes (`container` says why that is the same sum). It keeps the containers: the
authority believes no sum that it did not compute itself.

Formal guarantees:

- `ServerSum.take` takes at most one container of each site that committed, and only the one that it committed to and signed for this session.
- No commitment is taken after `ServerSum.agree`: whoever is in the sum fixed its container before any container was sent.
- `ServerSum.total` asks for a decryption only where all sites of the cohort are in the sum, which are at least the manifest's ``least``: of fewer nothing
  is decrypted (`recount` says why).

==========================================  =============================================
case                                        outcome
==========================================  =============================================
a site that was not asked                   ``IntegrityError`` (ciphertext-cohort)
another site's certificate                  ``IntegrityError`` (ciphertext-cohort)
a second commitment or container            ``IntegrityError`` (ciphertext-twice)
a container without a commitment            ``IntegrityError`` (ciphertext-commitment)
a container that does not hold              as of `Sealed.opened`; the others stand
fewer than all of the cohort                ``PeersMissing``
names that are not the manifest's cohort    ``IntegrityError`` (ciphertext-cohort)
==========================================  =============================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from cloister.core.errors import IntegrityError, PeersMissing
from cloister.privacy.homomorphic.container import Ciphertexts, Form, summed
from cloister.privacy.homomorphic.sealed import Sealed, agreed, refuse_site
from cloister.privacy.identity import Consortium, Identity, Purpose
from cloister.privacy.manifest import Manifest, SignedManifest, cohort_digest

__all__ = ["ServerSum", "SumRequest", "check_cohort", "request_message"]


@dataclass(frozen=True, kw_only=True)
class SumRequest:
    """What the server asks the key authority with.

    Attributes:
        manifest: of the session, as the server signed it.
        cohort: the names of all sites that were asked.
        commitments: by site, of all that committed.
        digest: SHA-256 (32 bytes) of the sum's container, as the server computed it.
        signature: the server's, over manifest and digest.
        sealed: each site's container, from which the authority computes the sum again.
    """

    manifest: SignedManifest
    cohort: tuple[str, ...]
    commitments: Mapping[str, bytes]
    digest: bytes
    signature: bytes
    sealed: tuple[Sealed, ...]


class ServerSum:
    """One session at the server.

    Args:
        manifest: what the server signed.
        cohort: the names of the sites that are asked.
        consortium: who vouches for them.

    Raises:
        IntegrityError: (manifest, ciphertext-cohort) the manifest does not hold, or is of another cohort.
        SpecError: (protection-scheme, protection-range) as of `Form.of`.
    """

    def __init__(self, manifest: SignedManifest, cohort: Iterable[str], consortium: Consortium) -> None:
        self.manifest = manifest.opened(consortium)
        self._signed = manifest
        self._cohort = check_cohort(self.manifest, cohort)
        self._consortium = consortium
        self._form = Form.of(self.manifest)
        self._commitments: dict[str, bytes] = {}
        self._together: bytes | None = None
        self._taken: dict[str, tuple[Sealed, Ciphertexts]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The sites in the sum so far, sorted."""
        return tuple(sorted(self._taken))

    def commit(self, name: str, digest: bytes) -> None:
        """Take the commitment that ``name`` sent.

        Raises:
            IntegrityError: it is refused.
        """
        if name not in self._cohort:
            raise refuse_site(name, "it is not of the session's cohort", "cohort")
        if name in self._commitments or self._together is not None:
            raise refuse_site(name, "it committed already, or too late", "twice")
        if not isinstance(digest, bytes) or len(digest) != 32:
            raise refuse_site(name, "its commitment is not 32 bytes", "commitment")
        self._commitments[name] = digest

    def agree(self) -> bytes:
        """Close the commitments and return the digest (32 bytes) that every site that committed is sent.

        Raises:
            PeersMissing: not all sites of the cohort committed.
        """
        if self._together is None:
            self._enough(len(self._commitments))
            self._together = agreed(self.manifest, self._commitments)
        return self._together

    def take(self, name: str, sealed: Sealed) -> None:
        """Take a container that ``name`` sent; nothing of it is trusted.

        Raises:
            IntegrityError: it is refused, and the sum stands as it was.
        """
        if self._together is None or name not in self._commitments:
            raise refuse_site(name, "it did not commit to any", "commitment")
        if name in self._taken:
            raise refuse_site(name, "it is in the sum already", "twice")
        signer, ciphertexts = sealed.opened(self._form, self.manifest, self._commitments, self._consortium)
        if signer != name:
            raise refuse_site(name, f"it came with the certificate of '{signer}'", "cohort")
        self._taken[name] = sealed, ciphertexts

    def total(self, server: Identity) -> SumRequest:
        """Return what to ask the authority with.

        Args:
            server: who asks: the manifest's signer.

        Raises:
            PeersMissing: not all sites of the cohort are in the sum.
        """
        self._enough(len(self._taken))
        names = self.names
        digest = hashlib.sha256(summed([self._taken[name][1] for name in names])).digest()
        return SumRequest(
            manifest=self._signed,
            cohort=tuple(sorted(self._cohort)),
            commitments=dict(self._commitments),
            digest=digest,
            signature=server.sign(Purpose.DECRYPTION, request_message(self.manifest, digest)),
            sealed=tuple(self._taken[name][0] for name in names),
        )

    def _enough(self, sites: int) -> None:
        if sites < len(self._cohort):
            raise PeersMissing(
                f"{sites} of {len(self._cohort)} sites sent ciphertexts, and the key opens the sum of all of them or none",
                remedy="begin another session with those that are there",
            )


def request_message(manifest: Manifest, digest: bytes) -> bytes:
    """Return what the server signs to ask for a decryption."""
    return manifest.digest + digest


def check_cohort(manifest: Manifest, cohort: Iterable[str]) -> frozenset[str]:
    """Return the names of a session's cohort, which the manifest holds the digest of.

    Raises:
        IntegrityError: (ciphertext-cohort) they are others.
    """
    names = list(cohort)
    if len(names) != manifest.cohort_size or cohort_digest(names) != manifest.cohort:
        raise IntegrityError(
            "the names of the cohort are not those that the manifest was made for",
            remedy="make the manifest from the names of the sites that are asked",
            code="ciphertext-cohort",
        )
    return frozenset(names)
