"""The in-process Flower grid: the same answers from any number of workers, nothing kept, nothing lost without a word."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from cloister.server.exchange import exchange
from cloister.simulation.live_array import LiveArray
from cloister.simulation.local_grid import LocalGrid, client_runner
from cloister.simulation.workers import Inline, Result, Runner, WorkerPool


def record(**arrays: Array) -> ArrayRecord:
    made = ArrayRecord()
    made.update(arrays)
    return made


def make_runner() -> Runner:
    """An app that scales what it is sent, counts its own messages, and dies or dawdles when told to."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        order = message.content.config_records["order"]
        if order.get("die_once") and not Path(str(order["die_once"])).exists():
            Path(str(order["die_once"])).touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if order.get("raise"):
            raise RuntimeError("with text that must stay")
        time.sleep(float(str(order.get("sleep", 0.0))))
        calls = context.state.config_records.get("calls", ConfigRecord({"n": 0}))
        calls["n"] = int(str(calls["n"])) + 1
        context.state["calls"] = calls
        sent = message.content.array_records["model"]["vector"].numpy()
        with pytest.raises(ValueError, match="read-only"):
            sent[0] = 1.0
        scaled = (sent * context.node_id).astype(np.float32)
        content = RecordDict(
            {
                "update": record(
                    live=LiveArray(scaled), plain=Array(scaled), cipher=Array("uint8", (3,), "bfv", b"abc")
                ),
                "report": MetricRecord({"calls": int(str(calls["n"])), "list": [1.5, 2.5]}),
                "who": ConfigRecord({"node": context.node_config["partition-id"], "pid": os.getpid()}),
            }
        )
        return Message(content, reply_to=message)

    return client_runner(app)


@pytest.fixture(params=[0, 1, 3])
def grid(request: pytest.FixtureRequest) -> Iterator[LocalGrid]:
    yield from open_grid(request.param)


def open_grid(workers: int, nodes: int = 8) -> Iterator[LocalGrid]:
    made = LocalGrid(
        nodes=nodes,
        node_config=lambda node: {"partition-id": node - 1},
        workers=WorkerPool(make_runner, workers, method="fork") if workers else Inline(make_runner),
    )
    yield made
    made.close()


def messages(nodes: list[int], vector: Any = None, ttl: float = 60.0, **order: Any) -> list[Message]:
    array = LiveArray(np.arange(5, dtype=np.float32) if vector is None else vector)
    content = RecordDict({"model": record(vector=array), "order": ConfigRecord({"name": "x", **order})})
    return [Message(content, node, "train", ttl=ttl) for node in nodes]


def test_every_message_is_answered_by_its_node(grid: LocalGrid) -> None:
    nodes = [5, 2, 8, 1, 7, 3]
    answers = list(exchange(grid, messages(nodes), wait_s=30))
    assert [answer.position for answer in answers] == list(range(6))
    for node, answer in zip(nodes, answers, strict=True):
        assert answer.reply is not None
        assert not answer.foreign
        assert answer.reply.metadata.src_node_id == node
        arrays = answer.reply.content.array_records["update"]
        np.testing.assert_array_equal(arrays["live"].numpy(), node * np.arange(5, dtype=np.float32))
        np.testing.assert_array_equal(arrays["plain"].numpy(), node * np.arange(5, dtype=np.float32))
        assert (arrays["cipher"].stype, arrays["cipher"].data, arrays["cipher"].shape) == (
            "bfv",
            b"abc",
            (3,),
        )
        assert answer.reply.content.metric_records["report"]["list"] == [1.5, 2.5]
        assert answer.reply.content.config_records["who"]["node"] == node - 1


def test_what_a_site_keeps_stays_with_it_between_messages(grid: LocalGrid) -> None:
    for turn in (1, 2, 3):
        for answer in exchange(grid, messages([1, 4] if turn < 3 else [1, 4, 6]), wait_s=30):
            assert answer.reply is not None
            expected = 1 if answer.reply.metadata.src_node_id == 6 else turn
            assert answer.reply.content.metric_records["report"]["calls"] == expected
    assert sorted(grid.states) == [1, 4, 6]


def test_an_apps_exception_becomes_an_error_without_its_text(grid: LocalGrid) -> None:
    good, bad = messages([1]), messages([2], **{"raise": True})
    replies = list(grid.send_and_receive(good + bad, timeout=30))
    errors = [reply for reply in replies if reply.has_error()]
    assert len(replies) == 2
    assert len(errors) == 1
    assert not errors[0].error.reason


