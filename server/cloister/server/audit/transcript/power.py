"""What the tests of uniformity would find: the run's own mean vectors, left without masks on purpose.

A verdict "uniform" is worth what the tests could have seen. What a single site sent is not known; the mean of each sum that opened is, and stands in for
it: in one vector alone, and in all rounds of one site, in a family of as many tests as the run has.

====================  ==========================================================================================================
fault                 what is tested
====================  ==========================================================================================================
no mask               the mean itself
low half masked       the mean, its low 16 bits under a fresh mask: the high ones stand in clear
high half masked      the mean, its high 16 bits under a fresh mask: the low ones stand in clear
mask used twice       the difference of two means, as two vectors under one mask differ by what is under it
====================  ==========================================================================================================

The low bits of a number that was rounded at random look uniform by themselves: where they do, tests cannot find them in clear, and little stands
in them (2^16 units are a part in some thousands of the reach). The row says so by its p.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from cloister.privacy.updates import centred, wrapped
from cloister.privacy.updates.modular import Residues
from cloister.server.audit.transcript.uniformity import ALARM, Sample, closest, tests_of
from cloister.server.vector_facts import HEAD, facts_of

__all__ = ["Planted", "mean_of", "power"]

_HALF = 16
_MOST = 200


@dataclass(frozen=True, kw_only=True)
class Planted:
    """One fault: its p in one vector and in all rounds of a site, adjusted for the run's tests, and whether the latter is below the threshold."""

    group: str
    fault: str
    once: float
    always: float
    found: bool


def mean_of(total: Residues, count: int, bits: int) -> Residues:
    """Return the mean of ``count`` vectors whose sum is ``total``, as numbers of 32 bits."""
    return wrapped(centred(total, bits) // count, 32)


def power(group: str, means: Sequence[Residues], tests: int) -> list[Planted]:
    """Return what the tests would give for each fault.

    Args:
        group: the kind of sum.
        means: of sums of this kind, in order; at most the first `_MOST` are looked at.
        tests: how many tests the run has.
    """
    generator = np.random.default_rng(0)
    plain = list(means[:_MOST])
    halves = [generator.integers(0, 1 << _HALF, mean.size, dtype=np.uint32) for mean in plain]
    planted = {
        "no mask": plain,
        "low half masked": [mean + low for mean, low in zip(plain, halves, strict=True)],
        "high half masked": [
            mean + (low << np.uint32(_HALF)) for mean, low in zip(plain, halves, strict=True)
        ],
    }
    found = [_planted(group, fault, _least(rows[:1]), _least(rows), tests) for fault, rows in planted.items()]
    if len(plain) > 1:
        once, always = (closest([mean[:HEAD] for mean in rows]) for rows in (plain[:2], plain))
        found.append(_planted(group, "mask used twice", once, always, tests))
    return found


def _planted(group: str, fault: str, once: float, always: float, tests: int) -> Planted:
    once, always = (min(1.0, p * tests) for p in (once, always))
    return Planted(group=group, fault=fault, once=once, always=always, found=always <= ALARM)


def _least(vectors: Sequence[Residues]) -> float:
    """Return the least p of the tests of single vectors and of pools; differences have a row of their own."""
    samples = [
        Sample(site="", group="", round=number, session=number, facts=facts_of(vector))
        for number, vector in enumerate(vectors)
    ]
    return min(test.p for test in tests_of(samples) if not test.name.startswith("difference"))
