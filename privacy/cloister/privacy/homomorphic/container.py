"""Ciphertexts as they travel: a fixed header and the residues, and nothing for a parser to be fooled by.

TenSEAL's own form holds sizes, a compressed stream and SEAL's headers, and its loader believes them: a crafted size crashes the process, and
another makes ``decrypt`` return heap memory. So none of that travels. A container holds only residues, integers modulo public primes,
each in a fixed number of bytes; what TenSEAL wants around them is a constant that the reader writes itself (`vectors`). Any
container that `Ciphertexts.read` accepts is a valid ciphertext, whoever wrote it: it may decrypt to nonsense, never to memory.

::

    magic "CLHE" · version u16 · scheme u16 · key id, 32 bytes · size u64 · lanes u32 · ciphertexts u32 · bytes of each u32     (little-endian)
    ciphertext: polynomial 0 mod prime 0, N residues · polynomial 0 mod prime 1 · … · polynomial 1 mod prime 0 · …
    after the last ciphertext, where the scheme has them: each ciphertext's proof (`cloister.privacy.threshold.proofs`), in order

Formal guarantees:

- `Ciphertexts.read` returns only what has exactly the header and the length that the session's `Form` implies, and every residue
  of which is below its prime. It allocates nothing before the length is checked, and a bounded amount after.
- Residues add modulo their primes: the sum is the ciphertext that SEAL's own addition gives, bit for bit.

==========================================  =========================================
case                                        outcome
==========================================  =========================================
truncated, longer, a huge size              ``IntegrityError`` (ciphertext-length)
another magic, version, scheme, lanes       ``IntegrityError`` (ciphertext-header)
under another key                           ``IntegrityError`` (ciphertext-key)
a residue that is not below its prime       ``IntegrityError`` (ciphertext-residue)
a flipped bit that leaves a valid residue   accepted here: the signature refuses it
==========================================  =========================================
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.parameters import SCHEMES, Parameters, parameters_of
from cloister.privacy.manifest import Manifest

__all__ = ["HEADER", "MAGIC", "VERSION", "Ciphertexts", "Form", "Residues", "limits", "residues_in", "summed"]

MAGIC = b"CLHE"
VERSION = 1

#: (polynomials, primes, N) uint64: one ciphertext.
Residues = npt.NDArray[np.uint64]

_HEADER = struct.Struct("<4sHH32sQIII")
#: Bytes of a container before its first ciphertext.
HEADER = _HEADER.size


@dataclass(frozen=True, kw_only=True)
class Form:
    """What every container of a session looks like.

    Attributes:
        parameters: of the scheme.
        key: the key's id, 64 hexadecimal digits.
        size: values in a container.
        lanes: values a slot.
    """

    parameters: Parameters
    key: str
    size: int
    lanes: int

    @classmethod
    def of(cls, manifest: Manifest) -> Form:
        """Return the form of a session's containers.

        Raises:
            IntegrityError: (ciphertext-key) the manifest names no key.
            SpecError: (protection-scheme, protection-range) it is of no homomorphic scheme, or its sums do not fit.
        """
        parameters = parameters_of(manifest.scheme, SCHEMES)
        if len(manifest.key) != 64 or set(manifest.key) - set("0123456789abcdef"):
            raise _unfit("the manifest names no key", "key")
        lanes = parameters.lanes(manifest.modulus_bits)
        return cls(parameters=parameters, key=manifest.key, size=manifest.size, lanes=lanes)

    @property
    def chunks(self) -> int:
        """Ciphertexts in a container."""
        return -(-self.size // (self.lanes * self.parameters.slots))

    @property
    def length(self) -> int:
        """Bytes of a site's container."""
        return _HEADER.size + self.chunks * (self.parameters.chunk_bytes + self.parameters.proof_bytes)

    @property
    def header(self) -> bytes:
        """The header of every container of this form."""
        return _HEADER.pack(
            MAGIC,
            VERSION,
            self.parameters.code,
            bytes.fromhex(self.key),
            self.size,
            self.lanes,
            self.chunks,
            self.parameters.chunk_bytes,
        )

    def write(self, ciphertexts: Iterable[Residues]) -> bytes:
        """Return a container of ``ciphertexts``, of which there are `chunks`, without proofs: a sum has none."""
        width = self.parameters.width
        parts = [self.header]
        parts += [
            np.ascontiguousarray(one, dtype="<u8").view(np.uint8).reshape(-1, 8)[:, :width].tobytes()
            for one in ciphertexts
        ]
        if len(parts) != self.chunks + 1:
            raise ValueError(f"expected {self.chunks} ciphertexts, got {len(parts) - 1}")
        return b"".join(parts)


