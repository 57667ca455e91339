"""What the server checks of a reply before it uses any of it.

A reply is used only if it answers the message it was asked for, from the node it was asked of, and holds exactly the arrays
and numbers that the protocol names: of the right type and length, finite. Anything else is refused with a reason, and the
round goes on without it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from flwr.app import Array, ConfigRecord, Message, MetricRecord

from cloister.core import protocol
from cloister.core.decoding import LARGEST, decode_array
from cloister.core.errors import IntegrityError
from cloister.core.metrics import METRIC_RANGES
from cloister.privacy.ledger.telling import FromSite
from cloister.server.exchange import Answer

__all__ = [
    "LOST",
    "CheckedEvaluation",
    "CheckedOpening",
    "CheckedUpdate",
    "Refused",
    "Wanted",
    "check_canaries",
    "check_ciphertext",
    "check_commitment",
    "check_evaluation",
    "check_introduction",
    "check_partial",
    "check_step",
    "check_update",
    "opening_in",
    "seal_in",
]

#: The reason for a site whose node is gone: it said nothing.
LOST = "site-lost"

_TEXT_LIMIT = 300
_MOST_RECORDS = 10**12
_HASH = 32
_SEAL = re.compile(r"[0-9a-f]{64}")
_SALT, _COINS = re.compile(r"[0-9a-f]{32}"), re.compile(r"(?:[0-9a-f]{2})*")


@dataclass(frozen=True)
class Refused:
    """A reply that was not used, with a stable reason and, where the site gave one, its own words."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True, kw_only=True)
class Wanted:
    """One array that a reply must hold: (size,) of ``dtype``."""

    size: int
    dtype: Literal["float32", "uint32"] = "float32"


@dataclass(frozen=True, kw_only=True)
class CheckedUpdate:
    """A site's update, checked.

    Attributes:
        arrays: by name, each of the shape and type that was wanted, and finite.
        loss: the site's mean training loss; ``None`` in a private run, where it is withheld.
        records: how many records the site says it has (its word, capped where it is used); 1 where it is withheld.
        ledger: what it tells of its ledger, where it keeps one.
    """

    arrays: dict[str, npt.NDArray[Any]]
    loss: float | None
    records: int
    ledger: FromSite | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays.values())


@dataclass(frozen=True, kw_only=True)
class CheckedEvaluation:
    """A site's measurement, checked; ``records`` is 0 where the site keeps no test records."""

    loss: float
    metrics: dict[str, float]
    records: int
    confusion: list[list[int]] | None = field(default=None)


@dataclass(frozen=True, kw_only=True)
class CheckedOpening:
    """What a site said of its canaries: the seal of their coins, or what opens it; the other one is empty."""

    seal: str = ""
    opening: dict[str, str | int] = field(default_factory=dict)


def check_update(
    answer: Answer, *, wanted: Mapping[str, Wanted], private: bool = False
) -> CheckedUpdate | Refused:
    """Check the reply to a ``train`` message.

    Args:
        answer: what came back (not missing).
        wanted: exactly the arrays that must be there.
        private: the run is private: the update comes alone, or with what the site tells of its ledger; a reply that tells more is
            refused.
    """
    message = _usable(
        answer,
        {protocol.UPDATE} if private else {protocol.UPDATE, protocol.REPORT},
        {protocol.LEDGER} if private else set(),
    )
    if isinstance(message, Refused):
        return message
    arrays = _arrays(message, wanted)
    if isinstance(arrays, Refused):
        return arrays
    return _alone(message, arrays) if private else _reported(message, arrays)


def _alone(message: Message, arrays: dict[str, npt.NDArray[Any]]) -> CheckedUpdate | Refused:
    ledger = _ledger(message)
    if isinstance(ledger, Refused):
        return ledger
    return CheckedUpdate(arrays=arrays, loss=None, records=1, ledger=ledger)


