"""The joint key: shares are fixed before one is shown, and only those of the session's sites count."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.container import Residues, limits
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.identity import Role
from cloister.privacy.threshold import (
    JointKey,
    KeyShare,
    NewShare,
    PublicShares,
    ShareCommitments,
    agreed_shares,
)
from cloister.privacy.threshold.proofs import noise, proved
from cloister.privacy.threshold.ring import inverse, minus, plus, prepared, times, transformed
from cloister.privacy.threshold.shares import common, share_commitment, show_share
from joint import RUN
from parties import Parties

PRIMES = limits(THRESHOLD)[0]


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties(3)


@cache
def drawn(name: str, which: int) -> NewShare:
    return NewShare.drawn(run=RUN, serial=1, name=name)


class Made:
    def __init__(self, parties: Parties, which: int = 1) -> None:
        self.parties = parties
        self.shares = {name: drawn(name, which) for name in parties.names}
        self.agree()

    def agree(self) -> None:
        self.commitments = {
            name: share_commitment(one.share, run=RUN, serial=1, name=name)
            for name, one in self.shares.items()
        }
        self.key_id = agreed_shares(self.commitments, run=RUN, serial=1)

    def residues(self, name: str) -> Residues:
        return np.frombuffer(self.shares[name].share, dtype="<u8").astype(np.uint64).reshape(3, -1)

    def show(self, name: str, told: dict[str, bytes] | None = None) -> tuple[str, KeyShare]:
        commitments = self.commitments if told is None else told
        names = tuple(sorted(commitments))
        every = ShareCommitments(names=names, digests=tuple(commitments[one] for one in names))
        mine = self.shares[name]
        return show_share(self.parties.sites[name], every, mine.share, mine.proof, run=RUN, serial=1)

    def shown(self) -> dict[str, KeyShare]:
        return {name: self.show(name)[1] for name in self.parties.names}

    def read(self, shown: dict[str, KeyShare]) -> JointKey:
        return JointKey.read(
            PublicShares.of(shown), self.parties.consortium, run=RUN, serial=1, key_id=self.key_id
        )


def code(refused: pytest.ExceptionInfo[IntegrityError]) -> str:
    return refused.value.code


def test_the_common_polynomial_is_the_session_s_and_below_the_primes() -> None:
    one = common(RUN, 1)
    assert one.shape == (3, 8192)
    assert np.array_equal(one, common(RUN, 1))
    for other in (common(RUN, 2), common("other", 1)):
        assert np.mean(one == other) < 0.001
    assert (one < PRIMES).all()
    # Uniform: the mean of 24,576 numbers of [0, 1) has a standard deviation of 0.0018.
    assert abs(float((one / PRIMES).mean()) - 0.5) < 0.009


def test_the_key_is_the_sum_of_all_shares_over_the_common_polynomial(parties: Parties) -> None:
    made = Made(parties)
    key = made.read(made.shown())
    wanted = sum(made.residues(name).astype(object) for name in parties.names) % PRIMES.astype(object)
    assert np.array_equal(key.b.values.astype(object), wanted)
    assert np.array_equal(key.a.values, common(RUN, 1))
    assert key.names == tuple(parties.names)


def test_a_share_is_small_noise_less_the_common_polynomial_times_a_small_secret(parties: Parties) -> None:
    made = Made(parties)
    for name, one in made.shares.items():
        s = np.frombuffer(one.secret, dtype=np.int8).astype(np.int64)
        assert set(np.unique(s)) == {-1, 0, 1}
        error = inverse(plus(made.residues(name), times(transformed(s), prepared(common(RUN, 1)))))
        assert max(map(abs, error)) <= 21
    assert len({one.share for one in made.shares.values()}) == 3


def test_a_share_that_is_made_of_the_others_was_not_committed_to(parties: Parties) -> None:
    """The rogue key: once it sees the others' shares, the last holder answers with one that makes the sum its own."""
    made = Made(parties)
    rogue, *others = parties.names
    mine = np.stack([np.full(THRESHOLD.degree, 7, dtype=np.uint64) for _ in THRESHOLD.primes])
    for other in others:
        mine = minus(mine, made.residues(other))
    shown = made.shown()
    shown[rogue] = replace(shown[rogue], share=mine.astype("<u8").tobytes())
    with pytest.raises(IntegrityError) as refused:
        made.read(shown)
    assert code(refused) == "signature"  # the honest signature is over the share that was committed to
    made.shares[rogue] = replace(made.shares[rogue], share=shown[rogue].share)
    digest = share_commitment(shown[rogue].share, run=RUN, serial=1, name=rogue)
    with pytest.raises(IntegrityError):
        made.read({**shown, rogue: made.show(rogue, {rogue: digest})[1]})


