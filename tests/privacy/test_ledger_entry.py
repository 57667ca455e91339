"""Entries, keys and heads: one canonical form, signatures, files that only their owner reads."""

import hashlib
import json
import math
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from hypothesis import given
from hypothesis import strategies as st

from cloister.core.errors import IntegrityError, PolicyError
from cloister.privacy.ledger.budget import Cap, Composer, Rate
from cloister.privacy.ledger.entry import COLUMNS, Entry, Figures, canonical_json, seal
from cloister.privacy.ledger.heads import Head, sign_head, sign_witness, witness_holds
from cloister.privacy.ledger.keys import create_key, load_key, load_or_create_key, public_key_of

KEY = Ed25519PrivateKey.generate()
FULL: dict[str, Any] = {
    "seq": 3,
    "time": "2026-01-02T03:04:05.000006+00:00",
    "prev_hash": "ab" * 32,
    "site": "north",
    "dataset": "heart",
    "kind": "COMMIT",
    "unit": "record",
    "relation": "zero-out",
    "run": "r",
    "round": 4,
    "attempt": 1,
    "reservation": 2,
    "event": '{"a":0.1}',
    "steps": 5,
    "noise_multiplier": 1.5,
    "clip": 0.1,
    "sampling_rate": 0.01,
    "survivors": 6,
    "delta": 1e-5,
    "code_hash": "c",
    "at_delta": 1e-6,
    "epsilon_after": 0.7,
}


class TestEntry:
    def test_the_example_has_every_column(self) -> None:
        assert {name for name, _, _ in COLUMNS} == {*FULL, "entry_hash", "signature"}

    @pytest.mark.parametrize("name", sorted(FULL))
    def test_the_hash_covers_every_column(self, name: str) -> None:
        value = FULL[name]
        changed = (
            value + 1
            if isinstance(value, int)
            else value * (1 + 2**-52)
            if isinstance(value, float)
            else value + "x"
        )
        assert seal({**FULL, name: changed}, KEY).entry_hash != seal(FULL, KEY).entry_hash
        if name not in {"seq", "time", "prev_hash", "site", "dataset", "kind", "event"}:
            assert seal({**FULL, name: None}, KEY).entry_hash != seal(FULL, KEY).entry_hash

    def test_the_hash_can_be_computed_by_anybody_from_the_documented_form(self) -> None:
        entry = seal(FULL, KEY)
        plain = {name: value.hex() if isinstance(value, float) else value for name, value in FULL.items()}
        text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
        message = b"cloister ledger entry 1\n" + text.encode()
        assert entry.entry_hash == hashlib.sha256(message).hexdigest()
        KEY.public_key().verify(
            bytes.fromhex(entry.signature), b"cloister ledger entry 1\n" + entry.entry_hash.encode()
        )

    def test_a_signature_of_another_key_or_entry_does_not_hold(self) -> None:
        entry = seal(FULL, KEY)
        assert entry.signature_holds(public_key_of(KEY))
        assert not entry.signature_holds(public_key_of(Ed25519PrivateKey.generate()))
        assert not entry.signature_holds("no key")
        other = seal({**FULL, "seq": 9}, KEY)
        assert not Entry(**{**entry.__dict__, "entry_hash": other.entry_hash}).signature_holds(
            public_key_of(KEY)
        )

    def test_a_row_comes_back_as_the_entry(self) -> None:
        entry = seal(FULL, KEY)
        assert Entry.from_row(entry.row()) == entry

    @pytest.mark.parametrize(
        ("name", "value"),
        [("seq", 3.0), ("time", b"x"), ("steps", "5"), ("clip", 1), ("site", None), ("event", 7)],
    )
    def test_a_stored_value_of_another_type_is_refused(self, name: str, value: Any) -> None:
        row = [
            value if column == name else old
            for (column, _, _), old in zip(COLUMNS, seal(FULL, KEY).row(), strict=True)
        ]
        with pytest.raises(IntegrityError, match=name) as caught:
            Entry.from_row(row)
        assert caught.value.code == "ledger-entry"

    @pytest.mark.parametrize("event", ['{"a": 1}', "[]", "{", '{"a":NaN}', '{"b":1,"a":2}', "[" * 9999])
    def test_an_event_that_is_no_canonical_object_is_refused(self, event: str) -> None:
        with pytest.raises(IntegrityError, match="canonical"):
            _ = seal({**FULL, "event": event}, KEY).data

    @given(
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers()
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(),
            lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
            max_leaves=10,
        )
    )
    def test_canonical_json_keeps_the_value_and_has_one_form(self, value: Any) -> None:
        text = canonical_json(value)
        assert json.loads(text) == value
        assert canonical_json(json.loads(text)) == text
        assert text.isascii()

    @pytest.mark.parametrize("value", [math.nan, math.inf, {"a": -math.inf}, {1: 2}, [object()], b"x"])
    def test_what_is_no_plain_data_is_refused(self, value: Any) -> None:
        with pytest.raises(PolicyError) as caught:
            canonical_json(value)
        assert caught.value.code == "ledger-input"

    @pytest.mark.parametrize(
        "wrong",
        [
            {"steps": -1},
            {"steps": 1.0},
            {"steps": True},
            {"survivors": 2**63},
            {"clip": math.nan},
            {"clip": -0.1},
            {"sampling_rate": math.inf},
        ],
    )
    def test_figures_out_of_range_are_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(PolicyError, match=next(iter(wrong))):
            Figures(**wrong)

    def test_an_infinite_epsilon_is_kept_and_exported_as_text(self) -> None:
        entry = seal({**FULL, "epsilon_after": math.inf}, KEY)
        assert entry.as_dict()["epsilon_after"] == "inf"
        assert entry.as_dict()["event"] == {"a": 0.1}


