"""The parent's side of the process that decrypts: it is started once, and again after it died or took too long.

Why a process of its own: SEAL and TenSEAL are C++ that reads bytes which, once, came from a stranger. `container` leaves them nothing to be
fooled by; this is the second wall. If the library does fail, what fails is a process that holds the key and one ciphertext, and
the authority refuses the session and goes on.

Formal guarantees:

- What `Decrypter.decrypt` returns is exactly ``slots`` numbers and a budget: the child's answer has one length, and any other is a refusal.
- A child that dies, or does not answer within ``limit_s`` seconds, is killed; the next call starts another.
- The key goes to the child through a pipe: never an argument, a variable of the environment or a file.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.container import Residues
from cloister.privacy.homomorphic.decrypting import LENGTH
from cloister.privacy.homomorphic.parameters import Parameters

__all__ = ["Decrypter"]

_START_S = 120.0
_PROGRAM = "from cloister.privacy.homomorphic.decrypting import main; raise SystemExit(main())"


class Decrypter:
    """A child that decrypts with one key; close it, or use it in a ``with``.

    Args:
        parameters: of the key's scheme.
        secret: the secret context, serialised.
        limit_s: seconds that one ciphertext may take.
    """

    def __init__(self, parameters: Parameters, secret: bytes, *, limit_s: float = 60.0) -> None:
        self._parameters = parameters
        self._secret = secret
        self._limit_s = limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._closed = False
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    @property
    def pid(self) -> int | None:
        """The child's process, where one runs."""
        return None if self._child is None else self._child.pid

    def decrypt(self, residues: Residues) -> tuple[npt.NDArray[Any], int]:
        """Return the (slots,) numbers in a ciphertext, int64 or float64, and its noise budget in bits.

        Raises:
            IntegrityError: (decryption-failed) the child refused it, died, or took too long.
        """
        with self._lock:
            if self._closed:
                raise _failed("the key was given up meanwhile")
            try:
                child = self._running()
                with _killed_after(self._limit_s, child):
                    _send(child, np.ascontiguousarray(residues, dtype="<u8").tobytes())
                    if _read(child, 1) != b"\0":
                        raise _failed("the ciphertext is not valid")
                    budget = _read(child, 1)[0]
                    raw = _read(child, 8 * self._parameters.slots)
            except (OSError, EOFError) as error:
                self._stop()
                raise _failed(f"the process that decrypts failed ({type(error).__name__})") from None
        kind = np.int64 if self._parameters.scheme == "bfv" else np.float64
        return np.frombuffer(raw, dtype=kind), budget

    def close(self) -> None:
        """Stop the child; no other is started."""
        with self._lock:
            self._closed = True
            self._stop()

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
        with _killed_after(_START_S, child):
            _send(child, self._parameters.scheme.encode())
            _send(child, self._secret)
            _read(child, 1)
        return child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is None:
            return
        child.kill()
        child.wait()
        for pipe in (child.stdin, child.stdout):
            if pipe is not None:
                pipe.close()


def _send(child: subprocess.Popen[bytes], message: bytes) -> None:
    if child.stdin is None:
        raise EOFError
    left = memoryview(LENGTH.pack(len(message)) + message)
    while left:
        left = left[child.stdin.write(left) or 0 :]


def _read(child: subprocess.Popen[bytes], length: int) -> bytes:
    if child.stdout is None:
        raise EOFError
    parts, left = [], length
    while left:
        part = child.stdout.read(left)
        if not part:
            raise EOFError
        parts.append(part)
        left -= len(part)
    return b"".join(parts)


@contextlib.contextmanager
def _killed_after(seconds: float, child: subprocess.Popen[bytes]) -> Iterator[None]:
    """Kill ``child`` unless the block ends in time: what waits for it in the block then finds its pipes closed."""
    watch = threading.Timer(seconds, child.kill)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _failed(why: str) -> IntegrityError:
    return IntegrityError(
        f"the sum was not decrypted: {why}",
        remedy="run the round again: it is a new session; if it fails again, look at the authority's machine",
        code="decryption-failed",
    )
