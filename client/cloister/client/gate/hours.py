"""When a site lets anybody train: ``"Mon-Fri 18:00-06:00"``, by the clock on its wall.

A window begins on each of its days at its first time and ends at its second, on the next day where that is not later: the window above holds
on Saturday until 06:00. ``24:00`` is the end of a day.

==========================================  ==================================================
case                                        outcome
==========================================  ==================================================
no window                                   always
``Fri-Mon``                                 Friday, Saturday, Sunday and Monday
both times the same                         ``ValueError``: a whole day is ``00:00-24:00``
an hour that the clock jumps over or twice  as the clock shows it
==========================================  ==================================================
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache

__all__ = ["Window", "read_window", "within"]

_DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_TEXT = re.compile(r"(?:([A-Za-z]{3})(?:-([A-Za-z]{3}))? )?(\d\d):([0-5]\d)-(\d\d):([0-5]\d)")
_DAY = 24 * 60


@dataclass(frozen=True, kw_only=True)
class Window:
    """One window of a week.

    Attributes:
        days: on which it begins, 0 for Monday.
        first: minutes after midnight.
        last: the same, not in it; beyond 24 hours where it ends on the next day.
    """

    days: frozenset[int]
    first: int
    last: int

    def holds(self, time: datetime) -> bool:
        """Whether ``time``, by the site's own clock, is in it."""
        minute = time.hour * 60 + time.minute
        yesterday = (time - timedelta(days=1)).weekday()
        return (time.weekday() in self.days and self.first <= minute < self.last) or (
            yesterday in self.days and minute < self.last - _DAY
        )


@lru_cache(maxsize=64)
def read_window(text: str) -> Window:
    """Read a window.

    Raises:
        ValueError: it is none.
    """
    found = _TEXT.fullmatch(text)
    if found is None:
        raise ValueError(f"'{text}' is no window of time; write for example 'Mon-Fri 18:00-06:00'")
    day, until, *times = found.groups()
    first, last = (int(times[place]) * 60 + int(times[place + 1]) for place in (0, 2))
    if first >= _DAY or last > _DAY:
        raise ValueError(f"'{text}' names an hour that no day has")
    if first == last:
        raise ValueError(f"'{text}' begins when it ends; a whole day is 00:00-24:00")
    return Window(days=_days(text, day, until), first=first, last=last if last > first else last + _DAY)


def within(windows: tuple[str, ...], time: datetime) -> bool:
    """Whether one of ``windows`` holds ``time``, or there is none."""
    return not windows or any(read_window(text).holds(time) for text in windows)


def _days(text: str, day: str | None, until: str | None) -> frozenset[int]:
    if day is None:
        return frozenset(range(7))
    try:
        begin, end = (_DAYS.index(name.lower()) for name in (day, until or day))
    except ValueError:
        raise ValueError(f"'{text}' names a day that no week has; write Mon, Tue, …") from None
    return frozenset((begin + more) % 7 for more in range((end - begin) % 7 + 1))
