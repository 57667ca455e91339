"""What client and service share: limits, pieces, and refusals as they travel.

A refusal crosses the channel as its class, code, message and remedy, and is raised again at the server: the same code, whether the
authority is in process or across the network. Anything else that goes wrong at the authority crosses as nothing but "internal".
"""

from __future__ import annotations

import json
from collections.abc import Iterator

from cloister.core.errors import (
    CloisterError,
    IntegrityError,
    PeersMissing,
    PolicyError,
    SpecError,
    StorageError,
    UsageError,
)

__all__ = ["LONGEST_MESSAGE", "PIECE", "SERVICE", "pieces", "refusal_from", "refusal_to"]

SERVICE = "cloister.authority.v1.KeyAuthority"
#: Bytes of one piece of a container or of an answer.
PIECE = 1 << 20
#: Most bytes of one message; gRPC refuses a longer one before it is read.
LONGEST_MESSAGE = 4 << 20

_KINDS: dict[str, type[CloisterError]] = {
    kind.__name__: kind
    for kind in (IntegrityError, PeersMissing, PolicyError, SpecError, StorageError, UsageError)
}
_LONGEST_TEXT = 2000


def pieces(data: bytes) -> Iterator[bytes]:
    """Yield ``data`` in pieces."""
    for begin in range(0, len(data), PIECE):
        yield data[begin : begin + PIECE]


def refusal_to(error: CloisterError) -> str:
    """Return a refusal as it travels."""
    kind = next((name for name, known in _KINDS.items() if isinstance(error, known)), "IntegrityError")
    return json.dumps(
        {"kind": kind, **{name: text[:_LONGEST_TEXT] for name, text in error.as_dict().items()}}
    )


def refusal_from(text: str | None) -> CloisterError | None:
    """Return the refusal in ``text``, where it is one."""
    try:
        found = json.loads(text or "")
        kind, code, message, remedy = (str(found[name]) for name in ("kind", "code", "message", "remedy"))
        return _KINDS[kind](message, remedy=remedy, code=code)
    except (ValueError, KeyError, TypeError, RecursionError):
        return None
