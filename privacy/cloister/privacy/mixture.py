"""The privacy loss distribution of a mixture of Gaussians, without waiting for it.

dp-accounting 0.6.0 inverts the privacy loss of a mixture by one scalar search after the other: a second or more for each noise
that a calibration tries. Here the inversion is one vectorised Newton iteration; everything else is dp-accounting's: its
mixture (Choquette-Choo et al. 2023, arXiv 2310.15526), its truncation, and its pessimistic discretisation ("connect the dots",
Doroshenko et al. 2022, arXiv 2207.04380). The result is the same to
rounding, except next to the limits of a mixture's losses, where dp-accounting's δ is too small.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import logsumexp

__all__ = ["mixture_pld"]

_Floats = npt.NDArray[np.float64]
_CELLS = 1_000_000  # of one table of points × sensitivities


def mixture_pld(
    noise: float, sensitivities: Sequence[float], probabilities: Sequence[float], grid: float
) -> Any:
    """Return dp-accounting's ``PrivacyLossDistribution`` of N(0, σ²) against Σ pᵢ N(cᵢ, σ²), in both directions.

    Args:
        noise: σ.
        sensitivities: cᵢ ≥ 0, in ascending order.
        probabilities: pᵢ, which sum to 1; a zero is left out.
        grid: step between the privacy losses that are represented.

    Raises:
        ValueError: the losses are closer to their limit than floating point can tell, or the arguments are no mixture.
    """
    from dp_accounting.pld import privacy_loss_distribution  # type: ignore[import-untyped]  # dp-accounting ships no types
    from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType  # type: ignore[import-untyped]  # as above

    directions = (AdjacencyType.REMOVE, AdjacencyType.ADD)
    return privacy_loss_distribution.PrivacyLossDistribution(
        *(_one_direction(noise, sensitivities, probabilities, grid, direction) for direction in directions)
    )


def _one_direction(
    noise: float, sensitivities: Sequence[float], probabilities: Sequence[float], grid: float, direction: Any
) -> Any:
    """Return the discretised distribution of the losses in one direction: contribution removed, or added."""
    from dp_accounting.pld.pld_pmf import create_pmf_pessimistic_connect_dots_fixed_gap  # type: ignore[import-untyped]
    from dp_accounting.pld.privacy_loss_mechanism import MixtureGaussianPrivacyLoss

    loss = MixtureGaussianPrivacyLoss(noise, sensitivities, probabilities, adjacency_type=direction)
    sign = 1.0 if direction.name == "ADD" else -1.0
    bounds = loss.connect_dots_bounds()
    lower, upper = int(np.floor(bounds.epsilon_lower / grid)), int(np.ceil(bounds.epsilon_upper / grid))
    epsilons = np.arange(lower, upper + 1) * grid

    # With a chance of moving nowhere, the losses end at -log(1 - q) (added) or begin at log(1 - q) (removed). Beyond that δ is
    # known; close to it the inversion is not, and δ is bounded instead: dp-accounting takes it for that at the limit, too small.
    moves = float(np.sum(loss.sampling_probs[loss.sensitivities > 0]))
    limit = -sign * np.log1p(-moves) if moves < 1 else sign * np.inf
    beyond, close = sign * epsilons >= sign * limit, np.isclose(epsilons, limit)
    deltas = -np.expm1(epsilons - limit) if sign > 0 else np.full_like(epsilons, moves)
    deltas[beyond] = 0.0 if sign > 0 else -np.expm1(epsilons[beyond])
    if (inside := ~beyond & ~close).any():
        at = _inverse(loss, noise, sign, epsilons[inside])
        deltas[inside] = loss.mu_upper_cdf(at) - np.exp(epsilons[inside] + loss.mu_lower_log_cdf(at))
    # The best cutoff is where the loss is ε; any other gives less. So rounding can only be seen as a rise, which is levelled up.
    deltas = np.maximum.accumulate(np.clip(deltas, 0, 1)[::-1])[::-1]
    return create_pmf_pessimistic_connect_dots_fixed_gap(grid, lower, upper, deltas)


def _inverse(loss: Any, noise: float, sign: float, losses: _Floats) -> _Floats:
    """Return the outcome x at which each of ``losses`` arises; the loss falls as x grows."""
    low, high = -noise, noise
    while _loss_and_slope(loss, noise, sign, np.array([low]))[0][0] < losses[-1]:
        low *= 2
    while _loss_and_slope(loss, noise, sign, np.array([high]))[0][0] > losses[0]:
        high *= 2
    x = np.linspace(low, high, 2 * len(losses) + 100)
    table, _ = _loss_and_slope(loss, noise, sign, x)
    cell = np.clip(np.searchsorted(-table, -losses), 1, len(x) - 1)
    found = np.interp(-losses, -table, x)
    for _ in range(4):
        value, slope = _loss_and_slope(loss, noise, sign, found)
        found = np.clip(found - (value - losses) / slope, x[cell - 1], x[cell])
    return found


def _loss_and_slope(loss: Any, noise: float, sign: float, x: _Floats) -> tuple[_Floats, _Floats]:
    """Return the privacy loss at each outcome and its derivative.

    With ``w(x) = log Σ pᵢ exp((± x cᵢ - cᵢ²/2)/σ²)`` the loss is -w when the contribution is added (+), and w when it is removed (-).
    """
    values, slopes = np.empty_like(x), np.empty_like(x)
    constants = np.log(loss.sampling_probs) - loss.sensitivities**2 / (2 * noise**2)
    rows = max(_CELLS // len(constants), 1)
    for start in range(0, len(x), rows):
        part = slice(start, start + rows)
        terms = constants + sign * np.outer(x[part], loss.sensitivities) / noise**2
        total = logsumexp(terms, axis=1)
        values[part] = -sign * total
        slopes[part] = -(np.exp(terms - total[:, None]) @ loss.sensitivities) / noise**2
    return values, slopes
