"""A site's part in secure sessions, message by message: what it checks, and what it remembers between two messages.

The protocol is `cloister.privacy.masking`, which knows nothing of Flower; here its messages are read and written, its state is put into the
site's Flower context, and what only this site can know is checked: that a manifest is of the run, the federation and the model that it trains.

Formal guarantees:

- A site takes part in no session that is not newer than its last one of the run.
- It unmasks a round at most once, or again with the same model and the same survivors: two sums of one round that differ in a site would show
  that site's share.
- What a session needs is kept before the answer that depends on it leaves: the state and the answer go out of the ClientApp together.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from cloister.client.incoming import Job
from cloister.core import protocol
from cloister.core.digests import federation_digest
from cloister.core.errors import IntegrityError
from cloister.core.spec import FederationSpec
from cloister.privacy.identity import Consortium, Identity
from cloister.privacy.manifest import Floors, Manifest, SignedManifest, cohort_digest
from cloister.privacy.masking import (
    Confirmations,
    Deliveries,
    Fields,
    Roster,
    SiteSession,
    Survivors,
)
from cloister.privacy.sums import SumCode, sum_code

__all__ = ["Credentials", "SessionBook", "Setting", "answer_step", "begin_encrypted", "deliveries"]

_SESSION, _SEEN, _CIPHERTEXT = "secure.session", "secure.seen", "secure.ciphertext"
_DIGEST = 32
_STATE = "state"
_MARK = "\0"  # no name holds it: federation files refuse it


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """Who a site is to its consortium, whom it trusts, and what it demands.

    Attributes:
        identity: its own key and certificate.
        consortium: whose authority it trusts.
        floors: what it demands of every session.
    """

    identity: Identity
    consortium: Consortium
    floors: Floors


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a site knows for itself of the federation that a session is for.

    Attributes:
        spec: the federation.
        size: length of the model's vector.
        classes: of the task; 0 for a regression.
    """

    spec: FederationSpec
    size: int
    classes: int

    def code(self, manifest: Manifest, job: Job) -> SumCode:
        """Return how this site writes what ``manifest`` sums.

        Raises:
            IntegrityError: (manifest) the manifest is not of this job, or says something else of the sum.
        """
        spec = self.spec
        wanted = {
            "run": job.run,
            "round_number": job.round_number,
            "federation": federation_digest(json.loads(job.federation)),
            "layout": job.layout_digest,
            "scheme": spec.aggregation.protection,
            "clip": job.clip or 0.0,
        }
        _same(manifest, wanted)
        code = sum_code(
            spec,
            manifest.kind,
            size=self.size,
            classes=self.classes,
            most=manifest.cohort_size,
            bits=manifest.modulus_bits,
            clip=job.clip,
        )
        _same(manifest, {"size": code.size, "largest": code.largest})
        if manifest.least < spec.cohort.min_sites:
            raise _unfit(f"least = {manifest.least} is below cohort.min_sites = {spec.cohort.min_sites}")
        return code


