"""Opening a sum with all sites: what each of them refuses, and what a hostile server or site gets."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cloister.core.errors import CloisterError, IntegrityError, PolicyError, SpecError
from cloister.core.spec import parse_federation
from cloister.privacy.homomorphic import Ciphertexts, Form, ServerSum, SumRequest, commitment, seal
from cloister.privacy.homomorphic.container import limits
from cloister.privacy.homomorphic.lanes import Integers
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.homomorphic.summation import request_message
from cloister.privacy.identity import Purpose
from cloister.privacy.manifest import Manifest
from cloister.privacy.protection import predict
from cloister.privacy.threshold import JointCodec, Recounted, engine, fused
from joint import JointSession, needs_openfhe
from parties import Parties

pytestmark = needs_openfhe


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties(4)


@pytest.fixture
def session(parties: Parties) -> JointSession:
    return JointSession(parties)


def code(refused: pytest.ExceptionInfo[CloisterError]) -> str:
    return refused.value.code


@pytest.mark.parametrize("size", [1, 300, 8192, 8193])
def test_the_sum_is_exact_whatever_its_length(parties: Parties, size: int) -> None:
    session = JointSession(parties, changes={"size": size} if size > 1 else {"size": 2})
    shares = session.shares()
    request = session.request(session.manifest(), shares)
    assert np.array_equal(session.fuse(request, parties.names), session.plain())


def test_no_sum_is_opened_that_leaves_a_holder_out(session: JointSession) -> None:
    """Not even one that its holder has sealed: without its signature, the others could have agreed on other ciphertexts meanwhile."""
    names, shares = session.parties.names, session.shares()
    request = session.request(session.manifest(), shares)
    with pytest.raises(CloisterError) as refused:
        session.open(names[0], replace(request, sealed=request.sealed[:3]))
    assert code(refused) == "decryption-floor"


def test_a_share_opens_one_sum_once(session: JointSession) -> None:
    shares = session.shares()
    request = session.request(session.manifest(), shares)
    first = session.parties.names[0]
    session.open(first, request)
    with pytest.raises(IntegrityError) as refused:
        session.open(first, request)
    assert code(refused) == "session-none"
    with session.books[first].turn() as turn:
        assert "secret" not in str(turn._record)


def test_a_request_that_is_refused_leaves_the_share_for_the_honest_one(session: JointSession) -> None:
    shares = session.shares()
    request = session.request(session.manifest(), shares)
    first = session.parties.names[0]
    with pytest.raises(CloisterError):
        session.open(first, replace(request, sealed=request.sealed[:2]))
    session.open(first, request)


def signed(session: JointSession, request: SumRequest, digest: bytes) -> SumRequest:
    """Return a request for another sum, which the hostile server signs."""
    manifest = request.manifest.opened(session.parties.consortium)
    signature = session.parties.server.sign(Purpose.DECRYPTION, request_message(manifest, digest))
    return replace(request, digest=digest, signature=signature)


def test_one_site_s_ciphertext_alone_is_opened_by_nobody(session: JointSession) -> None:
    """The server asks for the sum of one container, or of one container three times."""
    shares = session.shares()
    request = session.request(session.manifest(), shares)
    one = request.sealed[0]
    alone = commitment(one.container)
    for sealed, wrong in (((one,), "decryption-floor"), ((one,) * 3, "ciphertext-twice")):
        asked = replace(signed(session, request, alone), sealed=sealed)
        with pytest.raises((IntegrityError, PolicyError)) as refused:
            session.open(session.parties.names[0], asked)
        assert code(refused) == wrong


def test_another_sum_than_that_of_the_containers_is_opened_by_nobody(session: JointSession) -> None:
    shares = session.shares()
    request = session.request(session.manifest(), shares)
    asked = signed(session, request, commitment(request.sealed[0].container))
    with pytest.raises(IntegrityError) as refused:
        session.open(session.parties.names[0], asked)
    assert code(refused) == "decryption-sum"


def test_a_container_that_was_made_after_the_others_were_seen_is_opened_by_nobody(
    session: JointSession,
) -> None:
    """A site that sides with the server sends minus the others' ciphertexts, and would leave one of them alone in the sum."""
    shares = session.shares()
    request = session.request(session.manifest(), shares)
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


def test_a_share_is_for_the_manifest_that_its_site_encrypted_for(session: JointSession) -> None:
    shares = session.shares()
    session.request(session.manifest(), shares)
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
def test_a_holder_that_lies_costs_the_sum_and_nothing_else(session: JointSession, wrong: str) -> None:
    shares = session.shares()
    request = session.request(session.manifest(), shares)
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


def test_what_one_malformed_ciphertext_does_is_as_the_documentation_says(session: JointSession) -> None:
    """The stated limit: it passes unseen, and the unrounded sum tells the joint key. It is why `colluders` refuses this protection."""
    shares = session.shares()
    manifest = session.manifest()
    liar, form = session.parties.names[3], Form.of(manifest)
    encrypt = JointCodec.encrypt

    def malformed(self: JointCodec, values: Integers, asked: Manifest) -> bytes:
        (one,) = Ciphertexts.read(encrypt(self, values, asked), form)
        primes = limits(THRESHOLD)[0]
        shift = np.array([[pow(2, 130, prime)] for prime in THRESHOLD.primes], dtype=np.uint64)
        one[1] = (one[1] + shift) % primes
        return form.write([one])

    with pytest.MonkeyPatch.context() as patch:
        for name in session.parties.names:
            session.add(name, manifest, shares)
            if name == session.parties.names[2]:
                patch.setattr(JointCodec, "encrypt", malformed)
    sums = ServerSum(
        manifest.signed(session.parties.server), session.parties.names, session.parties.consortium
    )
    for name in session.parties.names:
        sums.commit(name, commitment(session.containers[name]))
    for name in session.parties.names:
        sums.take(name, seal(session.parties.sites[name], manifest, session.containers[name], sums.agree()))
    request = sums.total(session.parties.server)
    assert np.array_equal(session.fuse(request, session.parties.names), session.plain())
    assert liar in request.commitments


@pytest.mark.parametrize(
    ("settings", "code_"),
    [
        (["privacy.colluders=1"], "protection-colluders"),
        ([], "protection-size"),
    ],
)
def test_what_it_does_not_bear_is_refused_before_anything_is_trained(settings: list[str], code_: str) -> None:
    document = {
        "federation": {"name": "f", "rounds": 2},
        "task": {"use": "heart"},
        "cohort": {"min_sites": 3, "sites": 4, "partition": {"by": "iid"}},
        "aggregation": {"protection": "threshold-bfv"},
        "privacy": {"unit": "site-distributed", "noise_multiplier": 1.0, "delta": 1e-3, "clip": 1.0},
    }
    spec = parse_federation(document, base=Path(), overrides=settings).spec
    with pytest.raises(SpecError) as refused:
        predict(spec, 10 if settings else 10_000_000, classes=2, cohort=4)
    assert refused.value.code == code_