def test_a_share_that_was_committed_to_and_is_not_well_formed_is_refused(parties: Parties) -> None:
    """With 2^125 in its noise it would carry the others' randomness through the flooding, and the sum would be exact."""
    made = Made(parties)
    rogue = parties.names[0]
    far = np.array([[pow(2, 125, prime)] for prime in THRESHOLD.primes], dtype=np.uint64)
    moved = plus(made.residues(rogue), far)
    a, s = prepared(common(RUN, 1)), np.frombuffer(made.shares[rogue].secret, dtype=np.int8).astype(np.int64)
    about = [b"cloister key share 1", RUN.encode(), b"1", rogue.encode(), b"0"]
    for proof in (made.shares[rogue].proof, proved(a, moved, -s, noise(), about)):
        made.shares[rogue] = replace(made.shares[rogue], share=moved.astype("<u8").tobytes(), proof=proof)
        made.agree()
        with pytest.raises(IntegrityError, match="without a proof") as refused:
            made.read(made.shown())
        assert code(refused) == "key-share"


def test_a_site_that_is_told_other_commitments_signs_another_key(parties: Parties) -> None:
    made, other = Made(parties), Made(parties, which=2)
    first, _, third = parties.names
    key_id, shown = made.show(first, {**made.commitments, third: other.commitments[third]})
    assert key_id != made.key_id
    with pytest.raises(IntegrityError) as refused:
        made.read({**made.shown(), first: shown})
    assert code(refused) == "signature"


def test_no_share_is_shown_where_the_own_commitment_is_not_among_them(parties: Parties) -> None:
    made = Made(parties)
    first, *others = parties.names
    for told in (
        {name: made.commitments[name] for name in others},
        {**made.commitments, first: made.commitments[others[0]]},
    ):
        with pytest.raises(IntegrityError) as refused:
            made.show(first, told)
        assert code(refused) == "key-share"


def test_a_share_counts_under_its_maker_s_own_name_in_its_own_session_only(parties: Parties) -> None:
    made = Made(parties)
    first, second, _ = parties.names
    shown = made.shown()
    with pytest.raises(IntegrityError) as refused:
        made.read({**shown, first: shown[second]})
    assert code(refused) == "key-share"
    with pytest.raises(IntegrityError) as refused:
        made.read({**shown, first: Made(Parties(3)).shown()[first]})
    assert code(refused) == "identity"
    server = parties.member(first, Role.SERVER)
    with pytest.raises(IntegrityError) as refused:
        made.read({**shown, first: replace(shown[first], certificate=server.certificate)})
    assert code(refused) == "identity"
    with pytest.raises(IntegrityError) as refused:
        JointKey.read(PublicShares.of(shown), parties.consortium, run=RUN, serial=2, key_id=made.key_id)
    assert code(refused) in ("signature", "key-share")
    share = made.shares[first].share
    same = {share_commitment(share, run=r, serial=s, name=n) for r in "ab" for s in (1, 2) for n in "xy"}
    assert len(same) == 8


def test_a_residue_that_is_not_below_its_prime_is_refused(parties: Parties) -> None:
    made = Made(parties)
    raw = made.residues(parties.names[0])
    raw[1, 5] = THRESHOLD.primes[1]
    made.shares[parties.names[0]] = replace(made.shares[parties.names[0]], share=raw.astype("<u8").tobytes())
    made.agree()
    with pytest.raises(IntegrityError, match="not below its modulus") as refused:
        made.read(made.shown())
    assert code(refused) == "key-share"


@pytest.mark.parametrize(
    ("change", "wrong"),
    [
        ({"serial": 2}, "ciphertext-key"),
        ({"run": "other"}, "ciphertext-key"),
        ({"scheme": "bfv"}, "ciphertext-key"),
        ({"key": "0" * 64}, "ciphertext-key"),
        ({"cohort": "4" * 64}, "ciphertext-cohort"),
        ({"cohort_size": 4, "largest": 10}, "ciphertext-cohort"),
    ],
)
def test_the_key_is_for_one_session_whose_sites_hold_it(
    parties: Parties, change: dict[str, object], wrong: str
) -> None:
    made = Made(parties)
    key = made.read(made.shown())
    given = {"scheme": "threshold-bfv", "size": 10, **change}
    key.check(parties.manifest(made.key_id, scheme="threshold-bfv", size=10))
    with pytest.raises(IntegrityError) as refused:
        key.check(parties.manifest(str(given.pop("key", made.key_id)), **given))
    assert code(refused) == wrong


def test_nothing_of_a_share_is_read_that_is_too_long_or_unsorted(parties: Parties) -> None:
    shown = Made(parties).shown()
    fields = PublicShares.of(shown).to_fields()
    names, shares = fields["names"], fields["shares"]
    assert isinstance(names, list)
    assert isinstance(shares, list)
    for wrong in (
        {"names": names[::-1]},
        {"names": [names[0], names[0], names[2]]},
        {"shares": shares[:2]},
        {"shares": [*shares[:2], b"short"]},
        {"proofs": [b"short"] * 3},
        {"signatures": [b""] * 3},
        {"more": 1},
    ):
        with pytest.raises(IntegrityError) as refused:
            PublicShares.from_fields({**fields, **wrong})
        assert code(refused) == "masking-message"
