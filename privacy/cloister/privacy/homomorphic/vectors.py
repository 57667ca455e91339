"""The one module that calls TenSEAL: contexts, and single ciphertexts to residues and back.

TenSEAL serialises a ciphertext as a protocol buffer around SEAL's form: 16 bytes of SEAL's header, a Zstandard stream, and in that stream
97 bytes that are the same for all fresh ciphertexts of a context, followed by the residues. `Vectors` takes the residues out of what
this process itself encrypted, and writes the same constant bytes around residues that it is given. TenSEAL's loader never sees a byte
of a stranger other than residues below their primes.

Formal guarantees:

- A `Vectors` made from a public context holds no secret key: it is loaded from bytes that were serialised without one
  (``make_context_public`` would leave it in memory).
- `Vectors.decrypt` returns exactly ``slots`` numbers of one ciphertext, after SEAL found it valid for the context.

==========================================  ==============================================
case                                        outcome
==========================================  ==============================================
a context of other parameters               ``IntegrityError`` (public-key)
bytes that TenSEAL cannot load              ``IntegrityError`` (public-key)
decrypting without a secret key             ``ValueError``: a fault of the caller
==========================================  ==============================================
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import IntegrityError
from cloister.privacy.homomorphic.container import Residues
from cloister.privacy.homomorphic.parameters import Parameters

__all__ = ["Vectors", "new_key"]

_SEAL_HEADER = 16
_PREFIX = 97
_MAGIC = b"\x5e\xa1\x10"
_SAVED = {"save_public_key": True, "save_galois_keys": False, "save_relin_keys": False}


def _tenseal() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import tenseal  # type: ignore[import-untyped]
        import tenseal.sealapi  # type: ignore[import-untyped]

    return tenseal


def new_key(parameters: Parameters) -> tuple[bytes, bytes]:
    """Return a new key from the operating system's randomness: the secret context and the public one, serialised."""
    tenseal = _tenseal()
    kind = {"bfv": tenseal.SCHEME_TYPE.BFV, "ckks": tenseal.SCHEME_TYPE.CKKS}[parameters.scheme]
    plain = {"plain_modulus": parameters.plain_modulus} if parameters.plain_modulus else {}
    context = tenseal.context(
        kind,
        poly_modulus_degree=parameters.degree,
        coeff_mod_bit_sizes=list(parameters.coefficient_bits),
        **plain,
    )
    secret: bytes = context.serialize(save_secret_key=True, **_SAVED)
    public: bytes = context.serialize(save_secret_key=False, **_SAVED)
    return secret, public


