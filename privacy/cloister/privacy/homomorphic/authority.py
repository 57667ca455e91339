"""The key authority: the one role that holds secret keys. It is never the server.

In a simulation it is in process; else `cloister.privacy.authority` puts the same methods on the network.

Who can read a single update: the authority, which is sent every site's container so that it need not believe the server's sum. The sites
trust it to decrypt only sums; `opening` is what an honest one does. The server holds ciphertexts and no key; with any sites on its side
it learns no more than the sum of the others.
"""

from __future__ import annotations

from collections.abc import Mapping

from cloister.core.errors import UsageError
from cloister.privacy.homomorphic.child import Decrypter
from cloister.privacy.homomorphic.lanes import Integers
from cloister.privacy.homomorphic.opening import Opening
from cloister.privacy.homomorphic.parameters import HomomorphicScheme
from cloister.privacy.homomorphic.summation import SumRequest
from cloister.privacy.homomorphic.vault import Vault
from cloister.privacy.identity import Consortium, Identity, Role
from cloister.privacy.manifest import SignedManifest

__all__ = ["MOST_VALUES", "KeyAuthority"]

#: The longest sum that an authority decrypts unless it is told otherwise.
MOST_VALUES = 1 << 26


class KeyAuthority:
    """Makes a key for each session and decrypts its sum, once; close it when done.

    Args:
        vault: the keys and the record.
        identity: the authority's own, certified as an authority's.
        consortium: who vouches for server and sites.
        least: the fewest sites whose sum it decrypts, whatever a manifest says.
        most_values: the longest sum that it decrypts.

    Raises:
        UsageError: ``identity`` is of another role, or ``least`` is below 2.
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
        if identity.member.role != Role.AUTHORITY or least < 2:
            raise UsageError(
                f"a key authority is one whose certificate says so and whose floor is at least 2, not a {identity.member.role} with {least}",
                remedy="have the consortium certify it as an authority",
            )
        self._vault = vault
        self._identity = identity
        self._consortium = consortium
        self._least = least
        self._most_values = most_values
        self._decrypter = Decrypter()

    @classmethod
    def in_memory(cls, identity: Identity, consortium: Consortium, *, least: int = 3) -> KeyAuthority:
        """Return an authority whose keys no file holds, as a simulation needs it."""
        return cls(Vault.in_memory(), identity, consortium, least=least)

    def public(self, run: str, serial: int, cohort: str, scheme: HomomorphicScheme = "bfv") -> bytes:
        """Return the public key of a session, as a `PublicCodec` takes it; a new one where the session has none yet.

        Args:
            run: of the session.
            serial: of the session.
            cohort: `cohort_digest` of its sites, all of which must be in the sum.
            scheme: how they encrypt.

        Raises:
            IntegrityError: (decryption-twice, ciphertext-key) the session was decrypted, or has a key of another scheme or cohort.
            SpecError: (protection-scheme) the scheme is unknown.
        """
        return self._vault.issue(run, serial, cohort, scheme).public.signed(self._identity)

    def opening(
        self,
        manifest: SignedManifest,
        cohort: tuple[str, ...],
        commitments: Mapping[str, bytes],
        digest: bytes,
        signature: bytes,
    ) -> Opening:
        """Begin a decryption whose containers come one by one; the arguments are a `SumRequest`'s.

        Raises:
            IntegrityError, PolicyError, SpecError: as of `Opening`.
        """
        return Opening(
            vault=self._vault,
            decrypter=self._decrypter,
            consortium=self._consortium,
            least=self._least,
            most_values=self._most_values,
            manifest=manifest,
            cohort=cohort,
            commitments=commitments,
            digest=digest,
            signature=signature,
        )

    def decrypt(self, request: SumRequest) -> Integers:
        """Return the (size,) sums, int64, that a server may see.

        Raises:
            IntegrityError, PolicyError, SpecError, StorageError: as of `Opening`.
        """
        opening = self.opening(
            request.manifest, request.cohort, request.commitments, request.digest, request.signature
        )
        for sealed in request.sealed:
            opening.add(sealed)
        return opening.finish()

    def rotate(self) -> int:
        """Destroy every key that waits for its sum, and return how many. Their sessions are lost; new ones get new keys."""
        return self._vault.forget()

    def close(self) -> None:
        """Stop the process that decrypts and let the keys' folder go."""
        self._decrypter.close()
        self._vault.close()
