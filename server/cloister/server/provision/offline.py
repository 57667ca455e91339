"""``authority-offline``: the consortium's certificate authority, for a medium that no network reaches.

::

    consortium.toml    the file that the consortium was made from, newest
    identity-ca.key    certifies identities, Ed25519                 (0600)
    consortium.der     its certificate: every member's root of trust
    tls-ca.key         certifies TLS keys, EC P-256                  (0600)
    tls-root.pem       its certificate
    issued.jsonl       all that was issued and taken back            (0600)

Formal guarantees:

- What is issued is in ``issued.jsonl``, on the disk, before it is returned.
- A key is certified for one member only, and never again once it was taken back.
- No certificate outlives its authority's own.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
the folder exists when one is made          ``UsageError``
a file is missing, changed, another's       ``IntegrityError`` (offline, kit-key, identity)
a certificate would outlive the authority   ``UsageError``
==========================================  =====================================
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)

from cloister.core.errors import IntegrityError, UsageError
from cloister.core.files import sync_folder, write_whole
from cloister.privacy.identity import ConsortiumAuthority, Purpose, Role
from cloister.privacy.identity.documents import sealed
from cloister.privacy.identity.keys import PublicKeys, private_folder
from cloister.privacy.identity.kit import read_secret
from cloister.privacy.identity.register import Entry, Register, Revoked, UserRole
from cloister.server.provision.certificates import CLOCKS_APART, TlsAuthority
from cloister.server.provision.consortium_file import ConsortiumFile, parse_consortium_file
from cloister.server.provision.issued import IssuedBook, IssuedLine, Reason, RevokedLine

__all__ = ["OFFLINE", "Lists", "Offline", "Papers", "make_offline", "open_offline"]

#: The folder's name.
OFFLINE = "authority-offline"
_FILE, _BOOK = "consortium.toml", "issued.jsonl"
_IDENTITY_KEY, _IDENTITY, _TLS_KEY, _TLS = "identity-ca.key", "consortium.der", "tls-ca.key", "tls-root.pem"
#: How long the authority's own certificates hold.
_DAYS = 3650
_REASONS: dict[Reason, x509.ReasonFlags] = {
    "unspecified": x509.ReasonFlags.unspecified,
    "key-compromise": x509.ReasonFlags.key_compromise,
    "affiliation-changed": x509.ReasonFlags.affiliation_changed,
    "superseded": x509.ReasonFlags.superseded,
    "left": x509.ReasonFlags.cessation_of_operation,
}


@dataclass(frozen=True, kw_only=True)
class Papers:
    """A member's certificates.

    Attributes:
        line: as it was written down.
        identity: DER.
        tls: PEM; none for a key authority.
    """

    line: IssuedLine
    identity: bytes
    tls: bytes | None


@dataclass(frozen=True, kw_only=True)
class Lists:
    """What everybody may have: who is a member, and what was taken back.

    Attributes:
        members: ``members.json``.
        revoked: ``revoked.json``.
        crl: ``crl.pem``, for nginx.
    """

    members: bytes
    revoked: bytes
    crl: bytes


@dataclass(frozen=True, kw_only=True)
class Offline:
    """The open authority.

    Attributes:
        file: the consortium as it is meant to be.
        identities: certifies identities.
        tls: certifies TLS keys.
        book: all that was issued.
    """

    file: ConsortiumFile
    identities: ConsortiumAuthority = field(repr=False)
    tls: TlsAuthority = field(repr=False)
    book: IssuedBook

    @property
    def certificate(self) -> bytes:
        """The consortium's certificate, DER."""
        return self.identities.certificate

    def issue(
        self,
        name: str,
        role: Role,
        keys: PublicKeys,
        *,
        by: str,
        roles: Sequence[UserRole] = (),
        hosts: Collection[str] = (),
        days: int | None = None,
    ) -> Papers:
        """Certify a member's keys.

        Args:
            name: the member's.
            role: what it is.
            keys: its public keys.
            by: ``kit`` if they were made here, ``request`` if by the member.
            roles: what a user may do.
            hosts: what the server answers to.
            days: how long; as ``consortium.toml`` says if left out.

        Raises:
            IntegrityError: (key-known, kit-key) a key is known already, or of another kind.
            UsageError: it would outlive the authority.
        """
        self.book.refuse_known_keys(role, name, keys)
        now = datetime.now(UTC).replace(microsecond=0)
        days = days or self.file.consortium.days
        end = now - CLOCKS_APART + timedelta(days=days)  # as the identity's authority counts
        own = min(self.tls.ends, x509.load_der_x509_certificate(self.certificate).not_valid_after_utc)
        if end > own:
            raise UsageError(
                f"a certificate of {days} days would outlive the authority's own, which ends {own:%Y-%m-%d}",
                remedy="make it shorter, or make a new consortium",
            )
        identity = self.identities.certify(name, role, keys.identity, days=days, now=now)
        tls = None if keys.tls is None else self.tls.certify(name, role, keys.tls, hosts=hosts, end=end)
        line = IssuedLine.model_validate(
            {
                "at": now.isoformat(),
                "role": role.value,
                "name": name,
                "roles": list(roles),
                "identity_serial": f"{x509.load_der_x509_certificate(identity).serial_number:x}",
                "identity": keys.identity.hex(),
                "tls_serial": None if tls is None else f"{tls.serial_number:x}",
                "tls_fingerprint": None if tls is None else tls.fingerprint(SHA256()).hex(),
                "tls": None if keys.tls is None else keys.tls.hex(),
                "node": None if keys.node is None else keys.node.decode(),
                "expires": end.isoformat(),
                "by": by,
            }
        )
        self.book.append(line)
        pem = None if tls is None else tls.public_bytes(Encoding.PEM)
        return Papers(line=line, identity=identity, tls=pem)

    def take_back(self, lines: Sequence[IssuedLine], reason: Reason, *, node: bool = True) -> RevokedLine:
        """Revoke all certificates of ``lines``, which are one member's; with ``node`` its node keys too."""
        first = lines[0]
        made = RevokedLine(
            at=datetime.now(UTC).replace(microsecond=0).isoformat(),
            role=first.role,
            name=first.name,
            reason=reason,
            identities=sorted({line.identity_serial for line in lines}),
            tls=sorted({line.tls_serial for line in lines if line.tls_serial}),
            nodes=sorted({line.node for line in lines if line.node}) if node else [],
        )
        self.book.append(made)
        return made

    def lists(self) -> Lists:
        """Return what everybody may have, signed now, with the number of what was done so far."""
        at = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        head = {
            "number": self.book.number,
            "consortium": hashlib.sha256(self.certificate).hexdigest(),
            "at": at,
        }
        gone = self.book.revoked()
        register = Register.model_validate(
            {**head, "members": [_entry(line) for line in self.book.current().values()]}
        )
        revoked = Revoked.model_validate(
            {
                **head,
                "identities": sorted({one for line in gone for one in line.identities}),
                "tls": sorted({one for line in gone for one in line.tls}),
                "nodes": sorted({one for line in gone for one in line.nodes}),
            }
        )
        serials = {
            int(one, 16): (datetime.fromisoformat(line.at), _REASONS[line.reason])
            for line in gone
            for one in line.tls
        }
        return Lists(
            members=sealed(register, lambda signed: self.identities.sign(Purpose.REGISTER, signed)),
            revoked=sealed(revoked, lambda signed: self.identities.sign(Purpose.REVOKED, signed)),
            crl=self.tls.revocations(serials, self.book.number),
        )


