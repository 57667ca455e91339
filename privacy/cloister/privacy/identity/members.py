"""Members of a consortium: how one proves who it is, and how another checks that.

Formal guarantees:

- `Consortium.member` returns a `Member` only for a certificate that the consortium's authority signed, for the wanted role, within its dates,
  and that was not taken back. Its name is the one that the authority wrote.
- `Member.check` accepts a signature only over the same purpose and the same bytes.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
not DER, longer than `LONGEST`              ``IntegrityError`` (identity)
signed by somebody else, or changed         ``IntegrityError`` (identity)
another role, not yet valid, or expired     ``IntegrityError`` (identity)
taken back by the authority                 ``IntegrityError`` (identity-revoked)
a signature that does not hold              ``IntegrityError`` (signature)
==========================================  =====================================
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from urllib.parse import quote, unquote

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

from cloister.core.errors import IntegrityError

__all__ = ["LONGEST", "Consortium", "Identity", "Member", "Purpose", "Role", "bound", "member_uri"]

#: Most bytes of a certificate that is looked at.
LONGEST = 4096
_SCHEME = "cloister"


class Role(StrEnum):
    """What a member is in the consortium; a certificate is good for one."""

    SITE = "site"
    SERVER = "server"
    AUTHORITY = "authority"
    USER = "user"


class Purpose(StrEnum):
    """What a signature is for; it is part of what is signed."""

    MANIFEST = "manifest"
    ADVERT = "advert"
    SURVIVORS = "survivors"
    CIPHERTEXT = "ciphertext"
    DECRYPTION = "decryption"
    KEY = "key"
    SHARE = "share"
    JOB = "job"
    LOG = "log"
    CALL = "call"
    ENROLMENT = "enrolment"
    GRANT = "grant"
    REGISTER = "register"
    REVOKED = "revoked"
    CERTIFICATE = "certificate"


@dataclass(frozen=True, kw_only=True)
class Member:
    """Somebody of the consortium, as its certificate says.

    Attributes:
        name: unique within the role.
        role: what it is.
        public_key: 32 bytes, Ed25519.
    """

    name: str
    role: Role
    public_key: bytes

    def check(self, purpose: Purpose, message: bytes, signature: bytes) -> None:
        """Check that this member signed ``message`` for ``purpose``.

        Raises:
            IntegrityError: (signature) it did not.
        """
        try:
            Ed25519PublicKey.from_public_bytes(self.public_key).verify(signature, bound(purpose, message))
        except (InvalidSignature, ValueError, TypeError):
            raise IntegrityError(
                f"a signature of {self.role} '{self.name}' ({purpose}) does not hold",
                remedy="find out who sent it: its sender does not hold that member's key",
                code="signature",
            ) from None


@dataclass(frozen=True, kw_only=True)
class Identity:
    """A member's own key and certificate.

    Attributes:
        member: who it is.
        certificate: DER.
        key: its private key; never printed.
    """

    member: Member
    certificate: bytes
    key: Ed25519PrivateKey

    @property
    def name(self) -> str:
        """Its name."""
        return self.member.name

    def sign(self, purpose: Purpose, message: bytes) -> bytes:
        """Return a signature (64 bytes) of ``message`` for ``purpose``."""
        return self.key.sign(bound(purpose, message))

    def __repr__(self) -> str:
        return f"Identity({self.member.role} {self.name!r})"


class Consortium:
    """What a member knows of its consortium.

    Args:
        certificate: the authority's own, DER.
        revoked: serial numbers of the certificates that it took back.

    Raises:
        IntegrityError: it is no Ed25519 authority's certificate.
    """

    def __init__(self, certificate: bytes, *, revoked: frozenset[int] = frozenset()) -> None:
        self._authority = _parsed(certificate)
        _key_of(self._authority)
        self._revoked = revoked
        self._known: dict[bytes, tuple[x509.Certificate, Member]] = {}
        try:
            self._authority.verify_directly_issued_by(self._authority)
            basic = self._authority.extensions.get_extension_for_class(x509.BasicConstraints).value
        except (InvalidSignature, x509.ExtensionNotFound, ValueError, TypeError):
            raise _unfit("it is not the certificate of an authority") from None
        if not basic.ca:
            raise _unfit("it is not the certificate of an authority")

    @property
    def certificate(self) -> bytes:
        """The authority's certificate, DER."""
        return self._authority.public_bytes(Encoding.DER)

    @property
    def fingerprint(self) -> str:
        """SHA-256 (hex) of the authority's certificate: what two people compare over the telephone."""
        return hashlib.sha256(self.certificate).hexdigest()

    @property
    def name(self) -> str:
        """The consortium's, for readers."""
        (attribute,) = self._authority.subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return str(attribute.value)

    def check(self, purpose: Purpose, message: bytes, signature: bytes) -> None:
        """Check that the authority itself signed ``message`` for ``purpose``.

        Raises:
            IntegrityError: (signature) it did not.
        """
        try:
            _key_of(self._authority).verify(signature, bound(purpose, message))
        except (InvalidSignature, ValueError, TypeError):
            raise IntegrityError(
                f"a signature of the consortium's authority ({purpose}) does not hold",
                remedy="find out who sent it: it is not of this consortium, or was changed on the way",
                code="signature",
            ) from None

    def member(self, certificate: bytes, *, role: Role, now: datetime | None = None) -> Member:
        """Return whom ``certificate`` (DER) is of.

        Args:
            certificate: what somebody showed.
            role: what it must be.
            now: the time; the system's if left out.

        Raises:
            IntegrityError: the consortium's authority does not vouch for it.
        """
        known = self._known.get(certificate)
        if known is None:
            known = self._read(certificate)
            if len(self._known) < 10_000:
                self._known[certificate] = known
        parsed, member = known
        if parsed.serial_number in self._revoked:
            raise IntegrityError(
                f"the certificate of {member.role} '{member.name}' was taken back",
                remedy="have the consortium's authority certify a new key",
                code="identity-revoked",
            )
        if member.role != role:
            raise _unfit(f"it is of {member.role} '{member.name}', and a {role}'s is needed")
        time = now or datetime.now(UTC)
        if not parsed.not_valid_before_utc <= time <= parsed.not_valid_after_utc:
            raise _unfit(
                f"that of {member.role} '{member.name}' is valid from {parsed.not_valid_before_utc:%Y-%m-%d} to "
                f"{parsed.not_valid_after_utc:%Y-%m-%d}, and it is {time:%Y-%m-%d} here"
            )
        return member

    def _read(self, certificate: bytes) -> tuple[x509.Certificate, Member]:
        parsed = _parsed(certificate)
        try:
            parsed.verify_directly_issued_by(self._authority)
        except (InvalidSignature, ValueError, TypeError):
            raise _unfit("this consortium's authority did not sign it") from None
        return parsed, _member_of(parsed)


