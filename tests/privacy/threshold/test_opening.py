"""Opening a sum with all sites: what each of them refuses, and what a hostile server or site gets."""

from dataclasses import replace
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from cloister.core.errors import CloisterError, IntegrityError, PolicyError, SpecError
from cloister.core.spec import parse_federation
from cloister.privacy.homomorphic import Ciphertexts, Form, ServerSum, SumRequest, commitment, seal
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.homomorphic.summation import request_message
from cloister.privacy.identity import Purpose
from cloister.privacy.protection import predict
from cloister.privacy.threshold import Recounted, engine, fused
from cloister.privacy.threshold.ring import plus
from cloister.server.secure.held import HeldKeys
from joint import JointSession, needs_openfhe
from parties import Parties

pytestmark = [needs_openfhe, pytest.mark.slow]


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties(4)


@pytest.fixture
def session(parties: Parties) -> JointSession:
    return JointSession(parties)


@pytest.fixture(scope="module")
def sealed(parties: Parties) -> tuple[JointSession, SumRequest]:
    """A session in which all sites have sent their ciphertexts, and what the server asks them to open."""
    made = JointSession(parties)
    shares = made.shares()
    return made, made.request(made.manifest(), shares)


@pytest.fixture
def ready(sealed: tuple[JointSession, SumRequest]) -> tuple[JointSession, SumRequest]:
    """The same, with books that a test may write in."""
    return sealed[0].copied(), sealed[1]


def code(refused: pytest.ExceptionInfo[CloisterError]) -> str:
    return refused.value.code


@pytest.mark.parametrize("size", [2, 300, 8193])
def test_the_sum_is_exact_whatever_its_length(parties: Parties, size: int) -> None:
    session = JointSession(parties, changes={"size": size})
    shares = session.shares()
    request = session.request(session.manifest(), shares)
    assert np.array_equal(session.fuse(request, parties.names), session.plain())


def test_no_sum_is_opened_that_leaves_a_holder_out(ready: tuple[JointSession, SumRequest]) -> None:
    """Not even one that its holder has sealed: without its signature, the others could have agreed on other ciphertexts meanwhile."""
    session, request = ready
    names = session.parties.names
    with pytest.raises(CloisterError) as refused:
        session.open(names[0], replace(request, sealed=request.sealed[:3]))
    assert code(refused) == "decryption-floor"


def test_a_share_opens_one_sum_once(ready: tuple[JointSession, SumRequest]) -> None:
    session, request = ready
    first = session.parties.names[0]
    session.open(first, request)
    with pytest.raises(IntegrityError) as refused:
        session.open(first, request)
    assert code(refused) == "session-none"
    with session.books[first].turn() as turn:
        assert "secret" not in str(turn._record)


def test_a_request_that_is_refused_leaves_the_share_for_the_honest_one(
    ready: tuple[JointSession, SumRequest],
) -> None:
    session, request = ready
    first = session.parties.names[0]
    with pytest.raises(CloisterError):
        session.open(first, replace(request, sealed=request.sealed[:2]))
    session.open(first, request)


def signed(session: JointSession, request: SumRequest, digest: bytes) -> SumRequest:
    """Return a request for another sum, which the hostile server signs."""
    manifest = request.manifest.opened(session.parties.consortium)
    signature = session.parties.server.sign(Purpose.DECRYPTION, request_message(manifest, digest))
    return replace(request, digest=digest, signature=signature)


def test_one_site_s_ciphertext_alone_is_opened_by_nobody(ready: tuple[JointSession, SumRequest]) -> None:
    """The server asks for the sum of one container, or of one container three times."""
    session, request = ready
    one = request.sealed[0]
    alone = commitment(one.container)
    for sealed, wrong in (((one,), "decryption-floor"), ((one,) * 3, "ciphertext-twice")):
        asked = replace(signed(session, request, alone), sealed=sealed)
        with pytest.raises((IntegrityError, PolicyError)) as refused:
            session.open(session.parties.names[0], asked)
        assert code(refused) == wrong


