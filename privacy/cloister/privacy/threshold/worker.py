"""What runs beside OpenFHE: a program that reads orders from standard input. `engine.Engine` is its parent.

OpenFHE's wheels are for few versions of Python, so this program may run under another interpreter than Cloister: it imports nothing but the
standard library and ``openfhe``, and its text, for Python 3.10 or newer, is handed to the interpreter as it stands.

Nothing of a stranger reaches OpenFHE's loader, which believes the sizes that it reads. What comes in are residues, integers that the parent has
checked to be below their primes; this program writes them into a form that its own OpenFHE made, and cuts them out of what OpenFHE answers.

Each order is a length of 8 bytes, one byte that says what is asked, and the parts; each part is a length of 8 bytes and its bytes::

    e  values (i64)     -> m                the 8192 integers as they stand in polynomial 0 of a ciphertext: scaled, and with fresh noise
    p  s, c1            -> d                a partial decryption: c1*s and flooding noise
    o  total            -> values (i64)     the 8192 integers of c0 and all partial decryptions together

An answer is a byte, 0, and its parts in the same form; or 1 and a text. The first answer, unasked, is the primes.
"""

from __future__ import annotations

import os
import resource
import struct
import sys
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

__all__ = ["main"]

SLOTS = 8192
MODULUS = 268369921
BLOCK = 8 * SLOTS
LENGTH = struct.Struct("<Q")


class Form:
    """OpenFHE's bytes around some blocks of residues.

    A block is a vector of SLOTS numbers of 64 bits behind its length; ``count`` of them are the last ones in ``raw``.
    """

    def __init__(self, raw: bytes, count: int, primes: Sequence[int]) -> None:
        mark, at = LENGTH.pack(SLOTS), 0
        found: list[int] = []
        while (at := raw.find(mark, at)) >= 0:
            begin, at = at + LENGTH.size, at + 1
            block = raw[begin : begin + BLOCK]
            if len(block) == BLOCK and _below(block, primes[len(found) % len(primes)]):
                found.append(begin)
                at = begin + BLOCK
        if len(found) != count:
            raise ValueError("this OpenFHE writes its objects in a form that this version does not know")
        self.begins = found
        ends = [0, *(begin + BLOCK for begin in found)]
        self.around = [raw[a:b] for a, b in zip(ends, [*found, len(raw)], strict=True)]

    def filled(self, residues: bytes) -> bytes:
        """Return the object that holds ``residues``."""
        blocks = [residues[at : at + BLOCK] for at in range(0, len(residues), BLOCK)]
        if len(blocks) != len(self.begins) or len(blocks[-1]) != BLOCK:
            raise ValueError("another number of residues")
        parts = [self.around[0]]
        for block, after in zip(blocks, self.around[1:], strict=True):
            parts += [block, after]
        return b"".join(parts)


def _below(block: bytes, prime: int) -> bool:
    return all(number < prime for number in struct.unpack(f"<{SLOTS}Q", block))


