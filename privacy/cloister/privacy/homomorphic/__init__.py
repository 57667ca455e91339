"""Sums of encrypted updates under the keys of an authority that is not the server: BFV (exact, the default) and CKKS.

One session, in order::

    authority   public(run, serial, scheme) → bytes            a key for this sum alone; the manifest names its id
    site        codec = PublicCodec(bytes, consortium)
                container = codec.encrypt(values, manifest)    (size,) int64 → bytes, kept
                commitment(container) → 32 bytes               to the server
    server      sums = ServerSum(signed manifest, cohort, consortium);  sums.commit(name, digest)
                sums.agree() → 32 bytes                        to every site that committed
    site        seal(identity, manifest, container, together)  → Sealed, once
    server      sums.take(name, sealed);  sums.total(identity) → SumRequest
    authority   decrypt(request) → (size,) int64 sums

No module but `vectors` calls TenSEAL, and it is imported only where something is encrypted or decrypted.
"""

from cloister.privacy.homomorphic.authority import KeyAuthority
from cloister.privacy.homomorphic.codec import PublicCodec
from cloister.privacy.homomorphic.container import Ciphertexts, Form
from cloister.privacy.homomorphic.parameters import BFV, CKKS, SUM_BITS, WARNING, Parameters, parameters_of
from cloister.privacy.homomorphic.public_key import PublicKey
from cloister.privacy.homomorphic.sealed import Sealed, agreed, commitment, seal
from cloister.privacy.homomorphic.summation import ServerSum, SumRequest
from cloister.privacy.homomorphic.vault import Vault

__all__ = [
    "BFV",
    "CKKS",
    "SUM_BITS",
    "WARNING",
    "Ciphertexts",
    "Form",
    "KeyAuthority",
    "Parameters",
    "PublicCodec",
    "PublicKey",
    "Sealed",
    "ServerSum",
    "SumRequest",
    "Vault",
    "agreed",
    "commitment",
    "parameters_of",
    "seal",
]
