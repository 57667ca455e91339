"""The channel's certificates: EC P-256, since gRPC's TLS does not take Ed25519; identities and what they sign are another matter.

An authority's TLS folder is made in one go: a certificate authority of its own, one certificate for the key authority and one for
the server, each with its key. The key of that certificate authority is forgotten at once: nobody can make a third.

Formal guarantees:

- Key files are of mode 0600, and `Credentials.read` refuses one that others may read.
- Only who holds a certificate of this folder gets through the handshake (`grpc.ssl_server_credentials` with the client's required).

==========================================  =====================================
case                                        outcome
==========================================  =====================================
a key file that others may read             ``IntegrityError`` (authority-key)
a file is missing                           ``IntegrityError`` (authority-tls)
the folder exists when one is made          ``IntegrityError`` (authority-tls)
==========================================  =====================================
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from cloister.core.errors import IntegrityError, StorageError
from cloister.core.files import write_whole
from cloister.privacy.homomorphic.record import read_private

__all__ = ["AUTHORITY", "SERVER", "Credentials", "make_tls"]

#: What the two parties' files are called.
AUTHORITY, SERVER = "authority", "server"
_ROOT = "root.pem"
_LONGEST = 1 << 16
_CLOCKS_APART = timedelta(minutes=5)


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """One party's side of the channel, all PEM.

    Attributes:
        root: whose certificates are accepted.
        certificate: its own.
        key: its private key; never printed.
    """

    root: bytes
    certificate: bytes
    key: bytes = field(repr=False)

    @classmethod
    def read(cls, folder: Path, party: str) -> Self:
        """Read what `make_tls` wrote for ``party``.

        Raises:
            IntegrityError: (authority-tls, authority-key) a file is missing, or others may read the key.
        """
        try:
            root, certificate = (folder / _ROOT).read_bytes(), (folder / f"{party}.pem").read_bytes()
        except OSError as error:
            raise _unfit(f"'{folder}' cannot be read: {error.strerror}") from None
        key = read_private(folder / f"{party}.key", most=_LONGEST)
        return cls(root=root, certificate=certificate, key=key)


def make_tls(folder: Path, host: str, *, days: int = 825) -> None:
    """Make ``folder`` with the certificates of one authority, reached as ``host`` (a name or an address), and one server.

    Raises:
        IntegrityError: (authority-tls) it exists.
        StorageError: it cannot be written.
    """
    try:
        folder.mkdir(mode=0o700)
    except FileExistsError:
        raise _unfit(f"'{folder}' exists") from None
    except OSError as error:
        raise StorageError.of(folder, error) from None
    root_key = ec.generate_private_key(ec.SECP256R1())
    root_name = _name("cloister key authority")
    root = (
        _builder(root_name, root_name, root_key.public_key(), days)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(root_key, SHA256())
    )
    write_whole(folder / _ROOT, root.public_bytes(Encoding.PEM))
    for party, use in (
        (AUTHORITY, ExtendedKeyUsageOID.SERVER_AUTH),
        (SERVER, ExtendedKeyUsageOID.CLIENT_AUTH),
    ):
        key = ec.generate_private_key(ec.SECP256R1())
        built = (
            _builder(_name(party), root_name, key.public_key(), days)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(x509.ExtendedKeyUsage([use]), critical=False)
        )
        if party == AUTHORITY:
            built = built.add_extension(x509.SubjectAlternativeName([_alternative(host)]), critical=False)
        write_whole(folder / f"{party}.pem", built.sign(root_key, SHA256()).public_bytes(Encoding.PEM))
        pem = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        write_whole(folder / f"{party}.key", pem, mode=0o600)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, days: int
) -> x509.CertificateBuilder:
    begin = datetime.now(UTC) - _CLOCKS_APART
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begin)
        .not_valid_after(begin + timedelta(days=days))
    )


def _name(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def _alternative(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        f"the certificates of the channel to the key authority: {why}",
        remedy="make a folder of them with: cloister authority tls",
        code="authority-tls",
    )
