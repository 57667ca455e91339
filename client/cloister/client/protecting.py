"""The last step before something leaves a site: in clear, as integers under masks, or as a ciphertext.

An `Outgoing` is made for one message. ``encode`` turns named vectors into what is kept and charged (it is still private), ``protect`` turns that
into what leaves. Under protection one vector leaves, and nothing beside it: loss, weight, metrics and counts are numbers in it.

Which one it is depends on the federation file that the site agreed to (`SiteSource.workbench` refuses every other), never on what a message
asks for: a server that asks a protected federation's site for an update in clear gets a refusal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from cloister.client.book import SessionBook
from cloister.client.incoming import Job
from cloister.client.sessions import Setting, begin_encrypted, deliveries
from cloister.client.trainer import LocalResult
from cloister.core import protocol
from cloister.core.digests import vectors_digest
from cloister.core.errors import IntegrityError
from cloister.core.metrics import Measurement
from cloister.core.randomness import Randomness
from cloister.core.spec import RecordsCap
from cloister.privacy.manifest import Manifest, SumKind
from cloister.privacy.noise import cipher_generator
from cloister.privacy.sums import CUT, LOSS, WEIGHT, Reals, SumCode, summed_metrics

__all__ = ["MakeArray", "Outgoing", "measured_values", "outgoing_for", "training_values"]

Arrays = dict[str, npt.NDArray[Any]]
MakeArray = Callable[[npt.NDArray[Any]], Array]


class Outgoing(Protocol):
    """How one message's answer leaves."""

    @property
    def in_clear(self) -> bool:
        """Whether what leaves can be read as it is."""
        ...

    @property
    def form(self) -> str:
        """How what is kept is written: what was kept in another form answers nothing."""
        ...

    def encode(self, values: Arrays) -> Arrays:
        """Return what is kept and charged: the named ``values`` as they will be summed."""
        ...

    def protect(self, arrays: Arrays) -> RecordDict:
        """Return what leaves, as the content of the reply; ``arrays`` may be overwritten."""
        ...


class Clear:
    """Everything leaves as it is.

    Args:
        make_array: how a flat vector becomes a Flower ``Array``.
    """

    in_clear = True
    form = "plain"

    def __init__(self, make_array: MakeArray) -> None:
        self._make_array = make_array

    def encode(self, values: Arrays) -> Arrays:
        """Return ``values``."""
        return values

    def protect(self, arrays: Arrays) -> RecordDict:
        """Return ``arrays`` as the update."""
        return _update(arrays, self._make_array)


class Masked:
    """One vector of integers under the masks of a session leaves.

    Args:
        code: how the session's sum is written.
        book: holds the session.
        said: the message's record of the session.
        manifest: the manifest, checked.
        rounding: what rounding is drawn from.
        make_array: how a flat vector becomes a Flower ``Array``.
    """

    in_clear = False

    def __init__(
        self,
        code: SumCode,
        book: SessionBook,
        said: Mapping[str, Any],
        manifest: Manifest,
        *,
        rounding: np.random.Generator,
        make_array: MakeArray,
    ) -> None:
        self._manifest = manifest
        self.form = _form(manifest)
        self._code = code
        self._book = book
        self._deliveries = deliveries(said)
        self._rounding = rounding
        self._make_array = make_array

    def encode(self, values: Arrays) -> Arrays:
        """Return the integers modulo 2^32, without masks."""
        return {protocol.SUM: self._code.residues(flagged(self._code, values), self._rounding)}

    def protect(self, arrays: Arrays) -> RecordDict:
        """Return the same under masks, and keep the session."""
        with self._book.turn() as turn:
            session = turn.session()
            if session.manifest != self._manifest:
                raise _another_began()
            masked = session.mask(self._deliveries, np.ascontiguousarray(arrays[protocol.SUM]))
            turn.keep(session)
        return _update({protocol.SUM: masked}, self._make_array)


class Codec(Protocol):
    """Encrypts for one session."""

    def encrypt(self, values: npt.NDArray[np.int64], manifest: Manifest) -> bytes:
        """Return a container of ``values``, (size,) int64."""
        ...


class Encrypted:
    """A commitment to a ciphertext leaves; the ciphertext itself when all sites of the session have committed to theirs.

    Args:
        code: how the session's sum is written.
        book: keeps the ciphertext until then.
        codec: encrypts under the session's key.
        manifest: the manifest, checked.
        rounding: what rounding is drawn from.
    """

    in_clear = False

    def __init__(
        self,
        code: SumCode,
        book: SessionBook,
        codec: Codec,
        manifest: Manifest,
        *,
        rounding: np.random.Generator,
    ) -> None:
        self.form = _form(manifest)
        self._code = code
        self._book = book
        self._manifest = manifest
        self._rounding = rounding
        self._codec = codec

    def encode(self, values: Arrays) -> Arrays:
        """Return the integers, not encrypted."""
        return {protocol.SUM: self._code.encode(flagged(self._code, values), self._rounding)}

    def protect(self, arrays: Arrays) -> RecordDict:
        """Return the hash of their ciphertext, and keep the ciphertext."""
        from cloister.privacy.homomorphic import commitment

        container = self._codec.encrypt(arrays[protocol.SUM], self._manifest)
        with self._book.turn() as turn:
            if turn.newest != self._manifest.serial:
                raise _another_began()
            turn.keep_ciphertext(self._manifest, container)
        return RecordDict({protocol.SECURE: ConfigRecord({protocol.COMMITMENT: commitment(container)})})


