"""A mark of each recipient in the weights of its copy of a model, and who a copy that turned up was given to.

Spread spectrum (Cox, Kilian, Leighton & Shamoon 1997) in the weights: to every number of every matrix the copy of recipient r adds
``strength · rms(matrix) · s``, where s = ±1 is drawn from HMAC-SHA-256(key, recipient). Who holds key and original subtracts the original from the copy,
cuts what is left to `_CUT` strengths, and correlates with each recipient's s.

Formal guarantee of `trace`: for a recipient whose s had no part in the copy (whoever made it, knowing everything but the key), the score
z = <r, s>/‖r‖ exceeds t with probability at most exp(-t²/2) (Hoeffding 1963, theorem 2: s is uniform on {±1}^n and r does not depend on it). The
p that is told is this bound times the number of recipients that were asked for. That a mark survives is measured, and not guaranteed.

==============================  ======================================================
case                            outcome
==============================  ======================================================
the copy is the original        z = 0, p = 1: nothing is left
another layout                  `IntegrityError`
two recipients average copies   both are found, each with a z lower by about √2
a new permutation of neurons    not found: the copy has to be laid as it was first
==============================  ======================================================
"""

from __future__ import annotations

import hashlib
import hmac
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cloister.core.errors import IntegrityError, UsageError

__all__ = ["STRENGTH", "Traced", "embed", "trace"]

#: Of the mark, as a share of the root mean square of a matrix.
STRENGTH = 0.02
_CUT = 4.0
_SHORT_KEY = 16


@dataclass(frozen=True, kw_only=True)
class Traced:
    """One recipient's score.

    Attributes:
        recipient: who.
        z: how far the copy leans to its mark.
        p: bound on the chance that a recipient without a part in it, among all that were asked for, scores as much.
    """

    recipient: str
    z: float
    p: float


def embed(
    tensors: Mapping[str, Tensor], *, key: bytes, recipient: str, strength: float = STRENGTH
) -> dict[str, Tensor]:
    """Return a recipient's copy of a model: the same tensors, the matrices marked.

    Args:
        tensors: the model by name; stays as it is.
        key: at least 16 secret bytes.
        recipient: a name.
        strength: share of a matrix's root mean square.

    Raises:
        UsageError: a short key, no matrix to mark, or a strength that is none.
    """
    if not (math.isfinite(strength) and 0 < strength < 1):
        raise UsageError(f"a strength of {strength} is none", remedy="give one between 0 and 1, such as 0.02")
    marked = {name: value.clone() for name, value in tensors.items()}
    signs = _signs(tensors, key, recipient)
    for name, sign in signs.items():
        value = tensors[name]
        mark = strength * float(value.double().square().mean().sqrt()) * torch.from_numpy(sign)
        marked[name] = (value.double() + mark.reshape(value.shape)).to(value.dtype)
    return marked


def trace(
    copy: Mapping[str, Tensor],
    original: Mapping[str, Tensor],
    *,
    key: bytes,
    recipients: Sequence[str],
    strength: float = STRENGTH,
) -> list[Traced]:
    """Return each recipient's score for a copy, the highest first.

    Args:
        copy: the model that turned up.
        original: the model without a mark.
        key: that of `embed`.
        recipients: who was given copies.
        strength: that of `embed`; what is left of a number beyond some of it is cut.

    Raises:
        IntegrityError: the copy has other tensors.
        UsageError: a short key, or nobody to ask for.
    """
    if not recipients:
        raise UsageError("nobody was named who had a copy", remedy="name the recipients")
    names = _matrices(original)
    for name in names:
        if name not in copy or copy[name].shape != original[name].shape:
            raise IntegrityError(
                f"the copy's tensor '{name}' is missing or of another shape",
                remedy="trace a copy of this model",
                code="model-layout",
            )
    rest = []
    for name in names:
        unit = strength * float(original[name].double().square().mean().sqrt()) or 1.0
        left = (copy[name].double() - original[name].double()) / unit
        rest.append(left.nan_to_num(0.0).clamp(-_CUT, _CUT).flatten().numpy())
    flat = np.concatenate(rest)
    length = float(np.linalg.norm(flat))
    found = []
    for recipient in recipients:
        sign = np.concatenate(list(_signs(original, key, recipient).values()))
        z = float(flat @ sign) / length if length else 0.0
        bound = math.exp(-(z**2) / 2) if z > 0 else 1.0
        found.append(Traced(recipient=recipient, z=z, p=min(1.0, len(recipients) * bound)))
    return sorted(found, key=lambda one: -one.z)


def _matrices(tensors: Mapping[str, Tensor]) -> list[str]:
    return sorted(
        name
        for name, value in tensors.items()
        if value.ndim >= 2 and value.is_floating_point() and value.numel()
    )


def _signs(tensors: Mapping[str, Tensor], key: bytes, recipient: str) -> dict[str, npt.NDArray[np.float64]]:
    if len(key) < _SHORT_KEY:
        raise UsageError(
            f"a key of {len(key)} bytes can be guessed", remedy=f"give at least {_SHORT_KEY} random bytes"
        )
    names = _matrices(tensors)
    if not names:
        raise UsageError("the model has no matrix to mark", remedy="mark models with linear layers")
    found = {}
    for name in names:
        size = tensors[name].numel()
        seed = hmac.new(key, f"{len(recipient)}:{recipient}:{name}".encode(), hashlib.sha256).digest()
        bits = np.frombuffer(hashlib.shake_256(seed).digest((size + 7) // 8), dtype=np.uint8)
        found[name] = np.unpackbits(bits)[:size].astype(np.float64) * 2 - 1
    return found
