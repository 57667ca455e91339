"""Replies in parts: taken when all of it is there, and whatever a site does with its parts costs no other reply anything."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.proto.message_pb2 import Metadata, ObjectTree
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.inflatable.inflatable_utils import ObjectPullError, ObjectUnavailableError

from cloister.server.deployment import reply_parts
from cloister.server.deployment.reply_parts import ReplyInParts

pytestmark = pytest.mark.usefixtures("flower_task")


class Shelf:
    """The parts of one reply that are there."""

    def __init__(self, arrays: int = 2) -> None:
        asked = Message(RecordDict(), 7, "train")
        asked.metadata.__dict__["_message_id"] = "asked"
        record = ArrayRecord(
            {f"v{number}": Array(np.full(9, number, np.float32)) for number in range(arrays)}
        )
        self.reply = Message(RecordDict({"model": record}), reply_to=asked)
        self.reply.metadata.__dict__["_message_id"] = self.reply.object_id
        self.tree = get_object_tree(self.reply)
        self.all = {name: part.deflate() for name, part in get_all_nested_objects(self.reply).items()}
        self.there: dict[str, bytes] = {}
        self.pulled: list[str] = []

    def reading(self, most_bytes: int = 10**6, tree: ObjectTree | None = None, **told: Any) -> ReplyInParts:
        metadata = self.reply.metadata
        head: dict[str, Any] = {
            "message_id": self.reply.object_id,
            "reply_to_message_id": "asked",
            "src_node_id": metadata.src_node_id,
        }
        return ReplyInParts(
            Metadata(**head | told), tree=tree or self.tree, pull=self.pull, most_bytes=most_bytes
        )

    def pull(self, name: str) -> bytes:
        self.pulled.append(name)
        if name not in self.all:
            raise ObjectPullError(name, "unknown")
        if name not in self.there:
            raise ObjectUnavailableError(name)
        return self.there[name]


@pytest.fixture(autouse=True)
def _at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_parts, "_FIRST_PAUSE_S", 0.0)


def until_it_ends(reading: ReplyInParts) -> Message:
    """Look as often as it takes for a reply or an error; a test that hangs is killed."""
    while (found := reading.fetched()) is None:
        pass
    return found


def test_it_is_there_when_its_last_part_is_and_not_before() -> None:
    shelf = Shelf()
    reading = shelf.reading()
    for name, content in shelf.all.items():  # the root comes last
        assert reading.fetched() is None
        assert set(shelf.pulled) == {shelf.reply.object_id}, "without the root nothing else is fetched"
        shelf.there[name] = content
    found = reading.fetched()
    assert found is not None
    assert np.array_equal(found.content.array_records["model"]["v1"].numpy(), np.full(9, 1, np.float32))


def test_of_a_reply_whose_root_came_early_the_parts_that_came_are_kept() -> None:
    shelf = Shelf()
    reading, late = shelf.reading(), next(iter(shelf.all))
    shelf.there = {name: content for name, content in shelf.all.items() if name != late}
    for _ in range(20):
        assert reading.fetched() is None
        reading._next = 0.0
    shelf.there[late] = shelf.all[late]
    assert until_it_ends(reading).has_content()
    # Twice where a thread was still at it when the look ended.
    assert all(shelf.pulled.count(name) <= 2 for name in shelf.all if name != late)


def test_one_that_stalls_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reply_parts, "_STALLED_S", -1.0)
    shelf = Shelf()
    reading, late = shelf.reading(), next(iter(shelf.all))
    assert reading.fetched() is None, "nothing of it is held: it may come yet"
    assert reading.fetched() is None
    shelf.there = {name: content for name, content in shelf.all.items() if name != late}
    with pytest.raises(TimeoutError):
        until_it_ends(reading)


def test_between_two_looks_at_others_only_so_many_parts_are_fetched() -> None:
    shelf = Shelf(arrays=100)
    shelf.there = shelf.all
    reading, looks = shelf.reading(), 0
    while reading.fetched() is None:
        looks += 1
        assert len(shelf.pulled) <= looks * reply_parts._PARTS + 1
    assert looks == (len(shelf.all) - 1) // reply_parts._PARTS


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda shelf: shelf.reading(most_bytes=300), ValueError),
        (lambda shelf: shelf.reading(reply_to_message_id="another's"), ValueError),
        (lambda shelf: shelf.reading(src_node_id=8), ValueError),
        (
            lambda shelf: shelf.reading(
                tree=ObjectTree(children=[ObjectTree(object_id=str(number)) for number in range(300)])
            ),
            ValueError,
        ),
        (lambda shelf: shelf.reading(tree=ObjectTree(object_id="nobody's")), ObjectPullError),
        (lambda shelf: shelf.reading(message_id=next(iter(shelf.all))), TypeError),
    ],
    ids=["too long", "another asked", "another's", "too many parts", "an unknown part", "no message"],
)
def test_what_is_no_sound_reply_is_an_error_of_its_own(
    make: Callable[[Shelf], ReplyInParts], error: type[Exception]
) -> None:
    shelf = Shelf()
    shelf.there = shelf.all
    reading = make(shelf)
    with pytest.raises(error):
        until_it_ends(reading)
