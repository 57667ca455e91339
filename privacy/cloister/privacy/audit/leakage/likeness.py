"""How near what an attacker made comes to the records: matched one to one, with PSNR and SSIM, against what chance gives.

A record counts as recovered where its match reaches `RECOVERED` dB: an error of 3% of the range, at which an image looks the same.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["RECOVERED", "Match", "match", "psnr", "ssim"]

Numbers = npt.NDArray[np.float64]

#: dB from which a record counts as recovered.
RECOVERED = 30.0
_MOST = 100.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Match:
    """Records and the candidates that fit them.

    Attributes:
        psnr: (n,) of each record and its candidate; 0 where there is none.
        candidate: (n,) the candidate's place; -1 for none.
    """

    psnr: Numbers
    candidate: npt.NDArray[np.int64]

    @property
    def recovered(self) -> int:
        """How many records were recovered."""
        return int((self.psnr >= RECOVERED).sum())


def psnr(one: Numbers, other: Numbers, span: float = 1.0) -> Numbers:
    """Return the peak signal-to-noise ratio in dB over the last axis, at most 100.

    Args:
        one: (…, d).
        other: (…, d), broadcast against it.
        span: the range of a number.
    """
    error = np.mean((one - other) ** 2, axis=-1)
    ratio = 10 * np.log10(span**2 / np.maximum(error, 1e-300))
    return np.asarray(np.clip(ratio, 0.0, _MOST), dtype=np.float64)


def ssim(one: Numbers, other: Numbers, span: float = 1.0) -> float:
    """Return the structural similarity of two (height, width) images over windows of 4 by 4 (Wang et al. 2004, eq. 13, uniform windows)."""
    side = min(4, *one.shape)
    a, b = (np.lib.stride_tricks.sliding_window_view(image, (side, side)) for image in (one, other))
    mean_a, mean_b = a.mean((-2, -1)), b.mean((-2, -1))
    var_a, var_b = a.var((-2, -1)), b.var((-2, -1))
    shared = (a * b).mean((-2, -1)) - mean_a * mean_b
    c1, c2 = (0.01 * span) ** 2, (0.03 * span) ** 2
    value = ((2 * mean_a * mean_b + c1) * (2 * shared + c2)) / (
        (mean_a**2 + mean_b**2 + c1) * (var_a + var_b + c2)
    )
    return float(value.mean())


def match(records: Numbers, candidates: Numbers, span: float = 1.0) -> Match:
    """Match each record ((n, d)) with a candidate of its own ((k, d)) so that the sum of PSNRs is largest."""
    from scipy.optimize import linear_sum_assignment

    found, place = np.zeros(len(records)), np.full(len(records), -1, dtype=np.int64)
    if len(candidates):
        table = np.stack([psnr(record, candidates, span) for record in records])
        rows, columns = linear_sum_assignment(-table)
        found[rows], place[rows] = table[rows, columns], columns
    return Match(psnr=found, candidate=place)
