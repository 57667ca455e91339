"""Members of a consortium: who is believed, and what a signature covers."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cloister.core.errors import IntegrityError
from cloister.privacy.identity import Consortium, ConsortiumAuthority, Identity, Purpose, Role


@pytest.fixture(scope="module")
def authority() -> ConsortiumAuthority:
    return ConsortiumAuthority("hospitals", Ed25519PrivateKey.generate())


@pytest.fixture(scope="module")
def site(authority: ConsortiumAuthority) -> Identity:
    return authority.identity("St. Mary/Łódź " + "x" * 90, Role.SITE, Ed25519PrivateKey.generate())


def test_a_member_is_who_the_authority_says(authority: ConsortiumAuthority, site: Identity) -> None:
    member = authority.consortium().member(site.certificate, role=Role.SITE)
    assert member == site.member
    member.check(Purpose.ADVERT, b"keys", site.sign(Purpose.ADVERT, b"keys"))


def test_another_authoritys_certificate_is_refused(site: Identity) -> None:
    other = ConsortiumAuthority("hospitals", Ed25519PrivateKey.generate()).consortium()
    with pytest.raises(IntegrityError, match="did not sign it"):
        other.member(site.certificate, role=Role.SITE)


def test_a_certificate_of_another_role_is_refused(authority: ConsortiumAuthority, site: Identity) -> None:
    with pytest.raises(IntegrityError, match="a server's is needed"):
        authority.consortium().member(site.certificate, role=Role.SERVER)


def test_a_certificate_outside_its_dates_is_refused(authority: ConsortiumAuthority, site: Identity) -> None:
    consortium, now = authority.consortium(), datetime.now(UTC)
    for time in (now - timedelta(days=1), now + timedelta(days=4000)):
        with pytest.raises(IntegrityError, match="is valid from"):
            consortium.member(site.certificate, role=Role.SITE, now=time)


def test_a_certificate_that_was_taken_back_is_refused(authority: ConsortiumAuthority, site: Identity) -> None:
    from cryptography import x509

    serial = x509.load_der_x509_certificate(site.certificate).serial_number
    consortium = Consortium(authority.certificate, revoked=frozenset({serial}))
    with pytest.raises(IntegrityError, match="taken back"):
        consortium.member(site.certificate, role=Role.SITE)


def test_no_flipped_byte_makes_a_certificate_anybody_elses(
    authority: ConsortiumAuthority, site: Identity
) -> None:
    consortium, noticed = authority.consortium(), 0
    for place in range(len(site.certificate)):
        changed = bytearray(site.certificate)
        changed[place] ^= 1
        try:
            assert consortium.member(bytes(changed), role=Role.SITE) == site.member
        except IntegrityError:
            noticed += 1
    assert noticed >= len(site.certificate) - 1  # DER's count of unused bits in the signature may say 1 for 0


def test_other_bytes_are_no_certificate(authority: ConsortiumAuthority, site: Identity) -> None:
    consortium = authority.consortium()
    for wrong in (b"", site.certificate[:-1], site.certificate + b"\0", b"\x30" * 5000):
        with pytest.raises(IntegrityError):
            consortium.member(wrong, role=Role.SITE)


def test_a_members_certificate_is_no_authoritys(site: Identity) -> None:
    with pytest.raises(IntegrityError, match="authority"):
        Consortium(site.certificate)


def test_a_signature_covers_its_purpose_and_every_byte(site: Identity) -> None:
    signature = site.sign(Purpose.ADVERT, b"keys")
    for purpose, message, made in (
        (Purpose.SURVIVORS, b"keys", signature),
        (Purpose.ADVERT, b"keyz", signature),
        (Purpose.ADVERT, b"keys", signature[:-1]),
        (Purpose.ADVERT, b"keys", bytes(64)),
    ):
        with pytest.raises(IntegrityError, match="does not hold"):
            site.member.check(purpose, message, made)


def test_a_key_is_never_printed(site: Identity) -> None:
    assert site.key.private_bytes_raw().hex() not in repr(site)
