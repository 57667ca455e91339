"""The server's side: containers are checked as they arrive, summed, and handed to the authority with what proves whose they are.

The server adds residues and calls no library on a site's bytes (`container` says why that is the same sum). It keeps the containers: the
authority believes no sum that it did not compute itself.

Formal guarantees:

- `ServerSum.take` takes at most one container of each site of the cohort, and only one that the site signed for this session.
- `ServerSum.total` asks for a decryption only where at least the manifest's ``least`` sites are in the sum.

==========================================  =============================================
case                                        outcome
==========================================  =============================================
a site that was not asked                   ``IntegrityError`` (ciphertext-cohort)
another site's certificate                  ``IntegrityError`` (ciphertext-cohort)
a second container of a site                ``IntegrityError`` (ciphertext-twice)
a container that does not hold              as of `Sealed.opened`; the others stand
fewer than ``least`` when summed            ``PeersMissing``
names that are not the manifest's cohort    ``IntegrityError`` (ciphertext-cohort)
==========================================  =============================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

from cloister.core.errors import IntegrityError, PeersMissing
from cloister.privacy.homomorphic.container import Ciphertexts, Form, summed
from cloister.privacy.homomorphic.sealed import Sealed
from cloister.privacy.identity import Consortium, Identity, Purpose
from cloister.privacy.manifest import Manifest, SignedManifest, cohort_digest

__all__ = ["ServerSum", "SumRequest", "check_cohort", "refuse_site", "request_message"]


@dataclass(frozen=True, kw_only=True)
class SumRequest:
    """What the server asks the key authority with.

    Attributes:
        manifest: of the session, as the server signed it.
        cohort: the names of all sites that were asked.
        digest: SHA-256 (32 bytes) of the sum's container, as the server computed it.
        signature: the server's, over manifest and digest.
        sealed: each site's container, from which the authority computes the sum again.
    """

    manifest: SignedManifest
    cohort: tuple[str, ...]
    digest: bytes
    signature: bytes
    sealed: tuple[Sealed, ...]


class ServerSum:
    """The containers of one session.

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
        self._taken: dict[str, tuple[Sealed, Ciphertexts]] = {}

    @property
    def names(self) -> tuple[str, ...]:
        """The sites in the sum so far, sorted."""
        return tuple(sorted(self._taken))

    def take(self, name: str, sealed: Sealed) -> None:
        """Take a container that ``name`` sent; nothing of it is trusted.

        Raises:
            IntegrityError: it is refused, and the sum stands as it was.
        """
        if name not in self._cohort:
            raise refuse_site(name, "it is not of the session's cohort", "cohort")
        if name in self._taken:
            raise refuse_site(name, "it is in the sum already", "twice")
        signer, ciphertexts = sealed.opened(self._form, self.manifest, self._consortium)
        if signer != name:
            raise refuse_site(name, f"it came with the certificate of '{signer}'", "cohort")
        self._taken[name] = sealed, ciphertexts

    def total(self, server: Identity) -> SumRequest:
        """Return what to ask the authority with.

        Args:
            server: who asks: the manifest's signer.

        Raises:
            PeersMissing: fewer than ``least`` sites are in the sum.
        """
        if len(self._taken) < self.manifest.least:
            raise PeersMissing(
                f"{len(self._taken)} sites sent ciphertexts, and a sum of fewer than {self.manifest.least} is not decrypted",
                remedy="ask more sites, or wait longer for them",
            )
        names = self.names
        digest = hashlib.sha256(summed([self._taken[name][1] for name in names])).digest()
        return SumRequest(
            manifest=self._signed,
            cohort=tuple(sorted(self._cohort)),
            digest=digest,
            signature=server.sign(Purpose.DECRYPTION, request_message(self.manifest, digest)),
            sealed=tuple(self._taken[name][0] for name in names),
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


def refuse_site(name: str, why: str, part: str) -> IntegrityError:
    """Return the refusal of a site's container."""
    return IntegrityError(
        f"the ciphertexts of site '{name}' were refused: {why}",
        remedy="find out who sent them; the session goes on without them",
        code=f"ciphertext-{part}",
    )
