"""What an adversary sees that reads a site's messages: a grid that adds up, for each canary, what updates say in its direction."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from flwr.app import Message
from flwr.serverapp import Grid

from cloister.core import protocol
from cloister.simulation.passing_grid import PassingGrid

__all__ = ["Seen", "WatchingGrid"]


@dataclass(eq=False)
class Seen:
    """The canaries' part of the updates that were seen, by round: of a round that was sent twice the last."""

    #: The place of the canaries' weights in a model's vector; set when the model is known.
    start: int = 0
    rounds: dict[int, dict[int, npt.NDArray[np.float64]]] = field(default_factory=dict)

    def take(self, number: int, node: int, part: npt.NDArray[np.float64]) -> None:
        """Note what a node sent in a round."""
        self.rounds.setdefault(number, {})[node] = part


class WatchingGrid(PassingGrid):
    """Passes everything on, and notes updates.

    Args:
        inner: the grid that reaches the sites.
        seen: where they are noted.
        columns: of which nodes, and of each the canaries that are looked for.
    """

    def __init__(self, inner: Grid, seen: Seen, columns: Mapping[int, Sequence[int]]) -> None:
        super().__init__(inner)
        self._seen, self._columns = seen, columns
        self._numbers: dict[str, int] = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass the messages on, and note of which round those to watched nodes are."""
        batch = list(messages)
        tickets = list(self._inner.push_messages(batch))
        for ticket, message in zip(tickets, batch, strict=True):
            if message.metadata.message_type == "train" and message.metadata.dst_node_id in self._columns:
                job = message.content.config_records[protocol.JOB]
                self._numbers[ticket] = int(job["round"])  # type: ignore[arg-type]  # the collector's own number
        return tickets

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there, and look at them."""
        replies = list(self._inner.pull_messages(message_ids))
        for reply in replies:
            number = self._numbers.get(reply.metadata.reply_to_message_id)
            if number is not None and not reply.has_error():
                self._look(number, reply)
        return replies

    def _look(self, number: int, reply: Message) -> None:
        arrays = reply.content.array_records.get(protocol.UPDATE)
        if arrays is None or protocol.VECTOR not in arrays:
            return
        node = reply.metadata.src_node_id
        vector = arrays[protocol.VECTOR].numpy()
        columns = np.asarray(self._columns[node])
        self._seen.take(number, node, vector[self._seen.start + columns].astype(np.float64))