class SessionBook:
    """What a site remembers of secure sessions, in the state of its Flower context."""

    def __init__(self, state: RecordDict, credentials: Credentials) -> None:
        self._state = state
        self.credentials = credentials

    @property
    def newest(self) -> int:
        """Serial of the newest session that this site took part in; 0 for none."""
        return int(self._seen().get("serial", 0))

    def session(self) -> SiteSession:
        """Return the session under way.

        Raises:
            IntegrityError: (session-none) there is none.
        """
        record = self._state.config_records.get(_SESSION)
        if record is None:
            raise _no_session()
        own = self.credentials
        return SiteSession.from_fields(own.identity, own.consortium, _unpacked(str(record[_STATE])))

    def keep(self, session: SiteSession) -> None:
        """Keep ``session``; it takes the place of another. As one text: Flower checks every entry of a record, at every message."""
        self._state[_SESSION] = ConfigRecord({_STATE: _packed(session.to_fields())})
        self._remember({"serial": max(self.newest, session.manifest.serial)})

    def check_serial(self, manifest: Manifest) -> None:
        """Check that a session is newer than all before it.

        Raises:
            IntegrityError: (manifest-replayed) it is not.
        """
        if manifest.serial <= self.newest:
            raise IntegrityError(
                f"the session's manifest has serial {manifest.serial}, and this site has seen {self.newest}",
                remedy="let the server begin a new session",
                code="manifest-replayed",
            )

    def keep_ciphertext(self, manifest: Manifest, container: bytes) -> None:
        """Keep what this site committed to."""
        self._state[_CIPHERTEXT] = ConfigRecord({"manifest": manifest.encoded, "container": container})
        digest = cohort_digest([])  # who is in the sum is the authority's to see to: a round is opened once
        self._remember(
            {
                "serial": manifest.serial,
                manifest.kind: json.dumps([manifest.round_number, manifest.model, digest]),
            }
        )

    def take_ciphertext(self) -> tuple[Manifest, bytes]:
        """Return what this site committed to, once.

        Raises:
            IntegrityError: (session-none) there is none, or it was taken.
        """
        record = self._state.config_records.get(_CIPHERTEXT)
        if record is None:
            raise _no_session()
        del self._state[_CIPHERTEXT]
        return Manifest.decode(_bytes_of(record["manifest"])), _bytes_of(record["container"])

    def check_round(self, manifest: Manifest) -> None:
        """Check that ``manifest`` does not repeat a round that was unmasked, unless with the same model.

        Raises:
            IntegrityError: (round-unmasked) it does.
        """
        before = self._unmasked(manifest)
        if before is not None and (
            manifest.round_number < before[0]
            or (manifest.round_number == before[0] and manifest.model != before[1])
        ):
            raise _unmasked_before(manifest)

    def check_survivors(self, manifest: Manifest, survivors: Survivors) -> None:
        """Check that a round that was unmasked before is unmasked for the same sites again, and remember for whom.

        Raises:
            IntegrityError: (round-unmasked) it is another sum of the same round.
        """
        before, digest = self._unmasked(manifest), cohort_digest(survivors.names)
        if before is not None and before[0] == manifest.round_number and before[2] != digest:
            raise _unmasked_before(manifest)
        self._remember({manifest.kind: json.dumps([manifest.round_number, manifest.model, digest])})

    def _unmasked(self, manifest: Manifest) -> tuple[int, str, str] | None:
        stored = self._seen().get(manifest.kind)
        if stored is None:
            return None
        number, model, survivors = json.loads(str(stored))
        return int(number), str(model), str(survivors)

    def _seen(self) -> Mapping[str, Any]:
        return self._state.config_records.get(_SEEN, ConfigRecord())

    def _remember(self, new: Mapping[str, Any]) -> None:
        self._state[_SEEN] = ConfigRecord({**self._seen(), **new})


def answer_step(said: Mapping[str, Any], book: SessionBook, job: Job, setting: Setting) -> RecordDict:
    """Do one step of a session that is a query, and return what is answered.

    Args:
        said: the record of the message.
        book: what this site remembers.
        job: the round.
        setting: what the site knows for itself.

    Raises:
        IntegrityError: the message, the manifest or a peer's part of it does not hold.
        PolicyError: the site demands more than the session offers.
    """
    fields = {name: value for name, value in said.items() if name != protocol.STEP}
    step = said.get(protocol.STEP)
    if step == protocol.SEAL:
        return _sealed(fields, book)
    if step == protocol.ADVERT:
        return _told(_begin(fields, book, job, setting))
    session = book.session()
    setting.code(session.manifest, job)
    if step == protocol.SHARE:
        answer = session.share(Roster.from_fields(fields)).to_fields()
    elif step == protocol.CONFIRM:
        survivors = Survivors.from_fields(fields)
        book.check_survivors(session.manifest, survivors)
        answer = session.confirm(survivors).to_fields()
    elif step == protocol.REVEAL:
        answer = session.reveal(Confirmations.from_fields(fields)).to_fields()
    else:
        raise IntegrityError(f"a secure session has no step {str(step)[:16]!r}", code="session-step")
    book.keep(session)
    return _told(answer)