class Scheme:
    """BFV of a shared key; the parameters are those of `cloister.privacy.homomorphic.parameters.THRESHOLD`."""

    def __init__(self, primes: Sequence[int]) -> None:
        import openfhe  # type: ignore[import-not-found]  # where this program runs, it is there or not

        self.fhe = openfhe
        self.primes = primes
        settings = openfhe.CCParamsBFVRNS()
        settings.SetPlaintextModulus(MODULUS)
        settings.SetMultiplicativeDepth(0)
        settings.SetRingDim(SLOTS)
        settings.SetMultipartyMode(openfhe.NOISE_FLOODING_MULTIPARTY)
        self.context = openfhe.GenCryptoContext(settings)
        for feature in ("PKE", "KEYSWITCH", "LEVELEDSHE", "ADVANCEDSHE", "MULTIPARTY"):
            self.context.Enable(getattr(openfhe.PKESchemeFeature, feature))
        pair = self.context.KeyGen()
        count = len(primes)
        # Under the public key 0 a ciphertext is the scaled message and noise, and nothing that hides them: `encoded` takes that.
        public = Form(self.written(pair.publicKey), 2 * count, primes).filled(bytes(2 * count * BLOCK))
        self.nothing = openfhe.DeserializePublicKeyString(public, openfhe.BINARY)
        fresh = self.context.Encrypt(pair.publicKey, self.context.MakePackedPlaintext([0] * SLOTS))
        self.fresh = Form(self.written(fresh), 2 * count, primes)
        self.secret = Form(self.written(pair.secretKey), count, primes)
        (part,) = self.context.MultipartyDecryptMain([fresh], pair.secretKey)
        self.part = Form(self.written(part), count, primes)

    def written(self, thing: Any) -> bytes:
        """Return what OpenFHE makes of one of its objects."""
        raw: bytes = self.fhe.Serialize(thing, self.fhe.BINARY)
        return raw

    def residues(self, thing: Any, polynomials: int) -> bytes:
        """Return the residues in one of OpenFHE's objects."""
        raw = self.written(thing)
        form = Form(raw, polynomials * len(self.primes), self.primes)
        return b"".join(raw[begin : begin + BLOCK] for begin in form.begins)

    def ciphertext(self, form: Form, residues: bytes) -> Any:
        """Return the ciphertext of these residues."""
        return self.fhe.DeserializeCiphertextString(form.filled(residues), self.fhe.BINARY)

    def encoded(self, values: bytes) -> list[bytes]:
        """Answer ``e``."""
        plain = self.context.MakePackedPlaintext(list(struct.unpack(f"<{len(values) // 8}q", values)))
        made = self.residues(self.context.Encrypt(self.nothing, plain), 2)
        return [made[: len(made) // 2]]

    def partial(self, s: bytes, c1: bytes) -> list[bytes]:
        """Answer ``p``."""
        key = self.fhe.DeserializePrivateKeyString(self.secret.filled(s), self.fhe.BINARY)
        whole = self.ciphertext(self.fresh, bytes(len(c1)) + c1)
        (made,) = self.context.MultipartyDecryptMain([whole], key)
        return [self.residues(made, 1)]

    def opened(self, total: bytes) -> list[bytes]:
        """Answer ``o``."""
        plain = self.context.MultipartyDecryptFusion([self.ciphertext(self.part, total)])
        plain.SetLength(SLOTS)
        return [struct.pack(f"<{SLOTS}q", *plain.GetPackedValue())]


def main() -> int:
    """Serve until standard input ends."""
    for what in (resource.RLIMIT_CORE, resource.RLIMIT_FSIZE):  # a core file would hold the key
        resource.setrlimit(what, (0, 0))
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    primes = struct.unpack("<3Q", _exactly(source, 24))
    try:
        scheme = Scheme(primes)
    except Exception as error:  # noqa: BLE001 - whatever it is, the parent is told
        _answer(sink, 1, [str(error).encode()])
        return 1
    _answer(sink, 0, [sys.version.split()[0].encode()])
    orders: dict[bytes, Callable[..., list[bytes]]] = {
        b"e": scheme.encoded,
        b"p": scheme.partial,
        b"o": scheme.opened,
    }
    while True:
        head = source.read(LENGTH.size)
        if len(head) < LENGTH.size:
            return 0
        body = _exactly(source, LENGTH.unpack(head)[0])
        try:
            _answer(sink, 0, orders[body[:1]](*_parts(body[1:])))
        except Exception as error:  # noqa: BLE001 - as above; a library's text might tell of what it was given
            _answer(sink, 1, [type(error).__name__.encode()])


def _exactly(source: BinaryIO, length: int) -> bytes:
    data = source.read(length)
    if len(data) != length:
        raise EOFError
    return data


def _parts(body: bytes) -> list[bytes]:
    parts: list[bytes] = []
    at = 0
    while at < len(body):
        (length,) = LENGTH.unpack_from(body, at)
        at += LENGTH.size
        parts.append(body[at : at + length])
        at += length
    return parts


def _answer(sink: BinaryIO, status: int, parts: Sequence[bytes]) -> None:
    body = b"".join(LENGTH.pack(len(part)) + part for part in parts)
    sink.write(bytes([status]) + LENGTH.pack(len(body)) + body)
    sink.flush()


if __name__ == "__main__":
    raise SystemExit(main())
