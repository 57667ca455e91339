"""Documents that travel as JSON files, signed: what the consortium says of its members, and what a member asks of it.

A file is ``{"content": {…}, "signature": "…"}``. What is signed is the content in its one form (sorted keys, no spaces), written again from
what was read: whatever a reader takes from the file is what the signature covers.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
no JSON, too long, of another shape         ``IntegrityError`` (document)
of another version                          ``IntegrityError`` (document)
a signature that does not hold              ``IntegrityError`` (signature)
==========================================  =====================================
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from cloister.core.errors import IntegrityError, UsageError

__all__ = ["LONGEST_DOCUMENT", "Content", "encoded", "read_document", "sealed", "unsealed"]

#: Most bytes of a document that is read: a consortium of some thousand members.
LONGEST_DOCUMENT = 1 << 22
_SIGNATURE = 128


class Content(BaseModel):
    """Base of what is signed: frozen, unknown keys refused, no silent conversion of types."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


_Document = TypeVar("_Document", bound=Content)


def encoded(content: Content) -> bytes:
    """Return the bytes that are signed."""
    return _one_form(content.model_dump(mode="json"))


def sealed(content: Content, sign: Callable[[bytes], bytes]) -> bytes:
    """Return the document as a file holds it."""
    whole = {"content": content.model_dump(mode="json"), "signature": sign(encoded(content)).hex()}
    return (json.dumps(whole, indent=1, sort_keys=True) + "\n").encode()


def unsealed(
    raw: bytes,
    kind: type[_Document],
    check: Callable[[_Document, bytes, bytes], None],
    *,
    what: str,
    most: int = LONGEST_DOCUMENT,
) -> _Document:
    """Read a document and check its signature.

    Args:
        raw: the file's bytes.
        kind: what it must be.
        check: called with the content, the signed bytes and the signature; raises if it does not hold.
        what: for messages, such as "the register of members".
        most: how many bytes are looked at.

    Raises:
        IntegrityError: (document, signature) see the table.
    """
    try:
        data = json.loads(raw) if len(raw) <= most else None
    except (ValueError, RecursionError):
        data = None
    if not isinstance(data, Mapping) or set(data) != {"content", "signature"}:
        raise _unfit(what, "it cannot be read")
    signature = data["signature"]
    if not isinstance(signature, str) or len(signature) != _SIGNATURE:
        raise _unfit(what, "it is not signed")
    try:
        content = kind.model_validate(data["content"])
        check(content, _one_form(data["content"]), bytes.fromhex(signature))
    except (ValidationError, ValueError):
        raise _unfit(what, "it is of another form or version") from None
    return content


def read_document(path: Path, *, most: int = LONGEST_DOCUMENT) -> bytes:
    """Return the bytes of a file that somebody sent.

    Raises:
        UsageError: it cannot be read, or is longer than ``most`` bytes.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(most + 1)
    except OSError as error:
        raise UsageError(f"'{path}' cannot be read: {error.strerror}", remedy="name another file") from None
    if len(raw) > most:
        raise UsageError(f"'{path}' is longer than {most} bytes", remedy="name another file")
    return raw


def _one_form(content: Any) -> bytes:
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def _unfit(what: str, why: str) -> IntegrityError:
    return IntegrityError(
        f"{what} was refused: {why}",
        remedy="get the file again from who made it, with the same version of cloister",
        code="document",
    )