def test_another_sum_than_that_of_the_containers_is_opened_by_nobody(
    ready: tuple[JointSession, SumRequest],
) -> None:
    session, request = ready
    asked = signed(session, request, commitment(request.sealed[0].container))
    with pytest.raises(IntegrityError) as refused:
        session.open(session.parties.names[0], asked)
    assert code(refused) == "decryption-sum"


def test_a_container_that_was_made_after_the_others_were_seen_is_opened_by_nobody(
    ready: tuple[JointSession, SumRequest],
) -> None:
    """A site that sides with the server sends minus the others' ciphertexts, and would leave one of them alone in the sum."""
    session, request = ready
    manifest = request.manifest.opened(session.parties.consortium)
    *others, liar = session.parties.names
    sums = ServerSum(request.manifest, session.parties.names, session.parties.consortium)
    minus = session.containers[others[1]]
    commitments = {**request.commitments, liar: commitment(minus)}
    for name, digest in commitments.items():
        sums.commit(name, digest)
    forged = seal(session.parties.sites[liar], manifest, minus, sums.agree())
    asked = replace(request, commitments=commitments, sealed=(*request.sealed[:3], forged))
    with pytest.raises(IntegrityError) as refused:
        session.open(others[0], asked)
    assert code(refused) == "signature"  # the honest sites signed with the commitments that there were


def test_a_share_is_for_the_manifest_that_its_site_encrypted_for(
    ready: tuple[JointSession, SumRequest],
) -> None:
    session, _ = ready
    other = session.manifest(round_number=2)  # of the same serial and key, signed by the server as well
    sums = ServerSum(other.signed(session.parties.server), session.parties.names, session.parties.consortium)
    for name in session.parties.names:
        sums.commit(name, commitment(session.containers[name]))
    for name in session.parties.names:
        sums.take(name, seal(session.parties.sites[name], other, session.containers[name], sums.agree()))
    with pytest.raises(IntegrityError) as refused:
        session.open(session.parties.names[0], sums.total(session.parties.server))
    assert code(refused) == "ciphertext-key"


def test_a_second_sum_of_a_round_over_other_sites_is_not_opened(parties: Parties) -> None:
    session = JointSession(parties)
    shares = session.shares()
    session.fuse(session.request(session.manifest(), shares), parties.names)
    again = JointSession(parties.fewer(3), serial=2, books=session.books)
    shares = again.shares()
    request = again.request(again.manifest(), shares)
    with pytest.raises(IntegrityError) as refused:
        again.open(parties.names[0], request)
    assert code(refused) == "round-unmasked"
    same = JointSession(parties, serial=3, books=session.books)
    shares = same.shares()
    request = same.request(same.manifest(), shares)
    assert np.array_equal(same.fuse(request, parties.names), same.plain())


def test_a_share_is_shown_once_and_of_an_older_session_none_is_made(session: JointSession) -> None:
    shares = session.shares()
    first = session.parties.names[0]
    with pytest.raises(IntegrityError) as refused:
        session.show(first, session.commitments)
    assert code(refused) == "key-share"
    session.request(session.manifest(), shares)
    for serial in (0, 1):
        with pytest.raises(IntegrityError) as refused:
            session.hold(first, serial)
        assert code(refused) in ("manifest-replayed", "session-step")


def test_a_site_encrypts_under_no_key_but_that_of_the_commitments_it_saw(session: JointSession) -> None:
    """The server hands a site another key, for which all commitments and signatures hold: of another session of the same sites."""
    session.shares()
    other = JointSession(session.parties, serial=1)
    foreign = other.shares()
    first = session.parties.names[0]
    for shares, commitments in ((foreign, session.commitments), (foreign, other.commitments)):
        fresh = JointSession(session.parties, books=dict(session.books))
        fresh.commitments = commitments
        with session.books[first].turn() as turn:
            turn._record["serial"] = 0
        with pytest.raises(IntegrityError) as refused:
            fresh.add(first, fresh.manifest(), shares)
        assert code(refused) in ("signature", "key-share", "ciphertext-key")