class TestKeys:
    def test_a_key_file_is_its_owners_alone_whatever_the_umask(self, tmp_path: Path) -> None:
        before = os.umask(0)
        try:
            key = create_key(tmp_path / "key.pem")
        finally:
            os.umask(before)
        assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
        assert public_key_of(load_key(tmp_path / "key.pem")) == public_key_of(key)

    @pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o660, 0o601, 0o777])
    def test_a_key_that_others_may_use_is_refused(self, tmp_path: Path, mode: int) -> None:
        create_key(tmp_path / "key.pem")
        (tmp_path / "key.pem").chmod(mode)
        with pytest.raises(IntegrityError, match=f"{mode:04o}") as caught:
            load_or_create_key(tmp_path / "key.pem")
        assert caught.value.code == "ledger-key"

    def test_an_existing_file_is_never_overwritten(self, tmp_path: Path) -> None:
        (tmp_path / "key.pem").write_text("mine")
        with pytest.raises(IntegrityError, match="File exists"):
            create_key(tmp_path / "key.pem")
        assert (tmp_path / "key.pem").read_text() == "mine"

    def test_two_keys_differ_and_one_is_kept(self, tmp_path: Path) -> None:
        first = public_key_of(load_or_create_key(tmp_path / "a"))
        assert public_key_of(load_or_create_key(tmp_path / "a")) == first
        assert public_key_of(load_or_create_key(tmp_path / "b")) != first

    def test_what_is_no_ed25519_key_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "text").write_text("no key")
        other = generate_private_key(SECP256R1())
        (tmp_path / "other").write_bytes(
            other.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        )
        for name, says in (("text", "holds no key"), ("other", "another kind"), ("absent", "No such file")):
            if (tmp_path / name).exists():
                (tmp_path / name).chmod(0o600)
            with pytest.raises(IntegrityError, match=says):
                load_key(tmp_path / name)


