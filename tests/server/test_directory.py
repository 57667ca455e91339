"""Who is there: each node by its own word only, and never fewer sites than were asked for."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from flwr.app import ConfigRecord, Message, RecordDict

from cloister.core import protocol
from cloister.core.errors import PeersMissing
from cloister.server import directory
from cloister.server.directory import discover
from cloister.server.exchange import Answer


class Nodes:
    """As much of a grid as is needed before messages are sent."""

    def __init__(self, count: int) -> None:
        self.count = count

    def get_node_ids(self) -> range:
        return range(1, self.count + 1)


def ask(
    monkeypatch: pytest.MonkeyPatch,
    names: Sequence[str],
    *,
    foreign: Sequence[int] = (),
    expected: int,
    order: Sequence[str] | None = None,
) -> directory.ListedDirectory:
    def answers(_: object, messages: Sequence[Message], *, wait_s: float) -> list[Answer]:
        assert wait_s
        made = []
        for place, name in enumerate(names):
            content = RecordDict({protocol.SITE: ConfigRecord({"name": name})})
            reply = Message(content, messages[place].metadata.dst_node_id, "query")
            made.append(Answer(position=place, reply=reply, foreign=place in foreign, seconds=0.0))
        return made

    monkeypatch.setattr(directory, "exchange", answers)
    return discover(
        Nodes(len(names)),  # type: ignore[arg-type]  # all that `discover` asks of a grid
        expected=expected,
        wait_s=1,
        job=ConfigRecord({}),
        names=order,
    )


@pytest.mark.usefixtures("flower_task")
class TestDiscover:
    """What `discover` makes of the answers."""

    def test_sites_are_in_the_order_of_the_names(self, monkeypatch: pytest.MonkeyPatch) -> None:
        found = ask(monkeypatch, ["b", "a", "c"], expected=3, order=["c", "a", "b"])
        assert (found.names, found.nodes) == (["c", "a", "b"], [3, 2, 1])
        assert ask(monkeypatch, ["b", "a"], expected=2).names == ["a", "b"]

    def test_an_answer_from_another_node_counts_for_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with pytest.raises(PeersMissing, match="2 of 3 sites introduced"):
            ask(monkeypatch, ["a", "b", "c"], foreign=[1], expected=3)
        assert ask(monkeypatch, ["a", "a", "c"], foreign=[1], expected=2).names == ["a", "c"]

    def test_names_that_nobody_expects_do_not_fill_the_places_of_the_sites(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with pytest.raises(PeersMissing, match="1 of 2 sites introduced themselves, and 1 others") as refused:
            ask(monkeypatch, ["a", "x"], expected=2, order=["a", "b"])
        assert refused.value.remedy
        assert ask(monkeypatch, ["a", "x", "b"], expected=2, order=["a", "b"]).nodes == [1, 3]
