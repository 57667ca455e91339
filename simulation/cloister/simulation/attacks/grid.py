"""A Flower grid in which some sites lie: their replies wait until all honest ones of the round are there, and are then made anew.

The liars train as everybody does, so a round costs what it costs without them. What they send depends on the honest updates of the
round and on what they remember, never on the order of arrival: the result is the same for any number of workers, and what they
remember goes into checkpoints.

Where the federation has groups, a liar's row is its group's mean: it fills up what the honest sites of its group dilute, so that the row becomes what
it would send by itself. That is the strongest it can do, and takes knowing the others' updates before it sends its own, like all that liars do here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from flwr.app import Message
from flwr.serverapp import Grid

from cloister.core import protocol
from cloister.core.randomness import Randomness
from cloister.core.spec import Attack, FederationSpec
from cloister.core.update import Vector
from cloister.server.checkpoints import Arrays
from cloister.server.plan import SiteMemory
from cloister.simulation.attacks.crafting import CRAFTS
from cloister.simulation.attacks.knowing import Known, Memory
from cloister.simulation.attacks.optimising import opt_alie, opt_ipm
from cloister.simulation.live_array import LiveArray
from cloister.simulation.passing_grid import PassingGrid
from cloister.strategies.mean import Direction

__all__ = ["AttackedGrid", "LiarsMemory"]

_CRAFTS = {**CRAFTS, "opt-alie": opt_alie, "opt-ipm": opt_ipm}
_PREFIX = "liars."


@dataclass
class _Round:
    """One push of train messages: who is asked, and what has come."""

    number: int
    model: Vector
    waiting: dict[str, int]
    honest: dict[int, Vector] = field(default_factory=dict)
    held: dict[int, Message] = field(default_factory=dict)


class AttackedGrid(PassingGrid):
    """Passes everything on but the liars' updates.

    Args:
        inner: the grid that reaches the sites.
        spec: the federation.
        attack: its ``[attack]``.
        liars: the nodes that lie.
        randomness: where the liars draw from.
        groups: the nodes of each group; none: every site is a row.
    """

    def __init__(
        self,
        inner: Grid,
        spec: FederationSpec,
        attack: Attack,
        liars: frozenset[int],
        randomness: Randomness,
        *,
        groups: Sequence[Sequence[int]] = (),
    ) -> None:
        super().__init__(inner)
        self._spec, self._attack = spec, attack
        self._liars, self._randomness = liars, randomness
        self._groups = groups
        self._rounds: dict[str, _Round] = {}
        self._ready: dict[str, Message] = {}
        self.memory: Memory = {}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Pass the messages on, and note a round of training."""
        batch = list(messages)
        tickets = list(self._inner.push_messages(batch))
        training = [
            (ticket, message)
            for ticket, message in zip(tickets, batch, strict=True)
            if message.metadata.message_type == "train"
        ]
        if training:
            content = training[0][1].content
            number = int(content.config_records[protocol.JOB]["round"])  # type: ignore[arg-type]  # the collector's own number
            model: Vector = content.array_records[protocol.MODEL][protocol.VECTOR].numpy()
            one = _Round(
                number, model, {ticket: message.metadata.dst_node_id for ticket, message in training}
            )
            self._rounds.update(dict.fromkeys(one.waiting, one))
        return tickets

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return the replies that are there; a liar's when all others of its round are."""
        wanted = list(message_ids)
        passed = []
        for reply in self._inner.pull_messages([one for one in wanted if one not in self._ready]):
            ticket = reply.metadata.reply_to_message_id
            one = self._rounds.pop(ticket, None)
            if one is None or not self._take(one, ticket, reply):
                passed.append(reply)
            if one is not None and not one.waiting:
                self._lie(one)
        return passed + [self._ready.pop(ticket) for ticket in wanted if ticket in self._ready]

    def _take(self, one: _Round, ticket: str, reply: Message) -> bool:
        """Note a reply of a round; return whether it is held back."""
        node = one.waiting.pop(ticket)
        vector = _vector(reply)
        if vector is None:
            return False
        if node not in self._liars:
            one.honest[node] = vector.copy()
            return False
        one.held[node] = reply
        return True

    def _lie(self, one: _Round) -> None:
        """Make the liars' updates and let their replies go."""
        own = {
            node: vector for node, reply in sorted(one.held.items()) if (vector := _vector(reply)) is not None
        }
        craft = _CRAFTS.get(self._attack.name)
        rows = _rows_of(self._groups, one.honest, own)
        if craft is not None and rows.own and rows.honest:
            known = Known(
                attack=self._attack,
                spec=self._spec,
                number=one.number,
                model=one.model,
                moved=self._moved(one),
                honest=rows.honest,
                own={row: vector.copy() for row, vector in rows.own.items()},
                generator=self._randomness.generator("attack", one.number),
                memory=self.memory,
            )
            for node, vector in _filled_up(self._groups, rows, craft(known), one.honest, own).items():
                arrays = one.held[node].content.array_records[protocol.UPDATE]
                arrays[protocol.VECTOR] = LiveArray(np.ascontiguousarray(vector, dtype=np.float32))
        self._ready.update({reply.metadata.reply_to_message_id: reply for reply in one.held.values()})

    def _moved(self, one: _Round) -> Direction | None:
        """Return what the last round changed in the model, and remember this round's."""
        kept = self.memory.get("number")
        if kept is None or int(kept[0]) != one.number:  # a round that is tried again has the same past
            if "model" in self.memory:
                self.memory["before"] = self.memory["model"]
            self.memory["model"] = one.model.copy()
            self.memory["number"] = np.array([one.number], dtype=np.int64)
        before = self.memory.get("before")
        return None if before is None else one.model.astype(np.float64) - before


