"""Who is there: the sites of a federation by position, name and Flower node.

A directory is asked for one position at a time, so that a million virtual sites cost nothing until they are drawn. Positions
follow the sites' names, never the order in which they arrived: a cohort drawn by position is the same in every engine.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from flwr.app import ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from cloister.core import protocol
from cloister.core.errors import PeersMissing
from cloister.server.exchange import exchange

__all__ = ["ComputedDirectory", "Directory", "ListedDirectory", "discover"]

_NAME_LIMIT = 64


class Directory(Protocol):
    """The sites of a federation."""

    def __len__(self) -> int:
        """Return how many there are."""
        ...

    def node(self, position: int) -> int:
        """Return the Flower node of the site at ``position``."""
        ...

    def name(self, position: int) -> str:
        """Return the name of the site at ``position``."""
        ...


@dataclass(frozen=True, kw_only=True)
class ComputedDirectory:
    """Sites whose nodes are numbered from 1 in the order of their positions (the in-process engine)."""

    size: int
    name_of: Callable[[int], str]

    def __len__(self) -> int:
        return self.size

    def node(self, position: int) -> int:
        """Return the Flower node of the site at ``position``."""
        return position + 1

    def name(self, position: int) -> str:
        """Return the name of the site at ``position``."""
        return self.name_of(position)


@dataclass(frozen=True)
class ListedDirectory:
    """Sites that introduced themselves."""

    nodes: Sequence[int]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.nodes)

    def node(self, position: int) -> int:
        """Return the Flower node of the site at ``position``."""
        return self.nodes[position]

    def name(self, position: int) -> str:
        """Return the name of the site at ``position``."""
        return self.names[position]


def discover(
    grid: Grid, *, expected: int, wait_s: float, job: ConfigRecord, names: Sequence[str] | None = None
) -> ListedDirectory:
    """Wait until ``expected`` nodes are there and ask each for its name.

    Args:
        grid: the Flower grid.
        expected: how many sites to wait for.
        wait_s: seconds to wait for them, and again for their answers.
        job: the job record that goes with the question.
        names: the order of the sites, where it is known; else they are sorted by name.

    Raises:
        PeersMissing: fewer came in time or gave a name of ``names``, or two gave the same name. An answer from another node
            than the one asked counts for nobody.
    """
    deadline = time.monotonic() + wait_s
    while len(nodes := list(grid.get_node_ids())) < expected:
        if time.monotonic() > deadline:
            raise PeersMissing(
                f"{len(nodes)} of {expected} sites are connected after {wait_s:g} s",
                remedy="start the missing sites, or raise cohort.wait_s",
            )
        time.sleep(0.1)
    messages = [Message(RecordDict({protocol.JOB: job}), node, "query", ttl=wait_s) for node in nodes]
    found: dict[str, int] = {}
    for answer in exchange(grid, messages, wait_s=wait_s):
        reply = answer.reply
        record = (
            None if reply is None or reply.has_error() else reply.content.config_records.get(protocol.SITE)
        )
        name = None if record is None else record.get("name")
        if answer.foreign or not isinstance(name, str) or not 0 < len(name) <= _NAME_LIMIT:
            continue  # not introduced: by itself, or at all
        if name in found:
            raise PeersMissing(
                f"two nodes call themselves '{name}'", remedy="give each site a name of its own"
            )
        found[name] = nodes[answer.position]
    order = [name for name in names if name in found] if names is not None else sorted(found)
    if len(order) < expected:
        strangers = (
            f", and {len(found) - len(order)} others by names that are not theirs"
            if len(found) > len(order)
            else ""
        )
        raise PeersMissing(
            f"{len(order)} of {expected} sites introduced themselves{strangers}",
            remedy="read the sites' logs",
        )
    return ListedDirectory([found[name] for name in order], order)
