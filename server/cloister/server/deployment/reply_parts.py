"""A reply that comes part by part: looked at again and again, so that nobody waits for it but who asked.

The SuperLink hands on the head of a reply as soon as it has it. The parts follow at the speed of that site's line, or never. A sound site sends the root
after all others (two parts may be on their way at once), so nothing is fetched before the root is there, and then from the end: of a sound site's
unfinished reply next to nothing is held. A hostile one can have as much held as a reply may be long, until it was idle for `_STALLED_S`.

==========================================  ====================================================
case                                        outcome
==========================================  ====================================================
the root is not there yet                   ``None``; looked at again after a growing pause
the root is there and another part is not   ``None``; what was fetched is kept for the next time
and none has come for `_STALLED_S`          ``TimeoutError``
more parts than `_PARTS` at a time          ``None``; the others at the next question
longer than is taken, more parts than that  ``ValueError``
has, or not the message that its head says
of another kind                             ``TypeError``
an unknown part                             ``ObjectPullError``
==========================================  ====================================================
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping

from flwr.app import Array, Message
from flwr.proto.message_pb2 import Metadata, ObjectTree
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
    iterate_object_tree,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectUnavailableError,
    inflate_object_from_contents,
    pull_objects,
)

__all__ = ["ReplyInParts"]

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.05, 1.0
_STALLED_S = 60.0
#: Parts that are fetched between two looks at other replies.
_PARTS = 64
#: A reply may have some parts of any size, and for the rest is cut into parts of at least this many bytes.
_FEW, _PART_BYTES = 256, 1 << 20


class ReplyInParts:
    """One reply whose head came.

    Args:
        head: what it says of itself.
        tree: what it says its parts are.
        pull: fetches a part by its name, or raises `ObjectUnavailableError` where that is not there yet.
        most_bytes: of the reply.
    """

    def __init__(
        self, head: Metadata, *, tree: ObjectTree, pull: Callable[[str], bytes], most_bytes: int
    ) -> None:
        self.identifier, self.asked = head.message_id, head.reply_to_message_id
        self._node = head.src_node_id
        names = dict.fromkeys(one.object_id for one in iterate_object_tree(tree))
        self._names = [self.identifier, *(name for name in reversed(names) if name != self.identifier)]
        self._pull, self._most_bytes = pull, most_bytes
        self._lock = threading.Lock()
        self._contents: dict[str, bytes] = {}
        self._came, self._late = 0, False
        self._pause, self._next, self._moved = _FIRST_PAUSE_S, 0.0, 0.0

    def fetched(self) -> Message | None:
        """Fetch what is there, and return the reply when that is all of it; see the table above."""
        if time.monotonic() < self._next:
            return None
        if len(self._names) > _FEW + self._most_bytes // _PART_BYTES:
            raise ValueError("too many parts")
        missing = [name for name in self._names if name not in self._contents]
        before, self._late = self._came, False
        try:
            if self.identifier in missing:
                self._part(self.identifier)
                missing.remove(self.identifier)
            pull_objects(missing[:_PARTS], self._part, max_concurrent_pulls=2, max_time=0)
        except (ObjectUnavailableError, ObjectPullError):
            if not self._late:
                raise
            self._wait(before)
            return None
        if len(missing) > _PARTS:
            return None
        return self._whole()

    def _wait(self, before: int) -> None:
        """Look again later, unless it has stalled."""
        now = time.monotonic()
        if self._came > before or not self._contents:
            self._moved = now
        elif now > self._moved + _STALLED_S:
            raise TimeoutError("stalled")
        self._next = now + self._pause
        self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)

    def _whole(self) -> Message:
        _check_unfolded(self._contents, self._most_bytes)
        message = inflate_object_from_contents(self.identifier, self._contents)
        if not isinstance(message, Message):
            raise TypeError(type(message).__name__)
        told = message.metadata
        if (told.reply_to_message_id, told.src_node_id) != (self.asked, self._node):
            raise ValueError("not the message that its head says")
        return message

    def _part(self, name: str) -> bytes:
        if self._came > self._most_bytes:
            raise ValueError("too long")
        try:
            content = self._pull(name)
        except ObjectUnavailableError:
            self._late = True
            raise
        with self._lock:
            if name not in self._contents:  # a part that was given up may have come after all
                self._came += len(content)
                self._contents[name] = content
        return content


def _check_unfolded(contents: Mapping[str, bytes], most_bytes: int) -> None:
    """Refuse parts that would make more of a reply than came: an array's part names its pieces, each as often as it likes.

    Raises:
        ValueError: its arrays would be longer than ``most_bytes`` together.
    """
    whole = 0
    for content in contents.values():
        kind, pieces, _ = get_object_head_values_from_object_content(content)
        if kind == Array.__name__:
            sizes = [len(contents[piece]) for piece in pieces]
            named = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            whole += sum(sizes[number] for number in named)
    if whole > most_bytes:
        raise ValueError("too long when unfolded")
