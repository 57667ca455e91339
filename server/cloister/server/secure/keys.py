"""The seam of encrypted sums: where a session's public key comes from, and who opens what was encrypted under it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

from cloister.core import protocol
from cloister.privacy.homomorphic import PublicKey, SumRequest
from cloister.privacy.homomorphic.lanes import Integers
from cloister.privacy.identity import Consortium
from cloister.privacy.manifest import Manifest, SumKind, cohort_digest
from cloister.privacy.masking import Fields
from cloister.server.courier import Courier
from cloister.server.plan import Opener
from cloister.server.secure.manifests import Manifests
from cloister.server.secure.summing import Heard

__all__ = ["Asking", "AuthorityKeys", "Keys", "SessionKey"]


@dataclass(frozen=True, kw_only=True)
class Asking:
    """What a sum is asked for with.

    Attributes:
        kind: what is summed.
        number: the round.
        told: what each job says beside.
        heard: is told who is lost, and the bytes.
    """

    kind: SumKind
    number: int
    told: Mapping[str, float]
    heard: Heard


@dataclass(frozen=True, kw_only=True)
class SessionKey:
    """The key of one session.

    Attributes:
        serial: of the session.
        key_id: what its manifest names.
        cohort: whom to ask for a share of the sum: positions in the directory, ascending.
        fields: what they are sent of the key.
        nbytes: how many bytes that is.
    """

    serial: int
    key_id: str
    cohort: list[int]
    fields: Fields
    nbytes: int


class Keys(Protocol):
    """Makes a key for each session, and has its sum opened: one over all of the session's cohort."""

    def begin(self, asking: Asking, cohort: list[int]) -> SessionKey:
        """Return the key of a new session over ``cohort``, or over those of it that are there.

        Raises:
            PeersMissing: they are too few.
        """
        ...

    def check(self, manifest: Manifest, name: str, container: bytes) -> None:
        """Check what a site sent to be summed, beyond what `ServerSum` does.

        Raises:
            IntegrityError: it does not hold.
        """
        ...

    def open(self, asking: Asking, key: SessionKey, request: SumRequest) -> Integers:
        """Return the (size,) sums, int64.

        Raises:
            PeersMissing, IntegrityError, PolicyError: whoever holds the key is not there, or refuses.
        """
        ...


class AuthorityKeys:
    """Keys of an authority, which opens the sums.

    Args:
        authority: the authority.
        courier: knows the sites' names.
        manifests: numbers this run's sessions.
        consortium: who vouches for the authority.
        scheme: how values are encrypted.
    """

    def __init__(
        self,
        authority: Opener,
        courier: Courier,
        manifests: Manifests,
        consortium: Consortium,
        scheme: Literal["bfv", "ckks"],
    ) -> None:
        self._authority = authority
        self._courier = courier
        self._manifests = manifests
        self._consortium = consortium
        self._scheme: Literal["bfv", "ckks"] = scheme

    def begin(self, asking: Asking, cohort: list[int]) -> SessionKey:  # noqa: ARG002 - the seam's
        """Return a key for the whole cohort."""
        serial, digest = self._manifests.next_serial(), cohort_digest(self._courier.names(cohort))
        key = self._authority.public(self._manifests.run, serial, digest, self._scheme)
        return SessionKey(
            serial=serial,
            key_id=PublicKey.read(key, self._consortium).key_id,
            cohort=cohort,
            fields={protocol.KEY: key},
            nbytes=len(key),
        )

    def check(self, manifest: Manifest, name: str, container: bytes) -> None:
        """Nothing: what comes out of an authority is looked at by it."""

    def open(self, asking: Asking, key: SessionKey, request: SumRequest) -> Integers:  # noqa: ARG002 - the seam's
        """Return what the authority decrypts."""
        return self._authority.decrypt(request)
