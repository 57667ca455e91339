"""Masks: the key stream of AES-256 in counter mode, added to a vector in place, modulo 2^32.

Formal guarantee: ``add_stream(values, key)`` adds to ``values[i]`` the bytes ``4 i`` to ``4 i + 3`` (little-endian) of the key stream of AES-256-CTR
under ``key`` (NIST SP 800-38A; counter from zero), whatever the blocks that it is generated in. A key serves one stream only. Memory beyond
the vector is two blocks of 256 KiB, whatever the vector's size.

AES and not ChaCha20, because processors have instructions for it: on one without AVX-512 its stream takes less than half of ChaCha20's time. A
processor without AES instructions is slower, and may not take constant time.

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
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from cloister.privacy.updates.modular import Residues

__all__ = ["BLOCK", "add_stream", "add_streams"]

#: Bytes that are generated at a time: values, zeros and key stream fit into a core's second-level cache.
BLOCK = 1 << 18
_WORDS = BLOCK // 4
_ZEROS = bytes(BLOCK)


def add_stream(values: Residues, key: bytes, *, sign: int = 1) -> None:
    """Add (``sign`` 1) or subtract (-1) the stream of ``key`` (32 bytes) to a contiguous uint32 vector, in place."""
    add_streams(values, [(key, sign)])


def add_streams(values: Residues, keys: Iterable[tuple[bytes, int]]) -> None:
    """Add the streams of all ``keys`` (32 bytes, and 1 or -1) to a contiguous uint32 vector, in place.

    Every block of ``values`` is read once and takes the streams in turn, so that it stays in the cache.
    """
    ciphers = [(Cipher(algorithms.AES256(key), modes.CTR(bytes(16))).encryptor(), sign) for key, sign in keys]
    block = bytearray(BLOCK)
    words = np.frombuffer(block, dtype="<u4")
    zeros = memoryview(_ZEROS)
    for begin in range(0, values.size, _WORDS):
        part = values[begin : begin + _WORDS]
        stream = words[: part.size]
        for cipher, sign in ciphers:
            cipher.update_into(zeros[: 4 * part.size], block)
            (np.add if sign > 0 else np.subtract)(part, stream, out=part)
