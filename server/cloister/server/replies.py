"""What the server checks of a reply before it uses any of it.

A reply is used only if it answers the message it was asked for, from the node it was asked of, and holds exactly the arrays
and numbers that the protocol names: float32, of the model's length, finite. Anything else is refused with a reason, and the
round goes on without it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Array, Message, MetricRecord

from cloister.core import protocol
from cloister.core.update import Vector
from cloister.server.exchange import Answer

__all__ = ["CheckedEvaluation", "CheckedUpdate", "Refused", "check_evaluation", "check_update"]

_TEXT_LIMIT = 300
_HEADER_LIMIT = 4096
_MAX_METRICS = 64


@dataclass(frozen=True)
class Refused:
    """A reply that was not used, with a stable reason and, where the site gave one, its own words."""

    reason: str
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.reason}: {self.detail}" if self.detail else self.reason


@dataclass(frozen=True, kw_only=True)
class CheckedUpdate:
    """A site's update, checked.

    Attributes:
        arrays: by name, each (size,) float32 and finite.
        loss: the site's mean training loss; ``None`` in a private run, where it is withheld.
        records: how many records the site says it has (its word, capped where it is used); 1 where it is withheld.
    """

    arrays: dict[str, Vector]
    loss: float | None
    records: int


@dataclass(frozen=True, kw_only=True)
class CheckedEvaluation:
    """A site's measurement, checked; ``records`` is 0 where the site keeps no test records."""

    loss: float
    metrics: dict[str, float]
    records: int
    confusion: list[list[int]] | None = field(default=None)


def check_update(  # noqa: PLR0911 - one refusal a line
    answer: Answer, *, size: int, names: tuple[str, ...], private: bool = False
) -> CheckedUpdate | Refused:
    """Check the reply to a ``train`` message.

    Args:
        answer: what came back (not missing).
        size: length of the model's flat vector.
        names: exactly the arrays that must be there.
        private: the run is private: the update comes alone, and a reply that tells more is refused.
    """
    message = _usable(answer)
    if isinstance(message, Refused):
        return message
    record = message.content.array_records.get(protocol.UPDATE)
    if record is None or set(record) != set(names):
        return Refused("wrong-arrays", f"expected {', '.join(names)}")
    arrays: dict[str, Vector] = {}
    for name in names:
        vector = _read(record[name], size)
        if isinstance(vector, Refused):
            return vector
        arrays[name] = vector
    if private:
        alone = len(message.content) == 1
        return (
            CheckedUpdate(arrays=arrays, loss=None, records=1)
            if alone
            else Refused("wrong-report", "a private reply tells more")
        )
    report = message.content.metric_records.get(protocol.REPORT, MetricRecord())
    loss, records = report.get("loss"), report.get("records")
    if not isinstance(loss, float) or not math.isfinite(loss):
        return Refused("wrong-report", "loss is not a finite number")
    if not isinstance(records, int) or records < 1:
        return Refused("wrong-report", "records is not a positive whole number")
    return CheckedUpdate(arrays=arrays, loss=loss, records=records)


def check_evaluation(answer: Answer, *, classes: int) -> CheckedEvaluation | Refused:
    """Check the reply to an ``evaluate`` message.

    Args:
        answer: what came back (not missing).
        classes: how many classes a confusion matrix has (0: regression).
    """
    message = _usable(answer)
    if isinstance(message, Refused):
        return message
    report = message.content.metric_records.get(protocol.REPORT, MetricRecord())
    records = report.get("records")
    loss = report.get(
        "loss", 0.0 if records == 0 else None
    )  # a site without test records has nothing to tell
    if not isinstance(records, int) or records < 0 or not isinstance(loss, float) or not math.isfinite(loss):
        return Refused("wrong-report", "records is not a whole number, or loss not a finite one")
    metrics = {
        key.removeprefix(protocol.METRIC): value
        for key, value in report.items()
        if key.startswith(protocol.METRIC)
    }
    if len(metrics) > _MAX_METRICS or not all(
        isinstance(value, float) and math.isfinite(value) for value in metrics.values()
    ):
        return Refused("wrong-report", "a metric is not a finite number")
    confusion = _confusion(report, classes, records) if classes and protocol.CONFUSION in report else None
    if isinstance(confusion, Refused):
        return confusion
    numbers = {name: value for name, value in metrics.items() if isinstance(value, float)}
    return CheckedEvaluation(loss=loss, metrics=numbers, records=records, confusion=confusion)


def _confusion(report: MetricRecord, classes: int, records: int) -> list[list[int]] | Refused:
    counts = report[protocol.CONFUSION]
    if (
        not isinstance(counts, list)
        or len(counts) != classes**2
        or not all(isinstance(c, int) and 0 <= c <= records for c in counts)
    ):
        return Refused("wrong-report", "the confusion matrix has another shape or an impossible count")
    return [
        [int(count) for count in counts[start : start + classes]] for start in range(0, classes**2, classes)
    ]


def _usable(answer: Answer) -> Message | Refused:
    message = answer.reply
    if message is None:
        return Refused("missing")
    if answer.foreign:
        return Refused("foreign-sender", "the reply came from another node than the one asked")
    if message.has_error():
        return Refused("site-lost", f"Flower error {message.error.code}")
    refusal = message.content.config_records.get(protocol.REFUSAL)
    if refusal is not None:
        code, text = refusal.get("code"), refusal.get("message")
        return Refused(_clean(code, 64) or "site-refused", _clean(text, _TEXT_LIMIT))
    return message


def _read(array: Array, size: int) -> Vector | Refused:
    if type(array) is Array and len(array.data) > 4 * size + _HEADER_LIMIT:
        return Refused("wrong-size", f"{len(array.data)} bytes for {size} numbers")
    if array.dtype != "float32" or tuple(array.shape) != (size,):
        return Refused(
            "wrong-shape", f"{_clean(array.dtype, 16)} {tuple(array.shape)[:4]}, expected float32 ({size},)"
        )
    try:
        vector = array.numpy()
    except (ValueError, TypeError, EOFError, MemoryError, OverflowError, SyntaxError):
        return Refused("unreadable", "the array's bytes are not a NumPy array")
    if not isinstance(vector, np.ndarray) or vector.dtype != np.float32 or vector.shape != (size,):
        return Refused("wrong-shape", f"the array holds something else than float32 ({size},)")
    if not np.isfinite(vector).all():
        return Refused("not-finite", "the update holds NaN or infinity")
    return vector


def _clean(text: object, limit: int) -> str:
    """Return printable text of at most ``limit`` characters; anything else becomes empty."""
    return (
        "".join(character for character in text if character.isprintable())[:limit]
        if isinstance(text, str)
        else ""
    )
