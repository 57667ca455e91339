"""The attacker's side of an encrypted session: commitments, the key, signed containers, and what of them opens without the secret key.

Formal guarantees:

- A site counts as in the sum exactly if its commitment came before the server closed them, and its first container, whose SHA-256 that is, is
  signed by it for this session and all of these commitments, and is of the session's form: what `ServerSum` takes.
- A container counts as *open* exactly if one of its ciphertexts has a polynomial 1 that is zero: polynomial 0 then is the message itself, scaled,
  and takes no key to read. Any other takes the secret key, or an answer to RLWE.

- Under a joint key (``threshold-bfv``) a sum counts as opened only if every holder of the key sent its partial decryption; that each holder signed
  its share together with all commitments to shares, of which the manifest names the digest, is checked by `joint`.

What was in the ciphertexts, and so the sum, is not in a transcript: the server gets it from the key authority, or from all sites together.

======================================================  ====================================================================
case                                                    outcome
======================================================  ====================================================================
containers that were not kept                           their digests and signatures are checked, not their residues
a manifest that names no key, or sums that do not fit   ``unsigned`` says so; no container is allowed for
the session ended early                                 ``why`` says where
======================================================  ====================================================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from cloister.core import protocol
from cloister.core.errors import CloisterError, IntegrityError
from cloister.privacy.homomorphic import Ciphertexts, Form, Parameters, PublicKey, agreed
from cloister.privacy.homomorphic.parameters import SCHEMES, THRESHOLD
from cloister.privacy.homomorphic.sealed import signer
from cloister.privacy.homomorphic.summation import check_cohort
from cloister.privacy.identity import Consortium
from cloister.privacy.threshold.shares import check_formed
from cloister.server.audit.transcript.examined import Examined, Scheme, begun
from cloister.server.audit.transcript.joint import HOLDERS, check_joint_key, check_opened, unopened
from cloister.server.audit.transcript.reading import Entry, Received, Record
from cloister.server.audit.transcript.sessions import Session

__all__ = ["ENCRYPTED"]

_HASH = 32
_HOLDER = "the key authority"
#: Most bits of a modulus for N = 4096 and 128 bits of security against classical computers, by the Homomorphic Encryption Standard (2018).
_CLASSICAL = {4096: 109, 8192: 218}


def _examine(session: Session, record: Record, authority: bytes) -> Examined:
    consortium, found = begun(session, authority)
    joint = session.manifest.scheme == THRESHOLD.scheme
    (check_joint_key if joint else _key)(session, consortium, found)
    commitments = _commitments(session, found)
    _check_closed(session, commitments, found)
    held: dict[str, list[tuple[Received, Entry]]] = defaultdict(list)
    for reply in session.of(session.vector_step):
        for entry in reply.entries:
            if session.allows(entry):
                held[reply.site].append((reply, entry))
    found.twice = tuple(sorted(site for site, several in held.items() if len(several) > 1))
    sums = []
    for site, several in held.items():
        reply, entry = several[0]
        try:
            ciphertexts = _ciphertexts(session, record, site, entry)
            found.left[site] = 0 if ciphertexts is not None and _opens(ciphertexts) else 1
            _check_signed(session, reply, entry, commitments=commitments, consortium=consortium)
        except CloisterError as error:
            found.left.setdefault(site, 1)
            found.refused.append((protocol.SEAL, site, error.code))
            found.unsigned.append(f"the ciphertexts of '{site}': {error.message}")
        else:
            sums.append(site)
    _close(session, sums, found)
    if joint:
        check_opened(session, found)
    return found


def _key(session: Session, consortium: Consortium, found: Examined) -> None:
    """Check that one key was handed out, that a key authority signed it, and that it is this session's."""
    if len(session.keys) != 1:
        found.unsigned.append(
            f"the server handed out {len(session.keys)} public keys to all sites, and not one"
        )
    for data in session.keys:
        try:
            key = PublicKey.read(data, consortium)
            key.check(session.manifest)
        except CloisterError as error:
            found.unsigned.append(f"the session's key: {error.message}")
        else:
            found.public[_HOLDER] = (key.context,)


def _commitments(session: Session, found: Examined) -> dict[str, bytes]:
    """Return the commitments that came before the server closed them, of the sites that it then asked for ciphertexts."""
    came: dict[str, list[bytes]] = defaultdict(list)
    for reply in session.of(protocol.ADD):
        digest = reply.values(protocol.SECURE).get(protocol.COMMITMENT)
        if isinstance(digest, bytes) and len(digest) == _HASH:
            came[reply.site].append(digest)
            if session.closed and reply.seq > session.closed:
                found.unsigned.append(
                    f"the commitment of '{reply.site}' came after the server had closed them"
                )
    found.public |= {site: tuple(digests) for site, digests in came.items()}
    return {site: digests[0] for site, digests in came.items() if site in session.survivors}


