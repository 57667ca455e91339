"""Both ends have the same key, nobody else has it, and what is sealed under it opens for nobody else."""

from __future__ import annotations

from itertools import combinations

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from cloister.privacy.masking import keys

ONE, OTHER, THIRD = (bytes([at]) * 32 for at in (1, 2, 3))
MANIFEST = b"m" * 32


def pair(
    mine: bytes = ONE, theirs: bytes = OTHER, *, manifest: bytes = MANIFEST, low: str = "a", high: str = "b"
) -> bytes:
    return keys.pair_key(
        keys.private_key(mine), keys.public_of(theirs), manifest=manifest, low=low, high=high
    )


def seal(mine: bytes = ONE, theirs: bytes = OTHER, *, source: str = "a", target: str = "b") -> bytes:
    return keys.sealing_key(
        keys.private_key(mine), keys.public_of(theirs), manifest=MANIFEST, source=source, target=target
    )


class TestSharedKeys:
    def test_are_the_same_at_both_ends(self) -> None:
        assert pair(ONE, OTHER) == pair(OTHER, ONE)
        assert seal(ONE, OTHER) == seal(OTHER, ONE)

    def test_differ_with_either_key_either_name_the_manifest_and_what_they_are_for(self) -> None:
        found = [
            pair(),
            pair(THIRD),
            pair(theirs=THIRD),
            pair(manifest=b"n" * 32),
            pair(low="c"),
            pair(high="c"),
            pair(low="ab", high=""),
            pair(low="b", high="a"),
            seal(),
            seal(source="b", target="a"),
            seal(source="c"),
            keys.self_key(ONE, manifest=MANIFEST),
            keys.self_key(ONE, manifest=b"n" * 32),
        ]
        assert all(one != other for one, other in combinations(found, 2))

    def test_are_hkdf_of_the_agreement(self) -> None:
        """Put together again from the library's parts."""
        agreed = X25519PrivateKey.from_private_bytes(ONE).exchange(
            X25519PublicKey.from_public_bytes(keys.public_of(OTHER))
        )
        info = b"cloister/masking" + b"".join(len(p).to_bytes(8) + p for p in (b"pair", b"a", b"b"))
        assert pair() == HKDF(algorithm=SHA256(), length=32, salt=MANIFEST, info=info).derive(agreed)

    @pytest.mark.parametrize("point", [0, 1, (1 << 255) - 20, (1 << 255) - 19, (1 << 255) - 18])
    def test_are_not_agreed_on_with_a_point_of_low_order(self, point: int) -> None:
        public = point.to_bytes(32, "little")
        assert not keys.usable(public)
        with pytest.raises(ValueError, match="shared key"):
            keys.pair_key(keys.private_key(ONE), public, manifest=MANIFEST, low="a", high="b")

    def test_are_agreed_on_with_any_other(self) -> None:
        assert keys.usable(keys.public_of(ONE))


class TestSealing:
    def test_opens_under_the_same_key_and_binding_only(self) -> None:
        ciphertext = keys.sealed(seal(), b"share", bound=b"here")
        assert keys.opened(seal(OTHER, ONE), ciphertext, bound=b"here") == b"share"
        assert keys.opened(seal(), ciphertext, bound=b"there") is None
        assert keys.opened(seal(THIRD), ciphertext, bound=b"here") is None

    def test_does_not_open_once_a_bit_is_changed_or_a_byte_is_missing(self) -> None:
        ciphertext = keys.sealed(seal(), b"share", bound=b"")
        for at in range(8 * len(ciphertext)):
            changed = bytearray(ciphertext)
            changed[at // 8] ^= 1 << (at % 8)
            assert keys.opened(seal(), bytes(changed), bound=b"") is None
        for length in range(len(ciphertext)):
            assert keys.opened(seal(), ciphertext[:length], bound=b"") is None

    def test_is_longer_by_the_overhead_and_never_the_same_twice(self) -> None:
        first, second = (keys.sealed(seal(), b"share", bound=b"") for _ in range(2))
        assert len(first) == len(b"share") + keys.OVERHEAD
        assert first != second


class TestFraming:
    def test_tells_parts_apart(self) -> None:
        made = [keys.framed(*parts) for parts in ((b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"abc", b""), ())]
        assert len(set(made)) == 5

    def test_hashes_differ_with_their_purpose(self) -> None:
        assert keys.hashed("a", b"x") != keys.hashed("b", b"x")
