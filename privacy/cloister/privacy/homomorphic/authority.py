"""The key authority: the one role that holds the secret key. It is never the server.

In a simulation it is in process; else `cloister.privacy.authority` puts the same three methods on the network.

Who can read a single update: the authority and the server together, and nobody else. The authority alone is sent no ciphertexts but those of a
sum that it may decrypt (though it could decrypt each: it must be somebody whom the sites trust not to); the server alone holds
ciphertexts and no key.
"""

from __future__ import annotations

import threading

from cloister.privacy.homomorphic.child import Decrypter
from cloister.privacy.homomorphic.codec import published
from cloister.privacy.homomorphic.opening import Opening
from cloister.privacy.homomorphic.parameters import HomomorphicScheme
from cloister.privacy.homomorphic.summation import SumRequest
from cloister.privacy.homomorphic.vault import Vault
from cloister.privacy.identity import Consortium, Identity
from cloister.privacy.manifest import SignedManifest
from cloister.privacy.updates.rounding import Integers

__all__ = ["MOST_VALUES", "KeyAuthority"]

#: The longest sum that an authority decrypts unless it is told otherwise.
MOST_VALUES = 1 << 26


class KeyAuthority:
    """Holds the key; close it when done.

    Args:
        vault: the key and the record.
        identity: the authority's own.
        consortium: who vouches for server and sites.
        least: the fewest sites whose sum it decrypts, whatever a manifest says.
        most_values: the longest sum that it decrypts.
    """

    def __init__(
        self,
        vault: Vault,
        identity: Identity,
        consortium: Consortium,
        *,
        least: int = 3,
        most_values: int = MOST_VALUES,
    ) -> None:
        self._vault = vault
        self._identity = identity
        self._consortium = consortium
        self._least = least
        self._most_values = most_values
        self._decrypter = Decrypter(vault.parameters, vault.secret)
        self._lock = threading.Lock()

    @classmethod
    def in_memory(
        cls,
        identity: Identity,
        consortium: Consortium,
        *,
        scheme: HomomorphicScheme = "bfv",
        least: int = 3,
    ) -> KeyAuthority:
        """Return an authority with a new key that no file holds, as a simulation needs it."""
        return cls(Vault.in_memory(scheme), identity, consortium, least=least)

    @property
    def key_id(self) -> str:
        """The id of the present key: what a manifest names."""
        return self._vault.key_id

    def public(self) -> bytes:
        """Return the public key as a `PublicCodec` takes it."""
        return published(self._vault.parameters.scheme, self._vault.public, self._identity)

    def opening(
        self, manifest: SignedManifest, cohort: tuple[str, ...], digest: bytes, signature: bytes
    ) -> Opening:
        """Begin a decryption whose containers come one by one; the arguments are a `SumRequest`'s.

        Raises:
            IntegrityError, PolicyError, SpecError: as of `Opening`.
        """
        with self._lock:
            vault, decrypter = self._vault, self._decrypter
        return Opening(
            vault=vault,
            decrypter=decrypter,
            consortium=self._consortium,
            least=self._least,
            most_values=self._most_values,
            manifest=manifest,
            cohort=cohort,
            digest=digest,
            signature=signature,
        )

    def decrypt(self, request: SumRequest) -> Integers:
        """Return the (size,) sums, int64, that a server may see.

        Raises:
            IntegrityError, PolicyError, SpecError, StorageError: as of `Opening`.
        """
        opening = self.opening(request.manifest, request.cohort, request.digest, request.signature)
        for sealed in request.sealed:
            opening.add(sealed)
        return opening.finish()

    def rotate(self) -> str:
        """Make a new key, forget the old one, and return the new one's id. Sessions under the old key are lost."""
        with self._lock:
            self._vault.renew()
            self._decrypter.close()
            self._decrypter = Decrypter(self._vault.parameters, self._vault.secret)
        return self.key_id

    def close(self) -> None:
        """Stop the process that decrypts and let the key's folder go."""
        with self._lock:
            self._decrypter.close()
            self._vault.close()
