"""A reply that comes part by part: looked at again and again, so that nobody waits for it but who asked.

The SuperLink hands on the head of a reply as soon as it has it. The parts follow at the speed of that site's line, or never. A sound site sends the root
last, so nothing is fetched before the root is there: a coordinator holds one whole reply at a time, and of an unfinished one nothing.

==========================================  ====================================================
case                                        outcome
==========================================  ====================================================
the root is not there yet                   ``None``; looked at again after a growing pause
the root is there and another part is not   ``None``; what was fetched is kept for the next time
longer than is taken, or of another kind    ``ValueError``, ``TypeError``
an unknown part                             ``ObjectPullError``
==========================================  ====================================================
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Mapping

from flwr.app import Array, Message
from flwr.proto.message_pb2 import ObjectTree
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


class ReplyInParts:
    """One reply whose head came.

    Args:
        identifier: the reply's own, which is its root's.
        asked: the message that it answers.
        tree: what it says its parts are.
        pull: fetches a part by its name, or raises `ObjectUnavailableError` where that is not there yet.
        most_bytes: of the reply.
    """

    def __init__(
        self, identifier: str, asked: str, *, tree: ObjectTree, pull: Callable[[str], bytes], most_bytes: int
    ) -> None:
        self.identifier, self.asked = identifier, asked
        self._names = [identifier, *(one.object_id for one in iterate_object_tree(tree))]
        self._pull, self._most_bytes = pull, most_bytes
        self._lock = threading.Lock()
        self._contents: dict[str, bytes] = {}
        self._came, self._late = 0, False
        self._pause, self._next = _FIRST_PAUSE_S, 0.0

    def fetched(self) -> Message | None:
        """Fetch what is there, and return the reply when that is all of it; see the table above."""
        if time.monotonic() < self._next:
            return None
        self._late = False
        missing = [name for name in dict.fromkeys(self._names) if name not in self._contents]
        try:
            if self.identifier in missing:
                self._part(self.identifier)
                missing.remove(self.identifier)
            pull_objects(missing, self._part, max_concurrent_pulls=2, max_time=0)
        except (ObjectUnavailableError, ObjectPullError):
            if not self._late:
                raise
            self._next = time.monotonic() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE_S)
            return None
        _check_unfolded(self._contents, self._most_bytes)
        message = inflate_object_from_contents(self.identifier, self._contents)
        if not isinstance(message, Message):
            raise TypeError(type(message).__name__)
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
