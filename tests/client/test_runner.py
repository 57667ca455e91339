"""The site runner: what it answers, when, and how often, over a line that a test holds."""

from __future__ import annotations

import threading
import time
from itertools import pairwise
from typing import Any, Self, cast

import pytest
from flwr.app import ConfigRecord, Context, Message, Metadata, RecordDict
from flwr.app.message import make_message

from cloister.client.fleet_link import FleetLink, UnwantedError
from cloister.client.message_form import MessageLostError
from cloister.client.runner import Runner, Watched
from cloister.client.site_config import ServerTable
from cloister.client.tls_line import LinkLostError
from cloister.core.errors import PolicyError

SERVER = ServerTable(address="127.0.0.1:1", busy_poll_s=0.01, idle_poll_s=0.05)


def message(number: int, *, ttl: float = 60.0, age: float = 0.0) -> Message:
    """Return a message as it arrives."""
    metadata = Metadata(
        run_id=1,
        message_id=f"m{number}",
        src_node_id=1,
        dst_node_id=7,
        reply_to_message_id="",
        group_id="",
        created_at=time.time() - age,
        ttl=ttl,
        message_type="train",
    )
    return make_message(metadata, content=RecordDict({"n": ConfigRecord({"n": number})}))


class Line:
    """A line that gives what it was told to give, in order, and then stops the runner."""

    node_id = 7

    def __init__(self, script: list[Any], sent: list[int], stop: threading.Event) -> None:
        self._script, self._sent, self._stop = script, sent, stop
        self.broken = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Hang up."""

    def receive(self) -> Message | None:
        if not self._script:
            self._stop.set()
            return None
        given = self._script.pop(0)
        if isinstance(given, Exception):
            raise given
        return cast("Message | None", given)

    def send(self, reply: Message, seconds: float) -> int:
        assert seconds >= 0
        if self._script and isinstance(self._script[0], LinkLostError | UnwantedError | PolicyError):
            raise self._script.pop(0)
        self._sent.append(int(cast("int", reply.content.config_records["n"]["n"])))
        return 10


def running(script: list[Any], refuse: int = 0) -> tuple[list[int], list[int], Watched]:
    """Run a site over ``script``; return what was answered and what was sent."""
    stop = threading.Event()
    sent: list[int] = []
    answered: list[int] = []
    refusals = [PolicyError("not let in", code="link-refused")] * refuse

    def connect() -> FleetLink:
        if refusals:
            raise refusals.pop()
        return cast("FleetLink", Line(script, sent, stop))

    def answer(given: Message, context: Context) -> Message:
        assert context.run_id == 1
        answered.append(int(cast("int", given.content.config_records["n"]["n"])))
        return Message(given.content, reply_to=given)

    runner = Runner(SERVER, connect, answer)
    runner.run(stop)
    return answered, sent, runner.watched


def test_messages_are_answered_in_order_and_counted() -> None:
    answered, sent, watched = running([message(1), None, message(2)])
    assert answered == sent == [1, 2]
    assert (
        watched.registry.get_sample_value(
            "cloister_site_messages_total", {"kind": "train", "outcome": "answered"}
        )
        == 2
    )
    assert watched.registry.get_sample_value("cloister_site_sent_bytes_total") == 20


def test_a_message_whose_time_is_over_is_not_answered() -> None:
    answered, sent, _ = running([message(1, ttl=5, age=6), message(2)])
    assert answered == sent == [2]


def test_an_answer_that_could_not_be_sent_is_sent_again_and_made_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloister.client.runner._FIRST_PAUSE_S", 0.01)
    answered, sent, _ = running([message(1), LinkLostError("broken off"), message(2)])
    assert answered == sent == [1, 2]


def dropped(watched: Watched) -> float | None:
    return watched.registry.get_sample_value(
        "cloister_site_messages_total", {"kind": "train", "outcome": "dropped"}
    )


def test_an_answer_that_is_not_wanted_any_more_is_dropped_on_the_same_line() -> None:
    answered, sent, watched = running([message(1), UnwantedError("its run has ended"), message(2)])
    assert (answered, sent) == ([1, 2], [2])
    assert dropped(watched) == 1


def test_an_answer_at_which_the_coordinator_fails_for_ever_is_dropped_and_one_on_a_bad_line_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("cloister.client.runner._FIRST_PAUSE_S", 0.001)
    failing = [LinkLostError("HTTP 500", failed=True)] * 3
    answered, sent, watched = running([message(1), *failing, message(2)])
    assert (answered, sent) == ([1, 2], [2])
    assert dropped(watched) == 1
    answered, sent, watched = running([message(1), *[LinkLostError("broken off")] * 6, message(2)])
    assert answered == sent == [1, 2]
    assert dropped(watched) is None
    answered, sent, _ = running([message(1), *failing[:2], message(2), *failing[:2], message(3)])
    assert answered == sent == [1, 2, 3], "each answer has tries of its own"


def test_a_message_that_was_lost_stops_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.client.runner._FIRST_PAUSE_S", 0.01)
    answered, sent, watched = running([MessageLostError("too long"), LinkLostError("gone"), message(2)])
    assert answered == sent == [2]
    assert not watched.connected


def test_a_site_that_is_not_let_in_asks_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.client.runner._LONGEST_PAUSE_S", 0.02)
    answered, _, _ = running([message(1)], refuse=2)
    assert answered == [1]


def test_messages_that_are_all_lost_do_not_make_a_site_ask_without_a_pause() -> None:
    idle: list[float] = []
    stop = threading.Event()
    line = Line([MessageLostError("too long")] * 5, [], stop)
    runner = Runner(
        SERVER,
        lambda: cast("FleetLink", line),
        lambda given, _: given,
        idle=lambda: idle.append(time.monotonic()),
    )
    runner.run(stop)
    assert len(idle) >= 5
    assert all(later - before >= SERVER.busy_poll_s / 2 for before, later in pairwise(idle[:5]))


def test_a_site_leaves_a_slow_coordinator_the_longer_alone() -> None:
    asked: list[float] = []
    stop = threading.Event()

    class Slow(Line):
        def receive(self) -> Message | None:
            asked.append(time.monotonic())
            if len(asked) > 5:
                stop.set()
            time.sleep(0.1)
            return None

    server = ServerTable(address="127.0.0.1:1", busy_poll_s=0.01, idle_poll_s=10)
    Runner(server, lambda: cast("FleetLink", Slow([], [], stop)), lambda given, _: given).run(stop)
    assert all(later - before >= 0.3 for before, later in pairwise(asked[:5]))


def test_an_answer_that_is_refused_again_and_again_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cloister.client.runner._LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr("cloister.client.runner._FIRST_PAUSE_S", 0.01)
    refusals: list[Any] = [PolicyError("no", code="link-refused") for _ in range(3)]
    answered, sent, watched = running([message(1), *refusals, message(2)])
    assert answered == [1, 2]
    assert sent == [2]
    dropped = {"kind": "train", "outcome": "dropped"}
    assert watched.registry.get_sample_value("cloister_site_messages_total", dropped) == 1