@pytest.mark.parametrize("wrong", ["short", "large", "garbage", "missing"])
def test_a_holder_that_lies_costs_the_sum_and_nothing_else(
    ready: tuple[JointSession, SumRequest], wrong: str
) -> None:
    session, request = ready
    found = {name: session.open(name, request) for name in session.parties.names}
    liar = session.parties.names[1]
    if wrong == "short":
        found[liar] = found[liar][:-8]
    elif wrong == "large":
        found[liar] = b"\xff" * len(found[liar])
    elif wrong == "garbage":
        generator = np.random.default_rng(1)
        rows = [generator.integers(0, prime, THRESHOLD.degree, np.uint64) for prime in THRESHOLD.primes]
        found[liar] = np.stack(rows).astype("<u8").tobytes()
    else:
        del found[liar]
    with pytest.raises(IntegrityError) as refused:
        fused(Recounted.of(request, session.parties.consortium), found, engine())
    assert code(refused) == {"short": "partial-length", "large": "partial-residue"}.get(
        wrong, "decryption-range"
    )


def test_the_secret_half_is_in_nothing_that_is_printed(session: JointSession) -> None:
    session.shares()
    name = session.parties.names[0]
    with session.books[name].turn() as turn:
        secret = turn.share()["secret"]
    from cloister.privacy.threshold import Held

    shown = repr(Held(manifest=b"m", secret=secret))
    assert "secret" not in shown
    assert len(shown) < 100


def test_nobody_helps_to_open_a_sum_with_a_malformed_ciphertext(session: JointSession) -> None:
    """With 2^130 added to its polynomial 1 it would carry the joint secret key through the flooding, and the sum would be exact."""
    shares = session.shares()
    manifest = session.manifest()
    names, form = session.parties.names, Form.of(manifest)
    for name in names:
        session.add(name, manifest, shares)
    liar, honest = names[3], session.containers[names[3]]
    (one,) = Ciphertexts.read(honest, form)
    shift = np.array([[pow(2, 130, prime)] for prime in THRESHOLD.primes], dtype=np.uint64)
    one[1] = plus(one[1], shift)
    session.containers[liar] = form.write([one]) + honest[-THRESHOLD.proof_bytes :]
    with pytest.raises(IntegrityError) as refused:  # the server looks, too
        HeldKeys.check(cast("HeldKeys", None), manifest, liar, session.containers[liar])
    assert code(refused) == "ciphertext-proof"
    sums = ServerSum(manifest.signed(session.parties.server), names, session.parties.consortium)
    for name in names:
        sums.commit(name, commitment(session.containers[name]))
    for name in names:
        sealed = seal(session.parties.sites[name], manifest, session.containers[name], sums.agree())
        sums.take(name, sealed)
    request = sums.total(session.parties.server)
    for name in names[:3]:
        with pytest.raises(IntegrityError) as refused:
            session.open(name, request)
        assert code(refused) == "ciphertext-proof"


def test_a_sum_whose_last_message_is_too_long_is_refused_before_anything_is_trained() -> None:
    document = {
        "federation": {"name": "f", "rounds": 2},
        "task": {"use": "heart"},
        "cohort": {"min_sites": 3},
        "aggregation": {"protection": "threshold-bfv"},
    }
    spec = parse_federation(document, base=Path()).spec
    assert predict(spec, 10, classes=2, cohort=4)["down"] < 1 << 23
    with pytest.raises(SpecError) as refused:
        predict(spec, 10_000_000, classes=2, cohort=4)
    assert refused.value.code == "protection-size"


def test_sums_of_more_bits_than_twice_of_which_is_exact_have_no_session(session: JointSession) -> None:
    """Twice a sum is opened, and must stay below half of the plain modulus; the largest of 26 bits are in every session here (`JointSession.add`)."""
    session.commitments = {name: bytes(32) for name in session.parties.names}
    assert 2 * (2**25 - 1) <= (THRESHOLD.plain_modulus - 1) // 2 < 2 * (2**26 - 1)
    assert Form.of(session.manifest(modulus_bits=26)).lanes == 1
    with pytest.raises(SpecError) as refused:
        Form.of(session.manifest(modulus_bits=27))
    assert refused.value.code == "protection-range"