def member_uri(name: str, role: Role) -> str:
    """Return how a certificate names a member: ``cloister:site:St.%20Mary``."""
    return f"{_SCHEME}:{role}:{quote(name, safe='')}"


def _member_of(parsed: x509.Certificate) -> Member:
    try:
        names = parsed.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        (uri,) = names.get_values_for_type(x509.UniformResourceIdentifier)
        _, role, name = uri.split(":")
        member = Member(
            name=unquote(name, errors="strict"),
            role=Role(role),
            public_key=_key_of(parsed).public_bytes_raw(),
        )
    except (x509.ExtensionNotFound, ValueError):
        raise _unfit("it names no member") from None
    if uri != member_uri(member.name, member.role) or not member.name:
        raise _unfit("it names no member")
    return member


def _parsed(certificate: bytes) -> x509.Certificate:
    if not isinstance(certificate, bytes) or len(certificate) > LONGEST:
        raise _unfit(f"it is not DER of at most {LONGEST} bytes")
    try:
        return x509.load_der_x509_certificate(certificate)
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion):
        raise _unfit("it cannot be read") from None


def _key_of(parsed: x509.Certificate) -> Ed25519PublicKey:
    try:
        key = parsed.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise _unfit("its key cannot be read") from None
    if not isinstance(key, Ed25519PublicKey):
        raise _unfit("its key is not Ed25519")
    return key


def bound(purpose: Purpose, message: bytes) -> bytes:
    """Return what is signed: never the beginning of a certificate, nor of what is signed for another purpose."""
    return f"cloister/{purpose}".encode() + b"\0" + message


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        f"a certificate was refused: {why}",
        remedy="use the certificate that the consortium's authority issued for this member and role",
        code="identity",
    )
