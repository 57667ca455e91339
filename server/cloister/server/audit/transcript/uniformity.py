"""Protected vectors against uniform ones: what is under a fresh mask cannot be told from independent uniform numbers of 32 bits.

Ciphertexts are tested in the same way, as the numbers that `cloister.server.protected` makes of their residues.

==============  ===================================================================  ==================================  =================
test            statistic                                                            distribution if uniform             sides
==============  ===================================================================  ==================================  =================
bytes           Pearson's chi-square of each of the four bytes, over its top bits    chi-square, 3, 15 or 255 degrees    two
neighbours      mean of u_i u_(i+1), u = number / 2^32 - 1/2, within vectors         normal, variance 1/144 a pair       two
near            how many numbers lie in [-2^24, 2^24)                                binomial, chance 2^-7 (exact)       two
even            how many numbers are multiples of 2^16                               binomial, chance 2^-16 (exact)      two
difference      ``near`` of the difference of two vectors, the closest of all pairs  binomial, Bonferroni over pairs     one (reuse shows
                                                                                                                         as more)
==============  ===================================================================  ==================================  =================

Short vectors of one site are taken together, round after round, until there are `POOLED` numbers; ``near`` and ``even`` look at each vector alone. With
20 numbers or more expected in every cell the chi-square's distribution is close to its own (Cochran 1954): 256 cells from 5,120 numbers on, 16
from 320, 4 from 80; below 80 the bytes are not tested.

Formal guarantee: if all vectors are independent and uniform, `judged` finds a fault in a run with a probability of at most `ALARM` (Holm 1979,
over all tests of the run), up to the error of the two approximations.

==============================  ==========================================
case                            outcome
==============================  ==========================================
no vector                       no test
one vector of a site            no difference
a vector of one number          ``near`` and ``even`` only, which cannot find much: see the power
==============================  ==========================================
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import stats

from cloister.privacy.updates.modular import Residues
from cloister.server.vector_facts import BYTES, EVEN_BITS, NEAR_BITS, VectorFacts

__all__ = ["ALARM", "EVEN", "NEAR", "OFF", "POOLED", "Sample", "Test", "closest", "judged", "tests_of"]

#: The chance of a false alarm in a whole run.
ALARM = 1e-3
#: Numbers that short vectors are taken together to.
POOLED = 5120
#: The chance of a uniform number to be near 0.
NEAR = 2.0 ** (NEAR_BITS + 1 - 32)
#: The chance of a uniform number to be a multiple of 2^16.
EVEN = 2.0**-EVEN_BITS

_CELLS = ((8, 5120), (4, 320), (2, 80))
#: The part of a vector that is left when all known masks are off.
OFF = "known masks off"
_LEAST_PAIRS = 30
_OPERATIONS = 50_000_000


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One vector of one site.

    Attributes:
        site: whose.
        group: what it is: the kind of sum.
        part: what of it: empty for a vector as it came, `OFF` for what is left when all known masks are off, or a part of ciphertexts.
        round: the round.
        session: numbers the session.
        facts: what it looks like.
    """

    site: str
    group: str
    round: int
    session: int
    facts: VectorFacts
    part: str = ""


@dataclass(frozen=True, kw_only=True)
class Test:
    """One test: ``p`` by itself, ``adjusted`` for all tests of the run."""

    name: str
    site: str
    group: str
    rounds: str
    numbers: int
    p: float
    adjusted: float = 1.0

    @property
    def failed(self) -> bool:
        """Whether the vectors are not uniform."""
        return self.adjusted <= ALARM

    @property
    def continuous(self) -> bool:
        """Whether p is uniform if the vectors are."""
        return self.name.startswith("bytes") or self.name == "neighbours"


def tests_of(samples: Sequence[Sample]) -> list[Test]:
    """Return all tests of these vectors."""
    found: list[Test] = []
    by_kind: dict[tuple[str, str, str], list[Sample]] = defaultdict(list)
    by_site: dict[tuple[str, str], list[Sample]] = defaultdict(list)
    by_session: dict[tuple[int, str], list[Sample]] = defaultdict(list)
    for sample in sorted(samples, key=lambda one: (one.round, one.session)):
        by_kind[sample.group, sample.part, sample.site].append(sample)
        by_site[sample.site, sample.part].append(sample)
        by_session[sample.session, sample.part].append(sample)
    for ordered in by_kind.values():
        for pool in _pools(ordered):
            found += _of_pool(pool)
        found += [test for one in ordered for test in _of_one(one)]
    for ordered in by_site.values():
        found += _closest_pair(ordered, ordered[0].site, "difference of rounds")
    for together in by_session.values():
        found += _closest_pair(together, "all sites", "difference of sites")
    return found


