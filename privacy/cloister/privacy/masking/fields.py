"""Messages as flat mappings of numbers, texts and bytes, read strictly: a peer's bytes are looked at before they are believed.

Formal guarantee: `Message.from_fields` returns a message that satisfies everything its class states (types, lengths, counts, order, no
duplicates, bounded sizes), or raises ``IntegrityError`` (masking-message). It never allocates more than what it was given.

======================================================  ====================================
case                                                    outcome
======================================================  ====================================
an unknown or a missing field                           ``IntegrityError`` (masking-message)
another type (a boolean is no integer)                  ``IntegrityError`` (masking-message)
bytes of another length, too many entries, a duplicate  ``IntegrityError`` (masking-message)
======================================================  ====================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from typing import ClassVar, Self

from cloister.core.errors import IntegrityError

__all__ = [
    "LONGEST_NAME",
    "MOST_SITES",
    "Field",
    "Fields",
    "Message",
    "malformed",
    "need_blobs",
    "need_names",
]

Field = int | str | bytes | list[int] | list[str] | list[bytes]
#: What a message is on the wire: no nesting, so that any transport can hold it.
Fields = dict[str, Field]

#: Most characters of a site's name.
LONGEST_NAME = 512
#: Most sites of one session.
MOST_SITES = 1 << 16

_KINDS: dict[str, tuple[type, type | None]] = {
    "str": (str, None),
    "bytes": (bytes, None),
    "int": (int, None),
    "tuple[str, ...]": (list, str),
    "tuple[bytes, ...]": (list, bytes),
}


@dataclass(frozen=True)
class Message:
    """A message whose fields are texts, bytes and tuples of either; a subclass checks the values when it is made."""

    #: Most entries of a field that is a list.
    most_entries: ClassVar[int] = MOST_SITES

    def to_fields(self) -> Fields:
        """Return it as a flat mapping."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    @classmethod
    def from_fields(cls, given: Mapping[str, object]) -> Self:
        """Read it from a flat mapping.

        Raises:
            IntegrityError: (masking-message) it is none.
        """
        kinds = _kinds_of(cls)  # type: ignore[arg-type] # a class is hashable
        if set(given) != set(kinds):
            raise malformed(cls, "it has other fields than it should")
        read: dict[str, object] = {}
        for name, (kind, element) in kinds.items():
            value = given[name]
            if type(value) is not kind:
                raise malformed(cls, f"{name} is not of type {kind.__name__}")
            if isinstance(value, list):
                if len(value) > cls.most_entries or any(type(entry) is not element for entry in value):
                    raise malformed(cls, f"{name} is too long, or an entry of it has another type")
                value = tuple(value)
            read[name] = value
        return cls(**read)


@cache
def _kinds_of(what: type[Message]) -> dict[str, tuple[type, type | None]]:
    return {field.name: _KINDS[str(field.type)] for field in fields(what)}


def malformed(what: type, why: str) -> IntegrityError:
    """Return the refusal of a message."""
    return IntegrityError(
        f"a message of the masking protocol was refused: {what.__name__}: {why}",
        remedy="use the same version of cloister at the server and at every site",
        code="masking-message",
    )


def need_names(what: type, field: str, names: Sequence[str]) -> None:
    """Check that ``names`` are sorted, distinct, and each of 1 to `LONGEST_NAME` characters.

    Raises:
        IntegrityError: (masking-message) they are not.
    """
    if not all(0 < len(name) <= LONGEST_NAME for name in names):
        raise malformed(what, f"{field} holds a name that is empty or longer than {LONGEST_NAME} characters")
    try:
        "".join(names).encode()
    except UnicodeEncodeError:
        raise malformed(what, f"{field} holds a name that is no text") from None
    if any(one >= other for one, other in pairwise(names)):
        raise malformed(what, f"{field} is not sorted, or names somebody twice")


def need_blobs(what: type, field: str, blobs: Sequence[bytes], *, size: int, count: int) -> None:
    """Check that there are ``count`` byte strings of ``size`` bytes each.

    Raises:
        IntegrityError: (masking-message) there are not.
    """
    if len(blobs) != count or any(len(blob) != size for blob in blobs):
        raise malformed(what, f"{field} does not hold {count} times {size} bytes")
