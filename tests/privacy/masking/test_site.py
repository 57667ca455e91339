"""A site takes each step once, remembers what it needs, and forgets the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from cloister.core.errors import IntegrityError
from cloister.privacy.masking import SiteSession, Survivors
from cloister.privacy.masking.fields import Fields
from cloister.privacy.masking.rehearsal import Rehearsal, Stage, Step
from cloister.privacy.updates.modular import Residues

Vectors = Callable[..., dict[str, Residues]]
NAME = "site-0000"
SECRETS = ("mask_private", "seal_private", "seed")


def restored(stage: Stage, fields: Fields) -> SiteSession:
    return SiteSession.from_fields(stage.sites(1)[0], stage.consortium, fields)


def asked(rehearsal: Rehearsal, step: Step) -> Any:
    """What the server asks a site with, as soon as it can."""
    server = rehearsal.server
    if step is Step.SHARE:
        return server.roster_for(NAME)
    if step is Step.MASK:
        return server.deliveries_for(NAME)
    return server.survivors() if step is Step.CONFIRM else server.confirmations()


def walked(rehearsal: Rehearsal, vectors: dict[str, Residues]) -> Iterator[Step]:
    """Go through a session but for its last step, and stop before each step but the first."""
    rehearsal.advert()
    yield Step.SHARE
    rehearsal.share()
    yield Step.MASK
    rehearsal.mask(vectors)
    yield Step.CONFIRM
    rehearsal.confirm()
    yield Step.REVEAL


def answer(site: SiteSession, step: Step, message: Any) -> None:
    """Let a site take a step."""
    if step is Step.SHARE:
        site.share(message)
    elif step is Step.MASK:
        site.mask(message, np.zeros(5, dtype=np.uint32))
    elif step is Step.CONFIRM:
        site.confirm(message)
    else:
        site.reveal(message)


class TestSteps:
    @pytest.fixture
    def states(self, stage: Stage, vectors: Vectors) -> list[Fields]:
        """The state of one site before each step but the first, and after the last."""
        rehearsal = stage.rehearsal(4)
        found = [rehearsal.sites[NAME].to_fields() for _ in walked(rehearsal, vectors(4))]
        rehearsal.reveal()
        return [*found, rehearsal.sites[NAME].to_fields()]

    def test_are_taken_once_and_in_order_also_after_a_restart(self, stage: Stage, vectors: Vectors) -> None:
        """Every step is asked for in every state; only the one that follows is answered."""
        rehearsal, messages, states = stage.rehearsal(4), {}, []
        for step in walked(rehearsal, vectors(4)):
            states.append(rehearsal.sites[NAME].to_fields())
            messages[step] = asked(rehearsal, step)
        rehearsal.reveal()
        states.append(rehearsal.sites[NAME].to_fields())
        for next_step, state in enumerate(states, start=1):
            for step, message in messages.items():
                site = restored(stage, state)
                if step == next_step:
                    answer(site, step, message)
                with pytest.raises(IntegrityError) as refusal:
                    answer(site, step, message)
                assert refusal.value.code == "masking-order"

    def test_own_secrets_are_gone_once_the_vector_is_masked(self, states: list[Fields]) -> None:
        before, shared, masked, *later = states
        for name in SECRETS:
            assert len(b"".join(flat({name: before[name]}))) == 32
            assert shared[name] == before[name]
            assert all(after[name] == b"" for after in (masked, *later))
        everything = b"".join(flat(masked))
        assert not any(secret in everything for secret in flat({name: before[name] for name in SECRETS}))

    def test_nothing_is_left_after_the_shares_are_revealed(self, states: list[Fields]) -> None:
        *_, confirmed, revealed = states
        assert len(flat({"received": confirmed["received"]})) == 3
        public = {"manifest", "manifest_signature", "manifest_certificate", "phase"}
        assert all(not value for name, value in revealed.items() if name not in public)

    def test_the_same_vector_is_masked_the_same_after_a_restart_and_no_other_one_ever(
        self, stage: Stage, vectors: Vectors
    ) -> None:
        rehearsal = stage.rehearsal(4)
        rehearsal.advert()
        rehearsal.share()
        state = rehearsal.sites[NAME].to_fields()
        deliveries = rehearsal.server.deliveries_for(NAME)
        first, second = (restored(stage, state).mask(deliveries, vectors(4)[NAME]) for _ in range(2))
        np.testing.assert_array_equal(first, second)
        site = restored(stage, state)
        site.mask(deliveries, vectors(4)[NAME])
        with pytest.raises(IntegrityError):
            restored(stage, site.to_fields()).mask(deliveries, np.zeros(5, dtype=np.uint32))

    def test_a_changed_state_is_refused(self, stage: Stage, states: list[Fields]) -> None:
        begun, shared, masked, *_ = states
        roster = {name: value for name, value in shared.items() if name.startswith("roster_")}
        for changed in (
            {},
            begun | {"phase": "other"},
            begun | {"phase": "shared"},
            begun | roster,
            begun | {"manifest": b"{}"},
            begun | {"manifest": 1},
            begun | {"manifest_signature": bytes(64)},
            masked | {"received": [b""]},
            masked | {"received": [b"x"] * 3},
            {name: value for name, value in masked.items() if name != "own_share"},
        ):
            with pytest.raises(IntegrityError):
                restored(stage, changed)

    def test_the_session_never_prints_a_secret(self, stage: Stage) -> None:
        site = stage.rehearsal(3, stored=False).sites[NAME]
        assert repr(site) == "SiteSession('site-0000', session 1, begun)"


class TestVector:
    @pytest.fixture
    def shared(self, stage: Stage) -> Rehearsal:
        rehearsal = stage.rehearsal(3)
        rehearsal.advert()
        rehearsal.share()
        return rehearsal

    @pytest.mark.parametrize(
        "wrong",
        [
            np.zeros(4, dtype=np.uint32),
            np.zeros(6, dtype=np.uint32),
            np.zeros((1, 5), dtype=np.uint32),
            np.zeros(5, dtype=np.int32),
            np.zeros(5, dtype=np.uint64),
            np.zeros(5, dtype=np.float32),
            np.zeros(10, dtype=np.uint32)[::2],
            np.frombuffer(bytes(20), dtype=np.uint32),  # read only
        ],
    )
    def test_of_another_type_or_length_is_refused_and_the_site_goes_on(
        self, wrong: Any, shared: Rehearsal
    ) -> None:
        site, deliveries = shared.sites[NAME], shared.server.deliveries_for(NAME)
        before = wrong.copy()
        with pytest.raises(ValueError, match=r"expected uint32|not contiguous"):
            site.mask(deliveries, wrong)
        np.testing.assert_array_equal(wrong, before)
        site.mask(deliveries, np.zeros(5, dtype=np.uint32))

    def test_is_masked_in_place(self, shared: Rehearsal) -> None:
        values = np.zeros(5, dtype=np.uint32)
        assert shared.sites[NAME].mask(shared.server.deliveries_for(NAME), values) is values
        assert values.any()


class TestShares:
    def test_that_cannot_be_opened_are_not_revealed_and_the_session_ends_well(
        self, stage: Stage, vectors: Vectors
    ) -> None:
        """The server changes what site 1 sealed for site 0: 0 holds no share of 1, and the others do."""
        rehearsal, given_ = stage.rehearsal(5, stored=False), vectors(5)
        expected = sum(vector.astype(np.uint64) for vector in given_.values()) % (1 << 32)
        rehearsal.advert()
        rehearsal.share()
        honest = rehearsal.server._shares["site-0001"]
        changed = honest.sealed[0][:-1] + bytes([honest.sealed[0][-1] ^ 1])
        rehearsal.server._shares["site-0001"] = type(honest)(
            recipients=honest.recipients, sealed=(changed, *honest.sealed[1:])
        )
        rehearsal.mask(given_)
        rehearsal.confirm()
        confirmations = rehearsal.server.confirmations()
        reveal = rehearsal.sites[NAME].reveal(confirmations)
        assert set(reveal.seeds_of) == {"site-0000", "site-0002", "site-0003", "site-0004"}
        assert rehearsal.server.take_reveal(NAME, reveal) is None
        for name in list(given_)[1:]:
            assert rehearsal.server.take_reveal(name, rehearsal.sites[name].reveal(confirmations)) is None
        np.testing.assert_array_equal(rehearsal.server.result(), expected)

    @pytest.mark.parametrize("dropped", ["site-0002", None])
    def test_of_each_peer_one_kind_is_revealed(
        self, dropped: str | None, stage: Stage, vectors: Vectors
    ) -> None:
        leaves = {dropped: Step.MASK} if dropped else {}
        rehearsal = stage.rehearsal(5, leaves=leaves, stored=False)
        rehearsal.advert()
        rehearsal.share()
        rehearsal.mask(vectors(5))
        rehearsal.confirm()
        held = rehearsal.sites[NAME]._state.held(NAME)
        reveal = rehearsal.sites[NAME].reveal(rehearsal.server.confirmations())
        assert set(reveal.keys_of) == ({dropped} if dropped else set())
        assert set(reveal.seeds_of) == set(held) - {dropped}
        sent = b"".join(flat(reveal.to_fields()))
        for name, both in held.items():
            assert (both[:64] in sent) == (name != dropped)
            assert (both[64:] in sent) == (name == dropped)

    def test_survivors_are_named_to_a_site_as_one_list(self) -> None:
        """There is no way to say of a peer both that it survived and that it dropped."""
        assert set(Survivors(names=("a",)).to_fields()) == {"names"}


def flat(fields: Fields) -> list[bytes]:
    """Return all bytes of a message."""
    values = [value for field in fields.values() for value in (field if isinstance(field, list) else [field])]
    return [value for value in values if isinstance(value, bytes)]
