"""A site's container with the site's signature: what proves whose values are in a sum.

Formal guarantee: `Sealed.opened` returns a site's name only if the consortium certifies it, and that site signed exactly this container
for exactly this session. A container that was signed for another session, or by another site, is refused.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

from cloister.privacy.homomorphic.container import Ciphertexts, Form
from cloister.privacy.identity import Consortium, Identity, Purpose, Role
from cloister.privacy.manifest import Manifest

__all__ = ["Sealed", "seal"]


@dataclass(frozen=True, kw_only=True)
class Sealed:
    """What a site sends.

    Attributes:
        container: `Form.write`'s bytes.
        signature: the site's, over the session, its name and the container's hash.
        certificate: the site's, DER.
    """

    container: bytes
    signature: bytes
    certificate: bytes

    def opened(self, form: Form, manifest: Manifest, consortium: Consortium) -> tuple[str, Ciphertexts]:
        """Return who sent it, and the ciphertexts; nothing of it is trusted.

        Args:
            form: of the session.
            manifest: of the session, checked.
            consortium: who vouches for sites.

        Raises:
            IntegrityError: (identity, identity-revoked, signature, ciphertext-…) it does not hold.
        """
        site = consortium.member(self.certificate, role=Role.SITE)
        if not isinstance(self.container, bytes) or len(self.container) != form.length:
            return site.name, Ciphertexts.read(
                self.container, form
            )  # refuses: nothing of a wrong length is hashed
        site.check(Purpose.CIPHERTEXT, _signed(manifest, site.name, self.container), self.signature)
        return site.name, Ciphertexts.read(self.container, form)


def seal(identity: Identity, manifest: Manifest, container: bytes) -> Sealed:
    """Return ``container`` with the signature of ``identity``, a site, for the session of ``manifest``."""
    signature = identity.sign(Purpose.CIPHERTEXT, _signed(manifest, identity.name, container))
    return Sealed(container=container, signature=signature, certificate=identity.certificate)


def _signed(manifest: Manifest, name: str, container: bytes) -> bytes:
    """Return the session's digest (32 bytes), the container's (32 bytes) and the site's name."""
    return manifest.digest + hashlib.sha256(container).digest() + name.encode()
