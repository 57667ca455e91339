"""A site's part in secure sessions, message by message: what it checks, and what it answers.

The protocol is `cloister.privacy.masking`, which knows nothing of Flower; here its messages are read and written, its state goes into the
site's `SessionBook`, and what only this site can know is checked: that a manifest is of the run, the federation and the model that it trains.

Formal guarantees, beside those of `cloister.client.book`:

- A site takes part in no session whose manifest says anything else of run, round, federation, model, clip or sizes than its job and its own
  federation do, or less than its floors.
- With ``aggregation.group_size`` it takes part in training sums over its own group only, which it computes for itself, and in measurements over all
  sites only (`cloister.privacy.grouping`).
- A site without test records takes part in no sum of measurements: the sites in such a sum all have some.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from cloister.client.book import SessionBook, Turn
from cloister.client.incoming import Job
from cloister.core import protocol
from cloister.core.digests import federation_digest
from cloister.core.errors import IntegrityError, PolicyError
from cloister.core.spec import FederationSpec
from cloister.core.spec.grouping import least_in_sum
from cloister.privacy.grouping import Groups
from cloister.privacy.manifest import Manifest, SignedManifest
from cloister.privacy.masking import (
    Confirmations,
    Deliveries,
    Fields,
    Roster,
    SiteSession,
    Survivors,
)
from cloister.privacy.sums import SumCode, sum_code

__all__ = ["Setting", "answer_step", "begin_encrypted", "deliveries"]

_DIGEST = 32


@dataclass(frozen=True, kw_only=True)
class Setting:
    """What a site knows for itself of the federation that a session is for.

    Attributes:
        spec: the federation.
        size: length of the model's vector.
        classes: of the task; 0 for a regression.
        tested: whether the site has test records.
        name: the site's own.
        groups: of the run, where it has any.
    """

    spec: FederationSpec
    size: int
    classes: int
    tested: bool
    name: str = ""
    groups: Groups | None = None

    def code(self, manifest: Manifest, job: Job) -> SumCode:
        """Return how this site writes what ``manifest`` sums.

        Raises:
            IntegrityError: (manifest) the manifest is not of this job, or says something else of the sum.
            IntegrityError: (group-differs) it sums other sites than this one's group.
            PolicyError: (untested) measurements are summed, and this site has none.
        """
        spec = self.spec
        if manifest.kind == "evaluate" and not self.tested:
            raise _untested()
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
        least = least_in_sum(spec) if manifest.kind == "train" else spec.cohort.min_sites
        if manifest.least < least:
            raise _unfit(
                f"least = {manifest.least} is below {least}, the fewest sites of a sum in this federation"
            )
        if spec.aggregation.group_size is not None:
            if self.groups is None:
                raise _unfit("the federation has groups, and this site does not know the run's sites")
            self.groups.check(manifest, self.name)
        return code


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
    with book.turn() as turn:  # what it writes is kept when it ends: before the answer leaves
        return _step(said.get(protocol.STEP), fields, turn, job, setting)


def _step(step: object, fields: Mapping[str, Any], turn: Turn, job: Job, setting: Setting) -> RecordDict:
    if step == protocol.SEAL:
        return _sealed(fields, turn)
    if step in (protocol.HOLD, protocol.SHOW, protocol.OPEN):
        return _joint(str(step), fields, turn, job, setting)
    if step == protocol.ADVERT:
        return _told(_begin(fields, turn, job, setting))
    session = turn.session()
    setting.code(session.manifest, job)
    if step == protocol.SHARE:
        answer = session.share(Roster.from_fields(fields)).to_fields()
    elif step == protocol.CONFIRM:
        survivors = Survivors.from_fields(fields)
        turn.check_sites(session.manifest, survivors.names)
        answer = session.confirm(survivors).to_fields()
    elif step == protocol.REVEAL:
        turn.opened(session.manifest)
        answer = session.reveal(Confirmations.from_fields(fields)).to_fields()
    else:
        raise IntegrityError(f"a secure session has no step {str(step)[:16]!r}", code="session-step")
    turn.keep(session)
    return _told(answer)


def deliveries(said: Mapping[str, Any]) -> Deliveries:
    """Return what a message brings to the step `protocol.ADD`.

    Raises:
        IntegrityError: it is of another step, or brings something else.
    """
    if said.get(protocol.STEP) != protocol.ADD:
        raise IntegrityError("the message does not ask for a share of a sum", code="session-step")
    return Deliveries.from_fields({name: value for name, value in said.items() if name != protocol.STEP})


def _begin(fields: Mapping[str, Any], turn: Turn, job: Job, setting: Setting) -> Fields:
    own = turn.credentials
    session = SiteSession.begin(
        own.identity,
        own.consortium,
        SignedManifest.from_fields(fields),
        floors=own.floors,
        newest=turn.newest,
    )
    setting.code(session.manifest, job)
    turn.check_round(session.manifest)
    turn.keep(session)
    return session.advert().to_fields()


def begin_encrypted(said: Mapping[str, Any], book: SessionBook, job: Job, setting: Setting) -> Manifest:
    """Return the manifest of a session under encryption, checked: it comes with the message that asks for a share.

    Raises:
        IntegrityError: it does not hold, or is not newer than the last.
        PolicyError: the site demands more than the session offers.
    """
    manifest = SignedManifest.from_fields(said).opened(book.credentials.consortium)
    manifest.check_floors(book.credentials.floors)
    setting.code(manifest, job)
    with book.turn() as turn:
        turn.check_round(manifest)
        turn.begin(manifest)
    return manifest


def _sealed(fields: Mapping[str, Any], turn: Turn) -> RecordDict:
    """Hand out the ciphertext that this site committed to, signed together with everybody's commitments; once."""
    from cloister.privacy.homomorphic import seal

    together = fields.get(protocol.TOGETHER)
    manifest, container = turn.take_ciphertext()
    if not isinstance(together, bytes) or len(together) != _DIGEST:
        raise IntegrityError("the commitments' digest is not 32 bytes", code="session-step")
    sealed = seal(turn.credentials.identity, manifest, container, together)
    content = _vector(sealed.container, f"cloister.{manifest.scheme}")
    content[protocol.SECURE] = ConfigRecord(
        {"signature": sealed.signature, "certificate": sealed.certificate}
    )
    return content


