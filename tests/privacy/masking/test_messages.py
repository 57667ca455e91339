"""A message that exists is well formed, whatever bytes it was read from."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.core.errors import IntegrityError
from cloister.privacy.masking import (
    Advert,
    Confirmation,
    Confirmations,
    Deliveries,
    Fields,
    Reveal,
    Roster,
    SealedShares,
    Survivors,
)
from cloister.privacy.masking.fields import Message
from cloister.privacy.masking.messages import SEALED
from cloister.privacy.masking.rehearsal import Stage

ADVERT: Fields = {
    "name": "a",
    "mask_key": bytes(32),
    "seal_key": bytes(32),
    "commitment": bytes(32),
    "signature": bytes(64),
    "certificate": b"x",
}
ROSTER: Fields = {
    "cohort": ["a", "b"],
    "digests": [bytes(32), b""],
    "advert_name": ["b"],
    "advert_mask_key": [bytes(32)],
    "advert_seal_key": [bytes(32)],
    "advert_commitment": [bytes(32)],
    "advert_signature": [bytes(64)],
    "advert_certificate": [b"x"],
}
GOOD: list[tuple[type[Message], Fields]] = [
    (Advert, ADVERT),
    (Roster, ROSTER),
    (SealedShares, {"recipients": ["a", "b"], "sealed": [bytes(SEALED)] * 2}),
    (Deliveries, {"senders": ["a"], "sealed": [bytes(SEALED)]}),
    (Survivors, {"names": ["a", "b"]}),
    (Confirmation, {"signature": bytes(64)}),
    (Confirmations, {"names": ["a"], "signatures": [bytes(64)], "certificates": []}),
    (Reveal, {"seeds_of": ["a"], "seed_shares": [bytes(64)], "keys_of": ["b"], "key_shares": [bytes(64)]}),
]
BAD: list[tuple[type[Message], Fields, dict[str, Any]]] = [
    (Advert, ADVERT, {"name": ""}),
    (Advert, ADVERT, {"name": "x" * 513}),
    (Advert, ADVERT, {"name": "\ud800"}),
    (Advert, ADVERT, {"mask_key": bytes(31)}),
    (Advert, ADVERT, {"commitment": bytes(33)}),
    (Advert, ADVERT, {"signature": b""}),
    (Advert, ADVERT, {"certificate": b""}),
    (Advert, ADVERT, {"certificate": bytes(4097)}),
    (Roster, ROSTER, {"cohort": ["b", "a"]}),
    (Roster, ROSTER, {"cohort": ["a", "a"]}),
    (Roster, ROSTER, {"digests": [bytes(32)]}),
    (Roster, ROSTER, {"digests": [bytes(32), bytes(31)]}),
    (Roster, ROSTER, {"advert_name": ["b", "c"]}),
    (Roster, ROSTER, {"advert_mask_key": [bytes(31)]}),
    (SealedShares, GOOD[2][1], {"recipients": ["b", "a"]}),
    (SealedShares, GOOD[2][1], {"recipients": ["a"]}),
    (SealedShares, GOOD[2][1], {"sealed": [bytes(SEALED), bytes(SEALED - 1)]}),
    (Deliveries, GOOD[3][1], {"senders": [], "sealed": [bytes(SEALED)]}),
    (Survivors, GOOD[4][1], {"names": ["a", "a"]}),
    (Survivors, GOOD[4][1], {"names": ["b", "a"]}),
    (Confirmation, GOOD[5][1], {"signature": bytes(63)}),
    (Confirmations, GOOD[6][1], {"certificates": [b"x", b"y"]}),
    (Confirmations, GOOD[6][1], {"certificates": [b""]}),
    (Confirmations, GOOD[6][1], {"names": ["a", "b"]}),
    (Reveal, GOOD[7][1], {"keys_of": ["a"]}),  # both secrets of one site
    (Reveal, GOOD[7][1], {"seed_shares": [bytes(63)]}),
]
anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3) | st.binary(max_size=3) | st.floats(),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)


@pytest.mark.parametrize(("kind", "fields"), GOOD)
def test_a_message_is_read_as_it_was_written(kind: type[Message], fields: Fields) -> None:
    assert kind.from_fields(fields).to_fields() == fields


@pytest.mark.parametrize(("kind", "fields", "change"), BAD)
def test_values_out_of_their_bounds_are_refused(
    kind: type[Message], fields: Fields, change: dict[str, Any]
) -> None:
    with pytest.raises(IntegrityError) as refusal:
        kind.from_fields(fields | change)
    assert refusal.value.code == "masking-message"


@pytest.mark.parametrize(("kind", "fields"), GOOD)
def test_a_missing_an_unknown_and_a_mistyped_field_are_refused(kind: type[Message], fields: Fields) -> None:
    wrong: list[dict[str, Any]] = [{k: v for k, v in fields.items() if k != name} for name in fields]
    wrong += [{**fields, "more": b""}]
    for name, value in fields.items():
        others: list[Any] = [None, 1, True, 1.5, "x" * 32, bytes(3), [1], [True], [[b""]], (b"",), {}]
        wrong += [{**fields, name: other} for other in others if type(other) is not type(value)]
        if isinstance(value, list):
            wrong += [{**fields, name: [None]}, {**fields, name: (value or [b"x"]) * 70_000}]
    for one in wrong:
        with pytest.raises(IntegrityError) as refusal:
            kind.from_fields(one)
        assert refusal.value.code == "masking-message"


@given(data=st.data())
def test_no_mapping_raises_anything_but_a_refusal(data: st.DataObject) -> None:
    kind, fields = data.draw(st.sampled_from(GOOD))
    changed = fields | data.draw(st.dictionaries(st.sampled_from(sorted(fields)), anything, min_size=1))
    with contextlib.suppress(IntegrityError):
        assert kind.from_fields(changed).to_fields() == changed


@given(data=st.data())
def test_the_server_never_raises_on_what_a_site_sends(data: st.DataObject, stage: Stage) -> None:
    server = stage.rehearsal(3, stored=False).server
    given_ = data.draw(st.dictionaries(st.text(max_size=9), anything, max_size=6) | st.just(ADVERT))
    name = data.draw(st.sampled_from(["site-0000", "stranger"]))
    for take in (server.take_advert, server.take_shares, server.take_confirmation, server.take_reveal):
        refusal = take(name, given_)
        assert refusal is not None
        assert refusal.code in {"masking-message", "masking-order", "identity"}
