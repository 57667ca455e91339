"""OpenFHE in a process of its own: keys, ciphertexts and partial decryptions as residues.

A process because OpenFHE is C++ that no stranger's bytes should reach in the process that holds a site's records, and because its wheels are
built for few versions of Python. The interpreter is the one that the environment variable `PYTHON` names; else the one in the folder ``openfhe``
of the environment that runs, which ``scripts/openfhe`` makes; else the one that runs.

Formal guarantees:

- What goes in are residues that are below their primes: arrays of the right shape, checked by who made them; what comes out has exactly the
  length that was asked for, and residues are below their primes.
- A process that dies, refuses, or does not answer within ``limit_s`` seconds is an ``IntegrityError`` (threshold-failed); the next call starts another.
- Secrets go through a pipe: never an argument, a variable of the environment or a file.

==========================================  =======================================================
case                                        outcome
==========================================  =======================================================
no interpreter, OpenFHE is not in it        ``SpecError`` (threshold-missing)
an OpenFHE of another form                  ``SpecError`` (threshold-missing)
it dies, refuses or takes too long          ``IntegrityError`` (threshold-failed)
a process that was forked                   starts one of its own
==========================================  =======================================================
"""

from __future__ import annotations

import atexit
import os
import struct
import subprocess
import sys
import threading
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cloister.core.errors import IntegrityError, SpecError
from cloister.privacy.homomorphic.container import Residues, limits
from cloister.privacy.homomorphic.parameters import THRESHOLD
from cloister.privacy.homomorphic.piping import killed_after, read, send, stop

__all__ = ["PYTHON", "Engine", "engine"]

#: The environment variable that names an interpreter with OpenFHE.
PYTHON = "CLOISTER_OPENFHE_PYTHON"

_LENGTH = struct.Struct("<Q")
_SHAPE = (len(THRESHOLD.primes), THRESHOLD.degree)
_POLYNOMIAL = 8 * len(THRESHOLD.primes) * THRESHOLD.degree
#: Most bytes of an answer.
_MOST = 1 << 20


class Engine:
    """The process; it is started when it is first asked.

    Args:
        python: the interpreter.
        limit_s: seconds that one order may take.
    """

    def __init__(self, python: str, *, limit_s: float = 60.0) -> None:
        self._python = python
        self._limit_s = limit_s
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def check(self) -> None:
        """See that OpenFHE is there.

        Raises:
            SpecError: (threshold-missing) it is not.
        """
        with self._lock:
            self._running()

    def encoded(self, values: npt.NDArray[np.int64]) -> Residues:
        """Return what OpenFHE adds to polynomial 0 of a ciphertext, (primes, N), for (N,) integers below 2^27 in magnitude: scaled, and with fresh noise."""
        if values.shape != (THRESHOLD.slots,) or int(np.abs(values).max()) >= THRESHOLD.plain_modulus // 2:
            raise ValueError(f"expected {THRESHOLD.slots} integers below {THRESHOLD.plain_modulus // 2}")
        (made,) = self._ask(b"e", [values.astype("<i8").tobytes()], (_POLYNOMIAL,))
        return _residues(made, 1).reshape(_SHAPE)

    def partial(self, s: Residues, c1: Residues) -> Residues:
        """Return a partial decryption, (primes, N): c1·s and noise that floods all that it would tell of s.

        Args:
            s: (primes, N), the holder's secret.
            c1: (primes, N), polynomial 1 of the ciphertext.
        """
        (made,) = self._ask(b"p", [_raw(s), _raw(c1)], (_POLYNOMIAL,))
        return _residues(made, 1).reshape(_SHAPE)

    def opened(self, total: Residues) -> npt.NDArray[np.int64]:
        """Return the (N,) integers in the sum, (primes, N), of polynomial 0 and every holder's partial decryption."""
        (made,) = self._ask(b"o", [_raw(total)], (8 * THRESHOLD.slots,))
        return np.frombuffer(made, dtype="<i8").astype(np.int64)

    def close(self) -> None:
        """Stop the process."""
        with self._lock:
            self._stop()

    def _ask(self, order: bytes, parts: Sequence[bytes], lengths: Sequence[int]) -> list[bytes]:
        body = order + b"".join(_LENGTH.pack(len(part)) + part for part in parts)
        with self._lock:
            child = self._running()
            try:
                with killed_after(self._limit_s, child):
                    send(child, _LENGTH.pack(len(body)) + body)
                    status, answer = _answer(child, most=_MOST)
            except (OSError, EOFError) as error:
                self._stop()
                raise _failed(f"the process that runs OpenFHE failed ({type(error).__name__})") from None
        found = _parts(answer)
        if status or len(found) != len(lengths):
            raise _failed(f"OpenFHE refused an order ({answer[8:48].decode('ascii', 'replace')})")
        for part, length in zip(found, lengths, strict=True):
            if len(part) != length:
                raise _failed("OpenFHE's answer has another length")
        return found

    def _running(self) -> subprocess.Popen[bytes]:
        if self._child is not None and self._child.poll() is None:
            return self._child
        self._stop()
        text = files("cloister.privacy.threshold").joinpath("worker.py").read_text("utf-8")
        # One thread, as all of a simulation's workers; isolated: what this interpreter's path holds is not for another.
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        try:
            child = subprocess.Popen(  # noqa: S603 - our own program, and the interpreter that the user named
                [self._python, "-I", "-B", "-c", text],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                env=environment,
                bufsize=0,
            )
        except OSError as error:
            raise _missing(f"'{self._python}' cannot be started: {error.strerror}") from None
        try:
            with killed_after(self._limit_s, child):
                send(child, struct.pack(f"<{len(THRESHOLD.primes)}Q", *THRESHOLD.primes))
                status, answer = _answer(child, most=_MOST)
        except (OSError, EOFError):
            status, answer = 1, _LENGTH.pack(10) + b"it crashed"
        if status:
            stop(child)
            raise _missing(f"in '{self._python}': {answer[8:].decode('utf-8', 'replace')[:200]}")
        self._child = child
        return child

    def _stop(self) -> None:
        child, self._child = self._child, None
        if child is not None:
            stop(child)


