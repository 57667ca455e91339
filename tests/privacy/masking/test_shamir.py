"""Any t shares rebuild any 32 bytes, fewer say nothing, and lies are found out."""

from __future__ import annotations

import hashlib
import os
import random
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cloister.privacy.masking.rebuilding import Rebuilder
from cloister.privacy.masking.shamir import FIELD, SECRET, SHARE, combine, split, value_at

SECRETS = (
    bytes(32),
    b"\xff" * 32,
    FIELD.to_bytes(32),
    (FIELD + 1).to_bytes(32),
    ((1 << 255) - 1).to_bytes(32),
    b"\x00" * 31 + b"\x01",
    b"\x80" + bytes(31),
)


class TestSplit:
    @pytest.mark.parametrize("secret", SECRETS)
    def test_every_choice_of_t_shares_rebuilds_any_32_bytes_exactly(self, secret: bytes) -> None:
        points = (1, 2, 5, 9, 1000)
        shares = dict(zip(points, split(secret, threshold=3, points=points), strict=True))
        assert {len(share) for share in shares.values()} == {SHARE}
        for count in (3, 4, 5):
            for chosen in combinations(points, count):
                assert combine({point: shares[point] for point in chosen}) == secret

    @given(st.binary(min_size=SECRET, max_size=SECRET), st.integers(1, 12), st.integers(0, 8))
    def test_random_secrets_thresholds_and_counts(self, secret: bytes, threshold: int, more: int) -> None:
        points = random.Random(threshold).sample(range(1, 2000), threshold + more)
        shares = dict(zip(points, split(secret, threshold=threshold, points=points), strict=True))
        assert combine(dict(list(shares.items())[more:])) == secret

    def test_fewer_than_t_shares_fit_every_secret_equally_well(self) -> None:
        """With t - 1 shares and any other secret at 0 there is a polynomial through all: nothing is ruled out."""
        shares = dict(zip((1, 2, 3), split(b"a" * 32, threshold=3, points=(1, 2, 3)), strict=True))
        two = {point: shares[point] for point in (1, 2)}
        for other in SECRETS:
            half = int.from_bytes(other[:16]).to_bytes(32) + int.from_bytes(other[16:]).to_bytes(32)
            # The secret as a share at a point of its own, all moved by one: 0, 1, 2 become 1, 2, 3.
            moved = {1: half} | {point + 1: share for point, share in two.items()}
            third = b"".join(value.to_bytes(32) for value in value_at(4, moved))
            assert combine({1: two[1], 2: two[2], 3: third}) == other

    def test_shares_are_spread_over_the_field_and_fresh(self) -> None:
        first, second = (split(bytes(32), threshold=2, points=(1, 2)) for _ in range(2))
        assert len({*first, *second}) == 4
        values = [
            int.from_bytes(share[:32])
            for _ in range(64)
            for share in split(bytes(32), threshold=2, points=(7, 8))
        ]
        assert max(values) > FIELD * 3 // 4  # of 128 uniform values none above: 0.75^128 < 1e-15
        assert min(values) < FIELD // 4
        assert max(values) < FIELD

    @pytest.mark.parametrize(
        ("secret", "threshold", "points"),
        [
            (31, 2, (1, 2)),
            (33, 2, (1, 2)),
            (32, 0, (1, 2)),
            (32, 3, (1, 2)),
            (32, 2, (0, 1)),
            (32, 2, (3, 3)),
            (32, 1, ()),
        ],
    )
    def test_what_cannot_be_shared_is_refused(
        self, secret: int, threshold: int, points: tuple[int, ...]
    ) -> None:
        with pytest.raises(ValueError, match=r"secret has|threshold|points"):
            split(bytes(secret), threshold=threshold, points=points)

    def test_a_share_at_the_wanted_point_or_of_another_length_is_refused(self) -> None:
        with pytest.raises(ValueError, match="there is a share at 2"):
            value_at(2, {1: bytes(SHARE), 2: bytes(SHARE)})
        with pytest.raises(ValueError, match="64 bytes"):
            combine({1: bytes(SHARE - 1)})


class TestRebuilder:
    SECRET = b"0123456789abcdef0123456789ABCDEF"

    def holds(self, secret: bytes) -> bool:
        return hashlib.sha256(secret).digest() == hashlib.sha256(self.SECRET).digest()

    def shares(self, count: int, threshold: int) -> dict[int, bytes]:
        points = list(range(1, count + 1))
        return dict(zip(points, split(self.SECRET, threshold=threshold, points=points), strict=True))

    @pytest.mark.parametrize("count", [5, 6, 7])
    def test_as_many_lies_as_there_are_shares_to_spare_change_nothing(self, count: int) -> None:
        for lies in range(count - 5 + 1):
            for liars in combinations(range(1, count + 1), lies):
                shares = self.shares(count, 5)
                for liar in liars:
                    shares[liar] = os.urandom(31).rjust(32, b"\0") + bytes(32)
                rebuilder = Rebuilder(5)
                assert rebuilder.rebuilt(shares, self.holds) == self.SECRET
                assert rebuilder.suspects <= set(liars)

    def test_one_lie_more_gives_nothing(self) -> None:
        shares = self.shares(7, 5)
        for liar in (1, 4, 6):
            shares[liar] = bytes(SHARE)
        assert Rebuilder(5).rebuilt(shares, self.holds) is None

    def test_too_few_shares_give_nothing(self) -> None:
        assert Rebuilder(5).rebuilt(self.shares(4, 4), self.holds) is None

    def test_a_share_that_is_no_field_element_does_no_harm(self) -> None:
        shares = self.shares(7, 5) | {1: b"\xff" * SHARE, 2: FIELD.to_bytes(32) * 2}
        assert Rebuilder(5).rebuilt(shares, self.holds) == self.SECRET

    def test_who_lied_once_is_asked_last_for_the_next_secret(self) -> None:
        rebuilder = Rebuilder(20)
        tries = 0

        def counted(secret: bytes) -> bool:
            nonlocal tries
            tries += 1
            return self.holds(secret)

        for attempt in range(2):
            shares = self.shares(30, 20)
            for liar in (3, 11, 17):
                shares[liar] = bytes(SHARE)
            tries = 0
            assert rebuilder.rebuilt(shares, counted) == self.SECRET
            if attempt:
                assert tries == 1
        assert rebuilder.suspects == {3, 11, 17}
