"""The child process that holds the secret key and decrypts.

It reads from standard input and writes to standard output; its parent is `child.Decrypter`. First it is sent the scheme's name and the
secret context, then ciphertexts, each of exactly the residues of one. For each it answers one byte (0 for good), the noise budget (one
byte) and exactly ``slots`` numbers of 8 bytes, or the byte 1 and nothing.

Its limits are its own, set before it reads anything: memory, no core file (which would hold the key), no file may be written.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from typing import BinaryIO

import numpy as np

__all__ = ["LENGTH", "main"]

#: How each message to the child begins.
LENGTH = struct.Struct("<Q")
_MEMORY = 4 << 30
_LONGEST = 1 << 20


def main() -> int:
    """Serve until standard input ends."""
    _limit()
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    scheme, context = _message(source), _message(source)
    if scheme is None or context is None:
        return 0
    from cloister.privacy.homomorphic.parameters import parameters_of
    from cloister.privacy.homomorphic.vectors import Vectors

    parameters = parameters_of(scheme.decode("ascii"))
    vectors = Vectors(parameters, context)
    shape = (2, len(parameters.primes), parameters.degree)
    sink.write(b"\0")
    sink.flush()
    while (raw := _message(source)) is not None:
        try:
            numbers, budget = vectors.decrypt(np.frombuffer(raw, dtype="<u8").reshape(shape))
        except (ValueError, RuntimeError):
            sink.write(b"\1")
        else:
            sink.write(bytes([0, min(max(budget, 0), 255)]) + numbers.tobytes())
        sink.flush()
    return 0


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
