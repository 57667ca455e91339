"""A coordinator that lies: what a site of a masked session refuses, step by step."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import CloisterError
from cloister.privacy.identity import ConsortiumAuthority, Identity, Purpose, Role
from cloister.privacy.manifest import Floors, SignedManifest, cohort_digest
from cloister.privacy.masking import (
    Advert,
    Confirmations,
    Deliveries,
    Roster,
    ServerSession,
    SiteSession,
    Survivors,
    keys,
    parameters,
)
from cloister.privacy.masking.messages import advert_bound
from cloister.privacy.masking.rehearsal import Rehearsal, Stage, Step
from cloister.privacy.updates.modular import Residues

Vectors = Callable[..., dict[str, Residues]]
NAME, PEER, OTHER = "site-0000", "site-0001", "site-0002"
LOW_ORDER = (0).to_bytes(32, "little"), (1).to_bytes(32, "little"), ((1 << 255) - 20).to_bytes(32, "little")


def refused(call: Callable[[], Any]) -> str:
    """Return the code that a call is refused with."""
    with pytest.raises(CloisterError) as refusal:
        call()
    return refusal.value.code


def begin(stage: Stage, signed: SignedManifest, *, least: int = 3, newest: int = 0) -> SiteSession:
    return SiteSession.begin(
        stage.sites(1)[0], stage.consortium, signed, floors=Floors(least=least), newest=newest
    )


def advert(identity: Identity, manifest: bytes, *, name: str = "", **changes: Any) -> Advert:
    """An advert that the holder of ``identity`` really signs."""
    drawn = {"mask_key": keys.public_of(bytes([7]) * 32), "seal_key": keys.public_of(bytes([8]) * 32)}
    parts = drawn | {"commitment": bytes(32)} | changes
    bound = advert_bound(manifest, name or identity.name, **parts)
    return Advert(
        name=name or identity.name,
        signature=identity.sign(Purpose.ADVERT, bound),
        certificate=identity.certificate,
        **parts,
    )


class TestManifest:
    def test_that_was_sent_before_is_refused(self, stage: Stage) -> None:
        signed = stage.signed(4, serial=9)
        begin(stage, signed, newest=8)
        assert refused(lambda: begin(stage, signed, newest=9)) == "manifest-replayed"
        assert refused(lambda: begin(stage, signed, newest=10)) == "manifest-replayed"

    def test_of_a_site_or_a_stranger_or_with_a_changed_byte_is_refused(self, stage: Stage) -> None:
        manifest, good = stage.manifest(4), stage.signed(4)
        stranger = ConsortiumAuthority("Other", Ed25519PrivateKey.generate()).identity(
            "server", Role.SERVER, Ed25519PrivateKey.generate()
        )
        assert refused(lambda: begin(stage, manifest.signed(stage.sites(1)[0]))) == "identity"
        assert refused(lambda: begin(stage, manifest.signed(stranger))) == "identity"
        changed = good.encoded.replace(b'"least":3', b'"least":2')
        assert refused(lambda: begin(stage, replace(good, encoded=changed))) == "signature"
        assert refused(lambda: begin(stage, replace(good, signature=bytes(64)))) == "signature"

    def test_below_a_sites_floors_is_refused(self, stage: Stage) -> None:
        assert refused(lambda: begin(stage, stage.signed(5, least=4), least=5)) == "manifest-floor"
        assert refused(lambda: begin(stage, stage.signed(5, threshold=3))) == "masking-graph"
        assert refused(lambda: begin(stage, stage.signed(5, threshold=2))) == "manifest-floor"

    def test_of_two_sites_is_refused(self, stage: Stage) -> None:
        assert refused(lambda: parameters(2)) == "masking-parameters"
        two = {"cohort_size": 2, "degree": 1, "threshold": 2, "least": 2}
        assert refused(lambda: begin(stage, stage.signed(3, **two))) == "manifest-floor"

    def test_whose_sum_may_wrap_cannot_be_made(self, stage: Stage) -> None:
        stage.manifest(4, modulus_bits=20, largest=(1 << 17) - 1)
        assert refused(lambda: stage.manifest(4, modulus_bits=20, largest=1 << 17)) == "manifest"

    @pytest.mark.parametrize("changes", [{"scheme": "bfv"}, {"modulus_bits": 33}])
    def test_for_something_else_is_refused(self, changes: dict[str, Any], stage: Stage) -> None:
        assert refused(lambda: begin(stage, stage.signed(4, **changes))) == "masking-manifest"


class TestRoster:
    @pytest.fixture
    def rehearsal(self, stage: Stage) -> Rehearsal:
        rehearsal = stage.rehearsal(5, stored=False)
        rehearsal.advert()
        return rehearsal

    def shown(self, rehearsal: Rehearsal, changed: Advert, *, instead: str = PEER) -> Roster:
        """The roster with another advert, and its hash, in the place of ``instead``."""
        honest, manifest = rehearsal.server.roster_for(NAME), rehearsal.server.manifest.digest
        at = honest.cohort.index(instead)
        digests = (*honest.digests[:at], changed.digest(manifest), *honest.digests[at + 1 :])
        adverts = tuple(changed if one.name == instead else one for one in honest.adverts)
        return Roster(cohort=honest.cohort, digests=digests, adverts=adverts)

    def test_that_is_honest_is_taken(self, rehearsal: Rehearsal) -> None:
        rehearsal.sites[NAME].share(rehearsal.server.roster_for(NAME))

    @pytest.mark.parametrize("key", ["mask_key", "seal_key", "commitment"])
    def test_with_a_swapped_key_is_refused(self, key: str, rehearsal: Rehearsal) -> None:
        """The man in the middle: a key of the server's own, under the site's signature."""
        honest = rehearsal.server.roster_for(NAME).adverts[0]
        change: dict[str, Any] = {key: keys.public_of(bytes(32))}
        swapped = replace(honest, **change)
        assert refused(lambda: rehearsal.sites[NAME].share(self.shown(rehearsal, swapped))) == "signature"

    def test_with_an_unsigned_key_is_refused(self, rehearsal: Rehearsal) -> None:
        unsigned = replace(rehearsal.server.roster_for(NAME).adverts[0], signature=bytes(64))
        assert refused(lambda: rehearsal.sites[NAME].share(self.shown(rehearsal, unsigned))) == "signature"

    def test_with_a_key_that_somebody_else_signed_is_refused(
        self, rehearsal: Rehearsal, stage: Stage
    ) -> None:
        manifest = rehearsal.server.manifest.digest
        other = Ed25519PrivateKey.generate()
        stranger = ConsortiumAuthority("Other", Ed25519PrivateKey.generate()).identity(PEER, Role.SITE, other)
        server = stage.identity(PEER, Role.SERVER)
        for signer, code in (
            (stage.sites(3)[2], "masking-roster"),
            (stranger, "identity"),
            (server, "identity"),
        ):
            changed = advert(signer, manifest, name=PEER)
            assert refused(lambda c=changed: rehearsal.sites[NAME].share(self.shown(rehearsal, c))) == code  # type: ignore[misc]

    def test_with_a_key_for_another_session_is_refused(self, rehearsal: Rehearsal, stage: Stage) -> None:
        old = advert(stage.sites(2)[1], stage.manifest(5, serial=77).digest)
        assert refused(lambda: rehearsal.sites[NAME].share(self.shown(rehearsal, old))) == "signature"

    def test_with_the_sites_own_keys_changed_or_missing_is_refused(
        self, rehearsal: Rehearsal, stage: Stage
    ) -> None:
        own = advert(stage.sites(1)[0], rehearsal.server.manifest.digest)
        changed = self.shown(rehearsal, own, instead=NAME)
        assert refused(lambda: rehearsal.sites[NAME].share(changed)) == "masking-roster"
        honest = rehearsal.server.roster_for(NAME)
        without = replace(honest, digests=(b"", *honest.digests[1:]))
        assert refused(lambda: rehearsal.sites[NAME].share(without)) == "masking-roster"

    def test_that_names_another_cohort_is_refused(self, stage: Stage) -> None:
        """Also where the one name that differs is of a site that has not answered."""
        rehearsal = stage.rehearsal(5, leaves={"site-0004": Step.ADVERT}, stored=False)
        rehearsal.advert()
        honest = rehearsal.server.roster_for(NAME)
        for cohort in ((*honest.cohort[:-1], "site-9999"), honest.cohort[:-1], (*honest.cohort, "site-9999")):
            digests = (*honest.digests, b"")[: len(cohort)]
            other = replace(honest, cohort=cohort, digests=digests)
            assert refused(lambda r=other: rehearsal.sites[NAME].share(r)) == "masking-roster"  # type: ignore[misc]
        rehearsal.sites[NAME].share(honest)

    @pytest.mark.parametrize("there", [1, 2, 3])
    def test_below_the_threshold_is_refused(self, there: int, rehearsal: Rehearsal) -> None:
        honest = rehearsal.server.roster_for(NAME)
        few = Roster(
            cohort=honest.cohort,
            digests=(*honest.digests[:there], *([b""] * (5 - there))),
            adverts=honest.adverts[: there - 1],
        )
        assert refused(lambda: rehearsal.sites[NAME].share(few)) == "masking-floor"

    def test_that_hides_a_neighbour_is_refused(self, rehearsal: Rehearsal) -> None:
        honest = rehearsal.server.roster_for(NAME)
        for adverts in (honest.adverts[1:], honest.adverts[:-1]):
            hidden = replace(honest, adverts=adverts)
            assert refused(lambda r=hidden: rehearsal.sites[NAME].share(r)) == "masking-roster"  # type: ignore[misc]

    def test_with_an_advert_that_is_not_on_its_list_is_refused(
        self, rehearsal: Rehearsal, stage: Stage
    ) -> None:
        honest = rehearsal.server.roster_for(NAME)
        signed = advert(stage.sites(2)[1], rehearsal.server.manifest.digest)
        two_faced = replace(honest, adverts=(signed, *honest.adverts[1:]))
        assert refused(lambda: rehearsal.sites[NAME].share(two_faced)) == "masking-roster"

    def test_with_a_key_twice_or_one_that_is_known_to_all_is_refused(
        self, rehearsal: Rehearsal, stage: Stage
    ) -> None:
        manifest, peer = rehearsal.server.manifest.digest, stage.sites(2)[1]
        copied = advert(peer, manifest, mask_key=rehearsal.sites[NAME].advert().mask_key)
        same = advert(peer, manifest, mask_key=bytes([9]) * 32, seal_key=bytes([9]) * 32)
        points: list[dict[str, Any]] = [
            {key: point} for point in LOW_ORDER for key in ("mask_key", "seal_key")
        ]
        low = [advert(peer, manifest, **point) for point in points]
        for changed in (copied, same, *low):
            call = lambda c=changed: rehearsal.sites[NAME].share(self.shown(rehearsal, c))  # noqa: E731
            assert refused(call) == "masking-roster"

    def test_that_was_refused_leaves_the_site_as_it_was(self, rehearsal: Rehearsal) -> None:
        before = rehearsal.sites[NAME].to_fields()
        unsigned = replace(rehearsal.server.roster_for(NAME).adverts[0], signature=bytes(64))
        refused(lambda: rehearsal.sites[NAME].share(self.shown(rehearsal, unsigned)))
        assert rehearsal.sites[NAME].to_fields() == before


class TestSparseRoster:
    """Sixty sites, nineteen neighbours each: a site sees hashes of the others' adverts."""

    def test_whose_neighbours_the_server_chose_is_refused(self, stage: Stage) -> None:
        rehearsal = stage.rehearsal(60, stored=False)
        rehearsal.advert()
        server, honest = rehearsal.server, rehearsal.server.roster_for(NAME)
        assert len(honest.adverts) == server.manifest.degree == 19
        strangers = [
            one for name, one in server._adverts.items() if one not in honest.adverts and name != NAME
        ]
        chosen = sorted((*honest.adverts[1:], strangers[0]), key=lambda one: one.name)
        for adverts in (
            honest.adverts[1:],
            tuple(chosen),
            tuple(server._adverts[name] for name in honest.cohort[1:]),
        ):
            call = lambda a=adverts: rehearsal.sites[NAME].share(replace(honest, adverts=a))  # noqa: E731
            assert refused(call) == "masking-roster"

    def test_that_differs_in_one_hash_gives_other_neighbours(self, stage: Stage) -> None:
        """The server cannot change an advert, nor leave one out, and keep a site's neighbours: the graph hangs on all of them."""
        rehearsal = stage.rehearsal(60, stored=False)
        rehearsal.advert()
        honest = rehearsal.server.roster_for(NAME)
        far = next(
            at for at, name in enumerate(honest.cohort[1:], 1) if name not in {a.name for a in honest.adverts}
        )
        for digest in (bytes(32), b""):
            changed = replace(honest, digests=(*honest.digests[:far], digest, *honest.digests[far + 1 :]))
            assert refused(lambda r=changed: rehearsal.sites[NAME].share(r)) == "masking-roster"  # type: ignore[misc]

    def test_confirmations_of_sites_that_are_no_neighbours_are_checked_by_their_certificates(
        self, stage: Stage, vectors: Vectors
    ) -> None:
        rehearsal = stage.rehearsal(60, stored=False)
        rehearsal.advert()
        rehearsal.share()
        rehearsal.mask(vectors(60))
        rehearsal.confirm()
        honest = rehearsal.server.confirmations()
        bare = replace(honest, certificates=())
        assert refused(lambda: rehearsal.sites[NAME].reveal(bare)) == "identity"
        changed = replace(honest, signatures=(*honest.signatures[:-1], bytes(64)))
        assert refused(lambda: rehearsal.sites[NAME].reveal(changed)) == "signature"
        rehearsal.sites[NAME].reveal(honest)


