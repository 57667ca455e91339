"""The learning rate's factor over the rounds, as a pure function: nothing to store, so a resumed run needs no scheduler state.

Rounds are counted from 1. With ``w = warmup`` and ``t = round - 1 - w`` (rounds since the warm-up ended):

===============================  ==========================================================  =====================================
schedule                         factor                                                      the same in torch.optim.lr_scheduler
===============================  ==========================================================  =====================================
warm-up, round ≤ w               round / (w + 1)                                             LinearLR(1 / (w + 1), 1, w)
constant                         1                                                           (none)
step                             gamma ** (t // every)                                       StepLR(every, gamma)
exponential                      gamma ** t                                                  ExponentialLR(gamma)
cosine                           floor + (1 - floor) (1 + cos(π t / (rounds - w))) / 2       CosineAnnealingLR(rounds - w, floor lr)
===============================  ==========================================================  =====================================

===============================  =====================================================================================
edge case                        answer
===============================  =====================================================================================
first round, no warm-up          1 for every schedule
first round after the warm-up    1 for every schedule
warmup ≥ rounds                  the warm-up's factor in every round; 1 is never reached
one round                        1 (``1 / (w + 1)`` with a warm-up)
cosine, last round               above ``floor``: the curve reaches it where round ``rounds + 1`` would be, so that no round
                                 is spent on a factor of 0
floor = 1                        1 for every round after the warm-up
gamma = 1                        1 for every round after the warm-up
round below 1 or above rounds    `ValueError`
===============================  =====================================================================================

The factor lies in (0, 1]; only ``gamma ** t`` can underflow to 0, after hundreds of rounds of a small ``gamma``.
"""

from __future__ import annotations

import math

from cloister.core.spec import FederationSpec, Schedule

__all__ = ["learning_rate", "learning_rate_factor"]


def learning_rate(spec: FederationSpec, round_number: int) -> float:
    """Return the learning rate of a round: ``training.optimizer.lr`` times its factor.

    Raises:
        ValueError: the round does not lie between 1 and the last.
    """
    factor = learning_rate_factor(spec.training.schedule, round_number, spec.federation.rounds)
    return spec.training.optimizer.lr * factor


def learning_rate_factor(schedule: Schedule, round_number: int, rounds: int) -> float:
    """Return the factor in (0, 1] by which round ``round_number`` multiplies the learning rate.

    Args:
        schedule: ``[training] schedule``.
        round_number: from 1 to ``rounds``.
        rounds: how many rounds the run has.

    Raises:
        ValueError: the round does not lie between 1 and ``rounds``.
    """
    if not 1 <= round_number <= rounds:
        raise ValueError(f"round {round_number} does not lie between 1 and {rounds}")
    if round_number <= schedule.warmup:
        return round_number / (schedule.warmup + 1)
    since = round_number - 1 - schedule.warmup
    if schedule.name == "step" and schedule.every is not None and schedule.gamma is not None:
        return float(schedule.gamma ** (since // schedule.every))
    if schedule.name == "exponential" and schedule.gamma is not None:
        return float(schedule.gamma**since)
    if schedule.name == "cosine":
        falling = (1 + math.cos(math.pi * since / (rounds - schedule.warmup))) / 2
        return schedule.floor + (1 - schedule.floor) * falling
    return 1.0
