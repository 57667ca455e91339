"""The server's side of a session."""

from collections.abc import Iterator

import numpy as np
import pytest

from cloister.core.errors import IntegrityError, PeersMissing
from cloister.privacy.homomorphic import KeyAuthority, ServerSum, commitment, seal
from cloister.privacy.identity import Role
from parties import Parties, Session


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties()


@pytest.fixture(scope="module")
def keeper(parties: Parties) -> Iterator[KeyAuthority]:
    made = KeyAuthority.in_memory(parties.keeper, parties.consortium)
    yield made
    made.close()


@pytest.fixture
def session(parties: Parties, keeper: KeyAuthority) -> Session:
    made = parties.session(keeper, size=10)
    made.encrypt()
    return made


def code(refused: pytest.ExceptionInfo[IntegrityError]) -> str:
    return refused.value.code


def test_a_site_that_was_not_asked_is_refused(session: Session) -> None:
    with pytest.raises(IntegrityError) as refused:
        session.sums.commit("stranger", bytes(32))
    assert code(refused) == "ciphertext-cohort"


@pytest.mark.parametrize("digest", [b"", bytes(31), bytes(33), "0" * 32, None])
def test_a_commitment_is_32_bytes(session: Session, digest: object) -> None:
    with pytest.raises(IntegrityError) as refused:
        session.sums.commit("site-0", digest)  # type: ignore[arg-type]
    assert code(refused) == "ciphertext-commitment"


def test_a_second_commitment_is_refused(session: Session) -> None:
    session.sums.commit("site-0", bytes(32))
    with pytest.raises(IntegrityError) as refused:
        session.sums.commit("site-0", bytes(32))
    assert code(refused) == "ciphertext-twice"


def test_a_commitment_after_the_agreement_is_refused(session: Session) -> None:
    session.commit()
    with pytest.raises(IntegrityError) as refused:
        session.sums.commit(session.parties.names[3], bytes(32))
    assert code(refused) == "ciphertext-twice"


def test_fewer_commitments_than_the_cohort_s_are_not_agreed_on(session: Session) -> None:
    for name in session.parties.names[:3]:
        session.sums.commit(name, commitment(session.containers[name]))
    with pytest.raises(PeersMissing):
        session.sums.agree()


def test_a_container_before_the_agreement_is_refused(session: Session) -> None:
    sealed = seal(session.parties.sites["site-0"], session.manifest, session.containers["site-0"], bytes(32))
    with pytest.raises(IntegrityError) as refused:
        session.sums.take("site-0", sealed)
    assert code(refused) == "ciphertext-commitment"


def test_a_second_container_of_a_site_is_refused(session: Session) -> None:
    session.commit()
    session.reveal("site-0")
    with pytest.raises(IntegrityError) as refused:
        session.reveal("site-0")
    assert code(refused) == "ciphertext-twice"


def test_a_site_cannot_send_in_another_s_name(session: Session) -> None:
    together = session.commit()
    sealed = seal(session.parties.sites["site-1"], session.manifest, session.containers["site-1"], together)
    with pytest.raises(IntegrityError) as refused:
        session.sums.take("site-0", sealed)
    assert code(refused) == "ciphertext-cohort"
    assert session.sums.names == ()


def test_a_container_that_was_signed_for_other_commitments_is_refused(session: Session) -> None:
    session.commit()
    sealed = seal(session.parties.sites["site-0"], session.manifest, session.containers["site-0"], bytes(32))
    with pytest.raises(IntegrityError) as refused:
        session.sums.take("site-0", sealed)
    assert code(refused) == "signature"


def test_another_container_than_was_committed_to_is_refused(session: Session) -> None:
    together = session.commit()
    other = session.codec.encrypt(np.zeros(10, dtype=np.int64), session.manifest)
    with pytest.raises(IntegrityError) as refused:
        session.sums.take("site-0", seal(session.parties.sites["site-0"], session.manifest, other, together))
    assert code(refused) == "ciphertext-commitment"


@pytest.mark.parametrize("role", [Role.SERVER, Role.AUTHORITY])
def test_only_a_site_s_certificate_counts(session: Session, role: Role) -> None:
    together = session.commit()
    identity = session.parties.member("site-0", role)
    with pytest.raises(IntegrityError) as refused:
        session.sums.take("site-0", seal(identity, session.manifest, session.containers["site-0"], together))
    assert code(refused) == "identity"


def test_a_refused_container_leaves_the_sum_as_it_was(session: Session) -> None:
    session.commit()
    session.reveal()
    before = session.sums.total(session.parties.server)
    with pytest.raises(IntegrityError):
        session.reveal("site-2")
    assert session.sums.total(session.parties.server).digest == before.digest


def test_a_sum_of_fewer_than_the_cohort_is_not_asked_for(session: Session) -> None:
    session.commit()
    session.reveal("site-0", "site-1", "site-2")
    with pytest.raises(PeersMissing):
        session.sums.total(session.parties.server)


@pytest.mark.parametrize("names", [[], ["site-0"], ["site-0", "site-1", "site-2", "x"], ["site-0"] * 4])
def test_names_that_are_not_the_manifest_s_cohort_are_refused(session: Session, names: list[str]) -> None:
    signed = session.manifest.signed(session.parties.server)
    with pytest.raises(IntegrityError) as refused:
        ServerSum(signed, names, session.parties.consortium)
    assert code(refused) == "ciphertext-cohort"