def _reported(message: Message, arrays: dict[str, npt.NDArray[Any]]) -> CheckedUpdate | Refused:
    report = message.content.metric_records.get(protocol.REPORT, MetricRecord())
    loss, records = _number(report.get("loss"), -LARGEST, LARGEST), report.get("records")
    if loss is None or set(report) != {"loss", "records", "steps"}:
        return Refused("wrong-report", "expected a finite loss, records and steps")
    if not isinstance(records, int) or not 1 <= records <= _MOST_RECORDS:
        return Refused("wrong-report", "records is not a positive whole number")
    return CheckedUpdate(arrays=arrays, loss=loss, records=records)


def check_evaluation(answer: Answer, *, classes: int) -> CheckedEvaluation | Refused:
    """Check the reply to an ``evaluate`` message.

    Args:
        answer: what came back (not missing).
        classes: how many classes a confusion matrix has (0: regression).
    """
    message = _usable(answer, {protocol.REPORT})
    if isinstance(message, Refused):
        return message
    report = message.content.metric_records.get(protocol.REPORT, MetricRecord())
    records = report.get("records")
    if not isinstance(records, int) or not 0 <= records <= _MOST_RECORDS:
        return Refused("wrong-report", "records is not a whole number")
    if records == 0:
        nothing = set(report) == {"records"}
        return (
            CheckedEvaluation(loss=0.0, metrics={}, records=0)
            if nothing
            else Refused("wrong-report", "figures without records")
        )
    loss = _number(report.get("loss"), -LARGEST, LARGEST)
    metrics = _metrics(report, classes)
    if loss is None or isinstance(metrics, Refused):
        return (
            metrics
            if isinstance(metrics, Refused)
            else Refused("wrong-report", "loss is not a finite number")
        )
    confusion = _confusion(report, classes, records)
    return (
        confusion
        if isinstance(confusion, Refused)
        else CheckedEvaluation(loss=loss, metrics=metrics, records=records, confusion=confusion)
    )


def check_step(answer: Answer) -> dict[str, Any] | Refused:
    """Check the reply to a step of a secure session, and return its fields: unread, for the protocol to check."""
    message = _usable(answer, {protocol.SECURE})
    if isinstance(message, Refused):
        return message
    said = message.content.config_records.get(protocol.SECURE)
    return Refused("wrong-records", "the step's fields are missing") if said is None else dict(said)


def check_commitment(answer: Answer) -> tuple[bytes, CheckedUpdate | Refused]:
    """Check the reply to a ``train`` or an ``evaluate`` message under encryption: a hash, and perhaps what is told of a ledger."""
    message = _usable(answer, {protocol.SECURE}, {protocol.LEDGER})
    if isinstance(message, Refused):
        return b"", message
    said = message.content.config_records.get(protocol.SECURE)
    digest = None if said is None or set(said) != {protocol.COMMITMENT} else said[protocol.COMMITMENT]
    if not isinstance(digest, bytes) or len(digest) != _HASH:
        return b"", Refused("wrong-records", f"expected a commitment of {_HASH} bytes")
    return digest, _alone(message, {})


def check_ciphertext(answer: Answer, scheme: str) -> tuple[bytes, bytes, bytes] | Refused:
    """Check the reply that hands out a ciphertext; return the container, its signature and the site's certificate, unread.

    Args:
        answer: what came back.
        scheme: how the array says that it is serialised.
    """
    message = _usable(answer, {protocol.SECURE, protocol.UPDATE})
    if isinstance(message, Refused):
        return message
    said = message.content.config_records.get(protocol.SECURE, ConfigRecord())
    signature, certificate = said.get("signature"), said.get("certificate")
    if set(said) != {"signature", "certificate"} or not (
        isinstance(signature, bytes) and isinstance(certificate, bytes)
    ):
        return Refused("wrong-arrays", "expected one ciphertext and its signature")
    data = _bytes_in(message, scheme)
    return data if isinstance(data, Refused) else (data, signature, certificate)


