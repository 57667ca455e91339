"""Refusals in a site's log: each is written down, and nobody can fill the log with them.

Anybody who reaches the site can be refused, under ever new names: what they can make it write is bounded.
"""

from __future__ import annotations

import time
from collections import deque

from cloister.client.gate.judging import refused
from cloister.client.gate.site_log import SiteLog

__all__ = ["OFTEN", "Refusals"]

#: Seconds until the same refusal is written down again.
_AGAIN_S = 60.0
#: Refusals that are written down in that time; beyond that this one leaves in the place of each.
_REFUSALS = 120
OFTEN, _OFTEN_WORDS = "refused-often", "this site refused too many messages within a minute"
_REMEMBERED = 1024


class Refusals:
    """Writes refusals down.

    Args:
        log: the site's.
    """

    def __init__(self, log: SiteLog) -> None:
        self._log = log
        self._repeated: dict[tuple[str, str, str], tuple[float, int]] = {}
        self._lately: deque[float] = deque(maxlen=_REFUSALS)

    def note(self, run: str, kind: str, code: str, message: str, *, by: str) -> None:
        """Write a refusal down; the same one again within a minute is counted.

        Args:
            run: of which run, as far as it is known.
            kind: the message's type.
            code: the refusal's.
            message: the refusal's.
            by: ``gate`` or ``site``.

        Raises:
            PolicyError: (refused-often) it was not written down, since too many others were within a minute; so it must not leave either.
            IntegrityError: it could not be written down.
        """
        kind = kind[:32]
        now, key = time.monotonic(), (run, kind, code)
        at, times = self._repeated.get(key, (-_AGAIN_S, 0))
        if now - at < _AGAIN_S:
            self._repeated[key] = (at, times + 1)
            return
        if len(self._lately) == _REFUSALS and now - self._lately[0] < _AGAIN_S:
            if code != OFTEN:
                self.note("", "any", OFTEN, _OFTEN_WORDS, by="gate")
                raise refused(OFTEN, _OFTEN_WORDS, "ask again in a minute")
        elif code != OFTEN:
            self._lately.append(now)
        if len(self._repeated) >= _REMEMBERED:
            self._repeated.clear()
        self._repeated[key] = (now, 0)
        again = {"times": times + 1} if times else {}
        self._log.append(
            "refused", {"run": run, "message": kind, "code": code, "why": message, "by": by, **again}
        )
