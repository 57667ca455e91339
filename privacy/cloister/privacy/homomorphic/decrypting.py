"""The child process that decrypts; `child.Decrypter` is its parent.

It reads messages from standard input, each a length of 8 bytes and a body whose first byte says what it is:

====  ==================================  ==========================================================================================
kind  body                                answer
====  ==================================  ==========================================================================================
``K`` scheme, a zero byte, secret context  one byte, 0
``C`` the residues of one ciphertext       0, the noise budget (one byte) and exactly ``slots`` numbers of 8 bytes; or 1 and nothing
``F`` nothing: forget the key              one byte, 0
====  ==================================  ==========================================================================================

Its limits are its own, set before it reads anything: memory, no core file (which would hold the key), no file may be written.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from typing import TYPE_CHECKING, BinaryIO

if TYPE_CHECKING:
    from cloister.privacy.homomorphic.vectors import Vectors

__all__ = ["LENGTH", "main"]

#: How each message to the child begins.
LENGTH = struct.Struct("<Q")
_MEMORY = 4 << 30
_LONGEST = 1 << 21


def main() -> int:
    """Serve until standard input ends."""
    _limit()
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    vectors: Vectors | None = None
    while (message := _message(source)) is not None:
        kind, body = message[:1], message[1:]
        if kind == b"C" and vectors is not None:
            sink.write(_decrypted(vectors, body))
        else:
            vectors = _made(body) if kind == b"K" else None
            sink.write(b"\0")
        sink.flush()
    return 0


def _made(body: bytes) -> Vectors:
    from cloister.privacy.homomorphic.parameters import parameters_of
    from cloister.privacy.homomorphic.vectors import Vectors

    scheme, _, context = body.partition(b"\0")
    return Vectors(parameters_of(scheme.decode("ascii")), context)


def _decrypted(vectors: Vectors, raw: bytes) -> bytes:
    import numpy as np

    parameters = vectors.parameters
    shape = (2, len(parameters.primes), parameters.degree)
    try:
        numbers, budget = vectors.decrypt(np.frombuffer(raw, dtype="<u8").reshape(shape))
    except (ValueError, RuntimeError):
        return b"\1"
    return bytes([0, min(max(budget, 0), 255)]) + numbers.tobytes()


def _limit() -> None:
    for what, most in ((resource.RLIMIT_AS, _MEMORY), (resource.RLIMIT_CORE, 0), (resource.RLIMIT_FSIZE, 0)):
        _, hard = resource.getrlimit(what)
        allowed = most if hard == resource.RLIM_INFINITY else min(most, hard)
        resource.setrlimit(what, (allowed, allowed))


def _message(source: BinaryIO) -> bytes | None:
    head = source.read(LENGTH.size)
    if len(head) < LENGTH.size:
        return None
    (length,) = LENGTH.unpack(head)
    if length > _LONGEST:
        raise ValueError("a message that is too long")
    body = source.read(length)
    return body if len(body) == length else None