def make_offline(folder: Path, file: ConsortiumFile, raw: bytes) -> None:
    """Make the authority's folder.

    Args:
        folder: where; it must not exist.
        file: the consortium.
        raw: the bytes of ``consortium.toml``.

    Raises:
        UsageError: it exists.
        StorageError: it cannot be written.
    """
    if folder.exists() or folder.is_symlink():
        raise UsageError(f"'{folder}' exists", remedy="name another folder")
    key = Ed25519PrivateKey.generate()
    identities = ConsortiumAuthority(file.consortium.name, key, days=_DAYS)
    tls = TlsAuthority.new(file.consortium.name, days=_DAYS)
    making = folder.parent / f".{folder.name}.making"
    if making.is_dir():  # a command that was killed: nothing was issued from it
        shutil.rmtree(making)
    private_folder(making)
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    write_whole(making / _IDENTITY_KEY, pem, mode=0o600)
    write_whole(making / _IDENTITY, identities.certificate)
    write_whole(making / _TLS_KEY, tls.secret, mode=0o600)
    write_whole(making / _TLS, tls.root)
    write_whole(making / _FILE, raw, mode=0o600)
    write_whole(making / _BOOK, b"", mode=0o600)
    making.rename(folder)
    sync_folder(folder.parent)


@contextmanager
def open_offline(folder: Path, newer: tuple[ConsortiumFile, bytes] | None = None) -> Iterator[Offline]:
    """Open the authority's folder for one command.

    Args:
        folder: ``authority-offline``.
        newer: a newer ``consortium.toml`` and its bytes, put in place of the one that is there.

    Raises:
        UsageError: it is none, or the newer file is of another consortium.
        IntegrityError: (offline, offline-busy, kit-key, identity) it does not hold.
    """
    if not (folder / _BOOK).is_file():
        raise UsageError(
            f"'{folder}' is no consortium's authority",
            remedy="name the folder that 'cloister provision CONSORTIUM.toml --out DIR' made",
        )
    with IssuedBook(folder / _BOOK) as book:
        path = folder / _FILE
        file = parse_consortium_file(read_secret(path, most=1 << 20), path)
        if newer is not None:
            if newer[0].consortium.name != file.consortium.name:
                raise UsageError(
                    f"'{folder}' is of consortium '{file.consortium.name}', not '{newer[0].consortium.name}'",
                    remedy="name another folder with --out",
                )
            file = newer[0]
            write_whole(path, newer[1], mode=0o600)
        key = _identity_key(folder / _IDENTITY_KEY)
        yield Offline(
            file=file,
            identities=ConsortiumAuthority.resume(_bytes(folder / _IDENTITY), key),
            tls=TlsAuthority.load(_bytes(folder / _TLS), read_secret(folder / _TLS_KEY)),
            book=book,
        )


def _entry(line: IssuedLine) -> Entry:
    return Entry(
        name=line.name,
        role=line.role,
        roles=line.roles,
        identity=line.identity,
        node=line.node,
        tls=line.tls_fingerprint,
        expires=line.ends.strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _identity_key(path: Path) -> Ed25519PrivateKey:
    try:
        key = load_pem_private_key(read_secret(path), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise _unfit(f"'{path}' holds no Ed25519 key")
    return key


def _bytes(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(1 << 16)
    except OSError as error:
        raise _unfit(f"'{path}' cannot be read: {error.strerror}") from None


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(why, remedy="restore authority-offline from its backup", code="offline")