class TestDeliveries:
    @pytest.fixture
    def rehearsal(self, stage: Stage) -> Rehearsal:
        rehearsal = stage.rehearsal(5, stored=False)
        rehearsal.advert()
        rehearsal.share()
        return rehearsal

    def test_of_too_few_are_refused_and_the_vector_is_untouched(self, rehearsal: Rehearsal) -> None:
        honest = rehearsal.server.deliveries_for(NAME)
        few = Deliveries(senders=honest.senders[:2], sealed=honest.sealed[:2])
        vector = np.arange(5, dtype=np.uint32)
        assert refused(lambda: rehearsal.sites[NAME].mask(few, vector)) == "masking-floor"
        np.testing.assert_array_equal(vector, np.arange(5))

    @pytest.mark.parametrize("stranger", [NAME, "site-9999"])
    def test_of_a_stranger_or_of_the_site_itself_are_refused(
        self, stranger: str, rehearsal: Rehearsal
    ) -> None:
        honest = rehearsal.server.deliveries_for(NAME)
        senders = tuple(sorted((stranger, *honest.senders[1:])))
        strange = Deliveries(senders=senders, sealed=honest.sealed)
        vector = np.zeros(5, dtype=np.uint32)
        assert refused(lambda: rehearsal.sites[NAME].mask(strange, vector)) == "masking-shares"

    def test_under_another_name_are_not_opened(self, rehearsal: Rehearsal) -> None:
        honest = rehearsal.server.deliveries_for(NAME)
        swapped = replace(honest, sealed=(honest.sealed[1], honest.sealed[0], *honest.sealed[2:]))
        rehearsal.sites[NAME].mask(swapped, np.zeros(5, dtype=np.uint32))
        assert rehearsal.sites[NAME]._state.kept.received[:2] == (b"", b"")
        assert all(rehearsal.sites[NAME]._state.kept.received[2:])

    def test_of_another_roster_are_not_opened(self, stage: Stage) -> None:
        """The server shows site 0 a roster without site 4, and the others one with it: their shares do not open there."""
        rehearsal = stage.rehearsal(5, stored=False)
        rehearsal.advert()
        whole = rehearsal.server.roster_for(NAME)
        part = replace(whole, digests=(*whole.digests[:-1], b""), adverts=whole.adverts[:-1])
        rehearsal.sites[NAME].share(part)
        sealed = [
            rehearsal.sites[name].share(rehearsal.server.roster_for(name)) for name in whole.cohort[1:4]
        ]
        mixed = Deliveries(senders=whole.cohort[1:4], sealed=tuple(one.sealed[0] for one in sealed))
        rehearsal.sites[NAME].mask(mixed, np.zeros(5, dtype=np.uint32))
        assert set(rehearsal.sites[NAME]._state.kept.received) == {b""}


