"""Enrolment: a member makes its keys itself, asks with ``request.json``, and is answered with ``grant.json``; no private key ever travels.

Formal guarantees:

- `read_request` returns a request only if its sender holds all the keys in it: the identity key signed the whole of it, the TLS key signed its
  signing request, and the node key signed which identity it goes with.
- `accept` puts a grant into a folder only if the consortium's authority signed it, for this member and for the very keys in this folder, and
  with lists that are no older than those that are there. A grant for another member, or for other keys, changes nothing.
- A folder that knows its consortium takes grants of no other. One that does not yet is told whose it is by ``fingerprint``.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
no request or grant, changed, too long      ``IntegrityError`` (document, signature)
a request with keys of another kind         ``IntegrityError`` (kit-key)
proof of a key is missing, or wrong         ``IntegrityError`` (enrolment)
a grant for other keys, another member      ``IntegrityError`` (grant)
of another consortium than expected         ``IntegrityError`` (grant)
with older lists than those there           ``IntegrityError`` (document-old)
==========================================  =====================================
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from pydantic import Field

from cloister.core.errors import IntegrityError
from cloister.core.files import write_whole
from cloister.core.settings import Address
from cloister.privacy.identity.documents import Content, encoded, read_document, sealed, unsealed
from cloister.privacy.identity.keys import MemberKeys, PublicKeys, node_public_key, tls_public_key
from cloister.privacy.identity.members import (
    Consortium,
    Identity,
    Member,
    Purpose,
    Role,
    bound,
    member_uri,
)
from cloister.privacy.identity.names import NAME
from cloister.privacy.identity.register import (
    check_newer,
    take_document,
    unseal_register,
    unseal_revoked,
)

__all__ = ["GRANT", "LONGEST_REQUEST", "REQUEST", "Grant", "Request", "accept", "new_request", "read_request"]

#: The files' names.
REQUEST, GRANT = "request.json", "grant.json"
#: Most bytes of a request that is read.
LONGEST_REQUEST = 1 << 14
_Pem = Annotated[str, Field(max_length=4096, pattern=r"^[\x20-\x7e\n]*$")]
_Base64 = Annotated[str, Field(max_length=8192)]
_ROLES = Literal["site", "server", "authority", "user"]


class _RequestContent(Content):
    version: Literal[1] = 1
    name: str = Field(pattern=NAME)
    role: Literal["site", "user"]
    at: str = Field(max_length=40)
    identity: str = Field(pattern=r"^[0-9a-f]{64}$")
    tls: _Pem
    node: _Pem | None
    node_proof: Annotated[str, Field(pattern=r"^[0-9a-f]{1,400}$")] | None


class Grant(Content):
    """What the authority answers, and what renews a kit.

    Attributes:
        version: of the format.
        consortium: its certificate, DER in Base64.
        name: the member's.
        role: the member's.
        address: ``host:port`` of the fleet.
        identity: the identity's certificate, DER in Base64.
        tls: the TLS certificate, PEM.
        root: whose TLS certificates are accepted, PEM.
        members: ``members.json`` as it is.
        revoked: ``revoked.json`` as it is.
    """

    version: Literal[1] = 1
    consortium: _Base64
    name: str = Field(pattern=NAME)
    role: _ROLES
    address: Annotated[Address, Field(max_length=300)]
    identity: _Base64
    tls: _Pem | None
    root: _Pem | None
    members: str
    revoked: str


@dataclass(frozen=True, kw_only=True)
class Request:
    """A request, checked.

    Attributes:
        name: how the member wants to be called.
        role: what it wants to be.
        keys: its public keys.
        fingerprint: SHA-256 (hex) of what was signed: what two people compare over the telephone.
    """

    name: str
    role: Role
    keys: PublicKeys
    fingerprint: str


def new_request(name: str, role: Role, keys: MemberKeys) -> tuple[bytes, str]:
    """Return ``request.json`` and its fingerprint.

    Args:
        name: how the member wants to be called.
        role: a site or a user.
        keys: its keys.
    """
    public = keys.public
    proof = None
    if keys.node is not None:
        proof = keys.node.sign(_node_claim(name, public.identity), ec.ECDSA(SHA256())).hex()
    content = _RequestContent.model_validate(
        {
            "name": name,
            "role": role.value,
            "at": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "identity": public.identity.hex(),
            "tls": keys.signing_request(name).decode(),
            "node": None if public.node is None else public.node.decode(),
            "node_proof": proof,
        }
    )
    signer = Identity(
        member=Member(name=name, role=role, public_key=public.identity), certificate=b"", key=keys.identity
    )
    raw = sealed(content, lambda signed: signer.sign(Purpose.ENROLMENT, signed))
    return raw, hashlib.sha256(encoded(content)).hexdigest()


def read_request(raw: bytes) -> Request:
    """Read ``request.json``.

    Raises:
        IntegrityError: (document, signature, enrolment, kit-key) see the table.
    """

    def check(content: _RequestContent, signed: bytes, signature: bytes) -> None:
        sender = Member(
            name=content.name, role=Role(content.role), public_key=bytes.fromhex(content.identity)
        )
        sender.check(Purpose.ENROLMENT, signed, signature)

    content = unsealed(raw, _RequestContent, check, what="the request to enrol", most=LONGEST_REQUEST)
    role, identity = Role(content.role), bytes.fromhex(content.identity)
    node = None if content.node is None else content.node.encode()
    if (role is Role.SITE) != (node is not None):
        raise _no_proof("a site has a node key, and nobody else")
    if node is not None:
        try:
            node_public_key(node).verify(
                bytes.fromhex(content.node_proof or ""),
                _node_claim(content.name, identity),
                ec.ECDSA(SHA256()),
            )
        except (InvalidSignature, ValueError):
            raise _no_proof("its sender does not hold the node key") from None
    return Request(
        name=content.name,
        role=role,
        keys=PublicKeys(identity=identity, tls=_tls_key(content.tls), node=node),
        fingerprint=hashlib.sha256(encoded(content)).hexdigest(),
    )


def read_grant(raw: bytes) -> tuple[Grant, Consortium]:
    """Read ``grant.json``, and return the consortium that signed it, whichever it is: the caller says if it is the right one.

    Raises:
        IntegrityError: (document, signature) see the table.
    """
    said: list[Consortium] = []

    def check(content: Grant, signed: bytes, signature: bytes) -> None:
        said.append(Consortium(_decoded(content.consortium)))
        said[0].check(Purpose.GRANT, signed, signature)

    return unsealed(raw, Grant, check, what="the grant"), said[0]


def is_grant(raw: bytes) -> bool:
    """Whether a document looks like a grant; what it is, its signature says."""
    try:
        return "root" in json.loads(raw)["content"]
    except (ValueError, TypeError, KeyError, RecursionError):
        return False


def accept(
    folder: Path, raw: bytes, *, role: Role | None = None, fingerprint: str | None = None
) -> tuple[Grant, Consortium]:
    """Put a grant into a member's folder.

    Args:
        folder: it has the member's keys, and may have a kit already.
        raw: ``grant.json``.
        role: what the member must be; any role if left out.
        fingerprint: of the consortium's certificate; not compared if left out.

    Returns:
        The grant, and the consortium that it is of.

    Raises:
        IntegrityError: (document, signature, grant, document-old, …) see the table; nothing was changed.
        StorageError: the disk refuses; the same grant again completes it.
    """
    grant, consortium = read_grant(raw)
    if fingerprint is not None and re.sub("[: ]", "", fingerprint).lower() != consortium.fingerprint:
        raise _other(
            f"its consortium has the fingerprint {consortium.fingerprint}, which is not the one you gave"
        )
    known = folder / "consortium.der"
    if known.is_file() and known.read_bytes() != consortium.certificate:
        raise _other(f"it is of another consortium ('{consortium.name}') than this folder")
    if role is not None and grant.role != role:
        raise _other(f"it is for {grant.role} '{grant.name}', and this is a {role}'s folder")
    identity = _check_keys(folder, grant, consortium)
    lists = (grant.members.encode(), grant.revoked.encode())
    for one in lists:
        check_newer(folder, one, consortium)
    write_whole(known, consortium.certificate)
    write_whole(folder / "identity.der", identity)
    if grant.tls is not None and grant.root is not None:
        write_whole(folder / "tls" / "own.pem", grant.tls)
        write_whole(folder / "tls" / "root.pem", grant.root)
    for one in lists:
        take_document(folder, one, consortium)
    return grant, consortium


def _check_keys(folder: Path, grant: Grant, consortium: Consortium) -> bytes:
    """Return the identity's certificate (DER) if all that is granted is for the keys in ``folder``, and was not taken back."""
    asked = folder / REQUEST
    if asked.is_file():
        wanted = read_request(read_document(asked, most=LONGEST_REQUEST))
        if (wanted.role.value, wanted.name) != (grant.role, grant.name):
            raise _other(
                f"it is for {grant.role} '{grant.name}', and {wanted.role} '{wanted.name}' asked here"
            )
    role, identity = Role(grant.role), _decoded(grant.identity)
    keys = MemberKeys.read(folder, role).public
    gone = unseal_revoked(grant.revoked.encode(), consortium).serials
    member = Consortium(consortium.certificate, revoked=gone).member(identity, role=role)
    if member.name != grant.name or member.public_key != keys.identity:
        raise _other("it certifies another identity key than the one here")
    _check_tls(grant, keys)
    entry = unseal_register(grant.members.encode(), consortium).of(role).get(grant.name)
    if entry is None or entry.identity != keys.identity.hex() or entry.node_key != keys.node:
        raise _other("the register in it does not have this member with these keys")
    return identity


