"""What a site encrypts with, and how it knows that the key is the authority's.

The public key comes through the server, which must not be able to put its own in the place: it is signed by the key authority, whom the
consortium certifies in a role of its own. TenSEAL loads it only after that signature held.

Formal guarantees:

- A `PublicCodec` is made only of a key that the consortium's key authority signed.
- `PublicCodec.encrypt` encrypts only integers within the manifest's ``largest``, for that key and of that length: sums cannot wrap.
- Two encryptions of the same values differ: BFV and CKKS draw fresh randomness from the operating system (SEAL's, never seeded).

==========================================  ===================================================
case                                        outcome
==========================================  ===================================================
signed by the server, or by a site          ``IntegrityError`` (identity)
another scheme or key than the manifest's   ``IntegrityError`` (ciphertext-key)
another length, not int64                   ``ValueError``: a fault of the caller
a value above ``largest`` in magnitude      ``DataError`` (update-range)
==========================================  ===================================================
"""

from __future__ import annotations

import hashlib

import numpy as np

from cloister.core.errors import DataError, IntegrityError
from cloister.privacy.homomorphic.container import Form
from cloister.privacy.homomorphic.frames import framed, unframed
from cloister.privacy.homomorphic.lanes import packed
from cloister.privacy.homomorphic.parameters import HomomorphicScheme, Parameters, parameters_of
from cloister.privacy.homomorphic.vectors import Vectors
from cloister.privacy.identity import Consortium, Identity, Purpose, Role
from cloister.privacy.manifest import Manifest
from cloister.privacy.updates.rounding import Integers

__all__ = ["PublicCodec", "key_of", "published"]

_MOST = 1 << 20
_LABEL = b"cloister public key 1"


def published(scheme: HomomorphicScheme, context: bytes, authority: Identity) -> bytes:
    """Return a public context as the key authority hands it out: signed."""
    signature = authority.sign(Purpose.KEY, _signed(scheme, context))
    return framed([_LABEL, scheme.encode(), context, signature, authority.certificate])


def key_of(context: bytes) -> str:
    """Return the id of a key: SHA-256 (hex) over its public context."""
    return hashlib.sha256(context).hexdigest()


class PublicCodec:
    """The public key, as a site uses it.

    Args:
        public: what `KeyAuthority.public` returned.
        consortium: who vouches for the authority.

    Raises:
        IntegrityError: (public-key, identity, identity-revoked, signature) the consortium's authority did not hand this out.
    """

    def __init__(self, public: bytes, consortium: Consortium) -> None:
        self.parameters, context = _opened(public, consortium)
        self.key_id = key_of(context)
        self._vectors = Vectors(self.parameters, context)

    def encrypt(self, values: Integers, manifest: Manifest) -> bytes:
        """Return a container of ``values``, (size,) int64, for the session of ``manifest``.

        Raises:
            IntegrityError: (ciphertext-key) the session is under another key.
            DataError: (update-range) a value is larger than the session admits.
            SpecError: (protection-scheme, protection-range) as of `Form.of`.
        """
        form = Form.of(manifest)
        if form.key != self.key_id or form.parameters is not self.parameters:
            raise IntegrityError(
                f"the session is under key {form.key[:16]}… ({manifest.scheme}), and this site holds {self.key_id[:16]}…",
                remedy="fetch the key authority's present public key",
                code="ciphertext-key",
            )
        if values.shape != (manifest.size,) or values.dtype != np.int64:
            raise ValueError(f"expected int64 ({manifest.size},), got {values.dtype} {values.shape}")
        if max(int(values.max()), -int(values.min())) > manifest.largest:
            raise DataError(
                f"an integer of the update is larger than the session's {manifest.largest}",
                remedy="clip updates, or raise the range that numbers are scaled to",
                code="update-range",
            )
        slots = packed(values, lanes=form.lanes, slots=self.parameters.slots)
        return form.write(self._vectors.encrypt(row) for row in slots)


def _opened(public: bytes, consortium: Consortium) -> tuple[Parameters, bytes]:
    try:
        label, scheme, context, signature, certificate = unframed(public, count=5, most=_MOST)
        name = scheme.decode("ascii")
    except ValueError:
        label = b""
    if label != _LABEL:
        raise IntegrityError(
            "the public key cannot be read",
            remedy="fetch it again from the key authority",
            code="public-key",
        )
    authority = consortium.member(certificate, role=Role.AUTHORITY)
    authority.check(Purpose.KEY, _signed(name, context), signature)
    return parameters_of(name), context


def _signed(scheme: str, context: bytes) -> bytes:
    return scheme.encode() + b"\0" + context
