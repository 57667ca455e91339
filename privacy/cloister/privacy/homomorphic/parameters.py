"""The parameters of the schemes, and what they can hold.

=================  ====  =====================  =======================  =======  ======================================
scheme             N     coefficient moduli     plain                    values   bytes a value on the wire
=================  ====  =====================  =======================  =======  ======================================
``bfv``            4096  40, 40 and 29 bits     a prime of 54 bits       8192     10 (two lanes of 27 bits a slot)
``bfv``            4096  the same, same key     the same                 4096     20 (one lane of 53 bits)
``ckks``           4096  54 and 55 bits         scale 2²⁵, rounded       2048     28
``threshold-bfv``  8192  60, 60 and 60 bits     a prime of 28 bits       8192     108, of which 60 prove it well formed
=================  ====  =====================  =======================  =======  ======================================

All are at the 128-bit level of the Homomorphic Encryption Standard (Albrecht et al. 2018, Table 1): N = 4096 admits 109 bits, N = 8192 218. Of
``bfv`` and ``ckks`` the last modulus is the special prime: encryption divides by it, so a fresh ciphertext holds little but rounding noise, and no
ciphertext holds it. ``threshold-bfv`` has none: its wide modulus is for the flooding noise of its partial decryptions, which OpenFHE draws
below 2^119 (`cloister.privacy.threshold`).

Why 40, 40 and 29 bits and not 36, 36 and 37: a sum of 1000 fresh ciphertexts keeps 14 bits of noise budget instead of 6, and a residue of
40 bits is 5 whole bytes.

Formal guarantee: `Parameters.lanes` answers only if the sums of every session with that ``modulus_bits`` are exact: a lane of b bits holds
sums in ``[-2^(b-1), 2^(b-1))``, and the manifest promises that ``cohort_size * largest`` is below ``2^(modulus_bits-1)``. One bit stays
spare: half of all numbers in a lane are no sum that sites may send, which is how `opening` knows nonsense when it sees it.

=====================================  ============================================
case                                   outcome
=====================================  ============================================
``modulus_bits`` up to 26              two lanes (``bfv``), one (``ckks``, ``threshold-bfv``)
27 to 52                               one lane (``bfv``), ``SpecError`` (the others)
above 52                               ``SpecError`` (protection-range)
``masked``, another scheme             ``SpecError`` (protection-scheme)
=====================================  ============================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cloister.core.errors import SpecError

__all__ = [
    "BFV",
    "CKKS",
    "LANE_BITS",
    "LEAST_BUDGET",
    "OF_AN_AUTHORITY",
    "SCHEMES",
    "SUM_BITS",
    "THRESHOLD",
    "WARNING",
    "HomomorphicScheme",
    "Parameters",
    "parameters_of",
]

HomomorphicScheme = Literal["bfv", "ckks", "threshold-bfv"]

#: Bits of a lane where two share a slot.
LANE_BITS = 27
#: Most bits of a sum (a manifest's ``modulus_bits``) where two share a slot: one bit of each lane is spare.
SUM_BITS = LANE_BITS - 1
#: Fewest bits of noise budget that a sum must have left before the authority releases it.
LEAST_BUDGET = 10
#: What `ckks` costs in security; ``cloister check`` prints it.
WARNING = (
    "ckks is approximate: what a decryption returns carries noise that depends on the secret key, and unrounded results give the key away "
    "(Li & Micciancio 2021, 'On the security of homomorphic encryption on approximate numbers'). The key authority rounds every sum to "
    "whole quantisation steps before it leaves, which removes that noise but is no proof. bfv is exact, a third of the size and the default."
)


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """One scheme's parameters.

    Attributes:
        scheme: its name in a manifest.
        code: its number in a container.
        degree: N.
        coefficient_bits: bits of each coefficient modulus, the special prime last.
        primes: the moduli that a ciphertext holds residues of: the library's choice for these bits.
        width: bytes of a residue on the wire.
        slots: integers in one ciphertext.
        plain_modulus: t; 0 for ``ckks``.
        scale: Δ; 0 for ``bfv``.
        reach: bits of the widest signed number in a slot.
        proof_bytes: bytes of a site's proof that a ciphertext is well formed; 0 where there is none.
        digest: SEAL's hash (hex) of scheme, degree, moduli and plain modulus, which each of its ciphertexts begins with; empty for ``threshold-bfv``.
    """

    scheme: HomomorphicScheme
    code: int
    degree: int
    coefficient_bits: tuple[int, ...]
    primes: tuple[int, ...]
    width: int
    slots: int
    plain_modulus: int
    scale: float
    reach: int
    digest: str
    proof_bytes: int = 0

    @property
    def residues(self) -> int:
        """Residues in one ciphertext: two polynomials of N coefficients, one residue a prime."""
        return 2 * len(self.primes) * self.degree

    @property
    def chunk_bytes(self) -> int:
        """Bytes of one ciphertext on the wire."""
        return self.residues * self.width

    def lanes(self, modulus_bits: int) -> int:
        """Return how many values share a slot where sums are below 2^(modulus_bits-1) in magnitude.

        Raises:
            SpecError: (protection-range) such sums do not fit.
        """
        if self.scheme == "bfv" and modulus_bits <= SUM_BITS:
            return 2
        if modulus_bits < self.reach:
            return 1
        raise SpecError(
            f"a sum of {modulus_bits} bits does not fit into a slot of {self.scheme}, which holds {self.reach - 1}",
            remedy=f"use at most {SUM_BITS} bits, which is also the smallest on the wire",
            code="protection-range",
        )


#: Exact, and the default.
BFV = Parameters(
    scheme="bfv",
    code=1,
    degree=4096,
    coefficient_bits=(40, 40, 29),
    primes=(1099511390209, 1099511480321),
    width=5,
    slots=4096,
    plain_modulus=18014398509309953,
    scale=0.0,
    reach=53,
    digest="13b724b826af84567f512ad67b2c2777f2ffec647129dfe53e0cbcb8cd07131d",
)
#: Approximate, rounded before release; see `WARNING`.
CKKS = Parameters(
    scheme="ckks",
    code=2,
    degree=4096,
    coefficient_bits=(54, 55),
    primes=(18014398509309953,),
    width=7,
    slots=2048,
    plain_modulus=0,
    scale=2.0**25,
    reach=LANE_BITS,
    digest="51ae543f0924b47aa9562856693865639a047f41c515f2f8855145be0cc678b5",
)


#: Exact, under a key that no one party holds, through OpenFHE; see `cloister.privacy.threshold`.
THRESHOLD = Parameters(
    scheme="threshold-bfv",
    code=3,
    degree=8192,
    coefficient_bits=(60, 60, 60),
    primes=(1152921504606830593, 1152921504606748673, 1152921504606683137),
    width=8,
    slots=8192,
    plain_modulus=268369921,
    scale=0.0,
    reach=27,  # twice a sum is opened
    digest="",
    proof_bytes=10 * (2 + 2 * 8192 * 3),
)


#: Whose keys an authority holds.
OF_AN_AUTHORITY = (BFV, CKKS)
#: All schemes.
SCHEMES = (*OF_AN_AUTHORITY, THRESHOLD)


def parameters_of(scheme: str, among: Sequence[Parameters] = OF_AN_AUTHORITY) -> Parameters:
    """Return the parameters of a scheme.

    Args:
        scheme: its name.
        among: which schemes can be meant.

    Raises:
        SpecError: (protection-scheme) it is none of them.
    """
    for known in among:
        if known.scheme == scheme:
            return known
    names = " or ".join(f"'{known.scheme}'" for known in among)
    raise SpecError(f"'{scheme}' is not {names}", remedy="use 'bfv'", code="protection-scheme")
