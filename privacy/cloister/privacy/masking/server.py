"""The server's part of one masked session: it relays, adds, and unmasks the sum of those that survived.

Formal guarantees:

- `ServerSession.result` is the sum, modulo 2^modulus_bits, of the vectors of exactly the survivors, or an error: a site that lies in a share
  cannot change it (each rebuilt secret is checked against the site's signed advert).
- ``take_*`` never raise on what a peer sent: they return a `Refusal`, and the site drops out.
- Memory is one vector of 4 bytes a value, whatever the number of sites: vectors are added as they come.

A phase ends when the caller says so (``end_*``): who has answered goes on, who has not is out.

=====================================  ===================================================
case                                   outcome
=====================================  ===================================================
too few go on                          ``PeersMissing`` (masking-short), before anybody reveals a share
too few shares to rebuild a secret     ``PeersMissing`` (masking-short)
shares that do not agree               ``IntegrityError`` (masking-shares), naming whose secret
an answer out of phase, or twice       `Refusal` (masking-order)
a call out of phase                    ``RuntimeError``
=====================================  ===================================================
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from cloister.core.errors import CloisterError, IntegrityError, PeersMissing
from cloister.privacy.identity import Consortium, Member, Purpose, Role
from cloister.privacy.manifest import Manifest, SignedManifest, cohort_digest
from cloister.privacy.masking.fields import Message
from cloister.privacy.masking.graph import neighbours
from cloister.privacy.masking.messages import (
    Advert,
    Confirmation,
    Confirmations,
    Deliveries,
    Reveal,
    Roster,
    SealedShares,
    Survivors,
    survivors_bound,
)
from cloister.privacy.masking.parameters import is_complete, quorum
from cloister.privacy.masking.roster import check_advert
from cloister.privacy.masking.unmasking import Unmasking
from cloister.privacy.updates.modular import Residues

__all__ = ["Refusal", "ServerSession"]

_M = TypeVar("_M", bound=Message)
_PHASES = ("adverts", "shares", "masked", "confirmations", "reveals", "over")


class Refusal(NamedTuple):
    """Why a site's answer was not taken.

    Attributes:
        code: stable.
        text: for the log; holds nothing that the site sent but its name.
    """

    code: str
    text: str


class ServerSession:
    """One session at the server.

    Args:
        manifest: what the session is.
        signed: the same as it is sent to sites.
        consortium: what the server knows of its consortium.
        names: all sites that are asked.
    """

    def __init__(
        self, manifest: Manifest, signed: SignedManifest, consortium: Consortium, names: Sequence[str]
    ) -> None:
        if signed.encoded != manifest.encoded or cohort_digest(names) != manifest.cohort:
            raise ValueError("the signed manifest or the names are not the manifest's")
        self.manifest, self.signed = manifest, signed
        self._consortium = consortium
        self._digest = manifest.digest
        self._cohort = tuple(sorted(names))
        self._number = {name: number for number, name in enumerate(self._cohort)}
        self._phase = 0
        self._adverts: dict[str, Advert] = {}
        self._members: dict[str, Member] = {}
        self._shares: dict[str, SealedShares] = {}
        self._answered: set[str] = set()
        self._confirmed: dict[str, bytes] = {}
        self._reveals: dict[str, Reveal] = {}
        self._graph: dict[str, tuple[str, ...]] = {}
        self._sharers: tuple[str, ...] = ()
        self._survivors: Survivors | None = None
        #: Whose secrets alone could not be rebuilt, once `result` has failed for that (`cloister.privacy.masking.unmasking`).
        self.suspects: tuple[str, ...] = ()
        self._sum: Residues = np.zeros(manifest.size, dtype=np.uint32)

    # ----- keys

    def take_advert(self, name: str, advert: Advert | Mapping[str, object]) -> Refusal | None:
        """Take a site's keys."""
        try:
            read = self._taken("adverts", name, advert, Advert, self._adverts)
            check_advert(read, self.manifest, self._consortium)
            if read.name != name:
                raise _refused("masking-roster", f"'{name}' sent the keys of another site")
            self._members[name] = self._consortium.member(read.certificate, role=Role.SITE)
        except CloisterError as error:
            return Refusal(error.code, error.message)
        self._adverts[name] = read
        return None

    def end_adverts(self) -> tuple[str, ...]:
        """Return who goes on; the roster is closed.

        Raises:
            PeersMissing: (masking-short) too few.
        """
        self._leave("adverts")
        present = tuple(sorted(self._adverts))
        self._enough("sent their keys", len(present), quorum(self.manifest))
        digests = tuple(
            self._adverts[name].digest(self._digest) if name in self._adverts else b""
            for name in self._cohort
        )
        self._roster = Roster(cohort=self._cohort, digests=digests, adverts=())
        self._roster_digest = self._roster.digest(self._digest)
        graph = neighbours(self._roster.present, self.manifest.degree, self._roster_digest)
        self._graph = {
            self._cohort[one]: tuple(self._cohort[other] for other in beside) for one, beside in graph.items()
        }
        return present

    def roster_for(self, name: str) -> Roster:
        """Return what one site is shown of the others."""
        self._in("shares")
        adverts = tuple(self._adverts[peer] for peer in self._graph[name])
        return Roster(cohort=self._cohort, digests=self._roster.digests, adverts=adverts)

    # ----- shares

    def take_shares(self, name: str, sealed: SealedShares | Mapping[str, object]) -> Refusal | None:
        """Take a site's sealed shares."""
        try:
            read = self._taken("shares", name, sealed, SealedShares, self._shares, among=self._adverts)
            if read.recipients != self._graph[name]:
                raise _refused("masking-message", f"'{name}' has shared with others than its neighbours")
        except CloisterError as error:
            return Refusal(error.code, error.message)
        self._shares[name] = read
        return None

    def end_shares(self) -> tuple[str, ...]:
        """Return who goes on: only these are masked with.

        Raises:
            PeersMissing: (masking-short) too few.
        """
        self._leave("shares")
        self._sharers = tuple(sorted(self._shares))
        self._enough("have shared", len(self._sharers), quorum(self.manifest))
        self._enough_around(self._sharers, self._sharers)
        return self._sharers

    def deliveries_for(self, name: str) -> Deliveries:
        """Return what a site's neighbours sealed for it."""
        self._in("masked")
        senders = tuple(peer for peer in self._graph[name] if peer in self._shares)
        sealed = tuple(self._shares[peer].sealed[self._graph[peer].index(name)] for peer in senders)
        return Deliveries(senders=senders, sealed=sealed)

    # ----- vectors

    def take_masked(self, name: str, vector: npt.NDArray[np.uint32]) -> Refusal | None:
        """Add a site's masked vector, (size,) uint32."""
        if self._phase != _PHASES.index("masked") or name not in self._shares or name in self._answered:
            return Refusal("masking-order", f"'{name}' sent a vector that nobody waits for")
        if not isinstance(vector, np.ndarray) or vector.dtype != np.uint32 or vector.shape != self._sum.shape:
            return Refusal(
                "masking-message", f"'{name}' sent no vector of {self.manifest.size} numbers of 32 bits"
            )
        self._answered.add(name)
        np.add(self._sum, vector, out=self._sum)  # wraps modulo 2^32
        return None

    def end_masked(self) -> tuple[str, ...]:
        """Return who survived.

        Raises:
            PeersMissing: (masking-short) too few.
        """
        self._leave("masked")
        names = tuple(sorted(self._answered))
        self._shares.clear()
        self._enough("sent their vectors", len(names), quorum(self.manifest))
        self._enough_around(self._sharers, names)
        self._survivors = Survivors(names=names)
        return names

    def survivors(self) -> Survivors:
        """Return whose vectors arrived."""
        if self._survivors is None:
            raise RuntimeError("the phase of masked vectors has not ended")
        return self._survivors

    # ----- agreement

    def take_confirmation(
        self, name: str, confirmation: Confirmation | Mapping[str, object]
    ) -> Refusal | None:
        """Take a survivor's signature."""
        try:
            read = self._taken(
                "confirmations", name, confirmation, Confirmation, self._confirmed, among=self._answered
            )
            message = survivors_bound(self._digest, self._roster_digest, self.survivors())
            self._members[name].check(Purpose.SURVIVORS, message, read.signature)
        except CloisterError as error:
            return Refusal(error.code, error.message)
        self._confirmed[name] = read.signature
        return None

    def end_confirmations(self) -> tuple[str, ...]:
        """Return who goes on.

        Raises:
            PeersMissing: (masking-short) too few: nobody reveals anything.
        """
        self._leave("confirmations")
        names = tuple(sorted(self._confirmed))
        self._enough("have confirmed", len(names), quorum(self.manifest))
        self._enough_around(self._sharers, names)
        return names

    def confirmations(self) -> Confirmations:
        """Return the signatures, the same for all; as many as the quorum needs in a sparse graph, where each brings its certificate."""
        self._in("reveals")
        names = sorted(self._confirmed)
        certificates: Iterable[bytes] = ()
        if not is_complete(self.manifest):
            names = names[: quorum(self.manifest)]
            certificates = (self._adverts[name].certificate for name in names)
        signatures = tuple(self._confirmed[name] for name in names)
        return Confirmations(names=tuple(names), signatures=signatures, certificates=tuple(certificates))

    # ----- unmasking

    def take_reveal(self, name: str, reveal: Reveal | Mapping[str, object]) -> Refusal | None:
        """Take a site's shares."""
        try:
            read = self._taken("reveals", name, reveal, Reveal, self._reveals, among=self._confirmed)
            if not self._fits(name, read):
                raise _refused("masking-message", f"'{name}' has revealed other shares than it was asked for")
        except CloisterError as error:
            return Refusal(error.code, error.message)
        self._reveals[name] = read
        return None

    def result(self) -> Residues:
        """Return the sum of the survivors' vectors modulo 2^modulus_bits; the session is over.

        Raises:
            PeersMissing: (masking-short) too few have revealed their shares.
            IntegrityError: (masking-shares) a secret cannot be rebuilt from the shares that there are.
        """
        self._leave("reveals")
        alive = self.survivors().names
        unmasking = Unmasking(self.manifest, self._adverts, self._number)
        for name, reveal in self._reveals.items():
            unmasking.take(name, reveal)
        dropped = {
            name: tuple(peer for peer in self._graph[name] if peer in self._answered)
            for name in self._sharers
            if name not in self._answered
        }
        try:
            unmasking.unmask(self._sum, alive, dropped)
        finally:
            self.suspects = unmasking.suspects
        if self.manifest.modulus_bits < 32:
            np.bitwise_and(self._sum, np.uint32((1 << self.manifest.modulus_bits) - 1), out=self._sum)
        return self._sum

    # ----- what goes for all phases

    def _taken(
        self,
        phase: str,
        name: str,
        given: _M | Mapping[str, object],
        kind: type[_M],
        already: Mapping[str, object],
        *,
        among: Iterable[str] | None = None,
    ) -> _M:
        """Return an answer, read, if it is awaited."""
        awaited = self._number if among is None else among
        if _PHASES[self._phase] != phase or name not in awaited or name in already:
            raise _refused("masking-order", f"'{name}' sent a {kind.__name__} that nobody waits for")
        if isinstance(given, kind):
            return given
        if not isinstance(given, Mapping):
            raise _refused("masking-message", f"'{name}' sent no {kind.__name__}")
        return kind.from_fields(given)

    def _fits(self, name: str, reveal: Reveal) -> bool:
        """Return whether shares are of the site's neighbours, of each of the kind that it should be; some may be missing."""
        held = {peer for peer in self._graph[name] if peer in set(self._sharers)}
        held |= {name} if is_complete(self.manifest) else set()
        return set(reveal.seeds_of) <= held & self._answered and set(reveal.keys_of) <= held - self._answered

    def _enough(self, what: str, found: int, least: int) -> None:
        if found < least:
            raise PeersMissing(
                f"{found} of {self.manifest.cohort_size} sites {what}, and the session needs {least}",
                remedy="wait for more sites, or lower the share that must stay (privacy.masking)",
                code="masking-short",
            )

    def _enough_around(self, owners: Iterable[str], holders: Iterable[str]) -> None:
        """Check that enough of those that hold a share of each owner's secrets are there."""
        there = set(holders)
        for owner in owners:
            held = len(there.intersection(self._graph[owner])) + (
                owner in there and is_complete(self.manifest)
            )
            self._enough(f"hold a share of '{owner}' and are there", held, self.manifest.threshold)

    def _in(self, phase: str) -> None:
        if _PHASES[self._phase] != phase:
            raise RuntimeError(f"the session is in the phase '{_PHASES[self._phase]}', not '{phase}'")

    def _leave(self, phase: str) -> None:
        self._in(phase)
        self._phase += 1


def _refused(code: str, text: str) -> IntegrityError:
    return IntegrityError(text, code=code)