class TestSurvivors:
    @pytest.fixture
    def rehearsal(self, stage: Stage, vectors: Vectors) -> Rehearsal:
        """Seven sites (t = 5), of which one never shared."""
        rehearsal = stage.rehearsal(7, leaves={"site-0006": Step.SHARE}, stored=False)
        rehearsal.advert()
        rehearsal.share()
        rehearsal.mask(vectors(7))
        return rehearsal

    def names(self, *numbers: int) -> Survivors:
        return Survivors(names=tuple(f"site-{number:04d}" for number in numbers))

    @pytest.mark.parametrize(
        ("numbers", "code"),
        [
            ((1, 2, 3, 4, 5), "masking-survivors"),  # this site is not in it
            ((0, 1, 2, 3, 4, 6), "masking-survivors"),  # 6 has not shared
            ((0, 1, 2, 3, 4, 9999), "masking-survivors"),  # a stranger
            ((0, 1, 2, 3), "masking-floor"),  # below the threshold
            ((0,), "masking-floor"),
            ((), "masking-survivors"),
        ],
    )
    def test_that_cannot_be_are_refused(
        self, numbers: tuple[int, ...], code: str, rehearsal: Rehearsal
    ) -> None:
        assert refused(lambda: rehearsal.sites[NAME].confirm(self.names(*numbers))) == code

    def test_fewer_than_the_manifests_least_are_refused(self, stage: Stage, vectors: Vectors) -> None:
        rehearsal = stage.rehearsal(7, least=6, stored=False)
        rehearsal.advert()
        rehearsal.share()
        rehearsal.mask(vectors(7))
        assert refused(lambda: rehearsal.sites[NAME].confirm(self.names(0, 1, 2, 3, 4))) == "masking-floor"
        rehearsal.sites[NAME].confirm(self.names(0, 1, 2, 3, 4, 5))

    def test_a_peer_that_is_both_alive_and_dead_cannot_be_said(self) -> None:
        """Flower 1.41 answers for a peer in both lists with both shares. Here is one list, in which nobody stands twice."""
        twice = {"names": [NAME, PEER, PEER]}
        assert refused(lambda: Survivors.from_fields(twice)) == "masking-message"
        both = {"names": [NAME, PEER], "dropped": [PEER]}
        assert refused(lambda: Survivors.from_fields(both)) == "masking-message"

    def test_another_set_is_never_signed_also_after_a_restart(
        self, rehearsal: Rehearsal, stage: Stage
    ) -> None:
        rehearsal.sites[NAME].confirm(self.names(0, 1, 2, 3, 4))
        again = SiteSession.from_fields(
            stage.sites(1)[0], stage.consortium, rehearsal.sites[NAME].to_fields()
        )
        for session in (rehearsal.sites[NAME], again):
            for numbers in ((0, 1, 2, 3, 4, 5), (0, 1, 2, 3, 4)):
                call = lambda s=session, n=numbers: s.confirm(self.names(*n))  # noqa: E731
                assert refused(call) == "masking-order"

    def test_two_sets_shown_to_two_halves_unmask_neither(self, rehearsal: Rehearsal) -> None:
        """The attack that the step is there for: of site 5 one half would reveal the seed, and the other the mask key."""
        one, other = self.names(0, 1, 2, 3, 4, 5), self.names(0, 1, 2, 3, 4)
        signed = {name: rehearsal.sites[name].confirm(one) for name in one.names[:3]}
        signed |= {name: rehearsal.sites[name].confirm(other) for name in one.names[3:5]}
        for chosen in (one.names[:3], one.names[3:5], one.names[:5]):
            shown = Confirmations(
                names=chosen, signatures=tuple(signed[name].signature for name in chosen), certificates=()
            )
            code = "signature" if len(chosen) == 5 else "masking-floor"
            for name in one.names[:5]:
                assert refused(lambda n=name, s=shown: rehearsal.sites[n].reveal(s)) == code  # type: ignore[misc]