def judged(tests: Iterable[Test]) -> list[Test]:
    """Return the tests with their p-values adjusted for all of them (Holm 1979), the smallest first."""
    ordered = sorted(tests, key=lambda test: test.p)
    worst, found = 0.0, []
    for place, test in enumerate(ordered):
        worst = max(worst, min(1.0, test.p * (len(ordered) - place)))
        found.append(replace(test, adjusted=worst))
    return found


def closest(heads: Sequence[Residues]) -> float:
    """Return p of the closest pair of vectors: how likely it is that any two of these many are so near each other.

    Args:
        heads: their first numbers; as many are compared as the shortest has.
    """
    count, length = len(heads), min((len(head) for head in heads), default=0)
    pairs = count * (count - 1) // 2
    if not pairs or not length:
        return 1.0
    length = max(1, min(length, _OPERATIONS // pairs))
    rows = np.stack([head[:length] for head in heads])
    half, width = np.uint32(1 << NEAR_BITS), np.uint32(2 << NEAR_BITS)
    most = 0
    for place in range(count - 1):
        near = (rows[place + 1 :] - rows[place] + half) < width
        most = max(most, int(near.sum(axis=1).max()))
    return min(1.0, pairs * float(stats.binom.sf(most - 1, length, NEAR)))


def _pools(ordered: Sequence[Sample]) -> Iterator[list[Sample]]:
    """Yield the vectors of one site, taken together until there are enough numbers; what is left goes to the last."""
    pools: list[list[Sample]] = []
    open_: list[Sample] = []
    for sample in ordered:
        open_.append(sample)
        if sum(one.facts.numbers for one in open_) >= POOLED:
            pools.append(open_)
            open_ = []
    if pools:
        pools[-1] += open_
    elif open_:
        pools.append(open_)
    yield from pools


def _of_pool(pool: Sequence[Sample]) -> Iterator[Test]:
    first, last = pool[0], pool[-1]
    rounds = f"{first.round}" if first.round == last.round else f"{first.round} to {last.round}"
    numbers = sum(one.facts.numbers for one in pool)
    base = Test(name="", site=first.site, group=_label(first), rounds=rounds, numbers=numbers, p=1.0)
    counts: npt.NDArray[np.int64] = np.sum([one.facts.counts for one in pool], axis=0)
    bits = next((bits for bits, least in _CELLS if numbers >= least), 0)
    for place in range(BYTES if bits else 0):
        cells = counts[place].reshape(1 << bits, -1).sum(axis=1)
        yield replace(base, name=f"bytes {place + 1} of 4", p=_chi_square(cells))
    pairs = sum(one.facts.pairs for one in pool)
    if pairs >= _LEAST_PAIRS:
        score = 12 * sum(one.facts.lag for one in pool) / pairs**0.5
        yield replace(base, name="neighbours", p=2 * float(stats.norm.sf(abs(score))))


def _chi_square(cells: npt.NDArray[np.int64]) -> float:
    expected = cells.sum() / cells.size
    statistic = float(((cells - expected) ** 2).sum() / expected)
    step = 2 / float(expected)  # the statistic's own: a perfectly even count has a chance, too
    low = float(stats.chi2.cdf(statistic + step, cells.size - 1))
    return _two_sided(low, float(stats.chi2.sf(statistic, cells.size - 1)))


def _of_one(sample: Sample) -> Iterator[Test]:
    numbers = sample.facts.numbers
    for name, count, chance in (("near", sample.facts.near, NEAR), ("even", sample.facts.even, EVEN)):
        yield Test(
            name=name,
            site=sample.site,
            group=_label(sample),
            rounds=str(sample.round),
            numbers=numbers,
            p=_binomial(count, numbers, chance),
        )


@lru_cache(maxsize=1 << 14)
def _binomial(count: int, numbers: int, chance: float) -> float:
    low = float(stats.binom.cdf(count, numbers, chance))
    return _two_sided(low, float(stats.binom.sf(count - 1, numbers, chance)))


def _closest_pair(samples: Sequence[Sample], site: str, name: str) -> Iterator[Test]:
    if len(samples) < 2:
        return
    rounds = sorted({one.round for one in samples})
    yield Test(
        name=name,
        site=site,
        group=_label(samples[0])
        if len({one.group for one in samples}) == 1
        else samples[0].part or "all kinds",
        rounds=f"{rounds[0]} to {rounds[-1]}" if len(rounds) > 1 else str(rounds[0]),
        numbers=sum(len(one.facts.head) for one in samples),
        p=closest([one.facts.head for one in samples]),
    )


def _label(sample: Sample) -> str:
    return f"{sample.group}, {sample.part}" if sample.part else sample.group


def _two_sided(low: float, high: float) -> float:
    return min(1.0, 2 * min(low, high))
