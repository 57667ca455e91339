"""A site's container with the site's signature, and the commitment that goes before it.

Ciphertexts can be added by anybody. So a server with one site on its side could wait for the others' containers, have its site send minus
their sum, and be given the one that it left out. Therefore all commit first: each site sends only the hash of its container
(`commitment`); the server answers with one digest over all of these (`agreed`); and a site sends its container signed together with that
digest. Whoever sends a container has fixed it before it could see another's.

Formal guarantees:

- `Sealed.opened` returns a site's name only if the consortium certifies it, and that site signed exactly this container, for exactly this
  session and exactly these commitments.
- Its container is the one that stands under its name in the commitments.

A site must answer with `seal` once a session: with two it would sign two sets of commitments.

==========================================  ============================================
case                                        outcome
==========================================  ============================================
no site, revoked, expired                   ``IntegrityError`` (identity)
for another session, other commitments      ``IntegrityError`` (signature)
another container than it committed to      ``IntegrityError`` (ciphertext-commitment)
==========================================  ============================================
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.container import Ciphertexts, Form
from cloister.privacy.homomorphic.frames import framed
from cloister.privacy.identity import Consortium, Identity, Purpose, Role
from cloister.privacy.manifest import Manifest

__all__ = ["Sealed", "agreed", "commitment", "refuse_site", "seal", "signer"]


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """What a site sends.

    Attributes:
        container: `Form.write`'s bytes.
        signature: the site's, over the session, the commitments, the container's hash and its name.
        certificate: the site's, DER.
    """

    container: bytes
    signature: bytes
    certificate: bytes

    def opened(
        self, form: Form, manifest: Manifest, commitments: Mapping[str, bytes], consortium: Consortium
    ) -> tuple[str, Ciphertexts]:
        """Return who sent it, and the ciphertexts; nothing of it is trusted.

        Args:
            form: of the session.
            manifest: of the session, checked.
            commitments: each site's `commitment`.
            consortium: who vouches for sites.

        Raises:
            IntegrityError: it does not hold.
        """
        consortium.member(self.certificate, role=Role.SITE)
        ciphertexts = Ciphertexts.read(self.container, form)
        digest = commitment(self.container)
        name = signer(
            digest,
            self.signature,
            self.certificate,
            manifest=manifest,
            commitments=commitments,
            consortium=consortium,
        )
        return name, ciphertexts


def signer(
    digest: bytes,
    signature: bytes,
    certificate: bytes,
    *,
    manifest: Manifest,
    commitments: Mapping[str, bytes],
    consortium: Consortium,
) -> str:
    """Return which site signed the container with this `commitment`, for this session and these commitments.

    Raises:
        IntegrityError: (identity, signature, ciphertext-commitment) none did, or it committed to another.
    """
    site = consortium.member(certificate, role=Role.SITE)
    site.check(
        Purpose.CIPHERTEXT, _signed(manifest, agreed(manifest, commitments), digest, site.name), signature
    )
    if commitments.get(site.name) != digest:
        raise refuse_site(site.name, "they are not what it committed to", "commitment")
    return site.name


def commitment(container: bytes) -> bytes:
    """Return a site's commitment to its container: SHA-256, 32 bytes. A container is fresh randomness: its hash tells nothing of it."""
    return hashlib.sha256(container).digest()


def agreed(manifest: Manifest, commitments: Mapping[str, bytes]) -> bytes:
    """Return the digest (32 bytes) over a session and all of its commitments, by name."""
    parts = [manifest.digest]
    for name in sorted(commitments):
        parts += [name.encode(), commitments[name]]
    return hashlib.sha256(framed(parts)).digest()


def seal(identity: Identity, manifest: Manifest, container: bytes, together: bytes) -> Sealed:
    """Return ``container`` with the signature of ``identity``, a site, for the session of ``manifest``; once a session.

    Args:
        identity: the site's.
        manifest: the session's, checked.
        container: what the site committed to.
        together: `agreed`'s digest, from the server.
    """
    message = _signed(manifest, together, commitment(container), identity.name)
    signature = identity.sign(Purpose.CIPHERTEXT, message)
    return Sealed(container=container, signature=signature, certificate=identity.certificate)


def refuse_site(name: str, why: str, part: str) -> IntegrityError:
    """Return the refusal of a site's container."""
    return IntegrityError(
        f"the ciphertexts of site '{name}' were refused: {why}",
        remedy="find out who sent them; the session goes on without them",
        code=f"ciphertext-{part}",
    )


def _signed(manifest: Manifest, together: bytes, digest: bytes, name: str) -> bytes:
    return framed([manifest.digest, together, digest, name.encode()])
