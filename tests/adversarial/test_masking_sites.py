"""Sites that lie: the sum is right, or there is none; and the server never falls over."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from cloister.core.errors import IntegrityError, PeersMissing
from cloister.privacy.identity import Purpose
from cloister.privacy.masking import Confirmation, Reveal, sharing
from cloister.privacy.masking.rehearsal import Rehearsal, Stage, Step
from cloister.privacy.masking.shamir import SHARE
from cloister.privacy.updates.modular import Residues

Vectors = Callable[..., dict[str, Residues]]
NAME, PEER = "site-0000", "site-0001"


def added(rows: Sequence[Residues]) -> Residues:
    total: Residues = (np.stack(rows).astype(np.uint64).sum(axis=0) % (1 << 32)).astype(np.uint32)
    return total


def until_confirmed(
    stage: Stage, vectors: Vectors, count: int, leaves: dict[str, Step]
) -> tuple[Rehearsal, Residues]:
    """Return a session before the reveal, and the sum that it must have."""
    rehearsal, given = stage.rehearsal(count, leaves=leaves, stored=False), vectors(count)
    alive = [vector for name, vector in given.items() if leaves.get(name, 9) > Step.MASK]
    expected = added(alive)
    rehearsal.advert()
    rehearsal.share()
    rehearsal.mask(given)
    rehearsal.confirm()
    return rehearsal, expected


def lie(reveal: Reveal, byte: int = 1) -> Reveal:
    """Change every share in one bit of one byte: liars who change the same one can undo each other's change, and no secret is wrong then."""

    def bent(share: bytes) -> bytes:
        return share[:byte] + bytes([share[byte] ^ 1]) + share[byte + 1 :]

    return replace(
        reveal,
        seed_shares=tuple(map(bent, reveal.seed_shares)),
        key_shares=tuple(map(bent, reveal.key_shares)),
    )


class TestLyingShares:
    """Seven sites, five shares rebuild a secret; one site has dropped, so that both kinds of secret are rebuilt."""

    def outcome(
        self, stage: Stage, vectors: Vectors, liars: tuple[str, ...], leaves: dict[str, Step]
    ) -> None:
        rehearsal, expected = until_confirmed(stage, vectors, 7, leaves)
        confirmations = rehearsal.server.confirmations()
        for name in confirmations.names:
            honest = rehearsal.sites[name].reveal(confirmations)
            refusal = rehearsal.server.take_reveal(
                name, lie(honest, 1 + liars.index(name)) if name in liars else honest
            )
            assert refusal is None
        np.testing.assert_array_equal(rehearsal.server.result(), expected)

    @pytest.mark.parametrize("liar", [0, 1, 2, 3, 4, 6])
    def test_are_left_out_where_there_are_shares_to_spare(
        self, liar: int, stage: Stage, vectors: Vectors
    ) -> None:
        self.outcome(stage, vectors, (f"site-{liar:04d}",), {"site-0005": Step.MASK})

    def test_of_two_are_left_out_when_nobody_dropped(self, stage: Stage, vectors: Vectors) -> None:
        for liars in combinations([one.name for one in stage.sites(7)], 2):
            self.outcome(stage, vectors, liars, {})

    @pytest.mark.parametrize("liars", [(NAME, PEER), (NAME, "site-0006"), ("site-0002", "site-0003")])
    def test_of_more_end_the_session_without_a_sum(
        self, liars: tuple[str, ...], stage: Stage, vectors: Vectors
    ) -> None:
        with pytest.raises(IntegrityError, match=r"unmasking: no 5 of 6 shares") as refusal:
            self.outcome(stage, vectors, liars, {"site-0005": Step.MASK})
        assert refusal.value.code == "masking-shares"

    def test_that_agree_with_each_other_on_another_secret_end_it_too(
        self, stage: Stage, vectors: Vectors
    ) -> None:
        """Even all holders together cannot make the server believe in another mask: it is not what the site has signed."""
        rehearsal, _ = until_confirmed(stage, vectors, 4, {})
        confirmations = rehearsal.server.confirmations()
        reveals = {name: rehearsal.sites[name].reveal(confirmations) for name in confirmations.names}
        points = [1, 2, 3, 4]
        forged = sharing.shares_of(bytes(32), bytes(32), threshold=3, points=points)
        for at, (name, reveal) in enumerate(reveals.items()):
            changed = replace(reveal, seed_shares=(forged[at][:SHARE], *reveal.seed_shares[1:]))
            assert rehearsal.server.take_reveal(name, changed) is None
        with pytest.raises(IntegrityError) as refusal:
            rehearsal.server.result()
        assert refusal.value.code == "masking-shares"


