"""The consortium's certificate authority. It is offline: it certifies keys, and takes no part in any run.

It never sees a member's private key: a member hands over its public key and gets a certificate (X.509, Ed25519) back.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.core.errors import IntegrityError
from cloister.privacy.identity.members import (
    Consortium,
    Identity,
    Member,
    Purpose,
    Role,
    bound,
    member_uri,
)

__all__ = ["ConsortiumAuthority"]

_CLOCKS_APART = timedelta(minutes=5)


class ConsortiumAuthority:
    """Certifies the members of one consortium.

    Args:
        name: the consortium's.
        key: the authority's private key.
        now: when its own certificate begins; the system's time if left out.
        days: how long its certificates hold.
    """

    def __init__(
        self, name: str, key: Ed25519PrivateKey, *, now: datetime | None = None, days: int = 3650
    ) -> None:
        self._name = _common_name(name)
        self._key = key
        self._begin = (now or datetime.now(UTC)) - _CLOCKS_APART
        self._days = days
        made = self._builder(key.public_key(), self._name, days=days)
        self.certificate = (
            made.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .sign(key, None)
            .public_bytes(Encoding.DER)
        )

    @classmethod
    def resume(cls, certificate: bytes, key: Ed25519PrivateKey) -> Self:
        """Return the authority that ``certificate`` (DER) is of.

        Raises:
            IntegrityError: (identity) it is no authority's, or another key's.
        """
        Consortium(certificate)
        parsed = x509.load_der_x509_certificate(certificate)
        if parsed.public_key() != key.public_key():
            raise IntegrityError(
                "the consortium's certificate is not of the key beside it",
                remedy="restore both from the same backup",
                code="identity",
            )
        made = cls.__new__(cls)
        made._name, made._key, made._begin = parsed.subject, key, parsed.not_valid_before_utc  # noqa: SLF001
        made._days = (parsed.not_valid_after_utc - parsed.not_valid_before_utc).days  # noqa: SLF001
        made.certificate = certificate
        return made

    def sign(self, purpose: Purpose, message: bytes) -> bytes:
        """Return the authority's own signature (64 bytes) of ``message``: `Consortium.check` accepts it."""
        return self._key.sign(bound(purpose, message))

    def certify(
        self,
        name: str,
        role: Role,
        public_key: bytes,
        *,
        days: int | None = None,
        now: datetime | None = None,
    ) -> bytes:
        """Return a certificate (DER) that says: this key is that of ``name`` as ``role``.

        Args:
            name: the member's; any text.
            role: what it may be.
            public_key: 32 bytes, Ed25519.
            days: how long it holds; as long as the authority's own if left out.
            now: when it begins; with the authority's own if left out.
        """
        key = Ed25519PublicKey.from_public_bytes(public_key)
        names = x509.SubjectAlternativeName([x509.UniformResourceIdentifier(member_uri(name, role))])
        return (
            self._builder(key, _common_name(name), days=days or self._days, now=now)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(names, critical=False)
            .sign(self._key, None)
            .public_bytes(Encoding.DER)
        )

    def identity(self, name: str, role: Role, key: Ed25519PrivateKey) -> Identity:
        """Return an identity whose key is at hand, as in a simulation or a test."""
        public = key.public_key().public_bytes_raw()
        member = Member(name=name, role=role, public_key=public)
        return Identity(member=member, certificate=self.certify(name, role, public), key=key)

    def consortium(self) -> Consortium:
        """Return what members know."""
        return Consortium(self.certificate)

    def _builder(
        self, key: Ed25519PublicKey, subject: x509.Name, *, days: int, now: datetime | None = None
    ) -> x509.CertificateBuilder:
        begin = self._begin if now is None else now - _CLOCKS_APART
        return (
            x509.CertificateBuilder()
            .subject_name(subject)
            .issuer_name(self._name)
            .public_key(key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(begin)
            .not_valid_after(begin + timedelta(days=days))
        )


def _common_name(name: str) -> x509.Name:
    """Return a name for readers: X.509 allows 64 bytes; the whole one stands in the alternative names."""
    short = name.encode()[:64].decode(errors="ignore")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, short)])