def deliveries(said: Mapping[str, Any]) -> Deliveries:
    """Return what a message brings to the step `protocol.ADD`.

    Raises:
        IntegrityError: it is of another step, or brings something else.
    """
    if said.get(protocol.STEP) != protocol.ADD:
        raise IntegrityError("the message does not ask for a share of a sum", code="session-step")
    return Deliveries.from_fields({name: value for name, value in said.items() if name != protocol.STEP})


def _begin(fields: Mapping[str, Any], book: SessionBook, job: Job, setting: Setting) -> Fields:
    own = book.credentials
    session = SiteSession.begin(
        own.identity,
        own.consortium,
        SignedManifest.from_fields(fields),
        floors=own.floors,
        newest=book.newest,
    )
    setting.code(session.manifest, job)
    book.check_round(session.manifest)
    book.keep(session)
    return session.advert().to_fields()


def _packed(fields: Fields) -> str:
    """Return fields as JSON; bytes, alone or in lists, are hexadecimal texts that begin with a mark."""
    return json.dumps({name: _written(value) for name, value in fields.items()})


def _written(value: Any) -> Any:
    if isinstance(value, bytes):
        return _MARK + value.hex()
    return [_written(entry) for entry in value] if isinstance(value, list) else value


def _unpacked(text: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(text)
    return {name: _read(value) for name, value in found.items()}


def _read(value: Any) -> Any:
    if isinstance(value, str) and value.startswith(_MARK):
        return bytes.fromhex(value.removeprefix(_MARK))
    return [_read(entry) for entry in value] if isinstance(value, list) else value


def begin_encrypted(said: Mapping[str, Any], book: SessionBook, job: Job, setting: Setting) -> Manifest:
    """Return the manifest of a session under encryption, checked: it comes with the message that asks for a share.

    Raises:
        IntegrityError: it does not hold, or is not newer than the last.
        PolicyError: the site demands more than the session offers.
    """
    manifest = SignedManifest.from_fields(said).opened(book.credentials.consortium)
    manifest.check_floors(book.credentials.floors)
    book.check_serial(manifest)
    setting.code(manifest, job)
    book.check_round(manifest)
    return manifest


def _sealed(fields: Mapping[str, Any], book: SessionBook) -> RecordDict:
    """Hand out the ciphertext that this site committed to, signed together with everybody's commitments; once."""
    from cloister.privacy.homomorphic import seal

    together = fields.get(protocol.TOGETHER)
    manifest, container = book.take_ciphertext()
    if not isinstance(together, bytes) or len(together) != _DIGEST:
        raise IntegrityError("the commitments' digest is not 32 bytes", code="session-step")
    sealed = seal(book.credentials.identity, manifest, container, together)
    update = ArrayRecord()
    update[protocol.SUM] = Array("uint8", (len(container),), f"cloister.{manifest.scheme}", sealed.container)
    return RecordDict(
        {
            protocol.UPDATE: update,
            protocol.SECURE: ConfigRecord({"signature": sealed.signature, "certificate": sealed.certificate}),
        }
    )


def _told(fields: Fields) -> RecordDict:
    return RecordDict({protocol.SECURE: ConfigRecord(dict(fields))})


def _same(manifest: Manifest, wanted: Mapping[str, object]) -> None:
    for name, value in wanted.items():
        if getattr(manifest, name) != value:
            raise _unfit(f"its {name} is not that of the job and the federation")


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        f"the session's manifest was refused: {why}",
        remedy="use the same version of cloister at the server and at every site",
        code="manifest",
    )


def _no_session() -> IntegrityError:
    return IntegrityError(
        "there is no secure session under way at this site",
        remedy="let the server begin a new session",
        code="session-none",
    )


def _bytes_of(value: object) -> bytes:
    return value if isinstance(value, bytes) else b""


def _unmasked_before(manifest: Manifest) -> IntegrityError:
    return IntegrityError(
        f"this site helped to unmask a sum of round {manifest.round_number} ({manifest.kind}) or of a later one before; another sum of it "
        "could show one site's share",
        remedy="go on with the next round",
        code="round-unmasked",
    )
