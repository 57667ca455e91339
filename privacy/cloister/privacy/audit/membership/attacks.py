"""Was this record trained on? Three attacks, as pure functions on how sure models are of each record.

====================  ===========================================================================================================
attack                score of a record x with label y under the model θ that is attacked
====================  ===========================================================================================================
`loss_scores`         how sure θ is (Yeom, Giacomelli, Fredrikson & Jha 2018): needs no other model
`lira_scores`         log N(φ; in) - log N(φ; out): Gaussians fitted to the logit-scaled confidences φ of shadow models that were trained with x
                      and without it (Carlini et al. 2022, algorithm 1); offline: Φ((φ - mean out)/sd out), from those without it alone (section VI-A)
`rmia_scores`         the share of reference records z with p_θ(x)/p(x) ≥ γ p_θ(z)/p(z), where p is the mean over shadow models (Zarifzadeh, Liu & Shokri 2024,
                      eqs. 2 and 4)
====================  ===========================================================================================================

φ = log p_y - log(1 - p_y), computed from scores so that it does not saturate; for a regression, minus the log of the loss. Variances are one for all records
where shadows are fewer than 64 on a side, as in the paper's section VI-C.

=====================================  ==================================================
case                                   outcome
=====================================  ==================================================
no shadow trained with a record        offline LiRA only: `lira_scores` refuses
no shadow trained without it           `ValueError`
all shadows equally sure               the variance is at least `_LEAST`
φ of ±inf                              cut to ±`_MOST`
=====================================  ==================================================
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from scipy import stats
from torch import Tensor

__all__ = ["confidence", "lira_scores", "loss_scores", "regression_confidence", "rmia_scores"]

Numbers = npt.NDArray[np.float64]
Members = npt.NDArray[np.bool_]

_MOST = 50.0
_LEAST = 1e-6
_OWN_VARIANCE = 64


def confidence(scores: Tensor, targets: Tensor) -> Numbers:
    """Return φ of each record, (n,) float64.

    Args:
        scores: (n, classes) the model's scores.
        targets: (n,) classes.
    """
    own = scores.double().gather(1, targets.unsqueeze(1)).squeeze(1)
    others = scores.double().scatter(1, targets.unsqueeze(1), -torch.inf).logsumexp(1)
    return _cut((own - others).numpy())


def regression_confidence(losses: Tensor) -> Numbers:
    """Return minus the log of each record's loss ((n,), at least 0)."""
    return _cut(-losses.double().clamp_min(1e-20).log().numpy())


def loss_scores(target: Numbers) -> Numbers:
    """Return the score of the attack by loss: φ itself, which rises as the loss falls."""
    return target.copy()


def lira_scores(target: Numbers, shadows: Numbers, member: Members, *, online: bool = True) -> Numbers:
    """Return LiRA's score of each record.

    Args:
        target: (n,) φ under the model that is attacked.
        shadows: (k, n) φ under each shadow model.
        member: (k, n) whether a shadow was trained with a record.
        online: whether shadows that were trained with a record are used.
    """
    _check(target, shadows, member)
    mean_out, sd_out = _fit(shadows, ~member)
    if not online:
        return np.asarray(stats.norm.logcdf((target - mean_out) / sd_out), dtype=np.float64)
    if not member.any(axis=0).all():
        raise ValueError("a record has no shadow model that was trained with it")
    mean_in, sd_in = _fit(shadows, member)
    inside, outside = (target - mean_in) / sd_in, (target - mean_out) / sd_out
    scores: Numbers = (outside**2 - inside**2) / 2 + np.log(sd_out / sd_in)
    return scores


def rmia_scores(
    target: Numbers,
    shadows: Numbers,
    member: Members,
    *,
    gamma: float = 1.0,
    reference: Members | None = None,
) -> Numbers:
    """Return RMIA's score of each record; see `lira_scores`.

    p(x) is the mean of the two means, of shadows with x and of those without it: what models give x on average where half have seen it. The score only
    compares ratios, so that for one model the order does not depend on which records are the reference.

    Args:
        target: as there.
        shadows: as there.
        member: as there.
        gamma: how much surer than of a reference the model must be.
        reference: (n,) which records are the reference; all of them without it.
    """
    _check(target, shadows, member)
    p = _logistic(shadows)
    inside, outside = (_mean(p, part) for part in (member, ~member))
    inside = np.where(member.any(axis=0), inside, outside)
    ratio = _logistic(target) / np.maximum((inside + outside) / 2, 1e-30)
    held = np.sort(ratio if reference is None else ratio[reference])
    share = np.searchsorted(held, ratio / gamma, side="right") / len(held)
    # Beyond the largest reference all shares are 1: there the ratio itself orders the records, by less than one step.
    return np.asarray(share + 1e-9 * np.tanh(ratio), dtype=np.float64)


def _fit(shadows: Numbers, part: Members) -> tuple[Numbers, Numbers]:
    """Return each record's mean and standard deviation over the shadows of ``part`` ((k, n))."""
    counts = part.sum(axis=0)
    if not counts.all():
        raise ValueError("a record has no shadow model that was trained without it")
    mean = _mean(shadows, part)
    squares = np.where(part, (shadows - mean) ** 2, 0.0)
    if counts.min() >= _OWN_VARIANCE:
        variance = squares.sum(axis=0) / (counts - 1)
    else:  # one for all records, each shadow less one mean
        freedom = max(int(counts.sum() - len(counts)), 1)
        variance = np.full(shadows.shape[1], squares.sum() / freedom)
    return mean, np.sqrt(np.maximum(variance, _LEAST))


def _mean(values: Numbers, part: Members) -> Numbers:
    total: Numbers = np.where(part, values, 0.0).sum(axis=0)
    mean: Numbers = total / np.maximum(part.sum(axis=0), 1)
    return mean


def _check(target: Numbers, shadows: Numbers, member: Members) -> None:
    if shadows.ndim != 2 or shadows.shape != member.shape or shadows.shape[1:] != target.shape:
        raise ValueError(
            f"{shadows.shape} confidences do not go with {member.shape} members and {target.shape} records"
        )
    if not np.isfinite(shadows).all() or not np.isfinite(target).all():
        raise ValueError("a confidence is not finite")


def _cut(values: npt.NDArray[np.float64]) -> Numbers:
    found: Numbers = np.clip(np.nan_to_num(values, nan=0.0, posinf=_MOST, neginf=-_MOST), -_MOST, _MOST)
    return found


def _logistic(values: Numbers) -> Numbers:
    found: Numbers = 1 / (1 + np.exp(-values))
    return found
