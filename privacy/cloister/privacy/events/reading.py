"""Events to JSON and back, exactly; what cannot be read is an error and never a guess."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Any

from cloister.core.errors import IntegrityError, SpecError
from cloister.privacy.events.base import Event
from cloister.privacy.events.compound import Composed, Repeated, Selected, SeveralRecords
from cloister.privacy.events.mechanisms import (
    CohortGaussian,
    FixedSizeGaussian,
    Gaussian,
    Laplace,
    NonPrivate,
    PoissonGaussian,
    Skellam,
)

__all__ = ["from_json", "to_json"]

_DEEPEST = 16  # events inside events

_KINDS: dict[str, type[Event]] = {
    kind.kind: kind
    for kind in (
        PoissonGaussian,
        Gaussian,
        FixedSizeGaussian,
        CohortGaussian,
        Skellam,
        Laplace,
        SeveralRecords,
        Repeated,
        Selected,
        Composed,
        NonPrivate,
    )
}


def to_json(event: Event) -> dict[str, Any]:
    """Return ``event`` as JSON values: ``{"type": …, field: value, …}``, every field written, numbers exact.

    Raises:
        SpecError: events nested so deep that `from_json` would not read them.
    """
    if _depth(event) > _DEEPEST:
        raise SpecError(
            f"privacy events are nested more than {_DEEPEST} deep",
            remedy="Put events beside each other in one composed event.",
            code="privacy-event",
        )
    return event.as_json()


def from_json(value: object) -> Event:
    """Return the event that `to_json` wrote.

    Raises:
        IntegrityError: not an object, an unknown type, a field that is missing or foreign, a value that the type refuses, or
            nesting deeper than `to_json` writes.
    """
    return _decoded(value, _DEEPEST)


def _depth(event: Event) -> int:
    values = [getattr(event, field.name) for field in fields(event)]
    inside = [part for value in values for part in (value if isinstance(value, tuple) else (value,))]
    return 1 + max((_depth(part) for part in inside if isinstance(part, Event)), default=0)


def _decoded(value: object, depth: int) -> Event:
    if not isinstance(value, Mapping):
        raise _damaged(f"a privacy event must be a JSON object, not {type(value).__name__}")
    kind = _KINDS.get(name) if isinstance(name := value.get("type"), str) else None
    if kind is None:
        raise _damaged(f"unknown type of privacy event: {name!r}")
    if depth == 0:
        raise _damaged(f"privacy events are nested more than {_DEEPEST} deep")
    expected = {field.name for field in fields(kind)}
    if wrong := expected ^ (set(value) - {"type"}):
        listed = ", ".join(sorted(map(str, wrong)))
        raise _damaged(f"privacy event {name!r}: fields that are missing or unknown: {listed}")
    found: dict[str, Any] = {}
    for field in expected:
        item = value[field]
        if isinstance(item, Mapping):
            item = _decoded(item, depth - 1)
        elif isinstance(item, list):
            item = tuple(_decoded(part, depth - 1) for part in item)
        found[field] = item
    try:
        return kind(**found)
    except SpecError as refusal:
        raise _damaged(f"privacy event {name!r}: {refusal.message}") from refusal


def _damaged(message: str) -> IntegrityError:
    return IntegrityError(
        message,
        remedy="The ledger or report was damaged, or written by a newer version of Cloister: verify it, or read it with that version.",
        code="privacy-event-unreadable",
    )
