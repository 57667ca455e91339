"""What may arrive at the server in each step of a protected run, and what everything else tells: the clear fields.

Formal guarantee: `clear_in` leaves out a field only if the protocol's own class for the step takes the whole reply (its names, types, lengths,
order), or if it is the one vector of exactly the manifest's scheme and length, a ledger's signed head, a refusal's code and text, or a
site's name. A reply that holds anything beside, or whose value was not kept, is listed.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from cloister.core import protocol
from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.identity.members import LONGEST
from cloister.privacy.ledger.telling import FromSite
from cloister.privacy.masking import Advert, Confirmation, Reveal, SealedShares
from cloister.privacy.masking.fields import Message, malformed, need_blobs
from cloister.privacy.threshold.messages import SHARE_BYTES
from cloister.server.audit.transcript.reading import Entry, Received
from cloister.server.audit.transcript.sessions import Session
from cloister.server.replies import opening_in, seal_in

__all__ = ["ALLOWED", "Clear", "clear_in", "tells"]

_ALWAYS = {
    "query": "the site's name",
    protocol.SEAL_QUERY: "the seal of the coins of canaries that the site plants",
    protocol.OPEN_QUERY: "those coins: which of the made-up records it trained on",
    "": "a refusal: a code and a text of the program",
}
_MASKED = {
    protocol.ADVERT: "two public keys, a commitment, a signature and a certificate",
    protocol.SHARE: "sealed shares, which only their receivers can open",
    protocol.ADD: "a vector under masks; in private runs also the signed head of the site's ledger",
    protocol.CONFIRM: "a signature over who is in the sum",
    protocol.REVEAL: "one share of one secret of each neighbour",
    **_ALWAYS,
}
_ENCRYPTED = {
    protocol.ADD: "a commitment: the hash of the site's ciphertexts; in private runs also the signed head of its ledger",
    protocol.SEAL: "ciphertexts, and over them and all commitments the site's signature, with its certificate",
    **_ALWAYS,
}
_JOINT = {
    protocol.HOLD: "a commitment: the hash of the site's share of the session's public key",
    protocol.SHOW: "that share, which is random to others, a proof that it is well formed, and over it and all commitments the site's signature, with its certificate",
    **_ENCRYPTED,
    protocol.OPEN: "the site's partial decryption of the sum, flooded with noise",
}
#: What each step of a session may bring, in words, by protection.
ALLOWED: dict[str, dict[str, str]] = {
    "masked": _MASKED,
    "bfv": _ENCRYPTED,
    "ckks": _ENCRYPTED,
    "threshold-bfv": _JOINT,
}


@dataclass(frozen=True, kw_only=True)
class _Commitment(Message):
    commitment: bytes

    def __post_init__(self) -> None:
        need_blobs(_Commitment, "commitment", [self.commitment], size=_HASH, count=1)


@dataclass(frozen=True, kw_only=True)
class _Signed(Message):
    signature: bytes
    certificate: bytes

    def __post_init__(self) -> None:
        need_blobs(_Signed, "signature", [self.signature], size=_SIGNATURE, count=1)
        if not 0 < len(self.certificate) <= LONGEST:
            raise malformed(_Signed, f"certificate has not from 1 to {LONGEST} bytes")


_HASH, _SIGNATURE = 32, 64
_STEPS: dict[tuple[str, str], type[Message]] = {
    ("masked", protocol.ADVERT): Advert,
    ("masked", protocol.SHARE): SealedShares,
    ("masked", protocol.CONFIRM): Confirmation,
    ("masked", protocol.REVEAL): Reveal,
    ("bfv", protocol.ADD): _Commitment,
    ("bfv", protocol.SEAL): _Signed,
    ("ckks", protocol.ADD): _Commitment,
    ("ckks", protocol.SEAL): _Signed,
    ("threshold-bfv", protocol.HOLD): _Commitment,
    ("threshold-bfv", protocol.SHOW): _Signed,
    ("threshold-bfv", protocol.ADD): _Commitment,
    ("threshold-bfv", protocol.SEAL): _Signed,
}
_LONGEST_REFUSAL = 1 << 12
_UNKEPT = {"share": ("bytes", SHARE_BYTES), "proof": ("bytes", THRESHOLD.proof_bytes)}


@dataclass(frozen=True, kw_only=True)
class Clear:
    """One field that came in clear.

    Attributes:
        reply: in which reply.
        record: the record.
        field: the field.
        type: its type and shape.
        nbytes: its size.
        tells: what it tells the server.
    """

    reply: Received
    record: str
    field: str
    type: str
    nbytes: int
    tells: str


def clear_in(reply: Received, session: Session | None, protection: str) -> Iterator[Clear]:
    """Yield the fields of a reply that a protected run does not allow for.

    Args:
        reply: what came.
        session: the session that it belongs to; ``None``: none.
        protection: of the run.
    """
    if reply.error is not None:
        return
    for record in sorted(reply.records):
        entries = [one for one in reply.entries if one.record == record]
        if not _fits(reply, record, entries, session, protection):
            for entry in entries:
                yield _listed(reply, entry)
            if not entries:
                yield Clear(
                    reply=reply,
                    record=record,
                    field="(empty)",
                    type="",
                    nbytes=0,
                    tells="that there is such a record",
                )
    if reply.unlisted:
        yield Clear(
            reply=reply,
            record="…",
            field=f"{reply.unlisted} more fields",
            type="",
            nbytes=0,
            tells="too many fields to be listed: anything",
        )


def _fits(
    reply: Received, record: str, entries: list[Entry], session: Session | None, protection: str
) -> bool:
    names = {entry.name for entry in entries}
    values = {entry.name: entry.value for entry in entries}
    config = all(entry.kind == "config" for entry in entries)
    if record == protocol.REFUSAL:
        return names == {"code", "message"} and config and _texts(entries)
    if record == protocol.SITE:
        return reply.type == "query" and names == {"name"} and values["name"] == reply.site
    if record in (protocol.CANARIES, protocol.LEDGER):
        fits = (
            _is_canaries(reply.type, values)
            if record == protocol.CANARIES
            else reply.step == protocol.ADD and _is_ledger(values)
        )
        return config and fits
    if record == protocol.SECURE:
        return config and _is_step(reply, entries, session, protection)
    return record == protocol.UPDATE and session is not None and _is_vector(reply, entries, session)


def _is_vector(reply: Received, entries: list[Entry], session: Session) -> bool:
    """Whether an update is the one protected vector of its step."""
    if len(entries) != 1:
        return False
    if reply.step == protocol.OPEN:
        return session.allows_partial(entries[0])
    return reply.step == session.vector_step and session.allows(entries[0])


def _is_step(reply: Received, entries: list[Entry], session: Session | None, protection: str) -> bool:
    """Whether a reply is what its step may bring."""
    joint = reply.step in (protocol.HOLD, protocol.SHOW)  # a joint key is made before there is a session
    scheme = protection if joint else "" if session is None else session.manifest.scheme
    kind = _STEPS.get((scheme, reply.step))
    values = {entry.name: entry.value for entry in entries}
    if reply.step == protocol.SHOW:  # of a share and its proof the length is known, and the value is not kept
        sizes = {one.name: (one.type, one.nbytes) for one in entries if one.name in _UNKEPT}
        if sizes != _UNKEPT:
            return False
        values = {name: value for name, value in values.items() if name not in _UNKEPT}
    try:
        return kind is not None and bool(kind.from_fields(values))
    except IntegrityError:
        return False


def _is_canaries(kind: str, values: dict[str, object]) -> bool:
    if kind == protocol.SEAL_QUERY:
        return seal_in(values) is not None
    return kind == protocol.OPEN_QUERY and opening_in(values) is not None


def _is_ledger(values: dict[str, object]) -> bool:
    try:
        FromSite.from_json(values.get(protocol.LEDGER) if set(values) == {protocol.LEDGER} else None)
    except IntegrityError:
        return False
    return True


def _texts(entries: list[Entry]) -> bool:
    return all(entry.type == "str" and entry.nbytes <= _LONGEST_REFUSAL for entry in entries)


def _listed(reply: Received, entry: Entry) -> Clear:
    shape = f" {entry.shape}" if entry.kind == "array" else ""
    return Clear(
        reply=reply,
        record=entry.record,
        field=entry.name,
        type=entry.type + shape,
        nbytes=entry.nbytes,
        tells=tells(entry),
    )


def tells(entry: Entry) -> str:
    """Say what a field in clear tells whoever holds it."""
    known = {
        (protocol.UPDATE, protocol.VECTOR): "the site's update: records can be reconstructed from it",
        (protocol.UPDATE, protocol.CONTROL): "a mean of the site's gradients",
        (protocol.UPDATE, protocol.WITHIN): "whether the norm of the site's update was within the clip",
        (protocol.REPORT, "loss"): "the mean loss on the site's own records",
        (protocol.REPORT, "records"): "how many records the site has",
        (protocol.REPORT, "steps"): "how many steps the site trained",
        (protocol.REPORT, protocol.CONFUSION): "the site's test records by true and predicted class",
        (protocol.LEDGER, protocol.LEDGER): "the head of the site's ledger, and what its data set has spent",
        (protocol.SITE, "name"): "the site's name",
    }.get((entry.record, entry.name))
    if known is not None:
        return known
    if entry.name.startswith(protocol.METRIC):
        return f"the metric '{entry.name.removeprefix(protocol.METRIC)[:40]}' on the site's own test records"
    if entry.record == protocol.SECURE:
        return "a message that the step of the protocol does not know: it can hold anything"
    return {
        "array": "numbers that nothing covers: an update, a gradient, or records",
        "metric": "a number that was measured at the site",
        "config": "a text or bytes that no step of the protocol has",
    }[entry.kind]
