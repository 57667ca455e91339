"""Masks: the key stream of AES-256 in counter mode, added to a vector in place, modulo 2^32.

Formal guarantee: ``add_stream(values, key)`` adds to ``values[i]`` the bytes ``4 i`` to ``4 i + 3`` (little-endian) of the key stream of AES-256-CTR
under ``key`` (NIST SP 800-38A; counter from zero), whatever the blocks that it is generated in. A key serves one stream only. Memory beyond
the vector is two blocks of 256 KiB, whatever the vector's size.

============================  ====================================================
case                          outcome
============================  ====================================================
empty                         nothing happens
2^32 values                   2^30 blocks of AES: told from random bits with an advantage of at most 2^-69 (no block repeats)
============================  ====================================================
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from cloister.privacy.keystream import MOST_AT_ONCE, KeyStream
from cloister.privacy.updates.modular import Residues

__all__ = ["BLOCK", "add_stream", "add_streams"]

#: Bytes that are generated at a time.
BLOCK = MOST_AT_ONCE
_WORDS = BLOCK // 4


def add_stream(values: Residues, key: bytes, *, sign: int = 1) -> None:
    """Add (``sign`` 1) or subtract (-1) the stream of ``key`` (32 bytes) to a contiguous uint32 vector, in place."""
    add_streams(values, [(key, sign)])


def add_streams(values: Residues, keys: Iterable[tuple[bytes, int]]) -> None:
    """Add the streams of all ``keys`` (32 bytes, and 1 or -1) to a contiguous uint32 vector, in place.

    Every block of ``values`` is read once and takes the streams in turn, so that it stays in the cache.
    """
    streams = [(KeyStream(key), sign) for key, sign in keys]
    block = np.empty(_WORDS, dtype="<u4")
    for begin in range(0, values.size, _WORDS):
        part = values[begin : begin + _WORDS]
        mask = block[: part.size]
        for stream, sign in streams:
            stream.read_into(mask.view(np.uint8).data)
            (np.add if sign > 0 else np.subtract)(part, mask, out=part)