class LiarsMemory:
    """What virtual sites keep, and what liars remember, for checkpoints."""

    def __init__(self, sites: SiteMemory, grid: AttackedGrid) -> None:
        self._sites, self._grid = sites, grid

    def arrays(self) -> Arrays:
        """Return both as named arrays."""
        return self._sites.arrays() | {_PREFIX + name: array for name, array in self._grid.memory.items()}

    def restore(self, arrays: Arrays) -> None:
        """Put both back."""
        mine = {name: array for name, array in arrays.items() if name.startswith(_PREFIX)}
        self._grid.memory = {name.removeprefix(_PREFIX): array for name, array in mine.items()}
        self._sites.restore({name: array for name, array in arrays.items() if name not in mine})


@dataclass(frozen=True)
class _RowsOf:
    """The rows that the rule sees: of honest sites or groups, and of those with a liar in them as if it were honest."""

    honest: dict[int, Vector]
    own: dict[int, Vector]


def _rows_of(
    groups: Sequence[Sequence[int]], honest: Mapping[int, Vector], own: Mapping[int, Vector]
) -> _RowsOf:
    if not groups:
        return _RowsOf(dict(honest), dict(own))
    found = _RowsOf({}, {})
    for number, members in enumerate(groups):
        there = [vector for node in members if (vector := honest.get(node, own.get(node))) is not None]
        if there:
            mean: Vector = np.asarray(np.mean(there, axis=0, dtype=np.float64), dtype=np.float32)
            (found.own if any(node in own for node in members) else found.honest)[number] = mean
    return found


def _filled_up(
    groups: Sequence[Sequence[int]],
    rows: _RowsOf,
    lies: Mapping[int, Vector],
    honest: Mapping[int, Vector],
    own: Mapping[int, Vector],
) -> dict[int, Vector]:
    """Return what each liar sends so that the rows become ``lies``: the liars of one group share the change."""
    if not groups:
        return dict(lies)
    found: dict[int, Vector] = {}
    for number, lie in lies.items():
        liars = [node for node in groups[number] if node in own]
        there = sum(node in honest or node in own for node in groups[number])
        with np.errstate(invalid="ignore", over="ignore"):
            change = (lie.astype(np.float64) - rows.own[number]) * there / len(liars)
            found |= {node: (own[node] + change).astype(np.float32) for node in liars}
    return found


def _vector(reply: Message) -> Vector | None:
    """Return the update in a reply, where there is one."""
    if reply.has_error() or protocol.UPDATE not in reply.content.array_records:
        return None
    arrays = reply.content.array_records[protocol.UPDATE]
    if protocol.VECTOR not in arrays:
        return None
    found: Vector = arrays[protocol.VECTOR].numpy()
    return found