def check_partial(answer: Answer, scheme: str) -> bytes | Refused:
    """Check the reply that holds partial decryptions; return them, unread. Arguments as `check_ciphertext`."""
    message = _usable(answer, {protocol.UPDATE})
    return message if isinstance(message, Refused) else _bytes_in(message, scheme)


def _bytes_in(message: Message, form: str) -> bytes | Refused:
    """Return the bytes of an update that is one array of them, which says that it is of ``form``."""
    record = message.content.array_records.get(protocol.UPDATE)
    if record is None or set(record) != {protocol.SUM}:
        return Refused("wrong-arrays", "expected one array of bytes")
    array = record[protocol.SUM]
    data = array.data
    if not isinstance(data, bytes) or (array.dtype, tuple(array.shape), array.stype) != (
        "uint8",
        (len(data),),
        form,
    ):
        return Refused("wrong-shape", f"the update is no uint8 (length,) of {form}")
    return data


def check_introduction(answer: Answer, name: str) -> Refused | None:
    """Check the reply to a ``query`` message: that the site allows what it was asked, and is who it should be."""
    message = _usable(answer, {protocol.SITE})
    if isinstance(message, Refused):
        return message
    said = message.content.config_records.get(protocol.SITE)
    if said is None or said.get("name") != name:
        return Refused("foreign-sender", "another site answered")
    return None


def check_canaries(answer: Answer, *, opening: bool, canaries: int) -> CheckedOpening | Refused:
    """Check the reply to a question for canaries' coins: their seal, or what opens it, of exactly so many canaries."""
    message = _usable(answer, {protocol.CANARIES})
    if isinstance(message, Refused):
        return message
    said = dict(message.content.config_records.get(protocol.CANARIES, ConfigRecord()))
    found = opening_in(said) if opening else seal_in(said)
    if found is None or said["canaries"] != canaries:
        return Refused(
            "wrong-records", f"expected {'the coins' if opening else 'a seal'} of {canaries} canaries"
        )
    return found


def seal_in(said: Mapping[str, Any]) -> CheckedOpening | None:
    """Return the seal that a record of a reply tells; ``None``: it is none."""
    seal = said.get(protocol.SEAL)
    whole = set(said) == {protocol.SEAL, "canaries"} and type(said["canaries"]) is int
    return CheckedOpening(seal=seal) if whole and isinstance(seal, str) and _SEAL.fullmatch(seal) else None


