"""A site's part of one masked session: five steps, each once and in order, that say no to a server that lies.

Formal guarantees, whatever the server and the sites that collude with it do, as long as these are fewer than the parameters allow
(`cloister.privacy.masking.parameters`):

- The site's vector leaves once, and masked. Before that its roster was checked: signed adverts of members of the consortium for this very
  manifest, as many as the manifest and the site's floors demand.
- It signs one set of survivors, and reveals shares once, for that set only, after a quorum of survivors signed the same set.
- Of each peer it reveals one kind of share: of a survivor that of its seed, of another that of its mask key.
- Its state can be written down after every step (`SiteSession.to_fields`) and forgets what the next steps do not need: after `mask` its own
  secrets, after `reveal` everything. A site that writes its state down *before* it sends a step's answer cannot give a second, different
  answer after a crash: each step changes the state before it returns.

===========================================  ====================================================
case                                         outcome
===========================================  ====================================================
manifest signed by nobody, older, unsafe     refused by `begin` (signature, manifest-replayed, masking-graph)
a step twice, or out of order                ``IntegrityError`` (masking-order)
a key swapped in the roster, a stranger      ``IntegrityError`` (signature, identity, masking-roster)
too few on the roster, sharing, surviving    ``PolicyError`` (masking-floor)
survivors that are not a set of sharers      ``IntegrityError`` (masking-survivors)
confirmations of another set, too few        ``IntegrityError`` (signature), ``PolicyError`` (masking-floor)
a peer's shares cannot be opened             nothing is revealed for it; the session goes on
a vector of another type or length           ``ValueError``; the state and the vector stay as they were
===========================================  ====================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Self

import numpy as np

from cloister.core.errors import IntegrityError
from cloister.privacy.identity import Consortium, Identity, Purpose
from cloister.privacy.manifest import Floors, Manifest, SignedManifest
from cloister.privacy.masking import keys
from cloister.privacy.masking.agreement import check_confirmations, check_survivors, too_few
from cloister.privacy.masking.fields import Fields
from cloister.privacy.masking.messages import (
    Advert,
    Confirmation,
    Confirmations,
    Deliveries,
    Reveal,
    Roster,
    SealedShares,
    Survivors,
    advert_bound,
    survivors_bound,
)
from cloister.privacy.masking.parameters import check_graph, is_complete
from cloister.privacy.masking.roster import checked_roster
from cloister.privacy.masking.shamir import SHARE
from cloister.privacy.masking.sharing import Channel, shares_of
from cloister.privacy.masking.site_state import SiteState
from cloister.privacy.masking.stream import add_streams
from cloister.privacy.updates.modular import Residues

__all__ = ["SiteSession"]


class SiteSession:
    """One site in one session; made by `begin`, or read back with `from_fields`."""

    def __init__(
        self, identity: Identity, consortium: Consortium, signed: SignedManifest, state: SiteState
    ) -> None:
        self._identity, self._consortium, self._signed, self._state = identity, consortium, signed, state
        self.manifest: Manifest = signed.opened(consortium)
        self._digest = self.manifest.digest

    @classmethod
    def begin(
        cls,
        identity: Identity,
        consortium: Consortium,
        manifest: SignedManifest,
        *,
        floors: Floors,
        newest: int,
    ) -> Self:
        """Check the manifest and draw fresh keys from the operating system.

        Args:
            identity: the site's own.
            consortium: what it knows of its consortium.
            manifest: what the server sent.
            floors: what the site demands.
            newest: the largest serial that the site has seen in this run, 0 if none; the caller writes down the new one.

        Raises:
            IntegrityError: (manifest, signature, identity) it is not the server's; (manifest-replayed) it is not newer;
                (masking-manifest) it is for something else.
            PolicyError: (manifest-floor, masking-graph) it asks for less than the site demands.
        """
        opened = manifest.opened(consortium)
        if opened.serial <= newest:
            raise IntegrityError(
                f"session {opened.serial} of run '{opened.run}' is not newer than session {newest}, which this site knows",
                remedy="find out who sends an old manifest again",
                code="manifest-replayed",
            )
        if opened.scheme != "masked" or opened.modulus_bits > 32:
            raise IntegrityError(
                f"the manifest is for '{opened.scheme}' modulo 2^{opened.modulus_bits}: masks are for 'masked', modulo at most 2^32",
                remedy="use the same version of cloister at the server and at every site",
                code="masking-manifest",
            )
        opened.check_floors(floors)
        check_graph(opened)
        drawn = {name: os.urandom(keys.KEY) for name in ("mask_private", "seal_private", "seed")}
        return cls(identity, consortium, manifest, SiteState.begun(**drawn))

    def advert(self) -> Advert:
        """Return the site's signed public keys; the same ones however often it is asked."""
        kept, name = self._in("begun").kept, self._identity.name
        mask_key, seal_key = keys.public_of(kept.mask_private), keys.public_of(kept.seal_private)
        commitment = keys.hashed("seed", self._digest, kept.seed)
        message = advert_bound(self._digest, name, mask_key, seal_key, commitment)
        return Advert(
            name=name,
            mask_key=mask_key,
            seal_key=seal_key,
            commitment=commitment,
            signature=self._identity.sign(Purpose.ADVERT, message),
            certificate=self._identity.certificate,
        )

    def share(self, roster: Roster) -> SealedShares:
        """Check who takes part, and share the site's secrets among its neighbours.

        Raises:
            IntegrityError: (masking-roster, signature, identity) somebody is not who it should be.
            PolicyError: (masking-floor) too few take part.
        """
        state, own = self._in("begun"), self._identity.name
        kept, threshold = state.kept, self.manifest.threshold
        beside = checked_roster(roster, self.manifest, self.advert(), self._consortium)
        holders = (*beside, own) if is_complete(self.manifest) else beside
        points = [roster.cohort.index(holder) + 1 for holder in holders]
        shares = shares_of(kept.seed, kept.mask_private, threshold=threshold, points=points)
        channel = self._channel(kept.seal_private, roster)
        sealed = tuple(channel.sealed(*pair) for pair in zip(roster.adverts, shares, strict=False))
        self._state = state.shared(roster, shares[-1] if is_complete(self.manifest) else b"")
        return SealedShares(recipients=beside, sealed=sealed)

    def mask(self, sealed: Deliveries, values: Residues) -> Residues:
        """Add the site's masks to ``values`` in place, and return them.

        Args:
            sealed: what the site's neighbours sealed for it.
            values: (size,) uint32, contiguous; residues modulo 2^modulus_bits, or any modulo 2^32.

        Raises:
            IntegrityError: (masking-shares) somebody is no neighbour.
            PolicyError: (masking-floor) too few have shared.
            ValueError: ``values`` is of another type or shape, or cannot be written to.
        """
        state = self._in("shared")
        self._check_values(values)
        kept, roster, own = state.kept, state.need_roster(), self._identity.name
        adverts = {advert.name: advert for advert in roster.adverts}
        if not adverts.keys() >= set(sealed.senders):
            raise IntegrityError(
                "shares were delivered of somebody who is no neighbour of this site",
                remedy="find out why the server names such a site: nothing was sent",
                code="masking-shares",
            )
        holders = len(sealed.senders) + is_complete(self.manifest)
        if holders < self.manifest.threshold:
            raise too_few("have shared their secrets", holders, self.manifest.threshold)
        received = self._channel(kept.seal_private, roster).opened(sealed, adverts)
        private = keys.private_key(kept.mask_private)
        streams = [(keys.self_key(kept.seed, manifest=self._digest), 1)]
        for peer in sealed.senders:
            low, high = sorted((own, peer))
            public = adverts[peer].mask_key
            key = keys.pair_key(private, public, manifest=self._digest, low=low, high=high)
            streams.append((key, 1 if own == low else -1))
        self._state = state.masked(sealed.senders, received)
        add_streams(values, streams)
        return values

    def confirm(self, survivors: Survivors) -> Confirmation:
        """Sign who survived; never a second set.

        Raises:
            IntegrityError: (masking-survivors) it is not a set of those who shared that this site is in.
            PolicyError: (masking-floor) too few survived.
        """
        state, own = self._in("masked"), self._identity
        roster = state.need_roster()
        check_survivors(survivors, self.manifest, roster, own=own.name, shared=state.kept.senders)
        self._state = state.confirmed(survivors.names)
        message = survivors_bound(self._digest, roster.digest(self._digest), survivors)
        return Confirmation(signature=own.sign(Purpose.SURVIVORS, message))

    def reveal(self, confirmations: Confirmations) -> Reveal:
        """Return one share of one secret of each neighbour, and forget everything.

        Raises:
            IntegrityError: (signature, identity, masking-survivors) somebody has not signed what this site has.
            PolicyError: (masking-floor) too few have.
        """
        state = self._in("confirmed")
        survivors = Survivors(names=state.kept.survivors)
        check_confirmations(
            confirmations,
            survivors,
            self.manifest,
            state.need_roster(),
            own=self._identity,
            consortium=self._consortium,
        )
        alive, held = set(survivors.names), state.held(self._identity.name)
        seeds = {name: share[:SHARE] for name, share in held.items() if name in alive}
        dropped = {name: share[SHARE:] for name, share in held.items() if name not in alive}
        self._state = state.revealed()
        return Reveal(
            seeds_of=tuple(seeds),
            seed_shares=tuple(seeds.values()),
            keys_of=tuple(dropped),
            key_shares=tuple(dropped.values()),
        )

    def to_fields(self) -> Fields:
        """Return all that `from_fields` needs. It holds the session's secrets: it belongs on the site's own disk only."""
        return {
            "manifest": self._signed.encoded,
            "manifest_signature": self._signed.signature,
            "manifest_certificate": self._signed.certificate,
            **self._state.to_fields(),
        }

    @classmethod
    def from_fields(cls, identity: Identity, consortium: Consortium, given: Mapping[str, object]) -> Self:
        """Go on where `to_fields` was written.

        Raises:
            IntegrityError: (masking-message, manifest, signature, identity) it was not.
        """
        rest = dict(given)
        parts = [rest.pop(name, None) for name in ("manifest", "manifest_signature", "manifest_certificate")]
        encoded, signature, certificate = (part if isinstance(part, bytes) else b"" for part in parts)
        signed = SignedManifest(encoded=encoded, signature=signature, certificate=certificate)
        return cls(identity, consortium, signed, SiteState.from_fields(rest))

    def _in(self, phase: str) -> SiteState:
        """Return the state, if it is in ``phase``."""
        if self._state.kept.phase != phase:
            raise IntegrityError(
                f"this step follows when a site has {phase}, and this one has {self._state.kept.phase}",
                remedy="find out why the server asks again, or too early: nothing was answered",
                code="masking-order",
            )
        return self._state

    def _channel(self, seal_private: bytes, roster: Roster) -> Channel:
        about = roster.digest(self._digest)
        return Channel(self._identity.name, seal_private, manifest=self._digest, roster=about)

    def _check_values(self, values: Residues) -> None:
        if values.dtype != np.uint32 or values.shape != (self.manifest.size,):
            raise ValueError(f"expected uint32 ({self.manifest.size},), got {values.dtype} {values.shape}")
        if not (values.flags.c_contiguous and values.flags.writeable):
            raise ValueError("values are not contiguous, or cannot be written to")

    def __repr__(self) -> str:
        return (
            f"SiteSession({self._identity.name!r}, session {self.manifest.serial}, {self._state.kept.phase})"
        )
