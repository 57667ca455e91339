"""How much noise a promise needs, and how many more steps a cap allows.

Guarantee: what is returned was put through `accounting.spent` and keeps to the target itself: ``epsilon ≤ target``, never "about". The
noise is larger than the least that would do by at most `PRECISION`, relatively.

=================================  ==========================================================================
asked for                          answer
=================================  ==========================================================================
a target of 0, NaN or infinity     `SpecError`
a target that no noise reaches     `SpecError`: what is spent whatever the noise is
a target that no noise is for      `SpecError`: the target is so large that it protects nobody
a cap that is spent already        0 steps
=================================  ==========================================================================
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from itertools import pairwise
from numbers import Real

from cloister.core.errors import SpecError
from cloister.privacy.accounting import spent
from cloister.privacy.events import Event, Relation, Repeated
from cloister.privacy.tally import listed

__all__ = ["MOST_STEPS", "NOISE_SEARCHED", "PRECISION", "noise_multiplier_for", "steps_left"]

#: The noise is at most this much larger, relatively, than the least that meets the target.
PRECISION = 1e-3
#: Noise multipliers among which a target is searched.
NOISE_SEARCHED = (0.02, 1e6)
#: `steps_left` counts no further.
MOST_STEPS = 10_000_000

_WOBBLE = 1e-3  # of ε, relatively: what the accountant's grid may add


def noise_multiplier_for(
    target_epsilon: float,
    delta: float,
    make_events: Callable[[float], Event | Iterable[Event]],
    *,
    relation: Relation = Relation.ZERO_OUT,
    hidden_cohort: bool = False,
) -> float:
    """Return a noise multiplier with which the whole run costs at most ``target_epsilon``.

    Args:
        target_epsilon: ε, over everything that ``make_events`` returns.
        delta: δ in (0, 1).
        make_events: noise multiplier → everything that will be done, and has been done, to the dataset.
        relation: as for `accounting.spent`.
        hidden_cohort: as for `accounting.spent`.

    Raises:
        SpecError: the target is not positive and finite, is out of reach, or is larger than `NOISE_SEARCHED` is for; or ε grows with
            the noise, which means that ``make_events`` does not do what it should.
    """
    _positive("target_epsilon", target_epsilon)
    tried: dict[float, float] = {}

    def cost(noise: float) -> float:
        if noise not in tried:
            found = spent(make_events(noise), delta, relation=relation, hidden_cohort=hidden_cohort)
            tried[noise] = found.epsilon
        return tried[noise]

    low, high = _bracket(cost, target_epsilon)
    tries = 0
    while high > low * (1 + PRECISION):
        middle = _between(low, high, cost(low), cost(high), target=target_epsilon, tries=tries)
        low, high = (low, middle) if cost(middle) <= target_epsilon else (middle, high)
        tries += 1
    _check_monotone(tried)
    return high


def steps_left(
    cap: float,
    spent_events: Event | Iterable[Event],
    event: Event | Iterable[Event],
    delta: float,
    *,
    relation: Relation = Relation.ZERO_OUT,
    hidden_cohort: bool = False,
) -> int:
    """Return how many more times ``event`` fits under ``cap``; at most `MOST_STEPS`, which then means "as good as any number".

    Args:
        cap: largest ε allowed on the dataset.
        spent_events: everything done to the dataset so far.
        event: what is to be repeated: one step, or all that one round does.
        delta: δ at which the cap holds.
        relation: as for `accounting.spent`.
        hidden_cohort: as for `accounting.spent`.

    Raises:
        SpecError: a cap that is not positive and finite, or events that `accounting.spent` refuses.
    """
    _positive("cap", cap)
    before, once = listed(spent_events), listed(event)

    def fits(times: int) -> bool:
        events = [*before, *(Repeated(event=part, times=times) for part in once)]
        return spent(events, delta, relation=relation, hidden_cohort=hidden_cohort).epsilon <= cap

    if not fits(1):
        return 0
    fitting, failing = 1, 2
    while failing < MOST_STEPS and fits(failing):
        fitting, failing = failing, failing * 2
    if failing >= MOST_STEPS:
        if fits(MOST_STEPS):
            return MOST_STEPS
        failing = MOST_STEPS
    while failing - fitting > 1:
        middle = (fitting + failing) // 2
        fitting, failing = (middle, failing) if fits(middle) else (fitting, middle)
    return fitting


def _bracket(cost: Callable[[float], float], target: float) -> tuple[float, float]:
    """Return noise multipliers (low, high) with cost(high) ≤ target < cost(low)."""
    least, most = NOISE_SEARCHED
    high = 1.0
    while cost(high) > target:
        if high >= most:
            raise SpecError(
                f"epsilon = {target:g} is out of reach: with a noise multiplier of {high:g} the run still costs "
                f"{cost(high):.4g}",
                remedy="Allow a larger epsilon or delta, fewer rounds, or a dataset on which less was spent before.",
                code="privacy-target",
            )
        high = min(high * 4, most)
    low = high / 4 if high > 1 else high / 2
    while cost(low) <= target:
        if low <= least:
            raise SpecError(
                f"epsilon = {target:g} is met even by a noise multiplier of {low:g}: such a promise protects nobody",
                remedy="Ask for an epsilon of 10 or less, or state the noise multiplier itself.",
                code="privacy-target",
            )
        low, high = max(low / 2, least), low
    return low, high


def _between(
    low: float, high: float, cost_low: float, cost_high: float, *, target: float, tries: int
) -> float:
    """Return where to try next: where the line through both ends meets the target, in logarithms; each third time the middle."""
    share = 0.5
    if tries % 3 < 2 and math.isfinite(cost_low) and 0 < cost_high < cost_low:
        share = math.log(cost_low / target) / math.log(cost_low / cost_high)
    return float(low * (high / low) ** min(max(share, 0.01), 0.99))


def _check_monotone(tried: dict[float, float]) -> None:
    """Refuse if more noise was found to cost more, beyond what the accountant's grid explains."""
    ordered = sorted(tried.items())
    for (less, before), (more, after) in pairwise(ordered):
        if after > before * (1 + _WOBBLE):
            raise SpecError(
                f"a noise multiplier of {more:.4g} costs epsilon = {after:.4g}, and the smaller {less:.4g} only {before:.4g}",
                remedy="Return events from make_events whose noise grows with the noise multiplier.",
                code="privacy-target",
            )


def _positive(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, Real) or not 0 < value < math.inf:
        raise SpecError(
            f"{name} must be positive and finite, not {value!r}",
            remedy="Give an epsilon such as 3.0.",
            code="privacy-target",
        )
