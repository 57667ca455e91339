"""The signals of a run's rounds: computed where rows are seen, told as events, added up over rounds.

============================  =====================================================================================================
what the server sees          its signals
============================  =====================================================================================================
updates, under a robust rule  of each site: norm, cosine to the median, agreement of signs, its weight in the round
group means                   the same of each group
updates, under the mean       of each site: norm, cosine to the last round's direction, as updates come; no row is kept
one sum, or noise not yet in  none of any site
============================  =====================================================================================================

and always of the direction: its norm, its cosine to the last round's, and the share of it that lies in the model's last layer. An alert is told once
for each site (or group) and signal; nobody is banned.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from cloister.core.errors import IntegrityError
from cloister.core.update import Layout, Vector
from cloister.server.checkpoints import Arrays
from cloister.server.events import EventBus
from cloister.server.gathered import Seen
from cloister.strategies.mean import Direction
from cloister.strategies.signals import SIGNALS, Alert, Cusum, cosine, tail_share

__all__ = ["Signals"]

#: Of more rows than these, only those that stand out are listed.
_LISTED = 200
_WORDS = {
    "norm": "the size of its updates",
    "cosine": "the direction of its updates",
    "agreement": "the signs of its updates",
}


class Signals:
    """Watches one run.

    Args:
        layout: of the model's vector.
        bus: where events go.
    """

    def __init__(self, layout: Layout, bus: EventBus) -> None:
        self._bus = bus
        self._size, self._tail = layout.size, _last_layer(layout)
        self._cusum = Cusum.start()
        self._last: Vector | None = None

    def tell(self, number: int, direction: Direction, seen: Seen | None, names: Sequence[str]) -> None:
        """Take a round that counted, and emit its event and what is new.

        Args:
            number: the round.
            direction: what came of it.
            seen: the signals of its rows, where there are rows.
            names: of the sites whose updates they are, in their order; unless ``seen`` names them itself.
        """
        about: dict[str, Any] = {
            "norm": float(np.sqrt(np.einsum("i,i->", direction, direction))),
            "cosine": None if self._last is None else cosine(direction, self._last),
            "last_layer": tail_share(direction, self._tail),
        }
        self._last = direction.astype(np.float32)
        rows: list[dict[str, Any]] = []
        alerts: tuple[Alert, ...] = ()
        if seen is not None:
            who = seen.names or tuple(names)
            self._cusum, alerts = self._cusum.after(who, seen.signals)
            rows = _rows(who, seen)
            if len(rows) > _LISTED:
                told = {alert.who for alert in alerts}
                rows = [row for row in rows if row["who"] in told]
        self._bus.emit(
            "signals",
            number,
            direction=about,
            toward=None if seen is None else seen.toward,
            rows=rows,
            alerts=[{**vars(alert), "of": 0 if seen is None else len(seen.signals.norm)} for alert in alerts],
        )
        for alert in alerts:
            text = (
                f"'{alert.who}' has stood out for some rounds in {_WORDS[alert.signal]} ({alert.signal} {alert.value:.3g}, where the middle one has "
                f"{alert.middle:.3g}): it may lie, be misconfigured, or have data unlike the others'; nothing was done about it"
            )
            self._bus.emit("warning", number, text=text)

    def arrays(self) -> Arrays:
        """Return what the next round needs, for a checkpoint."""
        kept = {"sums": dict(self._cusum.sums), "told": sorted(map(list, self._cusum.told))}
        found: Arrays = {"state": np.frombuffer(json.dumps(kept).encode(), dtype=np.uint8).copy()}
        return found if self._last is None else {**found, "last": self._last}

    def restore(self, arrays: Arrays) -> None:
        """Put it back.

        Raises:
            IntegrityError: it is not what `arrays` gave.
        """
        if "state" not in arrays:
            return
        try:
            kept = json.loads(arrays["state"].tobytes())
            sums = {str(who): tuple(float(one) for one in values) for who, values in kept["sums"].items()}
            told = frozenset((str(who), str(signal)) for who, signal in kept["told"])
            fits = all(len(values) == len(SIGNALS) for values in sums.values())
        except (ValueError, KeyError, TypeError, AttributeError, UnicodeDecodeError):
            fits = False
        last = arrays.get("last")
        if not fits or (last is not None and last.shape != (self._size,)):
            raise IntegrityError(
                "the stored signals cannot be read",
                remedy="resume from another checkpoint",
                code="checkpoint",
            )
        self._cusum, self._last = Cusum(sums, told), last


def _rows(names: Sequence[str], seen: Seen) -> list[dict[str, Any]]:
    signals, shares = seen.signals, seen.shares
    return [
        {
            "who": name,
            "norm": float(signals.norm[place]),
            "cosine": float(signals.cosine[place]),
            "agreement": None if signals.agreement is None else float(signals.agreement[place]),
            "weight": None if shares is None else float(shares[place]) * len(shares),
        }
        for place, name in enumerate(names)
    ]


def _last_layer(layout: Layout) -> int:
    """Return where the last layer's parameters begin in the vector: those that share the last one's name up to its last dot."""
    averaged = [entry for entry in layout.entries if entry.kind == "averaged"]
    layer = averaged[-1].name.rpartition(".")[0]
    begin = layout.size
    for entry in reversed(averaged):
        if entry.name.rpartition(".")[0] != layer:
            break
        begin -= entry.size
    return begin