def opening_in(said: Mapping[str, Any]) -> CheckedOpening | None:
    """Return the coins that a record of a reply tells, not yet held against a seal; ``None``: it is none."""
    count, salt, coins = said.get("canaries"), said.get("salt"), said.get("coins")
    if set(said) != {"canaries", "salt", "coins"} or type(count) is not int:
        return None
    if not (isinstance(salt, str) and _SALT.fullmatch(salt)):
        return None
    if not (isinstance(coins, str) and _COINS.fullmatch(coins) and len(coins) == 2 * -(-count // 8)):
        return None
    return CheckedOpening(opening={"canaries": count, "salt": salt, "coins": coins})


def _metrics(report: MetricRecord, classes: int) -> dict[str, float] | Refused:
    """Return the task metrics, each one that `cloister.core.metrics` knows and in its range."""
    known = METRIC_RANGES["classification" if classes else "regression"]
    metrics: dict[str, float] = {}
    for key, value in report.items():
        if key in ("loss", "records", protocol.CONFUSION):
            continue
        name = key.removeprefix(protocol.METRIC)
        number = _number(value, *known[name]) if key.startswith(protocol.METRIC) and name in known else None
        if number is None:
            return Refused(
                "wrong-report", f"'{_clean(key, 32)}' is no metric of this task, or out of its range"
            )
        metrics[name] = number
    return metrics


def _confusion(report: MetricRecord, classes: int, records: int) -> list[list[int]] | Refused | None:
    if protocol.CONFUSION not in report:
        return None
    counts = report[protocol.CONFUSION]
    if not classes or not isinstance(counts, list) or len(counts) != classes**2:
        return Refused("wrong-report", "the confusion matrix has another shape")
    if not all(isinstance(count, int) and count >= 0 for count in counts) or sum(counts) != records:
        return Refused("wrong-report", "the confusion matrix does not count the records")
    return [
        [int(count) for count in counts[start : start + classes]] for start in range(0, classes**2, classes)
    ]


def _ledger(message: Message) -> FromSite | Refused | None:
    said = message.content.config_records.get(protocol.LEDGER)
    if said is None:
        return None
    try:
        return FromSite.from_json(said.get(protocol.LEDGER) if set(said) == {protocol.LEDGER} else None)
    except IntegrityError as error:
        return Refused(error.code, _clean(error.message, _TEXT_LIMIT))


def _usable(answer: Answer, wanted: set[str], allowed: AbstractSet[str] = frozenset()) -> Message | Refused:
    """Return the message if it holds exactly the records that are ``wanted``, and perhaps those that are ``allowed``."""
    message = answer.reply
    if message is None:
        return Refused("missing")
    if answer.foreign:
        return Refused("foreign-sender", "the reply came from another node than the one asked")
    if message.has_error():
        return Refused(LOST, f"Flower error {message.error.code}")
    refusal = message.content.config_records.get(protocol.REFUSAL)
    if refusal is not None:
        code, text = refusal.get("code"), refusal.get("message")
        return Refused(_clean(code, 64) or "site-refused", _clean(text, _TEXT_LIMIT))
    if set(message.content) - allowed != wanted:
        return Refused("wrong-records", f"expected exactly {', '.join(sorted(wanted))}")
    return message


def _arrays(message: Message, wanted: Mapping[str, Wanted]) -> dict[str, npt.NDArray[Any]] | Refused:
    record = message.content.array_records.get(protocol.UPDATE)
    if record is None or set(record) != set(wanted):
        return Refused("wrong-arrays", f"expected {', '.join(wanted)}")
    arrays: dict[str, npt.NDArray[Any]] = {}
    for name, form in wanted.items():
        vector = _read(record[name], form)
        if isinstance(vector, Refused):
            return vector
        arrays[name] = vector
    return arrays


def _read(array: Array, form: Wanted) -> npt.NDArray[Any] | Refused:
    size, dtype = form.size, form.dtype
    if array.dtype != dtype or tuple(array.shape) != (size,) or array.stype != "numpy.ndarray":
        said = f"{_clean(array.dtype, 16)} {tuple(array.shape)[:4]}"
        return Refused("wrong-shape", f"{said}, expected {dtype} ({size},)")
    try:
        # An engine on one machine hands over an array of its own making; bytes are read by our own strict reader.
        vector = decode_array(array.data, size, dtype) if type(array) is Array else array.numpy()
    except ValueError as error:
        return Refused("unreadable", str(error))
    if vector.dtype != np.dtype(dtype) or vector.shape != (size,):
        return Refused("wrong-shape", f"the array holds something else than {dtype} ({size},)")
    if not np.isfinite(vector).all():
        return Refused("not-finite", "the update holds NaN or infinity")
    if size and max(float(vector.max()), -float(vector.min())) > LARGEST:
        return Refused("too-large", f"the update holds a number beyond {LARGEST:g}")
    return vector


def _number(value: object, low: float, high: float) -> float | None:
    """Return ``value`` if it is a finite float in [low, high]."""
    return value if isinstance(value, float) and math.isfinite(value) and low <= value <= high else None


def _clean(text: object, limit: int) -> str:
    """Return printable text of at most ``limit`` characters; anything else becomes empty."""
    if not isinstance(text, str):
        return ""
    return "".join(character for character in text[: 4 * limit] if character.isprintable())[:limit]
