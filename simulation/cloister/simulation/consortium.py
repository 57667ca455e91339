"""The consortium of a simulation: an authority, a server and as many sites as there are, all on this machine.

Keys follow from the run's seed, so that every worker process has the same ones without being told: they prove the protocol, and protect nobody.
The keys and seeds of the secure sessions themselves come from the operating system, here as in a deployment.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.client.book import Credentials
from cloister.core.randomness import Randomness
from cloister.privacy.homomorphic import KeyAuthority
from cloister.privacy.identity import Consortium, ConsortiumAuthority, Identity, Role
from cloister.privacy.manifest import Floors
from cloister.privacy.protection import needs_authority
from cloister.server.plan import SecureSeat

__all__ = ["SimulatedConsortium"]

_SERVER, _AUTHORITY = "server", "key authority"


@dataclass(frozen=True)
class SimulatedConsortium:
    """Who is who in one simulation.

    Attributes:
        name: of the federation.
        randomness: the run's.
    """

    name: str
    randomness: Randomness

    def credentials(self, site: str) -> Credentials:
        """Return a site's key, certificate and floors."""
        return Credentials(
            identity=self._identity(site, Role.SITE), consortium=self.consortium, floors=Floors()
        )

    @cached_property
    def seat(self) -> SecureSeat:
        """The server's key and certificate."""
        return SecureSeat(identity=self._identity(_SERVER, Role.SERVER), consortium=self.consortium)

    @contextmanager
    def seated(self, protection: str) -> Iterator[SecureSeat | None]:
        """Give the server's seat for a run: with a key authority beside it where one opens the sums, with none at all in clear."""
        if protection == "plain":
            yield None
        elif not needs_authority(protection):
            yield self.seat
        else:
            authority = KeyAuthority.in_memory(self._identity(_AUTHORITY, Role.AUTHORITY), self.consortium)
            try:
                yield replace(self.seat, authority=authority)
            finally:
                authority.close()

    @cached_property
    def consortium(self) -> Consortium:
        """What everybody knows."""
        return self._authority.consortium()

    @cached_property
    def _authority(self) -> ConsortiumAuthority:
        return ConsortiumAuthority(self.name, self._key("authority", self.name))

    def _identity(self, name: str, role: Role) -> Identity:
        return self._authority.identity(name, role, self._key(role, name))

    def _key(self, role: str, name: str) -> Ed25519PrivateKey:
        halves = (self.randomness.bits("identity", role, name, half) for half in range(2))
        return Ed25519PrivateKey.from_private_bytes(b"".join(half.to_bytes(16) for half in halves))