def _check_closed(session: Session, commitments: Mapping[str, bytes], found: Examined) -> None:
    """Check that the server asked one set of sites for ciphertexts, with one digest over the commitments that came before."""
    if len(session.named) > 1:
        found.unsigned.append(
            f"the server asked {len(session.named)} different sets of sites for ciphertexts"
        )
    if session.named and session.together != [agreed(session.manifest, commitments)]:
        found.unsigned.append(
            "the server did not send all sites one digest over the commitments that came before"
        )


def _ciphertexts(session: Session, record: Record, site: str, entry: Entry) -> Ciphertexts | None:
    """Return what a container holds, if it was kept.

    Raises:
        IntegrityError: it is not of the session's form, or lacks a proof that it is well formed where one must be there.
    """
    data, manifest = record.data(entry), session.manifest
    if data is None:
        return None
    made = Ciphertexts.read(data, Form.of(manifest))
    if manifest.scheme == THRESHOLD.scheme:
        check_formed(made, run=manifest.run, serial=manifest.serial, name=site)
    return made


def _opens(ciphertexts: Ciphertexts) -> bool:
    return any(not one[1].any() for one in ciphertexts)


def _check_signed(
    session: Session,
    reply: Received,
    entry: Entry,
    *,
    commitments: Mapping[str, bytes],
    consortium: Consortium,
) -> None:
    """Check a container's signature, over its hash as the transcript has it.

    Raises:
        IntegrityError: the site did not sign it for this session, or had not committed to it.
    """
    values = reply.values(protocol.SECURE)
    signature, certificate = values.get("signature"), values.get("certificate")
    name = signer(
        bytes.fromhex(entry.sha256),
        signature if isinstance(signature, bytes) else b"",
        certificate if isinstance(certificate, bytes) else b"",
        manifest=session.manifest,
        commitments=commitments,
        consortium=consortium,
    )
    if name != reply.site:
        raise IntegrityError(f"they came with the certificate of '{name}'", code="ciphertext-cohort")


def _close(session: Session, sums: list[str], found: Examined) -> None:
    """Say whose sum the server could ask the authority for."""
    found.survivors = tuple(sorted(sums))
    try:
        check_cohort(session.manifest, session.names)
    except IntegrityError as error:
        found.why = error.message
        return
    if len(sums) < len(session.names):
        found.why = f"{len(sums)} of {len(session.names)} sites sent ciphertexts, and a key opens the sum of all or none"
        return
    if session.manifest.scheme == THRESHOLD.scheme and (why := unopened(session)):
        found.why = why
        return
    found.groups = (found.survivors,)
    found.why = f"{_holder(session.manifest.scheme)} alone can open the sum"


def _holder(scheme: str) -> str:
    return HOLDERS if scheme == THRESHOLD.scheme else _HOLDER


def _scheme(parameters: Parameters) -> Scheme:
    bits, most = sum(parameters.coefficient_bits), _CLASSICAL[parameters.degree]
    level = (
        f"just the {most} bits that the Homomorphic Encryption Standard (2018) and SEAL admit for 128-bit security against classical computers, "
        "with nothing to spare: by sharper estimates made since, and against quantum computers, it is below 128 bits"
    )
    rests = f"RLWE with N = {parameters.degree} and a modulus of {bits} bits, " + (
        level if bits == most else f"where {most} bits are 128-bit security"
    )
    holder = _holder(parameters.scheme)
    key = (
        "each session's key is of shares that its sites signed, each with all commitments to them"
        if holder == HOLDERS
        else "each session's key is signed by a key authority"
    )
    return Scheme(
        examine=_examine,
        signed=f"{key}, and each container by its site, for its session and one set of commitments, "
        "of which its hash is one",
        closed=f"without the secret key, which the server does not hold; this rests on {rests}",
        sums=f"{{sums}} sums, the smallest over {{smallest}} sites, could be opened by {holder} alone",
        holder=holder,
        trusted=(
            "each of which counts a sum again, and checks that every ciphertext is well formed, before it helps to open it; not the server, with however "
            "many sites on its side, short of all"
            if holder == HOLDERS
            else "which is sent all of them and trusted to open sums only; not the server, with however many sites on its side, unless the authority helps it"
        ),
        recorded="each site's log says in which rounds it answered, and not"
        if holder == HOLDERS
        else "its record says",
        rests_on=rests,
    )


#: The schemes by name.
ENCRYPTED: dict[str, Scheme] = {str(parameters.scheme): _scheme(parameters) for parameters in SCHEMES}