def _joint(step: str, fields: Mapping[str, Any], turn: Turn, job: Job, setting: Setting) -> RecordDict:
    from cloister.client import holding  # what it imports is heavy, and for one protection

    if setting.spec.aggregation.protection != "threshold-bfv":
        raise IntegrityError("this federation has no joint key", code="session-step")
    if step == protocol.HOLD:
        if fields.get("kind") == "evaluate" and not setting.tested:
            raise _untested()
        return _told(holding.hold(fields, turn, job.run))
    if step == protocol.SHOW:
        return _told(holding.show(fields, turn, job.run))
    counted = holding.counted(fields, turn)
    setting.code(counted.manifest, job)
    return _vector(holding.opened(counted, turn), f"cloister.{counted.manifest.scheme}.partial")


def _vector(data: bytes, form: str) -> RecordDict:
    update = ArrayRecord()
    update[protocol.SUM] = Array("uint8", (len(data),), form, data)
    return RecordDict({protocol.UPDATE: update})


def _told(fields: Fields) -> RecordDict:
    return RecordDict({protocol.SECURE: ConfigRecord(dict(fields))})


def _same(manifest: Manifest, wanted: Mapping[str, object]) -> None:
    for name, value in wanted.items():
        if getattr(manifest, name) != value:
            raise _unfit(f"its {name} is not that of the job and the federation")


def _untested() -> PolicyError:
    return PolicyError(
        "this site has no test record: with it in a sum of measurements, the sum would be that of fewer sites than it says",
        remedy="nothing: the others measure",
        code="untested",
    )


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        f"the session's manifest was refused: {why}",
        remedy="use the same version of cloister at the server and at every site",
        code="manifest",
    )
