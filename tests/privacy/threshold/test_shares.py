"""The joint key: shares are fixed before one is shown, and only those of the session's sites count."""

from dataclasses import replace

import numpy as np
import pytest

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.container import limits
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.identity import Role
from cloister.privacy.threshold import JointKey, KeyShare, PublicShares, ShareCommitments, agreed_shares
from cloister.privacy.threshold.shares import common, share_commitment, show_share
from joint import RUN
from parties import Parties

PRIMES = limits(THRESHOLD)[0]


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties(3)


class Made:
    """Shares whose residues are random: what is tested here takes no secret half."""

    def __init__(self, parties: Parties, seed: int = 1) -> None:
        generator = np.random.default_rng(seed)
        self.parties = parties
        self.raw = {
            name: np.stack([generator.integers(0, p, THRESHOLD.degree, np.uint64) for p in THRESHOLD.primes])
            for name in parties.names
        }
        self.commitments = {
            name: share_commitment(self.share(name), run=RUN, serial=1, name=name) for name in parties.names
        }
        self.key_id = agreed_shares(self.commitments, run=RUN, serial=1)

    def share(self, name: str) -> bytes:
        return self.raw[name].astype("<u8").tobytes()

    def shown(self) -> dict[str, KeyShare]:
        names = tuple(sorted(self.commitments))
        told = ShareCommitments(names=names, digests=tuple(self.commitments[name] for name in names))
        return {
            name: show_share(self.parties.sites[name], told, self.share(name), run=RUN, serial=1)[1]
            for name in self.parties.names
        }

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
    wanted = sum(residues.astype(object) for residues in made.raw.values()) % PRIMES.astype(object)
    assert np.array_equal(key.b.astype(object), wanted)
    assert np.array_equal(key.a, common(RUN, 1))
    assert key.names == tuple(parties.names)


def test_a_share_that_is_made_of_the_others_was_not_committed_to(parties: Parties) -> None:
    """The rogue key: once it sees the others' shares, the last holder answers with one that makes the sum its own."""
    made = Made(parties)
    rogue, *others = parties.names
    mine = np.stack([np.full(THRESHOLD.degree, 7, dtype=np.uint64) for _ in THRESHOLD.primes])
    for other in others:
        mine = (mine + (PRIMES - made.raw[other])) % PRIMES
    shown = made.shown()
    shown[rogue] = replace(shown[rogue], share=mine.astype("<u8").tobytes())
    with pytest.raises(IntegrityError) as refused:
        made.read(shown)
    assert code(refused) == "signature"  # the honest signature is over the share that was committed to
    made.raw[rogue] = mine
    digest = share_commitment(made.share(rogue), run=RUN, serial=1, name=rogue)
    signed = show_share(
        parties.sites[rogue],
        ShareCommitments(names=(rogue,), digests=(digest,)),
        made.share(rogue),
        run=RUN,
        serial=1,
    )[1]
    with pytest.raises(IntegrityError):
        made.read({**shown, rogue: signed})


def test_a_site_that_is_told_other_commitments_signs_another_key(parties: Parties) -> None:
    made, other = Made(parties), Made(parties, seed=2)
    first, _, third = parties.names
    told = {**made.commitments, third: other.commitments[third]}
    names = tuple(sorted(told))
    key_id, shown = show_share(
        parties.sites[first],
        ShareCommitments(names=names, digests=tuple(told[name] for name in names)),
        made.share(first),
        run=RUN,
        serial=1,
    )
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
        names = tuple(sorted(told))
        with pytest.raises(IntegrityError) as refused:
            show_share(
                parties.sites[first],
                ShareCommitments(names=names, digests=tuple(told[name] for name in names)),
                made.share(first),
                run=RUN,
                serial=1,
            )
        assert code(refused) == "key-share"


def test_a_share_counts_under_its_maker_s_own_name_in_its_own_session_only(parties: Parties) -> None:
    made = Made(parties)
    first, second, _ = parties.names
    shown = made.shown()
    with pytest.raises(IntegrityError) as refused:
        made.read({**shown, first: shown[second]})
    assert code(refused) == "key-share"
    stranger = Parties(3)
    with pytest.raises(IntegrityError) as refused:
        made.read({**shown, first: Made(stranger).shown()[first]})
    assert code(refused) == "identity"
    server = parties.member(first, Role.SERVER)
    with pytest.raises(IntegrityError) as refused:
        made.read({**shown, first: replace(shown[first], certificate=server.certificate)})
    assert code(refused) == "identity"
    with pytest.raises(IntegrityError) as refused:
        JointKey.read(PublicShares.of(shown), parties.consortium, run=RUN, serial=2, key_id=made.key_id)
    assert code(refused) in ("signature", "key-share")
    share = made.share(first)
    same = {share_commitment(share, run=r, serial=s, name=n) for r in "ab" for s in (1, 2) for n in "xy"}
    assert len(same) == 8


def test_a_residue_that_is_not_below_its_prime_is_refused(parties: Parties) -> None:
    made = Made(parties)
    made.raw[parties.names[0]][1, 5] = THRESHOLD.primes[1]
    made.commitments[parties.names[0]] = share_commitment(
        made.share(parties.names[0]), run=RUN, serial=1, name=parties.names[0]
    )
    made.key_id = agreed_shares(made.commitments, run=RUN, serial=1)
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
        {"signatures": [b""] * 3},
        {"more": 1},
    ):
        with pytest.raises(IntegrityError) as refused:
            PublicShares.from_fields({**fields, **wrong})
        assert code(refused) == "masking-message"