def _check_tls(grant: Grant, keys: PublicKeys) -> None:
    if keys.tls is None:
        return
    try:
        own = x509.load_pem_x509_certificate((grant.tls or "").encode())
        root = x509.load_pem_x509_certificate((grant.root or "").encode())
        own.verify_directly_issued_by(root)
        names = own.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        uris = names.get_values_for_type(x509.UniformResourceIdentifier)
        spki = own.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, InvalidSignature, UnsupportedAlgorithm, x509.ExtensionNotFound):
        raise _other("its TLS certificate does not hold") from None
    if spki != keys.tls or uris != [member_uri(grant.name, Role(grant.role))]:
        raise _other("it certifies another TLS key than the one here")


def _tls_key(pem: str) -> bytes:
    try:
        asked = x509.load_pem_x509_csr(pem.encode())
        good = asked.is_signature_valid
        spki = asked.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise _no_proof("its TLS signing request cannot be read") from None
    if not good:
        raise _no_proof("its sender does not hold the TLS key")
    tls_public_key(spki)
    return spki


def _node_claim(name: str, identity: bytes) -> bytes:
    return bound(Purpose.ENROLMENT, b"node\0" + identity + name.encode())


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise _other("a certificate in it cannot be read") from None


def _no_proof(why: str) -> IntegrityError:
    return IntegrityError(
        f"the request to enrol was refused: {why}",
        remedy="have the member make it again: cloister site enrol, in a new folder",
        code="enrolment",
    )


def _other(why: str) -> IntegrityError:
    return IntegrityError(
        f"the grant was refused: {why}",
        remedy="take the grant that the consortium made for the request of this folder",
        code="grant",
    )