class Vectors:
    """One context.

    Args:
        parameters: what it must be of.
        context: serialised, by somebody who is trusted: TenSEAL's loader is not safe on a stranger's bytes.

    Raises:
        IntegrityError: (public-key) it cannot be loaded, or is of other parameters.
    """

    def __init__(self, parameters: Parameters, context: bytes) -> None:
        self._tenseal = _tenseal()
        self.parameters = parameters
        try:
            self._context = self._tenseal.context_from(context)
            self._before, self._after = b"", b""
            self._learn()
        except (ValueError, RuntimeError, IndexError, AttributeError, OSError) as error:
            raise _unfit(f"it cannot be loaded and used ({type(error).__name__})") from None
        self._decryptor: Any = None

    def encrypt(self, slots: npt.NDArray[np.int64]) -> Residues:
        """Return a fresh ciphertext of (slots,) integers."""
        return self._taken_apart(self._encrypted(slots))[1]

    def decrypt(self, residues: Residues) -> tuple[npt.NDArray[Any], int]:
        """Return the (slots,) numbers in a ciphertext, int64 or float64, and its noise budget in bits (0 for ``ckks``).

        Args:
            residues: each below its prime.

        Raises:
            ValueError: there is no secret key, or SEAL does not find the ciphertext valid.
        """
        if not self._context.has_secret_key():
            raise ValueError("there is no secret key here")
        vector = self._put_together(residues)
        (one,) = vector.ciphertext()
        sealapi = self._tenseal.sealapi
        if vector.size() != self.parameters.slots or one.size() != 2:
            raise ValueError("not one ciphertext of two polynomials")
        budget = 0
        if self.parameters.scheme == "bfv":
            if self._decryptor is None:
                self._decryptor = sealapi.Decryptor(
                    self._context.seal_context().data, self._context.secret_key().data
                )
            budget = int(self._decryptor.invariant_noise_budget(one))
        kind = np.int64 if self.parameters.scheme == "bfv" else np.float64
        found = np.asarray(vector.decrypt(), dtype=kind)
        if found.shape != (self.parameters.slots,):
            raise ValueError("another number of slots than went in")
        return found, budget

    def added(self, one: Residues, other: Residues) -> Residues:
        """Return the sum as SEAL computes it: what `container.summed` is tested against."""
        return self._taken_apart(self._put_together(one) + self._put_together(other))[1]

    def _encrypted(self, slots: npt.NDArray[np.int64]) -> Any:
        values = slots.tolist()
        if self.parameters.scheme == "bfv":
            return self._tenseal.bfv_vector(self._context, values)
        return self._tenseal.ckks_vector(self._context, values, self.parameters.scale)

    def _taken_apart(self, vector: Any) -> tuple[tuple[bytes, bytes, bytes], Residues]:
        """Return SEAL's header, the constant bytes and what follows the ciphertext, and its residues."""
        import pyarrow as pa  # type: ignore[import-untyped]

        parameters = self.parameters
        tail = 0 if parameters.scheme == "bfv" else 9  # the scale: a tag and a double
        whole: bytes = vector.serialize()
        begin = whole.index(_MAGIC)
        stream = memoryview(whole)[begin + _SEAL_HEADER : len(whole) - tail]
        length = _PREFIX + 8 * parameters.residues
        raw = pa.decompress(stream, decompressed_size=length, codec="zstd", asbytes=True)
        residues: Residues = np.frombuffer(raw, dtype="<u8", offset=_PREFIX).reshape(
            2, len(parameters.primes), parameters.degree
        )
        around = (whole[begin : begin + 8], raw[:_PREFIX], whole[len(whole) - tail :])
        return around, residues

    def _learn(self) -> None:
        """Learn the constant bytes before the residues and after them, from two fresh ciphertexts."""
        parameters = self.parameters
        zeros = np.zeros(parameters.slots, dtype=np.int64)
        first, one = self._taken_apart(self._encrypted(zeros))
        second, _ = self._taken_apart(self._encrypted(zeros))
        header, prefix, self._after = first
        if prefix[:32].hex() != parameters.digest:
            raise _unfit("it is of other parameters")
        length = _SEAL_HEADER + _PREFIX + 8 * parameters.residues
        plain = header[:5] + b"\0" + header[6:]  # not compressed
        sizes = _varint(parameters.slots)
        self._before = b"\x0a" + _varint(len(sizes)) + sizes + b"\x12" + _varint(length)
        self._before += plain + length.to_bytes(8, "little") + prefix
        if first != second or not np.array_equal(self._taken_apart(self._put_together(one))[1], one):
            raise _unfit("this TenSEAL writes ciphertexts in a form that this version does not know")

    def _put_together(self, residues: Residues) -> Any:
        whole = self._before + np.ascontiguousarray(residues, dtype="<u8").tobytes() + self._after
        if self.parameters.scheme == "bfv":
            return self._tenseal.bfv_vector_from(self._context, whole)
        return self._tenseal.ckks_vector_from(self._context, whole)


def _varint(number: int) -> bytes:
    made = bytearray()
    while number > 127:
        made.append(number & 127 | 128)
        number >>= 7
    made.append(number)
    return bytes(made)


def _unfit(why: str) -> IntegrityError:
    return IntegrityError(
        f"a context of TenSEAL was refused: {why}",
        remedy="use the public key that the key authority hands out, and the same version of cloister everywhere",
        code="public-key",
    )
