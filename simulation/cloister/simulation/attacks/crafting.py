"""Updates that liars make of what they know, each a function of `Known`.

====================  ==============================================================================================
attack                every liar sends
====================  ==============================================================================================
sign-flip             its own update, turned round
ipm                   -ε times the honest mean (Xie, Koyejo, Gupta 2020, *Fall of Empires*)
alie                  the honest mean minus z deviations (Baruch, Baruch, Goldberg 2019, *A Little Is Enough*, Algorithm 3)
min-max               as far from the honest mean as the two furthest honest updates are from each other (Shejwalkar,
                      Houmansadr 2021, *Manipulating the Byzantine*, Eq. 4)
min-sum               with a sum of squared distances to the honest no larger than that of any honest one (ibid., Eq. 5)
mimic                 the update of one honest site that stands out, so that it counts more (Karimireddy, He, Jaggi 2022, §3)
not-finite            its own update with a NaN or an infinity in it
stale-replay          its own update of some rounds ago
free-rider            what the last round changed in the model, without training (Lin, Du, Liu 2019, "delta weights")
constrain-and-scale   its own update, scaled up, but no longer than the longest honest one (after Bagdasaryan et al. 2020)
neurotoxin            its own update without the coordinates that the last round moved most (Zhang et al. 2022, Algorithm 1, applied to
                      the finished update and not to each step)
====================  ==============================================================================================
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy.special import ndtri

from cloister.core.update import Vector
from cloister.simulation.attacks.knowing import Known

__all__ = ["CRAFTS", "Craft", "hiding_z"]

Craft = Callable[[Known], dict[int, Vector]]
_Matrix = npt.NDArray[np.float64]


def sign_flip(known: Known) -> dict[int, Vector]:
    """Turn each liar's own update round."""
    scale = np.float32(known.attack.scale or 1.0)
    return {node: -scale * vector for node, vector in known.own.items()}


def ipm(known: Known) -> dict[int, Vector]:
    """Send -ε times the honest mean."""
    return known.all_send(-(known.attack.scale or 0.5) * known.mean)


def alie(known: Known) -> dict[int, Vector]:
    """Send the honest mean minus z deviations."""
    z = known.attack.z or hiding_z(len(known.honest), len(known.own))
    return known.all_send(known.mean - z * known.deviation)


def hiding_z(honest: int, liars: int) -> float:
    """Return the most deviations with which enough honest updates lie further out: Φ⁻¹((h - s) / h), s = ⌊n / 2 + 1⌋ - m."""
    supporters = (honest + liars) // 2 + 1 - liars
    share = (honest - supporters) / honest
    return float(ndtri(min(max(share, 0.5 / honest), 1 - 0.5 / honest)))


def min_max(known: Known) -> dict[int, Vector]:
    """Leave the honest mean as far as the largest distance between two honest updates allows."""
    own, cross = _squares(known.rows)
    most = float(cross.max())
    return known.all_send(_away(known, own, np.full(len(own), most)))


def min_sum(known: Known) -> dict[int, Vector]:
    """Leave the honest mean as far as the largest sum of squared distances of an honest update allows."""
    own, cross = _squares(known.rows)
    most = float(cross.sum(axis=1).max())
    return known.all_send(_away(known, own, np.array([most]), summed=True))


def mimic(known: Known) -> dict[int, Vector]:
    """Repeat the honest site that stands out most along the direction in which they differ most, from the first round on."""
    kept = known.memory.get("mimic")
    node = int(kept[0]) if kept is not None else -1
    if node not in known.honest:
        about = known.rows - known.mean
        values, vectors = np.linalg.eigh(about @ about.T)
        standing = np.abs(vectors[:, -1]) * max(float(values[-1]), 0.0) ** 0.5
        node = sorted(known.honest)[int(np.argmax(standing))]
        known.memory["mimic"] = np.array([node], dtype=np.int64)
    return dict.fromkeys(known.own, known.honest[node])