class TestConfirmations:
    @pytest.fixture
    def rehearsal(self, stage: Stage, vectors: Vectors) -> Rehearsal:
        """Seven sites (t = 5), of which one drops before it masks."""
        rehearsal = stage.rehearsal(7, leaves={"site-0006": Step.MASK}, stored=False)
        rehearsal.advert()
        rehearsal.share()
        rehearsal.mask(vectors(7))
        rehearsal.confirm()
        return rehearsal

    def test_that_are_honest_are_taken_once(self, rehearsal: Rehearsal, stage: Stage) -> None:
        honest, session = rehearsal.server.confirmations(), rehearsal.sites[NAME]
        session.reveal(honest)
        again = SiteSession.from_fields(stage.sites(1)[0], stage.consortium, session.to_fields())
        assert refused(lambda: session.reveal(honest)) == "masking-order"
        assert refused(lambda: again.reveal(honest)) == "masking-order"

    def test_of_too_few_are_refused(self, rehearsal: Rehearsal) -> None:
        honest = rehearsal.server.confirmations()
        few = Confirmations(names=honest.names[:4], signatures=honest.signatures[:4], certificates=())
        assert refused(lambda: rehearsal.sites[NAME].reveal(few)) == "masking-floor"

    def test_with_one_that_does_not_hold_are_refused(self, rehearsal: Rehearsal) -> None:
        honest = rehearsal.server.confirmations()
        for signatures in ((bytes(64), *honest.signatures[1:]), honest.signatures[::-1]):
            changed = replace(honest, signatures=signatures)
            assert refused(lambda c=changed: rehearsal.sites[NAME].reveal(c)) == "signature"  # type: ignore[misc]

    def test_of_one_that_did_not_survive_are_refused(self, rehearsal: Rehearsal) -> None:
        honest = rehearsal.server.confirmations()
        dead = replace(honest, names=(*honest.names[:-1], "site-0006"))
        assert refused(lambda: rehearsal.sites[NAME].reveal(dead)) == "masking-survivors"

    def test_under_certificates_of_others_are_refused(self, rehearsal: Rehearsal, stage: Stage) -> None:
        """One corrupt site cannot sign for all."""
        honest = rehearsal.server.confirmations()
        own = rehearsal.server._adverts[PEER].certificate
        shown = replace(honest, certificates=(own,) * len(honest.names))
        assert refused(lambda: rehearsal.sites[NAME].reveal(shown)) == "masking-survivors"
        server = replace(honest, certificates=(stage.coordinator.certificate,) * len(honest.names))
        assert refused(lambda: rehearsal.sites[NAME].reveal(server)) == "identity"


