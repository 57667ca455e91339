"""One exchange of messages with a cohort: send, wait with a limit, and hand replies on in the order of the cohort.

Replies are handed on in the cohort's order and not as they arrive, so that sums in floating point are the same every time. A
reply that comes before its turn waits; one that does not come within the limit is missing. Replies are matched by the message
that they answer (Flower reports a lost node's error under another node's number).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

__all__ = ["Answer", "exchange"]

_FIRST_PAUSE_S = 0.001
_LONGEST_PAUSE_S = 0.1


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What became of one message.

    Attributes:
        position: the message's place in the cohort.
        reply: the reply, or ``None`` when it did not come in time.
        foreign: the reply came from another node than the one asked.
        seconds: from sending to reply (or to giving up).
    """

    position: int
    reply: Message | None
    foreign: bool
    seconds: float


def exchange(
    grid: Grid,
    messages: Sequence[Message],
    *,
    wait_s: float,
    arrived: Callable[[Answer], None] = lambda _: None,
) -> Iterator[Answer]:
    """Send ``messages`` and yield one `Answer` for each, in their order.

    Args:
        grid: a Flower grid.
        messages: one for each site of the cohort.
        wait_s: seconds until a reply counts as missing.
        arrived: is told of each reply when it arrives, before it is its turn; what it raises ends the exchange.
    """
    started = time.monotonic()
    deadline = started + wait_s
    identifiers = list(grid.push_messages(messages))
    waiting = {identifier: position for position, identifier in enumerate(identifiers) if identifier}
    early: dict[int, Answer] = {}
    turn, pause = 0, _FIRST_PAUSE_S
    while turn < len(messages):
        any_came, asked = False, time.monotonic()
        for reply in grid.pull_messages(list(waiting)) if waiting else ():
            place = waiting.pop(reply.metadata.reply_to_message_id, None)
            if place is None:
                continue
            any_came = True
            foreign = (
                not reply.has_error() and reply.metadata.src_node_id != messages[place].metadata.dst_node_id
            )
            early[place] = Answer(
                position=place, reply=reply, foreign=foreign, seconds=time.monotonic() - started
            )
            arrived(early[place])
        while turn in early:
            yield early.pop(turn)
            turn += 1
        late = time.monotonic() > deadline or not waiting
        while late and turn < len(messages):
            yield (
                early.pop(turn)
                if turn in early
                else Answer(position=turn, reply=None, foreign=False, seconds=time.monotonic() - started)
            )
            turn += 1
        if not any_came and turn < len(messages):
            # A grid that waits for replies by itself (ours) has used up the pause already.
            time.sleep(max(0.0, pause - (time.monotonic() - asked)))
            pause = min(2 * pause, _LONGEST_PAUSE_S)
        else:
            pause = _FIRST_PAUSE_S
