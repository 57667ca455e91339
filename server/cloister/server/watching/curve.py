"""Curves that never grow beyond a plot's width, however many rounds a run has."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

__all__ = ["Band", "Curve"]

_MOST = 600


class Curve:
    """Values by round, thinned: at most ``most`` of them evenly over the rounds, and always the newest.

    A round that is told twice counts as told last, where it is the newest.
    """

    def __init__(self, most: int = _MOST) -> None:
        self._most = most
        self._step = 1
        self._told = 0
        self._kept: list[tuple[int, float]] = []
        self._last: tuple[int, float] | None = None

    def add(self, number: int, value: float | None) -> None:
        """Take the value of round ``number``; one that is not there is left out."""
        if value is None or (self._last is not None and number < self._last[0]):
            return
        if self._last is not None and number == self._last[0]:
            if self._kept and self._kept[-1][0] == number:
                self._kept[-1] = (number, value)
        else:
            if self._told % self._step == 0:
                self._kept.append((number, value))
            self._told += 1
            if len(self._kept) > self._most:
                self._kept, self._step = self._kept[::2], self._step * 2
        self._last = (number, value)

    def points(self) -> list[tuple[int, float]]:
        """Return (round, value), in order."""
        if self._last is None or (self._kept and self._kept[-1] == self._last):
            return list(self._kept)
        return [*self._kept, self._last]


class Band:
    """The lowest, the middle and the highest value of many sites, by round."""

    def __init__(self) -> None:
        self._number = -1
        self._now: dict[str, float] = {}
        self._curves = (Curve(), Curve(), Curve())

    def add(self, number: int, site: str, value: float) -> None:
        """Take one site's value; the values of a round count when it is complete (see `settle`)."""
        if number != self._number:
            self._number, self._now = number, {}
        self._now[site] = value

    def settle(self) -> None:
        """Take the newest round's values into the curves."""
        if self._now:
            values = sorted(self._now.values())
            for curve, value in zip(
                self._curves, (values[0], statistics.median(values), values[-1]), strict=True
            ):
                curve.add(self._number, value)
            self._now = {}

    def points(self) -> Mapping[str, list[tuple[int, float]]]:
        """Return the three curves: ``low``, ``middle``, ``high``."""
        return dict(zip(("low", "middle", "high"), (curve.points() for curve in self._curves), strict=True))