class Ciphertexts:
    """A container that was read and found sound; make one with `read`.

    Args:
        form: what it looks like.
        container: its bytes.
    """

    def __init__(self, form: Form, container: bytes) -> None:
        self.form = form
        self.container = container

    @classmethod
    def read(cls, container: bytes, form: Form) -> Ciphertexts:
        """Return the ciphertexts in ``container``, of which nothing is trusted.

        Raises:
            IntegrityError: (ciphertext-length, ciphertext-header, ciphertext-key, ciphertext-residue) it is not of this form.
        """
        if not isinstance(container, bytes) or len(container) != form.length:
            raise _unfit(f"it is not bytes, {form.length} of them", "length")
        _check_header(container[: _HEADER.size], form.header)
        made = cls(form, container)
        for number, one in enumerate(made):
            if not bool((one < limits(form.parameters)).all()):
                raise _unfit(f"a number in ciphertext {number} is not below its modulus", "residue")
        return made

    def __len__(self) -> int:
        return self.form.chunks

    def proof(self, number: int) -> bytes:
        """Return one ciphertext's proof."""
        length = self.form.parameters.proof_bytes
        begin = _HEADER.size + self.form.chunks * self.form.parameters.chunk_bytes + number * length
        return self.container[begin : begin + length]

    def __iter__(self) -> Iterator[Residues]:
        return (self[number] for number in range(len(self)))

    def __getitem__(self, number: int) -> Residues:
        """Return one ciphertext's residues, a new array."""
        if not 0 <= number < len(self):
            raise IndexError(number)
        return residues_in(self.container, self.form.parameters, number)


def limits(parameters: Parameters) -> Residues:
    """Return what each residue is below, (1, primes, 1): the primes."""
    return np.asarray(parameters.primes, dtype=np.uint64)[None, :, None]


def residues_in(container: bytes, parameters: Parameters, number: int) -> Residues:
    """Return the residues of one ciphertext of a container, a new array; nothing is checked but that the bytes are there.

    Raises:
        ValueError: they are not.
    """
    begin = HEADER + number * parameters.chunk_bytes
    raw = np.frombuffer(container, dtype=np.uint8, count=parameters.chunk_bytes, offset=begin)
    wide = np.zeros((parameters.residues, 8), dtype=np.uint8)
    wide[:, : parameters.width] = raw.reshape(-1, parameters.width)
    made: Residues = wide.view("<u8").reshape(2, len(parameters.primes), parameters.degree)
    return made


def summed(containers: Sequence[Ciphertexts]) -> bytes:
    """Return the container of the sum of ``containers``: at least one, all of one form."""
    form = containers[0].form
    primes = limits(form.parameters)

    def chunk(number: int) -> Residues:
        total = containers[0][number]
        for other in containers[1:]:
            total += other[number]
            total %= primes
        return total

    return form.write(chunk(number) for number in range(form.chunks))


def _check_header(found: bytes, wanted: bytes) -> None:
    if found == wanted:
        return
    this, that = _HEADER.unpack(found), _HEADER.unpack(wanted)
    if this[:3] == that[:3] and this[3] != that[3]:
        raise _unfit(
            f"it is under key {this[3].hex()[:16]}…, and the session's is {that[3].hex()[:16]}…", "key"
        )
    names = ("magic", "version", "scheme", "key", "size", "lanes", "count", "length")
    wrong = [name for name, one, other in zip(names, this, that, strict=True) if one != other]
    raise _unfit(f"its header differs from the session's in {', '.join(wrong)}", "header")


def _unfit(why: str, part: str) -> IntegrityError:
    return IntegrityError(
        f"a container of ciphertexts was refused: {why}",
        remedy="have the site fetch the key authority's present public key, and use the same version of cloister everywhere",
        code=f"ciphertext-{part}",
    )
