"""The parent's side of the process that decrypts: it is started once, and again after it died or took too long.

Why a process of its own: SEAL and TenSEAL are C++ that reads bytes which, once, came from a stranger. `container` leaves them nothing to be
fooled by; this is the second wall. If the library does fail, what fails is a process that holds the key and one ciphertext, and
the authority refuses the session and goes on.

Formal guarantees:

- What `Decrypter.decrypt` yields is exactly ``slots`` numbers and a budget a ciphertext: the child's answer has one length, and any other
  is a refusal.
- A child that dies, or does not answer within ``limit_s`` seconds, is killed; the next session starts another.
- The key goes to the child through a pipe: never an argument, a variable of the environment or a file. It is forgotten after its session.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Generator, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.container import Residues
from cloister.privacy.homomorphic.decrypting import LENGTH
from cloister.privacy.homomorphic.piping import killed_after, read, send, stop
from cloister.privacy.homomorphic.vault import SessionKey

__all__ = ["Decrypter"]

#: The (slots,) numbers of one ciphertext, int64 or float64, and its noise budget in bits (0 for ``ckks``).
Decrypted = tuple[npt.NDArray[Any], int]

_PROGRAM = "from cloister.privacy.homomorphic.decrypting import main; raise SystemExit(main())"


class Decrypter:
    """A child that decrypts, with one key at a time; close it.

    Args:
        limit_s: seconds that one ciphertext may take.
    """

    def __init__(self, *, limit_s: float = 60.0) -> None:
        self._limit_s = limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    @property
    def pid(self) -> int | None:
        """The child's process, where one runs."""
        return None if self._child is None else self._child.pid

    def decrypt(self, key: SessionKey, ciphertexts: Iterable[Residues]) -> Generator[Decrypted]:
        """Yield the numbers and the noise budget of each ciphertext; other sessions wait until the last was taken.

        Raises:
            IntegrityError: (decryption-failed) the child refused one, died, or took too long.
        """
        parameters = key.public.parameters
        kind = np.int64 if parameters.scheme == "bfv" else np.float64
        with self._lock:
            try:
                child = self._running()
                self._ask(child, b"K" + parameters.scheme.encode() + b"\0" + key.secret, 0)
                for one in ciphertexts:
                    body = np.ascontiguousarray(one, dtype="<u8").tobytes()
                    answer = self._ask(child, b"C" + body, 1 + 8 * parameters.slots)
                    yield np.frombuffer(answer, dtype=kind, offset=1), answer[0]
            except (OSError, EOFError) as error:
                self._stop()
                raise _failed(f"the process that decrypts failed ({type(error).__name__})") from None
            finally:  # however it ended, also where the caller stopped asking
                self._forget()

    def close(self) -> None:
        """Stop the child."""
        with self._lock:
            self._stop()

    def _forget(self) -> None:
        """Have the child forget its key, or kill it."""
        if self._child is not None:
            try:
                self._ask(self._child, b"F", 0)
            except (OSError, EOFError, IntegrityError):
                self._stop()

    def _ask(self, child: subprocess.Popen[bytes], message: bytes, length: int) -> bytes:
        """Send a message and return its answer, ``length`` bytes after the byte 0."""
        with killed_after(self._limit_s, child):
            send(child, LENGTH.pack(len(message)) + message)
            if read(child, 1) != b"\0":
                raise _failed("the library refused a ciphertext")
            return read(child, length)

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._stop()
        command = [sys.executable, "-P", "-c", _PROGRAM]
        # One thread of each numerical library: their stacks would count against the child's memory.
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        child = subprocess.Popen(  # noqa: S603 - our own module
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )
        self._child = child
        return child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            stop(child)


def _failed(why: str) -> IntegrityError:
    return IntegrityError(
        f"the sum was not decrypted: {why}",
        remedy="run the round again: it is a new session; if it fails again, look at the authority's machine",
        code="decryption-failed",
    )
