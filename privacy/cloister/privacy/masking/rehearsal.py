"""Whole sessions in memory, with sites that leave where they are told to: for tests, benchmarks and whoever wants to see one run.

::

    stage = Stage()
    rehearsal = stage.rehearsal(5, leaves={"site-0001": Step.CONFIRM})
    total = rehearsal.run(vectors)          # or advert(), share(), mask(vectors), confirm(), reveal(), server.result()

Formal guarantee: every message goes through its flat form (`Message.to_fields`, ``from_fields``) and every site through its stored form after
every step, so that a session here is the one that goes over a network, but for the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.privacy.identity import Consortium, ConsortiumAuthority, Identity, Role
from cloister.privacy.manifest import Floors, Manifest, SignedManifest, cohort_digest
from cloister.privacy.masking.messages import (
    Advert,
    Confirmation,
    Confirmations,
    Deliveries,
    Reveal,
    Roster,
    SealedShares,
    Survivors,
)
from cloister.privacy.masking.parameters import parameters
from cloister.privacy.masking.server import Refusal, ServerSession
from cloister.privacy.masking.site import SiteSession
from cloister.privacy.updates.modular import Residues

__all__ = ["Rehearsal", "Stage", "Step"]


class Step(IntEnum):
    """What a site does in a session, in order."""

    ADVERT = 0
    SHARE = 1
    MASK = 2
    CONFIRM = 3
    REVEAL = 4


class Rehearsal:
    """One session of one server and its sites.

    Args:
        signed: the session's manifest.
        consortium: what all know of it.
        identities: of all sites that are asked.
        leaves: the step before which a site leaves; one that is not named stays.
        floors: what every site demands.
        stored: whether a site is written down and read back after every step.
    """

    def __init__(
        self,
        signed: SignedManifest,
        consortium: Consortium,
        identities: Sequence[Identity],
        *,
        leaves: Mapping[str, Step] | None = None,
        floors: Floors | None = None,
        stored: bool = True,
    ) -> None:
        names = [identity.name for identity in identities]
        self.server = ServerSession(signed.opened(consortium), signed, consortium, names)
        self._consortium, self._identities, self._stored = consortium, {i.name: i for i in identities}, stored
        self._leaves = leaves or {}
        self.refusals: dict[str, Refusal] = {}
        self.revealed: list[str] = []
        self.sites = {
            identity.name: SiteSession.begin(
                identity,
                consortium,
                signed,
                floors=floors or Floors(),
                newest=signed.opened(consortium).serial - 1,
            )
            for identity in identities
        }

    def run(self, vectors: Mapping[str, Residues]) -> Residues:
        """Return the sum of the survivors' vectors; those of all that masked are changed in place."""
        self.advert()
        self.share()
        self.mask(vectors)
        self.confirm()
        self.reveal()
        return self.server.result()

    def advert(self) -> tuple[str, ...]:
        """Let sites show their keys; return who goes on."""
        for name in self._staying(self.sites, Step.ADVERT):
            answer = self.sites[name].advert()
            self._note(name, self.server.take_advert(name, Advert.from_fields(answer.to_fields())))
        return self.server.end_adverts()

    def share(self) -> tuple[str, ...]:
        """Let sites share their secrets; return who goes on."""
        for name in self._staying(self.sites, Step.SHARE):
            roster = Roster.from_fields(self.server.roster_for(name).to_fields())
            answer = self.sites[name].share(roster)
            self._store(name)
            self._note(name, self.server.take_shares(name, SealedShares.from_fields(answer.to_fields())))
        return self.server.end_shares()

    def mask(self, vectors: Mapping[str, Residues]) -> tuple[str, ...]:
        """Let sites mask their vectors; return who survived."""
        for name in self._staying(self.sites, Step.MASK):
            deliveries = Deliveries.from_fields(self.server.deliveries_for(name).to_fields())
            answer = self.sites[name].mask(deliveries, vectors[name])
            self._store(name)
            self._note(name, self.server.take_masked(name, answer))
        return self.server.end_masked()

    def confirm(self) -> tuple[str, ...]:
        """Let survivors sign who survived; return who goes on."""
        survivors = Survivors.from_fields(self.server.survivors().to_fields())
        for name in self._staying(self.sites, Step.CONFIRM):
            answer = self.sites[name].confirm(survivors)
            self._store(name)
            self._note(
                name, self.server.take_confirmation(name, Confirmation.from_fields(answer.to_fields()))
            )
        return self.server.end_confirmations()

    def reveal(self) -> None:
        """Let survivors reveal shares."""
        confirmations = Confirmations.from_fields(self.server.confirmations().to_fields())
        for name in self._staying(self.sites, Step.REVEAL):
            answer = self.sites[name].reveal(confirmations)
            self.revealed.append(name)
            self._store(name)
            self._note(name, self.server.take_reveal(name, Reveal.from_fields(answer.to_fields())))

    def _staying(self, names: Mapping[str, SiteSession], step: Step) -> list[str]:
        """Return who takes a step: it has not left, and was not refused."""
        return [
            name for name in names if self._leaves.get(name, len(Step)) > step and name not in self.refusals
        ]

    def _note(self, name: str, refusal: Refusal | None) -> None:
        if refusal is not None:
            self.refusals[name] = refusal

    def _store(self, name: str) -> None:
        if self._stored:
            fields = self.sites[name].to_fields()
            self.sites[name] = SiteSession.from_fields(self._identities[name], self._consortium, fields)


class Stage:
    """A consortium that was made up: as many sites as are asked for, and a server. Its keys are drawn afresh."""

    def __init__(self) -> None:
        self.authority = ConsortiumAuthority("Rehearsal", Ed25519PrivateKey.generate())
        self.consortium: Consortium = self.authority.consortium()
        self.coordinator = self.identity("server", Role.SERVER)
        self._sites: list[Identity] = []

    def identity(self, name: str, role: Role = Role.SITE) -> Identity:
        """Return somebody new of the consortium."""
        return self.authority.identity(name, role, Ed25519PrivateKey.generate())

    def sites(self, count: int) -> list[Identity]:
        """Return ``site-0000`` and so on, the same ones at every call."""
        while len(self._sites) < count:
            self._sites.append(self.identity(f"site-{len(self._sites):04d}"))
        return self._sites[:count]

    def manifest(self, count: int, **changes: Any) -> Manifest:
        """Return a manifest for that many sites, with the parameters of `parameters`, but for ``changes``."""
        degree, threshold = parameters(count)
        plain: dict[str, Any] = {
            "run": "rehearsal",
            "round_number": 1,
            "serial": 1,
            "kind": "train",
            "federation": "0" * 64,
            "layout": "1" * 64,
            "model": "2" * 64,
            "cohort": cohort_digest(site.name for site in self.sites(count)),
            "cohort_size": count,
            "least": 3,
            "threshold": threshold,
            "degree": degree,
            "size": 5,
            "largest": 1,
        }
        return Manifest(**(plain | changes))

    def signed(self, count: int, **changes: Any) -> SignedManifest:
        """Return it with the server's signature."""
        return self.manifest(count, **changes).signed(self.coordinator)

    def rehearsal(
        self,
        count: int,
        *,
        leaves: Mapping[str, Step] | None = None,
        stored: bool = True,
        **changes: Any,
    ) -> Rehearsal:
        """Return a session of that many sites that has begun."""
        signed = self.signed(count, **changes)
        return Rehearsal(signed, self.consortium, self.sites(count), leaves=leaves, stored=stored)