class TestHeads:
    def test_a_head_is_the_owners_and_a_witness_signs_no_forged_one(self) -> None:
        head = sign_head(seal(FULL, KEY), KEY)
        assert Head.from_dict(json.loads(json.dumps(head.as_dict()))) == head
        for name, value in (("seq", 4), ("site", "south"), ("dataset", "x"), ("entry_hash", "00" * 32)):
            forged = Head(**{**head.as_dict(), name: value})
            with pytest.raises(IntegrityError, match="not signed"):
                sign_witness(forged, KEY)

    def test_a_witness_is_of_one_head_and_of_one_witness(self) -> None:
        peer = Ed25519PrivateKey.generate()
        head, other = (sign_head(seal({**FULL, "seq": seq}, KEY), KEY) for seq in (3, 4))
        signature = sign_witness(head, peer)
        assert witness_holds(head, signature.hex(), public_key_of(peer))
        assert not witness_holds(other, signature.hex(), public_key_of(peer))
        assert not witness_holds(head, signature.hex(), public_key_of(KEY))

    def test_a_head_is_no_witness_and_an_entry_is_no_head(self) -> None:
        entry = seal(FULL, KEY)
        head = sign_head(entry, KEY)
        assert not witness_holds(head, head.signature, public_key_of(KEY))
        assert not Head(**{**head.as_dict(), "signature": entry.signature}).holds()
        public: Ed25519PublicKey = KEY.public_key()
        public.verify(bytes.fromhex(head.signature), b"cloister ledger head 1\n" + head.message())

    @pytest.mark.parametrize("value", [None, [], {}, {"site": 1}, "head"])
    def test_what_is_no_head_is_refused(self, value: Any) -> None:
        with pytest.raises(IntegrityError) as caught:
            Head.from_dict(value)
        assert caught.value.code == "ledger-head"


class TestBudget:
    @pytest.mark.parametrize(
        "wrong",
        [
            {"epsilon": math.nan},
            {"epsilon": -1},
            {"epsilon": math.inf},
            {"delta": 0},
            {"delta": 1},
            {"delta": "x"},
            {"unit": ""},
        ],
    )
    def test_a_cap_out_of_range_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(PolicyError) as caught:
            Cap(**{"epsilon": 1.0, "delta": 1e-5, **wrong})
        assert caught.value.code == "ledger-input"

    @pytest.mark.parametrize("wrong", [{"epsilon": -1}, {"days": 0}, {"days": math.inf}, {"days": 1e9}])
    def test_a_rate_out_of_range_is_refused(self, wrong: dict[str, Any]) -> None:
        with pytest.raises(PolicyError):
            Rate(**{"epsilon": 1.0, "days": 7, **wrong})

    def test_a_cap_comes_back_from_its_event(self) -> None:
        for cap in (
            Cap(epsilon=1, delta=1e-5),
            Cap(epsilon=0, delta=0.1, unit="site", rate=Rate(epsilon=0.5, days=7)),
        ):
            assert Cap.from_event(json.loads(canonical_json(cap.as_event()))) == cap

    @pytest.mark.parametrize("answer", [math.nan, -0.1, None, "1"])
    def test_an_answer_that_is_no_epsilon_is_refused(self, answer: Any) -> None:
        from collections import Counter

        with pytest.raises(PolicyError) as caught:
            Composer(lambda _events, _delta: answer).epsilon(Counter(["{}"]), 1e-5)
        assert caught.value.code == "ledger-account"

    def test_the_account_sees_every_charge_and_nothing_costs_nothing(self) -> None:
        from collections import Counter

        seen: list[Any] = []

        def account(events: Any, delta: float) -> float:
            seen.append((sorted(event["n"] for event in events), delta))
            return float(len(events))

        composer = Composer(account)
        assert composer.epsilon(Counter(), 1e-5) == 0.0
        assert composer.epsilon(Counter({'{"n":1}': 2, '{"n":2}': 1}), 1e-5) == 3.0
        assert composer.epsilon(Counter({'{"n":2}': 1, '{"n":1}': 2}), 1e-5) == 3.0
        assert composer.epsilon(Counter({'{"n":1}': 2}), 1e-6) == 2.0
        assert seen == [([1, 1, 2], 1e-5), ([1, 1], 1e-6)]