class TestSitesThatWereToldDifferentThings:
    """Two sites with manifests that differ in the hash of the model are in two sessions."""

    def test_refuse_each_others_keys(self, stage: Stage) -> None:
        one, other = (stage.rehearsal(4, model=digit * 64, stored=False) for digit in "ab")
        foreign = other.sites[PEER].advert()
        refusal = one.server.take_advert(PEER, foreign)
        assert refusal is not None
        assert refusal.code == "signature"

    def test_have_masks_that_do_not_cancel(self, stage: Stage) -> None:
        one, other = bytes([1]) * 32, bytes([2]) * 32
        made = [
            keys.pair_key(
                keys.private_key(mine),
                keys.public_of(theirs),
                manifest=stage.manifest(4, model=model * 64).digest,
                low=NAME,
                high=PEER,
            )
            for mine, theirs, model in ((one, other, "a"), (other, one, "a"), (other, one, "b"))
        ]
        assert made[0] == made[1] != made[2]

    def test_refuse_each_others_confirmations(self, stage: Stage, vectors: Vectors) -> None:
        sessions = [stage.rehearsal(4, model=digit * 64, stored=False) for digit in "ab"]
        for one in sessions:
            one.advert()
            one.share()
            one.mask(vectors(4))
            one.confirm()
        shown = sessions[1].server.confirmations()
        assert refused(lambda: sessions[0].sites[NAME].reveal(shown)) == "signature"