def not_finite(known: Known) -> dict[int, Vector]:
    """Put a NaN or an infinity into each liar's own update."""
    found = {}
    for place, (node, vector) in enumerate(sorted(known.own.items())):
        found[node] = vector.copy()
        found[node][place % len(vector)] = (np.nan, np.inf, -np.inf)[place % 3]
    return found


def stale_replay(known: Known) -> dict[int, Vector]:
    """Send each liar's own update of ``delay`` rounds ago, or its oldest."""
    found, due = {}, known.number - (known.attack.delay or 5)
    for node, vector in known.own.items():
        known.memory[f"stale.{node}.{known.number}"] = vector
        prefix = f"stale.{node}."
        rounds = sorted(int(name.removeprefix(prefix)) for name in known.memory if name.startswith(prefix))
        chosen = max((one for one in rounds if one <= due), default=rounds[0])
        found[node] = known.memory[f"{prefix}{chosen}"]
        for old in rounds:
            if old < chosen:
                del known.memory[f"{prefix}{old}"]
    return found


def free_rider(known: Known) -> dict[int, Vector]:
    """Send what the last round changed."""
    return known.all_send(np.zeros(len(known.model)) if known.moved is None else known.moved)


def constrain_and_scale(known: Known) -> dict[int, Vector]:
    """Scale each liar's own update up, but to no more than the longest honest one."""
    longest = float(np.sqrt(np.square(known.rows).sum(axis=1).max()))
    most = known.attack.scale or (len(known.honest) + len(known.own)) / len(known.own)
    found = {}
    for node, vector in known.own.items():
        length = float(np.linalg.norm(vector.astype(np.float64)))
        found[node] = vector * np.float32(min(most, longest / length) if length else 1.0)
    return found


def neurotoxin(known: Known) -> dict[int, Vector]:
    """Leave alone the coordinates that the last round moved most."""
    if known.moved is None:
        return dict(known.own)
    amount = int((known.attack.ratio or 0.1) * len(known.model))
    taken = np.argsort(-np.abs(known.moved), kind="stable")[:amount]
    found = {}
    for node, vector in known.own.items():
        found[node] = vector.copy()
        found[node][taken] = 0
    return found


def _squares(rows: _Matrix) -> tuple[_Matrix, _Matrix]:
    """Return (h,) squared distances to the mean and (h, h) between rows."""
    about = rows - rows.mean(axis=0)
    inner = about @ about.T
    own = np.diag(inner)
    return own, np.maximum(own[:, None] + own[None, :] - 2 * inner, 0.0)


def _away(known: Known, own: _Matrix, most: _Matrix, *, summed: bool = False) -> _Matrix:
    """Return mean + γp for the largest γ with ``|mean + γp - x_i|² ≤ most_i`` for each i, or for the sum over i."""
    match known.attack.direction or "std":
        case "unit":
            along = -known.mean
        case "sign":
            along = -np.sign(known.mean)
        case _:
            along = -known.deviation
    length = float(np.linalg.norm(along))
    if not length:
        return known.mean
    along = along / length
    slopes = -(known.rows - known.mean) @ along  # |γp - y|² = γ² - 2γ p·y + |y|²
    if summed:
        amount = len(own)
        half, rest = slopes.sum() / amount, (own.sum() - most[0]) / amount
        gamma = -half + np.sqrt(max(half * half - rest, 0.0))
    else:
        gamma = np.min(-slopes + np.sqrt(np.maximum(slopes * slopes - (own - most), 0.0)))
    found: _Matrix = known.mean + max(float(gamma), 0.0) * along
    return found


CRAFTS: dict[str, Craft] = {
    "sign-flip": sign_flip,
    "ipm": ipm,
    "alie": alie,
    "min-max": min_max,
    "min-sum": min_sum,
    "mimic": mimic,
    "not-finite": not_finite,
    "stale-replay": stale_replay,
    "free-rider": free_rider,
    "constrain-and-scale": constrain_and_scale,
    "neurotoxin": neurotoxin,
}
