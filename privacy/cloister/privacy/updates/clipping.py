"""An update cut to a largest L2 norm.

Formal guarantee: the L2 norm of `clip_update`'s answer, a float32 vector, is at most C in real arithmetic. So one site moves a sum of
updates by at most C where its update is replaced by zero (zero-out), and by at most 2C where it is replaced by any other.

=================================  =====================================================
edge case                          answer
=================================  =====================================================
norm at most C                     the very vector, ``within`` is true
norm above C                       the vector scaled to a norm of C, a rounding below
a vector of zeros, or empty        itself, ``within`` is true
NaN or infinity in the vector      `DataError`
C of 0, negative, NaN, infinite    `SpecError`
=================================  =====================================================
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.core.errors import DataError, SpecError
from cloister.core.update import Vector

__all__ = ["NORM_TOLERANCE", "Clipped", "check_clip", "clip_update", "exceeds_clip", "l2_norm"]

#: A norm is held to be above C only beyond C·(1 + this): a peer may sum in another order.
NORM_TOLERANCE = 1e-4
#: Scaling aims this much below C, relatively: more than what rounding to float32 (2⁻²⁴ a number) can add again.
_MARGIN = 2.0**-22
#: Elements squared at once.
_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class Clipped:
    """A clipped update.

    Attributes:
        vector: (size,) float32, its norm at most C.
        within: whether the norm was at most C already: the bit that adaptive clipping asks for.
    """

    vector: Vector
    within: bool


def l2_norm(vector: npt.NDArray[Any]) -> float:
    """Return the L2 norm of a flat vector, squared and summed in float64."""
    parts = []
    for start in range(0, len(vector), _BLOCK):
        piece = vector[start : start + _BLOCK].astype(np.float64)
        parts.append(float(np.einsum("i,i->", piece, piece)))
    return math.sqrt(math.fsum(parts))


def clip_update(vector: Vector, clip: float) -> Clipped:
    """Return ``vector`` with an L2 norm of at most ``clip``.

    Args:
        vector: (size,) float32; it is not changed.
        clip: C, in the units of the model's parameters.

    Raises:
        SpecError: C is not a positive finite number.
        DataError: the vector is not finite.
    """
    check_clip(clip)
    if not np.isfinite(vector).all():
        raise DataError(
            "an update that is not finite cannot be clipped",
            remedy="lower training.optimizer.lr, or set training.gradient_clip",
            code="update-not-finite",
        )
    norm = l2_norm(vector)
    if norm <= clip:
        return Clipped(vector=vector, within=True)
    scaled = (vector * np.float64(clip * (1 - _MARGIN) / norm)).astype(np.float32)
    return Clipped(vector=scaled, within=False)


def exceeds_clip(vector: Vector, clip: float) -> bool:
    """Whether a clipped vector cannot be what it should be: its norm is above C·(1 + `NORM_TOLERANCE`)."""
    return not l2_norm(vector) <= clip * (1 + NORM_TOLERANCE)


def check_clip(clip: float) -> None:
    """Refuse a clip that bounds nothing.

    Raises:
        SpecError: it is not a positive finite number.
    """
    if not (math.isfinite(clip) and clip > 0):
        raise SpecError(
            f"clip = {clip}: it must be a positive finite number",
            remedy="give privacy.clip about the median norm of the sites' updates",
            code="privacy-clip",
        )
