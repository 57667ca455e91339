"""Several byte strings as one, for files and streams: a count, then each with its length. Nothing else, and nothing is unpickled.

Formal guarantee: ``unframed(framed(parts)) == parts``; anything that is not the form of ``count`` parts within ``most`` bytes is a ``ValueError``.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

__all__ = ["framed", "unframed"]

_COUNT = struct.Struct("<I")
_LENGTH = struct.Struct("<Q")


def framed(parts: Sequence[bytes]) -> bytes:
    """Return ``parts`` as one byte string."""
    made = [_COUNT.pack(len(parts))]
    for part in parts:
        made += [_LENGTH.pack(len(part)), part]
    return b"".join(made)


def unframed(data: bytes, *, count: int, most: int) -> list[bytes]:
    """Return the parts of ``data``.

    Args:
        data: at most ``most`` bytes.
        count: how many parts there must be.
        most: the most bytes that are looked at.

    Raises:
        ValueError: it has another form.
    """
    if len(data) > most or len(data) < _COUNT.size or _COUNT.unpack_from(data)[0] != count:
        raise ValueError("another number of parts")
    parts, at = [], _COUNT.size
    for _ in range(count):
        if len(data) - at < _LENGTH.size:
            raise ValueError("it ends too soon")
        (length,) = _LENGTH.unpack_from(data, at)
        at += _LENGTH.size
        if length > len(data) - at:
            raise ValueError("it ends too soon")
        parts.append(bytes(data[at : at + length]))
        at += length
    if at != len(data):
        raise ValueError("something follows")
    return parts
