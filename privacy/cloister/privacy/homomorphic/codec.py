"""What a site encrypts with.

Formal guarantees:

- A `PublicCodec` is made only of a key that the consortium's key authority signed; TenSEAL loads it only after that signature held.
- `PublicCodec.encrypt` encrypts only for the session that the key is of, and only integers within the manifest's ``largest``: sums cannot
  wrap.
- Two encryptions of the same values differ: SEAL draws fresh randomness from the operating system, never from a seed.

==========================================  ===================================================
case                                        outcome
==========================================  ===================================================
the key of another session                  ``IntegrityError`` (ciphertext-key)
another length, not int64                   ``ValueError``: a fault of the caller
a value above ``largest`` in magnitude      ``DataError`` (update-range)
==========================================  ===================================================
"""

from __future__ import annotations

import numpy as np

from cloister.core.errors import DataError
from cloister.privacy.homomorphic.container import Form
from cloister.privacy.homomorphic.lanes import Integers, packed
from cloister.privacy.homomorphic.public_key import PublicKey
from cloister.privacy.homomorphic.vectors import Vectors
from cloister.privacy.identity import Consortium
from cloister.privacy.manifest import Manifest

__all__ = ["PublicCodec", "check_values"]


class PublicCodec:
    """A session's public key, as a site uses it.

    Args:
        public: what `KeyAuthority.public` returned.
        consortium: who vouches for the authority.

    Raises:
        IntegrityError, SpecError: as of `PublicKey.read`.
    """

    def __init__(self, public: bytes, consortium: Consortium) -> None:
        self.key = PublicKey.read(public, consortium)
        self._vectors = Vectors(self.key.parameters, self.key.context)

    @property
    def key_id(self) -> str:
        """The id of the key: what the manifest must name."""
        return self.key.key_id

    def encrypt(self, values: Integers, manifest: Manifest) -> bytes:
        """Return a container of ``values``, (size,) int64, for the session of ``manifest``.

        Raises:
            IntegrityError: (ciphertext-key) the session is under another key.
            DataError: (update-range) a value is larger than the session admits.
            SpecError: (protection-scheme, protection-range) as of `Form.of`.
        """
        self.key.check(manifest)
        form = Form.of(manifest)
        check_values(values, manifest)
        slots = packed(values, lanes=form.lanes, slots=form.parameters.slots)
        return form.write(self._vectors.encrypt(row) for row in slots)


def check_values(values: Integers, manifest: Manifest) -> None:
    """Check that ``values`` are what a site of the session may encrypt: sums of such cannot wrap.

    Raises:
        ValueError: they are not (size,) int64.
        DataError: (update-range) one is larger than the session admits.
    """
    if values.shape != (manifest.size,) or values.dtype != np.int64:
        raise ValueError(f"expected int64 ({manifest.size},), got {values.dtype} {values.shape}")
    if max(int(values.max()), -int(values.min())) > manifest.largest:
        raise DataError(
            f"an integer of the update is larger than the session's {manifest.largest}",
            remedy="clip updates, or raise the range that numbers are scaled to",
            code="update-range",
        )
