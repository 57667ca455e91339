"""``threshold-bfv``: a key that n holders have together, in OpenFHE. Experimental, and an extra: ``pip install 'cloister[threshold]'``.

No one holds the secret key: each holder makes a share, the public key is made of all public shares, and a sum is decrypted from one partial
decryption of every holder (n of n). With noise flooding a partial decryption tells nothing of its share (Asharov et al. 2012, section 4;
OpenFHE's ``NOISE_FLOODING_MULTIPARTY``).

Formal guarantees:

- `fused` of the partial decryptions of all holders is the sum, exactly, while it is below 2²⁶ in magnitude; without one holder it is noise.
- Where OpenFHE cannot be imported, every function refuses with the code ``threshold-missing`` and says why.

OpenFHE's loader, like TenSEAL's, is not made for a stranger's bytes: these functions are for parties that trust each other's software. Shamir
recovery of a missing holder is not offered: OpenFHE's gives wrong keys from a threshold of 7 on.

==========================================  =====================================
case                                        outcome
==========================================  =====================================
OpenFHE is not installed, or does not load  ``SpecError`` (threshold-missing)
fewer than 2 holders, more than 8192 values ``ValueError``: a fault of the caller
a number of 2²⁶ or more                     ``ValueError``: a fault of the caller
==========================================  =====================================
"""

from __future__ import annotations

import importlib
import platform
from collections.abc import Sequence
from functools import cache
from typing import Any

from cloister.core.errors import SpecError

__all__ = ["MODULUS", "SLOTS", "added", "encrypted", "fused", "joined", "openfhe", "partial", "share"]

#: The plain modulus: a prime of 28 bits that is 1 modulo 2·8192.
MODULUS = 268369921
#: Values in one ciphertext; also OpenFHE's ring dimension.
SLOTS = 8192
_LIMIT = 1 << 26


def openfhe() -> Any:
    """Return the module.

    Raises:
        SpecError: (threshold-missing) it cannot be imported here.
    """
    try:
        return importlib.import_module("openfhe")
    except ImportError as error:
        installed = not isinstance(error, ModuleNotFoundError) or error.name != "openfhe"
        why = f"is installed and cannot be loaded ({error})" if installed else "is not installed"
        raise SpecError(
            f"'threshold-bfv' needs OpenFHE, which {why}; this is Python {platform.python_version()}",
            remedy="use 'masked', which has no key holder at all, or a Python that OpenFHE's wheel is built for and: pip install 'cloister[threshold]'",
            code="threshold-missing",
        ) from None


def share(first: bytes | None = None) -> tuple[bytes, bytes]:
    """Return a holder's secret share and public share.

    Args:
        first: the first holder's public share; left out by the first itself.
    """
    fhe, context = openfhe(), _context()
    if first is None:
        pair = context.KeyGen()
    else:
        pair = context.MultipartyKeyGen(fhe.DeserializePublicKeyString(first, fhe.BINARY), False, True)
    return fhe.Serialize(pair.secretKey, fhe.BINARY), fhe.Serialize(pair.publicKey, fhe.BINARY)


def joined(publics: Sequence[bytes]) -> bytes:
    """Return the public key of all holders' public shares, the first holder's first."""
    fhe, context = openfhe(), _context()
    if len(publics) < 2:
        raise ValueError("a threshold key has at least two holders")
    whole, *others = (fhe.DeserializePublicKeyString(public, fhe.BINARY) for public in publics)
    for other in others:
        whole = context.MultiAddPubKeys(whole, other, other.GetKeyTag())
    made: bytes = fhe.Serialize(whole, fhe.BINARY)
    return made


def encrypted(public: bytes, values: Sequence[int]) -> bytes:
    """Return a ciphertext of at most `SLOTS` integers."""
    fhe, context = openfhe(), _context()
    if not 0 < len(values) <= SLOTS or max(abs(value) for value in values) >= _LIMIT:
        raise ValueError(f"expected at most {SLOTS} integers below {_LIMIT}")
    key = fhe.DeserializePublicKeyString(public, fhe.BINARY)
    made: bytes = fhe.Serialize(context.Encrypt(key, context.MakePackedPlaintext(list(values))), fhe.BINARY)
    return made


def added(ciphertexts: Sequence[bytes]) -> bytes:
    """Return the ciphertext of the sum."""
    fhe, context = openfhe(), _context()
    total, *others = (fhe.DeserializeCiphertextString(one, fhe.BINARY) for one in ciphertexts)
    for other in others:
        total = context.EvalAdd(total, other)
    made: bytes = fhe.Serialize(total, fhe.BINARY)
    return made


def partial(secret: bytes, ciphertext: bytes, *, first: bool) -> bytes:
    """Return a holder's partial decryption; ``first`` for the first holder alone."""
    fhe, context = openfhe(), _context()
    key = fhe.DeserializePrivateKeyString(secret, fhe.BINARY)
    one = fhe.DeserializeCiphertextString(ciphertext, fhe.BINARY)
    decrypt = context.MultipartyDecryptLead if first else context.MultipartyDecryptMain
    (made,) = decrypt([one], key)
    raw: bytes = fhe.Serialize(made, fhe.BINARY)
    return raw


def fused(partials: Sequence[bytes], size: int) -> list[int]:
    """Return the first ``size`` integers of the sum, from every holder's partial decryption, the first holder's first."""
    fhe, context = openfhe(), _context()
    plain = context.MultipartyDecryptFusion(
        [fhe.DeserializeCiphertextString(one, fhe.BINARY) for one in partials]
    )
    plain.SetLength(size)
    return [int(value) for value in plain.GetPackedValue()]


@cache
def _context() -> Any:
    fhe = openfhe()
    parameters = fhe.CCParamsBFVRNS()
    parameters.SetPlaintextModulus(MODULUS)
    parameters.SetMultiplicativeDepth(0)
    parameters.SetRingDim(SLOTS)
    parameters.SetMultipartyMode(fhe.NOISE_FLOODING_MULTIPARTY)
    context = fhe.GenCryptoContext(parameters)
    for feature in ("PKE", "KEYSWITCH", "LEVELEDSHE", "ADVANCEDSHE", "MULTIPARTY"):
        context.Enable(getattr(fhe.PKESchemeFeature, feature))
    return context
