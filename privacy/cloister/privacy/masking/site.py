"""A site's part of one masked session: five steps, each once and in order, that say no to a server that lies.

Formal guarantees, whatever the server and fewer than the tolerated number of sites do:

- The site's masked vector leaves once. Before that, its roster was checked: signed adverts of members of the consortium for this very
  manifest, as many as the manifest and the floors demand.
- It signs one set of survivors, and reveals shares once, for that set only, after a quorum of survivors signed the same set.
- Of each peer it reveals one kind of share: of a survivor that of its seed, of another that of its mask key.
- Its state can be written down after every step (`SiteSession.to_fields`) and forgets what the next steps do not need: after `mask` its own
  secrets, after `reveal` everything. A site that writes its state down *before* it sends a step's answer cannot give a second answer after
  a crash.

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
===========================================  ====================================================
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Self

import numpy as np

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.identity import Consortium, Identity, Purpose, Role
from cloister.privacy.manifest import Floors, Manifest, SignedManifest
from cloister.privacy.masking import keys
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
    sealed_bound,
    survivors_bound,
)
from cloister.privacy.masking.parameters import check_graph, is_complete, quorum
from cloister.privacy.masking.roster import checked_roster
from cloister.privacy.masking.shamir import SHARE, split
from cloister.privacy.masking.site_state import SiteState
from cloister.privacy.masking.stream import add_streams
from cloister.privacy.updates.modular import Residues

__all__ = ["SiteSession"]


class SiteSession:
    """One site in one session; made by `begin`, or read back with `from_fields`."""

    def __init__(
        self, identity: Identity, consortium: Consortium, signed: SignedManifest, state: SiteState
    ) -> None:
        self._identity = identity
        self._consortium = consortium
        self._signed = signed
        self._state = state
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
        self._need("begun")
        return self._own_advert()

    def share(self, roster: Roster) -> SealedShares:
        """Check who takes part, and share the site's secrets among its neighbours.

        Raises:
            IntegrityError: (masking-roster, signature, identity) somebody is not who it should be.
            PolicyError: (masking-floor) too few take part.
        """
        self._need("begun")
        name, state, kept = self._identity.name, self._state, self._state.kept
        beside = checked_roster(roster, self.manifest, self._own_advert(), self._consortium)
        complete = is_complete(self.manifest)
        points = [roster.cohort.index(peer) + 1 for peer in (*beside, name)[: len(beside) + complete]]
        if len(points) < self.manifest.threshold:
            raise _too_few("share", len(points), self.manifest.threshold)
        shares = [
            b"".join(both)
            for both in zip(
                *(
                    split(secret, threshold=self.manifest.threshold, points=points)
                    for secret in (kept.seed, kept.mask_private)
                ),
                strict=True,
            )
        ]
        about = roster.digest(self._digest)
        sealed = []
        for advert, plaintext in zip(roster.adverts, shares, strict=False):
            key = keys.sealing_key(
                kept.seal_private, advert.seal_key, manifest=self._digest, source=name, target=advert.name
            )
            sealed.append(
                keys.sealed(
                    key, plaintext, bound=sealed_bound(self._digest, about, source=name, target=advert.name)
                )
            )
        self._state = state.shared(roster, shares[-1] if complete else b"")
        return SealedShares(recipients=beside, sealed=tuple(sealed))

    def mask(self, sealed: Deliveries, values: Residues) -> Residues:
        """Add the site's masks to ``values`` in place, and return them.

        Args:
            sealed: what the site's neighbours sealed for it.
            values: (size,) uint32, contiguous; residues modulo 2^modulus_bits, or any modulo 2^32.

        Raises:
            IntegrityError: (masking-shares) somebody is no neighbour.
            PolicyError: (masking-floor) too few have shared.
            ValueError: ``values`` is of another type or shape.
        """
        self._need("shared")
        if (
            values.dtype != np.uint32
            or values.shape != (self.manifest.size,)
            or not values.flags.c_contiguous
        ):
            raise ValueError(
                f"expected contiguous uint32 ({self.manifest.size},), got {values.dtype} {values.shape}"
            )
        if not values.flags.writeable:
            raise ValueError("values cannot be written to")
        name, state = self._identity.name, self._state
        roster = state.need_roster()
        adverts = {advert.name: advert for advert in roster.adverts}
        if not adverts.keys() >= set(sealed.senders):
            raise IntegrityError(
                "shares were delivered of somebody who is no neighbour",
                remedy="use the same version of cloister at the server and at every site",
                code="masking-shares",
            )
        complete = is_complete(self.manifest)
        least = max(self.manifest.threshold, self.manifest.least if complete else 0)
        if len(sealed.senders) + complete < least:
            raise _too_few("have shared", len(sealed.senders) + complete, least)
        received = self._opened(sealed, adverts, roster)
        streams = [(keys.self_key(state.kept.seed, manifest=self._digest), 1)]
        for peer in sealed.senders:
            low, high = sorted((name, peer))
            key = keys.pair_key(
                state.kept.mask_private, adverts[peer].mask_key, manifest=self._digest, low=low, high=high
            )
            streams.append((key, 1 if name == low else -1))
        self._state = state.masked(sealed.senders, received)
        add_streams(values, streams)
        return values

    def confirm(self, survivors: Survivors) -> Confirmation:
        """Sign who survived; never a second set.

        Raises:
            IntegrityError: (masking-survivors) it is not a set of those who shared that this site is in.
            PolicyError: (masking-floor) too few survived.
        """
        self._need("masked")
        self._check_survivors(survivors)
        self._state = self._state.confirmed(survivors.names)
        return Confirmation(
            signature=self._identity.sign(Purpose.SURVIVORS, self._survivors_bound(survivors))
        )

    def reveal(self, confirmations: Confirmations) -> Reveal:
        """Return one share of one secret of each neighbour, and forget everything.

        Raises:
            IntegrityError: (signature, identity, masking-survivors) somebody has not signed what this site has.
            PolicyError: (masking-floor) too few have.
        """
        self._need("confirmed")
        state = self._state
        self._check_confirmations(confirmations)
        alive = set(state.kept.survivors)
        held = state.held(self._identity.name)
        seeds = {name: share[:SHARE] for name, share in held.items() if name in alive}
        dead = {name: share[SHARE:] for name, share in held.items() if name not in alive}
        self._state = state.revealed()
        return Reveal(
            seeds_of=tuple(seeds),
            seed_shares=tuple(seeds.values()),
            keys_of=tuple(dead),
            key_shares=tuple(dead.values()),
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
            IntegrityError: (masking-message) it was not.
        """
        fields = dict(given)
        parts = [
            fields.pop(name, None) for name in ("manifest", "manifest_signature", "manifest_certificate")
        ]
        encoded, signature, certificate = (part if isinstance(part, bytes) else b"" for part in parts)
        signed = SignedManifest(encoded=encoded, signature=signature, certificate=certificate)
        return cls(identity, consortium, signed, SiteState.from_fields(fields))

    def _own_advert(self) -> Advert:
        kept, name = self._state.kept, self._identity.name
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

    def _opened(self, sealed: Deliveries, adverts: Mapping[str, Advert], roster: Roster) -> tuple[bytes, ...]:
        """Return what each sender sealed, empty where it cannot be opened."""
        name, about = self._identity.name, roster.digest(self._digest)
        found = []
        for peer, ciphertext in zip(sealed.senders, sealed.sealed, strict=True):
            key = keys.sealing_key(
                self._state.kept.seal_private,
                adverts[peer].seal_key,
                manifest=self._digest,
                source=peer,
                target=name,
            )
            bound = sealed_bound(self._digest, about, source=peer, target=name)
            found.append(keys.opened(key, ciphertext, bound=bound) or b"")
        return tuple(found)

    def _survivors_bound(self, survivors: Survivors) -> bytes:
        return survivors_bound(self._digest, self._state.need_roster().digest(self._digest), survivors)

    def _check_survivors(self, survivors: Survivors) -> None:
        roster, alive = self._state.need_roster(), set(survivors.names)
        present = {roster.cohort[number] for number in roster.present}
        silent = {advert.name for advert in roster.adverts} - set(self._state.kept.senders)
        if self._identity.name not in alive:
            raise _no_survivors("this site is not among them, and its vector has left")
        if not alive <= present:
            raise _no_survivors("one of them is not on the roster")
        if alive & silent:
            raise _no_survivors("one of them has not shared its secrets")
        least = quorum(self.manifest)
        if len(alive) < least:
            raise _too_few("survived", len(alive), least)

    def _check_confirmations(self, confirmations: Confirmations) -> None:
        roster, survivors = self._state.need_roster(), Survivors(names=self._state.kept.survivors)
        message = self._survivors_bound(survivors)
        known = {advert.name: advert.certificate for advert in roster.adverts}
        known[self._identity.name] = self._identity.certificate
        known |= dict(zip(confirmations.names, confirmations.certificates, strict=False))
        least = quorum(self.manifest)
        if len(confirmations.names) < least:
            raise _too_few("confirmed", len(confirmations.names), least)
        if not set(confirmations.names) <= set(survivors.names):
            raise _no_survivors("somebody confirmed them that is not among them")
        for name, signature in zip(confirmations.names, confirmations.signatures, strict=True):
            member = self._consortium.member(known.get(name, b""), role=Role.SITE)
            if member.name != name:
                raise _no_survivors(f"the certificate for '{name}' is another site's")
            member.check(Purpose.SURVIVORS, message, signature)

    def _need(self, phase: str) -> None:
        if self._state.kept.phase != phase:
            raise IntegrityError(
                f"this step of the session was asked for when the site has {self._state.kept.phase}, and follows only when it has {phase}",
                remedy="find out why the server asks twice: nothing was answered",
                code="masking-order",
            )

    def __repr__(self) -> str:
        return (
            f"SiteSession({self._identity.name!r}, session {self.manifest.serial}, {self._state.kept.phase})"
        )


def _too_few(what: str, found: int, least: int) -> PolicyError:
    return PolicyError(
        f"{found} sites {what}, and this session needs {least}: the site reveals nothing",
        remedy="run the round again when enough sites are there",
        code="masking-floor",
    )


def _no_survivors(why: str) -> IntegrityError:
    return IntegrityError(
        f"the set of survivors was refused: {why}",
        remedy="find out why the server names such a set: the site reveals nothing",
        code="masking-survivors",
    )