class TestADealerThatLies:
    def run(
        self, stage: Stage, vectors: Vectors, leaves: dict[str, Step], monkeypatch: pytest.MonkeyPatch
    ) -> Residues:
        """Site 0 shares secrets that are not the ones it masks with."""
        rehearsal, given = stage.rehearsal(4, leaves=leaves, stored=False), vectors(4)
        rehearsal.advert()
        honest = sharing.shares_of

        def forged(seed: bytes, mask_private: bytes, **rest: Any) -> list[bytes]:
            if seed == rehearsal.sites[NAME]._state.kept.seed:
                seed = mask_private = bytes(32)
            return honest(seed, mask_private, **rest)

        monkeypatch.setattr("cloister.privacy.masking.site.shares_of", forged)
        rehearsal.share()
        rehearsal.mask(given)
        rehearsal.confirm()
        rehearsal.reveal()
        return rehearsal.server.result()

    @pytest.mark.parametrize("when", [None, Step.MASK])
    def test_ends_the_session_without_a_sum(
        self, when: Step | None, stage: Stage, vectors: Vectors, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        leaves = {NAME: when} if when is not None else {}
        with pytest.raises(IntegrityError, match="'site-0000'") as refusal:
            self.run(stage, vectors, leaves, monkeypatch)
        assert refusal.value.code == "masking-shares"

    def test_or_sends_shares_that_nobody_can_open_ends_it_too(self, stage: Stage, vectors: Vectors) -> None:
        rehearsal, given = stage.rehearsal(4, stored=False), vectors(4)
        rehearsal.advert()
        rehearsal.share()
        sealed = rehearsal.server._shares[NAME]
        rehearsal.server._shares[NAME] = replace(
            sealed, sealed=tuple(bytes(len(one)) for one in sealed.sealed)
        )
        rehearsal.mask(given)
        rehearsal.confirm()
        rehearsal.reveal()
        with pytest.raises(PeersMissing, match="'site-0000'") as refusal:
            rehearsal.server.result()
        assert refusal.value.code == "masking-short"


class TestVectors:
    @pytest.mark.parametrize(
        "wrong",
        [
            np.zeros(4, dtype=np.uint32),
            np.zeros((5, 1), dtype=np.uint32),
            np.zeros(5, dtype=np.int64),
            np.zeros(5, dtype=np.float32),
            np.full(5, np.nan),
            b"\0" * 20,
            None,
            [0, 0, 0, 0, 0],
        ],
    )
    def test_of_another_type_or_length_are_refused_and_change_nothing(
        self, wrong: Any, stage: Stage, vectors: Vectors
    ) -> None:
        rehearsal, given = stage.rehearsal(4, leaves={NAME: Step.MASK}, stored=False), vectors(4)
        expected = added(list(given.values())[1:])
        rehearsal.advert()
        rehearsal.share()
        refusal = rehearsal.server.take_masked(NAME, wrong)
        assert refusal is not None
        assert refusal.code == "masking-message"
        rehearsal.mask(given)
        rehearsal.confirm()
        rehearsal.reveal()
        np.testing.assert_array_equal(rehearsal.server.result(), expected)

    def test_of_a_stranger_or_twice_are_refused(self, stage: Stage, vectors: Vectors) -> None:
        rehearsal, given = stage.rehearsal(4, leaves={NAME: Step.SHARE}, stored=False), vectors(4)
        server = rehearsal.server
        early = server.take_masked(PEER, given[PEER])
        rehearsal.advert()
        rehearsal.share()
        assert (
            server.take_masked(PEER, rehearsal.sites[PEER].mask(server.deliveries_for(PEER), given[PEER]))
            is None
        )
        others = [server.take_masked(name, given[PEER]) for name in (PEER, NAME, "stranger")]
        for refusal in (early, *others):
            assert refusal is not None
            assert refusal.code == "masking-order"


class TestAnswers:
    def test_in_anothers_name_are_refused(self, stage: Stage) -> None:
        rehearsal = stage.rehearsal(4, stored=False)
        refusal = rehearsal.server.take_advert(PEER, rehearsal.sites[NAME].advert())
        assert refusal is not None
        assert refusal.code == "masking-roster"
        stranger = rehearsal.server.take_advert("stranger", rehearsal.sites[NAME].advert())
        assert stranger is not None
        assert stranger.code == "masking-order"

    def test_that_share_with_others_than_the_neighbours_are_refused(self, stage: Stage) -> None:
        rehearsal = stage.rehearsal(4, stored=False)
        rehearsal.advert()
        sealed = rehearsal.sites[NAME].share(rehearsal.server.roster_for(NAME))
        few = replace(sealed, recipients=sealed.recipients[1:], sealed=sealed.sealed[1:])
        refusal = rehearsal.server.take_shares(NAME, few)
        assert refusal is not None
        assert refusal.code == "masking-message"

    def test_that_confirm_other_survivors_are_refused(self, stage: Stage, vectors: Vectors) -> None:
        rehearsal = stage.rehearsal(4, leaves={NAME: Step.CONFIRM}, stored=False)
        rehearsal.advert()
        rehearsal.share()
        rehearsal.mask(vectors(4))
        forged = Confirmation(signature=stage.sites(1)[0].sign(Purpose.SURVIVORS, b"others"))
        refusal = rehearsal.server.take_confirmation(NAME, forged)
        assert refusal is not None
        assert refusal.code == "signature"
        assert NAME not in rehearsal.confirm()

    def test_that_reveal_another_kind_of_share_are_refused(self, stage: Stage, vectors: Vectors) -> None:
        rehearsal, _ = until_confirmed(stage, vectors, 7, {"site-0006": Step.MASK})
        honest = rehearsal.sites[NAME].reveal(rehearsal.server.confirmations())
        swapped = Reveal(
            seeds_of=honest.keys_of,
            seed_shares=honest.key_shares,
            keys_of=honest.seeds_of,
            key_shares=honest.seed_shares,
        )
        strange = replace(honest, keys_of=("stranger",))
        for wrong in (swapped, strange):
            refusal = rehearsal.server.take_reveal(NAME, wrong)
            assert refusal is not None
            assert refusal.code == "masking-message"
        assert rehearsal.server.take_reveal(NAME, honest) is None

    def test_that_come_after_their_phase_are_refused(self, stage: Stage, vectors: Vectors) -> None:
        rehearsal, _ = until_confirmed(stage, vectors, 4, {})
        for refusal in (
            rehearsal.server.take_advert(NAME, {}),
            rehearsal.server.take_shares(NAME, {}),
            rehearsal.server.take_masked(NAME, np.zeros(5, dtype=np.uint32)),
            rehearsal.server.take_confirmation(NAME, {}),
        ):
            assert refusal is not None
            assert refusal.code == "masking-order"

    def test_the_server_itself_cannot_go_on_out_of_phase(self, stage: Stage) -> None:
        server = stage.rehearsal(4, stored=False).server
        for call in (
            server.end_shares,
            server.end_masked,
            server.end_confirmations,
            server.result,
            server.survivors,
        ):
            with pytest.raises(RuntimeError, match="phase"):
                call()
