"""Signed integers in the slots of ciphertexts, one or two a slot.

Two values a and b of a slot stand as ``a + b·2²⁷``, a plain integer: slots add as integers, so the sum of slots is ``Σa + Σb·2²⁷``.

Formal guarantee: ``unpacked`` of a sum of `packed` arrays is the sum of the arrays, whenever every sum of values lies in [-2²⁶, 2²⁶)
(two lanes). Proof: ``Σa`` is the one number in that interval congruent to the slot modulo 2²⁷; what is left divides by 2²⁷. The slot itself
stays within ``±(2⁵³ - 2²⁶)``, below half of BFV's plain modulus (2⁵³ - 86,016): the scheme does not wrap it either.

=================================  ===============================================
case                               outcome
=================================  ===============================================
fewer values than slots            zeros fill the last ciphertext
a value outside its lane           not looked at here: the codec refused it before
=================================  ===============================================
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from cloister.privacy.homomorphic.parameters import LANE_BITS

__all__ = ["Integers", "packed", "unpacked"]

#: As of `cloister.privacy.updates`, which would load torch: the key authority needs none.
Integers = npt.NDArray[np.int64]

_HALF = 1 << (LANE_BITS - 1)
_MASK = (1 << LANE_BITS) - 1


def packed(values: Integers, *, lanes: int, slots: int) -> Integers:
    """Return ``values`` as (ciphertexts, slots) int64.

    Args:
        values: (size,) int64.
        lanes: values a slot, 1 or 2.
        slots: slots a ciphertext.
    """
    chunks = -(-values.size // (lanes * slots))
    whole: Integers = np.zeros(chunks * slots * lanes, dtype=np.int64)
    whole[: values.size] = values
    if lanes == 1:
        return whole.reshape(chunks, slots)
    pairs = whole.reshape(-1, 2)
    joined: Integers = pairs[:, 0] + (pairs[:, 1] << LANE_BITS)
    return joined.reshape(chunks, slots)


def unpacked(slots: Integers, *, lanes: int) -> Integers:
    """Return the values in (ciphertexts, slots) int64, a flat array with the zeros that filled the last ciphertext."""
    flat = slots.reshape(-1)
    if lanes == 1:
        return flat
    pairs: Integers = np.empty((flat.size, 2), dtype=np.int64)
    low = ((flat + _HALF) & _MASK) - _HALF
    pairs[:, 0] = low
    pairs[:, 1] = (flat - low) >> LANE_BITS
    return pairs.reshape(-1)