_engines: dict[tuple[int, str], Engine] = {}


def engine() -> Engine:
    """Return this process's engine."""
    beside = Path(sys.prefix) / "openfhe" / "bin" / "python"
    python = os.environ.get(PYTHON, "") or (str(beside) if beside.exists() else sys.executable)
    return _engines.setdefault((os.getpid(), python), Engine(python))


@atexit.register
def _close() -> None:
    for (pid, _), one in _engines.items():
        if pid == os.getpid():
            one.close()


def _raw(residues: Residues) -> bytes:
    if residues.shape != _SHAPE or residues.dtype != np.uint64:
        raise ValueError(f"expected uint64 {_SHAPE}, got {residues.dtype} {residues.shape}")
    return np.ascontiguousarray(residues, dtype="<u8").tobytes()


def _residues(raw: bytes, polynomials: int) -> Residues:
    made: Residues = np.frombuffer(raw, dtype="<u8").astype(np.uint64).reshape(polynomials, *_SHAPE)
    if not bool((made < limits(THRESHOLD)).all()):
        raise _failed("a residue of OpenFHE's answer is not below its prime")
    return made


def _answer(child: subprocess.Popen[bytes], *, most: int) -> tuple[int, bytes]:
    status, (length,) = read(child, 1)[0], _LENGTH.unpack(read(child, _LENGTH.size))
    if length > most:
        raise EOFError
    return status, read(child, length)


def _parts(body: bytes) -> list[bytes]:
    parts, at = [], 0
    while at + _LENGTH.size <= len(body):
        (length,) = _LENGTH.unpack_from(body, at)
        at += _LENGTH.size
        parts.append(body[at : at + length])
        at += length
    return parts


def _failed(why: str) -> IntegrityError:
    return IntegrityError(
        why,
        remedy="run the round again: it is a new session; if it fails again, try the interpreter by hand: python -c 'import openfhe'",
        code="threshold-failed",
    )


def _missing(why: str) -> SpecError:
    return SpecError(
        f"'threshold-bfv' needs OpenFHE, which cannot be used {why}",
        remedy=f"use 'masked', which has no key holder at all; or make an environment in which 'import openfhe' works (its wheels are for few "
        f"versions of Python; in a checkout, scripts/openfhe tries those that are there) and name its interpreter in {PYTHON}",
        code="threshold-missing",
    )