def outgoing_for(
    kind: SumKind,
    message: Message,
    book: SessionBook | None,
    *,
    job: Job,
    setting: Setting,
    given: Arrays,
    randomness: Randomness,
    make_array: MakeArray,
) -> Outgoing:
    """Return how the answer to ``message`` leaves.

    Args:
        kind: what is asked for.
        message: holds the step of a session, where updates are protected.
        book: what the site remembers; ``None`` where it has no identity in a consortium.
        job: the round.
        setting: what the site knows of the federation.
        given: the vectors that it was sent.
        randomness: where rounding comes from.
        make_array: how a flat vector becomes a Flower ``Array``.

    Raises:
        IntegrityError: no session, or one of another model, is under way: nothing may leave.
    """
    protection = setting.spec.aggregation.protection
    if protection == "plain":
        return Clear(make_array)
    said = message.content.config_records.get(protocol.SECURE)
    if book is None or said is None:
        raise IntegrityError(
            f"this federation's updates are protected ('{protection}'), and the server asks for one in clear",
            remedy="let the server begin a secure session; nothing left this site",
            code="session-none",
        )
    manifest = _masked_session(book) if protection == "masked" else begin_encrypted(said, book, job, setting)
    if manifest.kind != kind or manifest.model != vectors_digest(given):
        raise IntegrityError(
            "the session's manifest names another model than the server sent, or another kind of sum",
            remedy="find out why the server sends different sites different models; nothing left this site",
            code="model-differs",
        )
    code = setting.code(manifest, job)
    rounding = cipher_generator(
        randomness, f"sum-rounding/{kind}", job.round_number, book.credentials.identity.name
    )
    if protection == "masked":
        return Masked(code, book, said, manifest, rounding=rounding, make_array=make_array)
    return Encrypted(code, book, _codec(manifest, said, book), manifest, rounding=rounding)


def _codec(manifest: Manifest, said: Mapping[str, Any], book: SessionBook) -> Codec:
    """Return what encrypts under the key that came with the message: an authority's, or all sites' together."""
    if manifest.scheme == "threshold-bfv":
        from cloister.client.holding import joint_codec

        return joint_codec(manifest, said, book)
    from cloister.privacy.homomorphic import PublicCodec

    key = said.get(protocol.KEY)
    return PublicCodec(key if isinstance(key, bytes) else b"", book.credentials.consortium)


def training_values(setting: Setting, arrays: Arrays, result: LocalResult) -> Arrays:
    """Return what a training sum holds of a site beside its arrays, by name.

    Args:
        setting: what the site knows of the federation.
        arrays: the update and what goes with it; the update is weighed in place.
        result: what training told.
    """
    values = dict(arrays)
    weighting = setting.spec.aggregation.weighting
    if isinstance(weighting, RecordsCap):
        weight = min(result.records, weighting.records_cap)
        values[protocol.VECTOR] = arrays[protocol.VECTOR] * np.float32(weight / weighting.records_cap)
        values[WEIGHT] = np.array([weight], dtype=np.float64)
    if result.loss is not None:
        values[LOSS] = np.array([result.loss], dtype=np.float64)
    return values


def measured_values(found: Measurement, classes: int) -> Arrays:
    """Return what an evaluation's sum holds of a site, by name; a loss that is not finite counts as 0."""
    values: Arrays = {LOSS: _one(found.loss if math.isfinite(found.loss) else 0.0)}
    for name in summed_metrics(classes):
        values[protocol.METRIC + name] = _one(found.metrics.get(name, 0.0))
    if classes:
        counts = np.zeros(classes**2) if found.confusion is None else np.ravel(found.confusion)
        values[protocol.CONFUSION] = np.asarray(counts, dtype=np.float64)
    return values


def flagged(code: SumCode, values: Arrays) -> Arrays:
    """Return those of ``values`` that ``code`` holds, with the flag that says whether one was cut."""
    names = {part.name for part in code.parts}
    if CUT in names:
        cut = any(part.cuts(values[part.name]) for part in code.parts if isinstance(part, Reals))
        values = {**values, CUT: _one(float(cut))}
    return {name: values[name] for name in names}


def _masked_session(book: SessionBook) -> Manifest:
    with book.turn() as turn:
        return turn.session().manifest


def _form(manifest: Manifest) -> str:
    return (
        f"{manifest.scheme} {manifest.federation} {manifest.modulus_bits} {manifest.size} {manifest.largest}"
    )


def _another_began() -> IntegrityError:
    return IntegrityError(
        "another session began while this site computed",
        remedy="let the server begin anew",
        code="session-none",
    )


def _update(arrays: Arrays, make_array: MakeArray) -> RecordDict:
    update = ArrayRecord()  # filled item by item: its constructor would copy and serialise each array
    update.update({name: make_array(array) for name, array in arrays.items()})
    return RecordDict({protocol.UPDATE: update})


def _one(value: float) -> npt.NDArray[np.float64]:
    return np.array([value], dtype=np.float64)
