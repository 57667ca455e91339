"""Two bounds on a composition: privacy loss distributions (PLD) and Rényi divergences (RDP), each valid by itself.

Both are dp-accounting's. What is added here keeps them valid where they would quietly cease to be, each measured with
dp-accounting 0.6.0:

* PLD composes by FFT, whose rounding can take mass away: at δ = 1e-12 after 10,000 compositions it reports 28.439 where the
  exact value is 28.467. `FFT_LOSS` of δ is set aside for each composition, ten times what was measured.
* PLD on a grid of 1e-3 rounds a loss that is much smaller than the grid up to it (0.086 for 0.027 at q = .01, σ = 100, 10,000
  steps). The grid is refined where that matters.
* PLD's memory grows with the loss. Above `LARGEST_LOSS` the bound is infinite instead.
* RDP takes an order whose computed divergence is below zero, by rounding, for ε = 0. Such an order is left out here, and
  `RDP_ROUNDING` is added for each application.
* RDP does not double a sensitivity under replace-one. Here it is doubled.
* Skellam noise has its bound at integer orders; only those are used where it takes part.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import lru_cache
from typing import Any

import numpy as np
import numpy.typing as npt

from cloister.privacy.events import (
    Event,
    FixedSizeGaussian,
    Laplace,
    PoissonGaussian,
    Relation,
    SeveralRecords,
    Skellam,
)
from cloister.privacy.tally import Merged

__all__ = [
    "FFT_LOSS",
    "GRIDS",
    "LARGEST_LOSS",
    "RDP_ROUNDING",
    "Bound",
    "pld_bound",
    "pld_delta",
    "rdp_bound",
    "rdp_delta",
]

#: Steps of the grid of privacy losses; the first unless many small losses need a finer one.
GRIDS = (1e-3, 1e-4, 1e-5)
#: Part of δ that is set aside for each composition by FFT.
FFT_LOSS = 1e-15
#: Added to every order of the RDP of each application.
RDP_ROUNDING = 1e-14
#: Privacy loss (in nats, total of the means or width of a single one) above which PLD is not computed.
LARGEST_LOSS = 1000.0

_POINTS = 1_000_000  # of a grid, at most
_MOST_COMPOSED = 1_000_000  # dp-accounting takes the size to that power, as a whole number
_FLOOR = 2.0  # of δ over what is set aside: below it nothing of δ is left to speak of


@dataclass(frozen=True)
class Bound:
    """What one accountant says.

    Attributes:
        epsilon: ε at the δ that was asked for; ``None`` where the accountant has no valid bound.
        reason: why there is none, or why it is infinite; empty otherwise.
    """

    epsilon: float | None
    reason: str = ""


def pld_bound(merged: Merged, relation: Relation, delta: float) -> Bound:
    """Return ε by privacy loss distributions (Koskela et al. 2020; Doroshenko et al. 2022, arXiv 2207.04380)."""
    losses = _losses(merged, relation)
    if isinstance(losses, Bound):
        return losses
    aside = _aside(merged)
    if delta < _FLOOR * aside:
        return Bound(None, f"δ = {delta:g} is too close to the rounding of {aside:g} that its FFT may cause")
    with _quietly():
        return Bound(float(losses.get_epsilon_for_delta(delta - aside)))


def pld_delta(merged: Merged, relation: Relation, epsilon: float) -> float | None:
    """Return δ at ``epsilon`` by privacy loss distributions; ``None`` where there is no valid bound."""
    losses = _losses(merged, relation)
    if isinstance(losses, Bound):
        return None if losses.epsilon is None else 1.0
    with _quietly():
        found = float(losses.get_delta_for_epsilon(epsilon))
    return min(max(found, 0.0) + _aside(merged), 1.0)


def rdp_bound(merged: Merged, relation: Relation, delta: float) -> Bound:
    """Return ε by Rényi divergences (Mironov 2017; converted by Canonne et al. 2020, arXiv 2004.00010, Prop. 12)."""
    if merged.unbounded:
        return Bound(math.inf, "something was released without any bound")
    orders, total = _rdp(merged, relation)
    if isinstance(total, str):
        return Bound(None, total)
    from dp_accounting.rdp.rdp_privacy_accountant import (  # type: ignore[import-untyped]  # dp-accounting ships no types
        compute_epsilon,
    )

    with _quietly():
        return Bound(float(compute_epsilon(orders, total, delta)[0]))


def rdp_delta(merged: Merged, relation: Relation, epsilon: float) -> float | None:
    """Return δ at ``epsilon`` by Rényi divergences; ``None`` where there is no valid bound."""
    if merged.unbounded:
        return 1.0
    orders, total = _rdp(merged, relation)
    if isinstance(total, str):
        return None
    from dp_accounting.rdp.rdp_privacy_accountant import compute_delta

    with _quietly():
        return float(compute_delta(orders, total, epsilon)[0])


# ---------------------------------------------------------------- privacy loss distributions


def _losses(merged: Merged, relation: Relation) -> Any:
    """Return the PLD of the composition; a `Bound` without or with an infinite ε where there is none."""
    if merged.unbounded:
        return Bound(math.inf, "something was released without any bound")
    if reason := _no_pld(merged, relation):
        return Bound(None, reason)
    if (grid := _grid(merged, relation)) is None:
        return Bound(math.inf, f"the privacy loss may pass {LARGEST_LOSS:g}: not computed")
    try:
        with _quietly():
            return _composed(merged, relation, grid)
    except ValueError:  # mixtures whose losses are all closer to their limit than floating point can tell
        return Bound(None, "dp-accounting cannot represent its privacy losses")


@lru_cache(maxsize=4)
def _composed(merged: Merged, relation: Relation, grid: float) -> Any:
    """Return the PLD of the whole composition."""
    parts = [_self_composed(unit, count, relation, grid) for unit, count in merged.counts]
    if merged.precision:
        parts.append(_gaussian(merged.precision**-0.5, 1.0, relation, grid))
    if not parts:
        return _pld().identity(grid)
    whole = parts[0]
    for part in parts[1:]:
        whole = whole.compose(part)
    return whole


@lru_cache(maxsize=8)
def _self_composed(unit: Event, count: int, relation: Relation, grid: float) -> Any:
    single = _single(unit, relation, grid)
    return single if count == 1 else single.self_compose(count)


@lru_cache(maxsize=8)
def _single(unit: Event, relation: Relation, grid: float) -> Any:
    """Return the PLD of one application of a unit that `_no_pld` passed."""
    if isinstance(unit, PoissonGaussian):
        return _gaussian(unit.noise_multiplier, unit.sampling_rate, relation, grid)
    if isinstance(unit, Laplace):
        return _pld().from_laplace_mechanism(unit.noise_multiplier, value_discretization_interval=grid)
    from cloister.privacy.mixture import mixture_pld

    mixture = unit.dp_event()
    return mixture_pld(mixture.standard_deviation, mixture.sensitivities, mixture.sampling_probs, grid)


def _gaussian(noise: float, rate: float, relation: Relation, grid: float) -> Any:
    # Under replace-one dp-accounting doubles the sensitivity here by itself.
    return _pld().from_gaussian_mechanism(
        noise, sampling_prob=rate, value_discretization_interval=grid, neighboring_relation=relation.dp
    )


def _no_pld(merged: Merged, relation: Relation) -> str:
    """Return why PLD has no valid bound; empty where it has one."""
    replaced = relation is Relation.REPLACE_ONE
    for unit, count in merged.counts:
        if count > _MOST_COMPOSED:
            return f"more than {_MOST_COMPOSED:,} applications of one '{unit.kind}': not computed"
        known = isinstance(unit, PoissonGaussian) or (
            isinstance(unit, (Laplace, SeveralRecords)) and not replaced
        )
        if not known:
            return f"no privacy loss distribution is known for '{unit.kind}' under {relation}"
    return ""


def _aside(merged: Merged) -> float:
    """Return how much of δ is set aside for the rounding of the FFT; nothing where there is no FFT."""
    composed = sum(count for _, count in merged.counts)
    parts = len(merged.counts) + bool(merged.precision)
    return FFT_LOSS * composed if composed > 1 or parts > 1 else 0.0


@dataclass(frozen=True)
class _Scale:
    """How large the privacy losses of one application are: only for choosing the grid, no bound depends on it.

    Attributes:
        mean: at most the mean loss.
        width: about the largest loss that is represented.
        spread: about the standard deviation, not above it.
    """

    mean: float
    width: float
    spread: float


def _grid(merged: Merged, relation: Relation) -> float | None:
    """Return the coarsest step that rounds nothing that matters; ``None`` where not even that fits in memory."""
    far = 2.0 if relation is Relation.REPLACE_ONE else 1.0
    scales = [(_scale(unit, far), count) for unit, count in merged.counts]
    if merged.precision:
        scales.append((_shifted(1, 1.0, far * math.sqrt(merged.precision)), 1))
    if not scales:
        return GRIDS[0]
    mean = math.fsum(scale.mean * count for scale, count in scales)
    length = mean + 10 * math.sqrt(2 * mean) + max(scale.width for scale, _ in scales)
    if not length <= LARGEST_LOSS:
        return None
    many = [scale.spread for scale, count in scales if count * GRIDS[0] > 0.02]
    wanted = min(many, default=math.inf)
    fitting = [grid for grid in GRIDS if length / grid <= _POINTS]
    fine = [grid for grid in fitting if wanted >= 5 * grid]
    return max(fine, default=min(fitting))


def _scale(unit: Event, far: float) -> _Scale:
    if isinstance(unit, PoissonGaussian):
        return _shifted(1, unit.sampling_rate, far / unit.noise_multiplier)
    if isinstance(unit, SeveralRecords) and isinstance(unit.event, PoissonGaussian):
        return _shifted(unit.records, unit.event.sampling_rate, far / unit.event.noise_multiplier)
    loss = far / unit.noise_multiplier if isinstance(unit, Laplace) else math.inf
    return _Scale(mean=min(loss, loss**2), width=2 * loss, spread=loss)


def _shifted(records: int, rate: float, shift: float) -> _Scale:
    """Scale of a standard normal that is moved by Binomial(records, rate) shifts."""
    squared = records * rate * (1 - rate) + (records * rate) ** 2  # E[i²]
    mean = squared * shift**2 / 2  # the divergence is convex
    if (most := (records * shift) ** 2) < 1:  # and at most χ² ≤ E[ij]·(e^most - 1)/most
        mean = min(mean, (records * rate * shift) ** 2 * math.expm1(most) / most)
    far = records * shift
    return _Scale(mean=mean, width=far**2 / 2 + 10 * far, spread=records * rate * shift)


def _pld() -> Any:
    from dp_accounting.pld import privacy_loss_distribution  # type: ignore[import-untyped]  # as above

    return privacy_loss_distribution


# ---------------------------------------------------------------- Rényi divergences


def _rdp(merged: Merged, relation: Relation) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64] | str]:
    """Return the orders and the divergence at each of them, or why there is no bound."""
    whole_only = any(isinstance(part, Skellam) for unit, _ in merged.counts for part in _parts(unit))
    orders = _orders(whole_only=whole_only)
    far = 2.0 if relation is Relation.REPLACE_ONE else 1.0
    total = orders * (far**2 * merged.precision / 2)  # Mironov (2017), Prop. 7
    for unit, count in merged.counts:
        curve = _curve(unit, relation, whole_only)
        if isinstance(curve, str):
            return orders, curve
        total = total + count * curve
    # Closer to zero dp-accounting's conversion leaves its domain.
    return orders, np.maximum(total, RDP_ROUNDING)


@lru_cache(maxsize=256)
def _curve(unit: Event, relation: Relation, whole_only: bool) -> npt.NDArray[np.float64] | str:
    """Return the divergence of one application at each order, or why there is none.

    Divergences of the same pair of datasets add up. A zero-out is a replacement, so the bound of a `FixedSizeGaussian`, which holds
    for replacements, may be added to bounds that hold for zero-outs.
    """
    import dp_accounting  # type: ignore[import-untyped]  # dp-accounting ships no types
    from dp_accounting.rdp import RdpAccountant  # type: ignore[import-untyped]  # as above

    fixed = any(isinstance(part, FixedSizeGaussian) for part in _parts(unit))
    stated = Relation.REPLACE_ONE if fixed and relation is Relation.ZERO_OUT else relation
    event = unit.dp_event(sensitivity=2.0 if stated is Relation.REPLACE_ONE else 1.0)
    with _quietly():
        try:
            found = RdpAccountant(_orders(whole_only=whole_only), stated.dp).compose(event).rdp
        except dp_accounting.UnsupportedEventError:
            return f"no Rényi bound is known for '{unit.kind}' under {relation}"
        found = np.where(found >= 0, found + RDP_ROUNDING, np.inf)  # NaN is not >= 0 either
    found.setflags(write=False)
    return found


@lru_cache(maxsize=2)
def _orders(*, whole_only: bool) -> npt.NDArray[np.float64]:
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

    orders = np.array(
        [order for order in DEFAULT_RDP_ORDERS if not whole_only or float(order).is_integer()], float
    )
    orders.setflags(write=False)
    return orders


def _parts(event: Event) -> Iterator[Event]:
    """Yield the event and every event inside it."""
    yield event
    for field in fields(event):
        value = getattr(event, field.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Event):
                yield from _parts(part)


@contextmanager
def _quietly() -> Iterator[None]:
    """Silence what the accountants say about orders that they leave out: leaving one out is always safe."""
    logger, mute = logging.getLogger("absl"), _Mute()
    logger.addFilter(mute)
    try:
        with np.errstate(all="ignore"):
            yield
    finally:
        logger.removeFilter(mute)


class _Mute(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        return "failed to converge" not in str(record.msg)