def test_shared_memory_is_given_back_after_every_exchange(
    grid: LocalGrid, monkeypatch: pytest.MonkeyPatch
) -> None:
    down: set[str] = set()
    up: list[str] = []
    push, receive = grid.push_messages, grid._receive

    def pushing(batch: Any) -> Any:
        tickets = push(batch)
        down.update(grid._blocks)
        return tickets

    def receiving(result: Result) -> None:
        up.append(str(result.block))
        receive(result)

    monkeypatch.setattr(grid, "push_messages", pushing)
    monkeypatch.setattr(grid, "_receive", receiving)
    for _ in range(3):
        assert len(list(exchange(grid, messages([1, 2, 3]), wait_s=30))) == 3
    assert (len(down), len(up)) == (3, 9), "one block down an exchange, one up a reply"
    assert len(set(up)) < 9, "a worker answers again in a block that was read"
    assert not grid._blocks
    assert not any((Path("/dev/shm") / name).exists() for name in down)
    grid.close()
    assert not any((Path("/dev/shm") / name).exists() for name in up)


def test_a_million_nodes_cost_nothing_until_they_are_sent_to() -> None:
    for grid in open_grid(0, nodes=1_000_000):
        assert len(grid.get_node_ids()) == 1_000_000
        (answer,) = exchange(grid, messages([999_999]), wait_s=30)
        assert answer.reply is not None
        assert not grid._sent
        assert len(grid.states) == 1


def test_work_spreads_over_all_workers() -> None:
    for grid in open_grid(2):
        answers = list(exchange(grid, messages([1, 2, 3, 4], sleep=0.05), wait_s=30))
        pids = {answer.reply.content.config_records["who"]["pid"] for answer in answers if answer.reply}
        assert len(pids) == 2
        assert os.getpid() not in pids


def test_a_killed_worker_loses_only_the_task_that_it_ran_and_is_replaced(tmp_path: Path) -> None:
    for grid in open_grid(2):
        doomed = messages([1], die_once=str(tmp_path / "died"))
        answers = list(exchange(grid, doomed + messages([2, 3, 4, 5, 6]), wait_s=30))
        lost = [answer.position for answer in answers if answer.reply is None or answer.reply.has_error()]
        assert lost == [0]
        (again,) = exchange(grid, messages([1], die_once=str(tmp_path / "died")), wait_s=30)
        assert again.reply is not None
        assert not again.reply.has_error()


def test_a_late_answer_is_missing_and_is_dropped_when_it_comes() -> None:
    for grid in open_grid(2):
        slow, quick = messages([1], ttl=2.0, sleep=4.0), messages([2, 3])
        answers = list(exchange(grid, slow + quick, wait_s=2.0))
        assert [answer.reply is None for answer in answers] == [True, False, False]
        time.sleep(2.0)
        answers = list(exchange(grid, messages([4]), wait_s=10))
        assert answers[0].reply is not None
        deadline = time.monotonic() + 5
        while grid._sent and time.monotonic() < deadline:
            grid.pull_messages(["nothing"])
        assert not grid._sent
        assert not grid._done
        assert 1 not in grid.states, "what a site did after its message expired does not count"


def test_an_expired_message_that_waited_is_not_worked_on() -> None:
    for grid in open_grid(1):
        list(
            exchange(
                grid,
                messages([1], ttl=0.2, sleep=0.5) + messages([2], ttl=0.2) + messages([3], ttl=0.2),
                wait_s=0.2,
            )
        )
        time.sleep(0.6)
        list(exchange(grid, messages([4]), wait_s=10))
        assert sorted(grid.states) == [4]


def test_a_live_array_serialises_like_flowers_own() -> None:
    vector = np.arange(7, dtype=np.float32)
    live, plain = LiveArray(vector), Array(vector)
    assert live.numpy() is vector
    assert (live.data, live.dtype, live.shape, live.stype) == (
        plain.data,
        plain.dtype,
        plain.shape,
        plain.stype,
    )


def test_replies_of_the_pool_and_of_this_process_are_equal_to_the_bit() -> None:
    vector = np.random.default_rng(0).normal(size=1000).astype(np.float32)
    seen = []
    for workers in (0, 1, 3):
        for grid in open_grid(workers):
            answers = exchange(grid, messages([3, 1, 2], vector), wait_s=30)
            seen.append(
                b"".join(
                    a.reply.content.array_records["update"]["live"].numpy().tobytes()
                    for a in answers
                    if a.reply
                )
            )
    assert seen[0] == seen[1] == seen[2]