class TestSeeds:
    def test_are_256_bits_of_the_operating_system_each(
        self, stage: Stage, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Flower 1.41 folds every seed to 28 effective bits of a Mersenne Twister, and a full search takes seconds."""
        drawn: list[bytes] = []
        real = os.urandom

        def urandom(size: int) -> bytes:
            drawn.append(real(size))
            return drawn[-1]

        monkeypatch.setattr("os.urandom", urandom)
        sessions = [begin(stage, stage.signed(4)) for _ in range(8)]
        kept = [session._state.kept for session in sessions]
        secrets = [getattr(one, name) for one in kept for name in ("mask_private", "seal_private", "seed")]
        assert set(secrets) <= set(drawn)
        assert {len(secret) for secret in secrets} == {32}
        assert len(set(secrets)) == 24
        bits = np.unpackbits(np.frombuffer(b"".join(secrets), dtype=np.uint8)).reshape(24, 256)
        assert bits.any(axis=0).all()  # no bit is always 0, nor always 1: 256 · 2 · 2^-24 of false alarm
        assert not bits.all(axis=0).any()


class TestServerSession:
    def test_needs_the_manifest_that_it_signed_and_its_cohort(self, stage: Stage) -> None:
        manifest = stage.manifest(4)
        names = [one.name for one in stage.sites(4)]
        for signed, named in ((stage.signed(4, serial=2), names), (stage.signed(4), names[:3])):
            with pytest.raises(ValueError, match="are not the manifest's"):
                ServerSession(manifest, signed, stage.consortium, named)
        assert cohort_digest(names) == manifest.cohort
