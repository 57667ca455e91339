"""The consortium's TLS authority: EC P-256, since neither browsers' nor gRPC's TLS takes Ed25519.

A member's certificate names it as ``cloister:ROLE:NAME`` among its alternative names and as ``CN=NAME, OU=ROLE``: nginx tells a site from a
user by the latter, and lets each only where it belongs. A member's certificate is good for a client's side of a connection alone, so that no
site can pose as the server; the server's is good for both, since it calls the job service and the key authority.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Mapping
from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.core.errors import IntegrityError
from cloister.privacy.identity.keys import tls_public_key
from cloister.privacy.identity.members import Role, member_uri

__all__ = ["CLOCKS_APART", "TlsAuthority"]

#: How far two machines' clocks may be apart before a new certificate is refused as not yet valid.
CLOCKS_APART = timedelta(minutes=5)


class TlsAuthority:
    """Certifies members' TLS keys, and lists the certificates that it took back.

    Args:
        certificate: its own.
        key: its private key.
    """

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def new(cls, consortium: str, *, days: int) -> Self:
        """Make one, whose own certificate holds ``days``."""
        key = ec.generate_private_key(ec.SECP256R1())
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{consortium[:40]} TLS authority")])
        begin = datetime.now(UTC) - CLOCKS_APART
        made = (
            _builder(name, name, key.public_key(), begin, begin + timedelta(days=days))
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(_usage(authority=True), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        )
        return cls(made.sign(key, SHA256()), key)

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> Self:
        """Read what `root` and `secret` returned.

        Raises:
            IntegrityError: (offline) they are none, or do not belong together.
        """
        try:
            parsed, secret = x509.load_pem_x509_certificate(certificate), load_pem_private_key(key, None)
        except (ValueError, TypeError):
            parsed, secret = None, None
        if (
            parsed is None
            or not isinstance(secret, ec.EllipticCurvePrivateKey)
            or parsed.public_key() != secret.public_key()
        ):
            raise IntegrityError(
                "the TLS authority's key and certificate cannot be read, or do not belong together",
                remedy="restore authority-offline from its backup",
                code="offline",
            )
        return cls(parsed, secret)

    @property
    def root(self) -> bytes:
        """Its certificate, PEM."""
        return self._certificate.public_bytes(Encoding.PEM)

    @property
    def secret(self) -> bytes:
        """Its private key, PEM."""
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    @property
    def ends(self) -> datetime:
        """When its own certificate ends."""
        return self._certificate.not_valid_after_utc

    def certify(
        self, name: str, role: Role, public_key: bytes, *, hosts: Collection[str] = (), end: datetime
    ) -> x509.Certificate:
        """Return a certificate for a member's TLS key.

        Args:
            name: the member's.
            role: what it is; a server gets a certificate for both sides of a connection.
            public_key: EC P-256, SubjectPublicKeyInfo in DER.
            hosts: names and addresses that the server answers to.
            end: when it ends.
        """
        key = tls_public_key(public_key)
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, str(role)),
                x509.NameAttribute(NameOID.COMMON_NAME, name),
            ]
        )
        uses = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role is Role.SERVER:
            uses.append(ExtendedKeyUsageOID.SERVER_AUTH)
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(member_uri(name, role))]
        names += [_alternative(host) for host in dict.fromkeys(hosts)]
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        built = (
            _builder(subject, self._certificate.subject, key, datetime.now(UTC) - CLOCKS_APART, end)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)
            .add_extension(identifier, critical=False)
        )
        return built.sign(self._key, SHA256())

    def revocations(self, revoked: Mapping[int, tuple[datetime, x509.ReasonFlags]], number: int) -> bytes:
        """Return the list of revoked certificates (X.509 CRL, PEM) as nginx takes it.

        It holds until the authority's own certificate ends: nginx refuses everybody once a list has ended, and what makes a list new here is
        that the operator puts it in place.

        Args:
            revoked: by serial number, when and why.
            number: grows with whatever the authority does.
        """
        now = datetime.now(UTC)
        built = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self._certificate.subject)
            .last_update(now - CLOCKS_APART)
            .next_update(self.ends)
            .add_extension(x509.CRLNumber(number), critical=False)
            .add_extension(
                x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key()), critical=False
            )
        )
        for serial, (at, reason) in sorted(revoked.items()):
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
            if reason is not x509.ReasonFlags.unspecified:
                one = one.add_extension(x509.CRLReason(reason), critical=False)
            built = built.add_revoked_certificate(one.build())
        return built.sign(self._key, SHA256()).public_bytes(Encoding.PEM)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, begin: datetime, end: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(end)
    )


def _usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=authority,
        crl_sign=authority,
        encipher_only=False,
        decipher_only=False,
    )


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)
