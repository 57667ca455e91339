"""Signals of a round: what stands out among its rows, and who stands out round after round.

Rows are single updates, or the means of groups: whatever the server sees. Nothing here bans anybody: a site whose data are unlike the others' stands
out as a lying one does, and one round says nothing.

===============  ==================================================================================================
signal           of a row
===============  ==================================================================================================
``norm``         its Euclidean norm (CUSUM: the logarithm)
``cosine``       its cosine to the coordinate-wise median of the round's rows; where rows are not kept, to the last
                 round's direction
``agreement``    the share of coordinates whose sign is the median's, where neither is zero
===============  ==================================================================================================

**Who stands out.** Of each signal, a row's distance from the round's median in units of the scaled median absolute deviation is z (Iglewicz & Hoaglin
1993), both ways: a liar that hides (ALIE) lies *nearer* to the median than honest rows do. `Cusum` adds up, for each row and signal,
``min(|z|, 2k) - k`` and never falls below zero (Page 1954); it alerts from 2.5k on. One round adds at most k, so it takes three at the least. `drift`
gives k such that of n honest rows whose data differ for good, z normal and the same in every round, none reaches it in any signal but with a chance of
1e-3; 16 / n is added since the median absolute deviation of few values is rough.

==============================================  ==================================================================
case                                            outcome
==============================================  ==================================================================
fewer than `FEWEST` rows                        no z: nobody stands out
all rows alike in a signal                      the deviation is held at `FLOOR` of the median's size, or `FLOOR`
a row of zeros                                  norm 0 (z of the logarithm is taken at the smallest positive norm),
                                                cosine 0, agreement 0
who is not in a round                           keeps what it has
==============================================  ==================================================================
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

from cloister.strategies.mean import Direction
from cloister.strategies.robust.coordinates import middle
from cloister.strategies.robust.rows import Matrix, RowsLike, UpdateRows

__all__ = [
    "FEWEST",
    "FLOOR",
    "SIGNALS",
    "Alert",
    "Cusum",
    "RowSignals",
    "cosine",
    "deviations",
    "drift",
    "row_signals",
    "tail_share",
]

#: The signals, in the order of a `Cusum`'s columns.
SIGNALS = ("norm", "cosine", "agreement")
#: Of fewer rows none stands out.
FEWEST = 4
#: The least deviation that counts as one unit, relative to the median's size (absolute for cosines and shares).
FLOOR = 0.02
#: A normal distribution's standard deviation over its median absolute deviation.
_NORMAL = 1.4826
#: The chance of a false alert in a run, as the module says.
_CHANCE = 1e-3


@dataclass(frozen=True)
class RowSignals:
    """The signals of n rows, (n,) float64 each; ``agreement`` is ``None`` where no median was there to agree with."""

    norm: Matrix
    cosine: Matrix
    agreement: Matrix | None


@dataclass(frozen=True, kw_only=True)
class Alert:
    """Somebody stands out.

    Attributes:
        who: names the row.
        signal: in what.
        value: of the signal, in the round that raised the alert.
        middle: the round's median of it.
    """

    who: str
    signal: str
    value: float
    middle: float


def row_signals(rows: RowsLike) -> RowSignals:
    """Return the signals of (n, dim) finite rows about their coordinate-wise median; they are read once, in blocks."""
    held = UpdateRows(rows)
    products, agreeing, counted = (np.zeros(len(held)) for _ in range(3))
    square = 0.0
    for start, stop in held.pieces():
        block = held.block(start, stop)
        point = middle(np.sort(block.T, axis=1))
        products += block @ point
        square += float(point @ point)
        signs = np.sign(block) * np.sign(point)
        agreeing += (signs > 0).sum(axis=1)
        counted += (signs != 0).sum(axis=1)
    norm = np.sqrt(held.squares)
    return RowSignals(
        norm=norm,
        cosine=_ratio(products, norm * np.sqrt(square)),
        agreement=_ratio(agreeing, counted),
    )


def cosine(one: npt.NDArray[np.floating], other: npt.NDArray[np.floating]) -> float:
    """Return the cosine of two (dim,) vectors, 0 where one is zero."""
    a, b = one.astype(np.float64), other.astype(np.float64)
    length = float(np.sqrt(np.einsum("i,i->", a, a) * np.einsum("i,i->", b, b)))
    return float(np.einsum("i,i->", a, b)) / length if length else 0.0


def deviations(signals: RowSignals) -> Matrix:
    """Return z of each row and signal, (n, 3), signed; zeros for fewer than `FEWEST` rows, and where a signal is missing."""
    found = np.zeros((len(signals.norm), len(SIGNALS)))
    if len(found) < FEWEST:
        return found
    positive = signals.norm[signals.norm > 0]
    least = positive.min() if len(positive) else 1.0
    logs = np.log(np.maximum(signals.norm, least))
    for place, values in enumerate((logs, signals.cosine, signals.agreement)):
        if values is not None:
            about = values - np.median(values)
            found[:, place] = about / max(_NORMAL * float(np.median(np.abs(about))), FLOOR)
    return found


@dataclass(frozen=True)
class Cusum:
    """What has added up for each row by name, (3,) in the order of `SIGNALS`, and who has been told of."""

    sums: Mapping[str, tuple[float, ...]]
    told: frozenset[tuple[str, str]] = frozenset()

    @classmethod
    def start(cls) -> Cusum:
        """Return that of a run that begins."""
        return cls({})

    def after(self, names: Sequence[str], signals: RowSignals) -> tuple[Cusum, tuple[Alert, ...]]:
        """Return what a round adds, and the alerts that are new; each row and signal alerts once.

        Args:
            names: of the rows.
            signals: of the rows, in the same order.
        """
        z = np.abs(deviations(signals))
        k = drift(len(names))
        sums, alerts = dict(self.sums), []
        values = (signals.norm, signals.cosine, signals.agreement)
        for row, name in enumerate(names):
            before = np.array(sums.get(name, (0.0,) * len(SIGNALS)))
            now = np.maximum(0.0, before + np.minimum(z[row], 2 * k) - k)
            sums[name] = tuple(float(one) for one in now)
            for place, signal in enumerate(SIGNALS):
                found = values[place]
                if found is not None and now[place] >= 2.5 * k and (name, signal) not in self.told:
                    alerts.append(
                        Alert(
                            who=name,
                            signal=signal,
                            value=float(found[row]),
                            middle=float(np.median(found)),
                        )
                    )
        told = self.told | {(alert.who, alert.signal) for alert in alerts}
        return Cusum(sums, told), tuple(alerts)


def drift(n: int) -> float:
    """Return k for n rows."""
    return NormalDist().inv_cdf(1 - _CHANCE / (2 * len(SIGNALS) * max(1, n))) + 16 / max(1, n)


def _ratio(over: Matrix, under: Matrix) -> Matrix:
    found: Matrix = np.divide(over, under, out=np.zeros(len(over)), where=under > 0)
    return found


def tail_share(direction: Direction, start: int) -> float:
    """Return which share of a direction's norm lies from coordinate ``start`` on: in the last layer; 0 of a direction of zeros."""
    whole = float(np.einsum("i,i->", direction, direction))
    tail = direction[start:]
    return float(np.sqrt(np.einsum("i,i->", tail, tail) / whole)) if whole else 0.0
