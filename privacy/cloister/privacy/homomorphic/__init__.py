"""Sums of encrypted updates under the key of an authority that is not the server: BFV (exact, the default) and CKKS.

::

    KeyAuthority ── public() ──────────→ PublicCodec(public, consortium)            at a site
                                           encrypt(values, manifest) → container
                                           seal(identity, manifest, container) → Sealed
    ServerSum(signed manifest, cohort, consortium)                                  at the server
        take(name, sealed);  total(identity) → SumRequest
    KeyAuthority.decrypt(SumRequest) → (size,) int64 sums                           at the authority

No module but `vectors` calls TenSEAL, and it is imported only where something is encrypted or decrypted.
"""

from cloister.privacy.homomorphic.authority import KeyAuthority
from cloister.privacy.homomorphic.codec import PublicCodec
from cloister.privacy.homomorphic.container import Ciphertexts, Form
from cloister.privacy.homomorphic.parameters import BFV, CKKS, LANE_BITS, WARNING, Parameters, parameters_of
from cloister.privacy.homomorphic.sealed import Sealed, seal
from cloister.privacy.homomorphic.summation import ServerSum, SumRequest
from cloister.privacy.homomorphic.vault import Vault

__all__ = [
    "BFV",
    "CKKS",
    "LANE_BITS",
    "WARNING",
    "Ciphertexts",
    "Form",
    "KeyAuthority",
    "Parameters",
    "PublicCodec",
    "Sealed",
    "ServerSum",
    "SumRequest",
    "Vault",
    "parameters_of",
    "seal",
]
