"""What is done to an update before and after it is summed, where a whole site is hidden or noise is shared.

==================  ==============================  ======================================  ===========================================
unit                at the site                     at the server                           what makes it private
==================  ==============================  ======================================  ===========================================
site                clip to C                       sum, add N(0, (zC)²) once, divide by n  one draw of noise, by a server that is trusted
site-local          clip to C, add N(0, (zC)²)      sum, divide by n                        each site's own noise
site-distributed    clip, rotate, scale, round,     sum modulo 2²⁰, invert, divide by n     the noise shares of all survivors, together
                    add a Skellam share, mod 2²⁰
record-distributed  a sum of clipped gradients and  sum modulo 2³², unscale, divide by n·B  the noise shares of all survivors, together
                    a Gaussian share: scale,
                    round, mod 2³²
==================  ==============================  ======================================  ===========================================

n is a public constant of the federation file, never the number of sites that answered. Everything here is a pure function of arrays, of
public constants and of generators that are given.
"""

from cloister.privacy.updates.adaptive import AdaptiveClip
from cloister.privacy.updates.clipping import NORM_TOLERANCE, Clipped, clip_update, exceeds_clip, l2_norm
from cloister.privacy.updates.encoding import IntegerCode, choose_scale
from cloister.privacy.updates.fixed_point import FixedPoint
from cloister.privacy.updates.modular import BITS, MODULUS, ModularSum, centred, wrapped
from cloister.privacy.updates.rotation import hadamard, padded, rotate, rotate_back, rotation_signs
from cloister.privacy.updates.rounding import conditional_round, rounded_norm
from cloister.privacy.updates.shares import LEAST_SHARE, SHARE_BITS, ShareCode
from cloister.privacy.updates.skellam import skellam_noise

__all__ = [
    "BITS",
    "LEAST_SHARE",
    "MODULUS",
    "NORM_TOLERANCE",
    "SHARE_BITS",
    "AdaptiveClip",
    "Clipped",
    "FixedPoint",
    "IntegerCode",
    "ModularSum",
    "ShareCode",
    "centred",
    "choose_scale",
    "clip_update",
    "conditional_round",
    "exceeds_clip",
    "hadamard",
    "l2_norm",
    "padded",
    "rotate",
    "rotate_back",
    "rotation_signs",
    "rounded_norm",
    "skellam_noise",
    "wrapped",
]
