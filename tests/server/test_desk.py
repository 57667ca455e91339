"""The contract of what is used of Flower's internals, against a real SuperLink: nodes, runs, messages both ways."""

from __future__ import annotations

import math
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from typing import Self

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.common.serde import message_to_proto
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ObjectTree,
    PullObjectRequest,
    PushObjectRequest,
)
from flwr.supercore.control import ControlHttpClient
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supernode.fleet_http_client import FleetHttpClient

from cloister.client.fleet_link import FleetLink, UnwantedError
from cloister.client.runner import Runner
from cloister.client.site_config import ServerTable
from cloister.client.tls_line import LinkLostError
from cloister.core.errors import PeersMissing, PolicyError
from cloister.privacy.identity import Role
from cloister.privacy.identity.kit import load_kit
from cloister.server.deployment.daemon import Daemon
from cloister.server.deployment.desk import Desk
from cloister.server.deployment.running import Office, open_office
from cloister.server.deployment.superlink_grid import SuperLinkGrid
from cloister.server.exchange import exchange
from consortium import Deployment, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Office, Desk]]:
    with Deployment(tmp_path_factory.mktemp("desk"), ["a", "b", "c", "d"]) as one:
        one.start("superlink")
        office = open_office(one.server)
        one.until((office.state / "superlink.secret").exists, 120, "superlink")
        desk = office.desk()
        desk.wait_ready(120)
        yield one, office, desk


def rows(office: Office) -> dict[str, int]:
    """Return how many rows the SuperLink has of messages."""
    with closing(sqlite3.connect(f"file:{office.state / 'superlink.db'}?mode=ro", uri=True)) as database:
        return {
            table: database.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
            for table in ("message_ins", "message_res", "objects", "object_push_sessions")
        }


@contextmanager
def two_sites(
    deployment: tuple[Deployment, Office, Desk],
) -> Iterator[tuple[SuperLinkGrid, dict[str, int], FleetLink, FleetLink]]:
    """Give a run, the numbers of the sites c and d, and the line of either."""
    one, office, desk = deployment
    known = desk.admit([office.node_keys[name] for name in ("c", "d")])
    address = office.config.server.superlink
    with (
        desk.open_run(8_000_000) as grid,
        FleetLink(address, load_kit(one.site("c"), Role.SITE)) as first,
        FleetLink(address, load_kit(one.site("d"), Role.SITE)) as second,
    ):
        one.until(lambda: len(grid.keys()) == 2, 60, "superlink")
        yield grid, {name: known[office.node_keys[name]] for name in ("c", "d")}, first, second


def test_a_site_cannot_make_the_superlink_delete_what_others_are_to_get_and_nothing_stays_of_a_run(
    deployment: tuple[Deployment, Office, Desk],
) -> None:
    """The SuperLink waits 180 s for parts that nobody sends; who asks for one after that makes it delete the messages that it waits for."""
    with two_sites(deployment) as (grid, nodes, hostile, honest):
        messages = [Message(content(), nodes[name], "train", ttl=600) for name in ("c", "d", "d")]
        names = list(grid.push_messages(messages))
        with closing(sqlite3.connect(deployment[1].state / "superlink.db", timeout=30)) as database:
            database.execute("UPDATE object_push_sessions SET expires_at = '2000-01-01 00:00:00.000000'")
            database.commit()
        # Its own message's: another's name is not known to it.
        hostile._client.PullObject(
            PullObjectRequest(node=hostile._node, run_id=grid.run.run_id, object_id=names[0])
        )
        for _ in range(2):
            message = honest.receive()
            assert message is not None
            assert honest.send(Message(content(), reply_to=message), 0.0) > 0
        assert len(grid.pull_messages(names[1:])) == 2
    assert set(rows(deployment[1]).values()) == {0}


def test_a_reply_whose_time_is_no_number_is_lost_and_no_other(
    deployment: tuple[Deployment, Office, Desk],
) -> None:
    with two_sites(deployment) as (grid, nodes, hostile, honest):
        names = list(
            grid.push_messages([Message(content(), nodes[name], "train", ttl=600) for name in ("c", "d")])
        )
        for link, ttl in ((hostile, math.nan), (honest, None)):
            message = link.receive()
            assert message is not None
            reply = Message(content(), reply_to=message)
            if ttl is not None:
                reply.metadata.__dict__["_ttl"] = ttl
            link.send(reply, 0.0)
        (came,) = grid.pull_messages(names)
        assert came.metadata.src_node_id == nodes["d"]
        assert grid.pull_messages(names[:1]) == []


def test_a_reply_whose_parts_are_late_keeps_nobody_waiting_and_is_taken_when_they_come(
    deployment: tuple[Deployment, Office, Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    with two_sites(deployment) as (grid, nodes, slow, quick):
        push = slow._client.PushObject
        for taken in (True, False):
            names = list(
                grid.push_messages([Message(content(), nodes[name], "train", ttl=600) for name in ("c", "d")])
            )
            headed, go = threading.Event(), threading.Event()

            def late(
                part: PushObjectRequest, headed: threading.Event = headed, go: threading.Event = go
            ) -> object:
                headed.set()
                assert go.wait(120)
                return push(part)

            monkeypatch.setattr(slow._client, "PushObject", late)
            message, other = slow.receive(), quick.receive()
            assert message is not None
            assert other is not None
            reply = Message(content(1_500_000), reply_to=message)
            with ThreadPoolExecutor(1) as pool:
                sending = pool.submit(slow.send, reply, 0.0)
                assert headed.wait(60)
                assert grid.pull_messages(names) == [], "a head is no reply"
                quick.send(Message(content(), reply_to=other), 0.0)
                (came,) = grid.pull_messages(names)
                assert came.metadata.src_node_id == nodes["d"]
                if not taken:
                    grid.pull_messages([])  # nobody waits for it any more
                go.set()
                if not taken:
                    with pytest.raises(UnwantedError):
                        sending.result()
                    continue
                sending.result()
            (came,) = until_they_come(grid, names[:1])
            assert came.metadata.src_node_id == nodes["c"]
            assert np.array_equal(
                came.content.array_records["model"]["vector"].numpy(), np.arange(1_500_000, dtype=np.float32)
            )


def until_they_come(grid: SuperLinkGrid, names: list[str]) -> list[Message]:
    """Ask for replies until there are some; a test that hangs is killed."""
    while not (found := grid.pull_messages(names)):
        pass
    return found


def test_what_a_site_sends_to_the_coordinator_of_its_own_accord_is_not_taken(
    deployment: tuple[Deployment, Office, Desk],
) -> None:
    """The SuperLink takes it for an instruction, and hands it out beside any reply."""
    with two_sites(deployment) as (grid, nodes, hostile, honest):
        (name,) = grid.push_messages([Message(content(), nodes["d"], "train", ttl=600)])
        message = honest.receive()
        assert message is not None
        head, own = message_to_proto(Message(content(), reply_to=message)), "0" * 64
        head.metadata.message_id, head.metadata.reply_to_message_id = own, ""
        head.metadata.src_node_id = head.metadata.dst_node_id = SUPERLINK_NODE_ID
        taken = hostile._head(head, ObjectTree(object_id=own), 0.0)
        assert taken.objects_to_push, "the SuperLink took it"
        assert grid.pull_messages([name]) == []
        assert honest.send(Message(content(), reply_to=message), 0.0) > 0
        (came,) = until_they_come(grid, [name])
        assert came.metadata.src_node_id == nodes["d"]


@pytest.mark.parametrize("cleaned", [True, False])
def test_a_site_does_not_get_what_a_run_that_ended_asked_for(
    deployment: tuple[Deployment, Office, Desk], monkeypatch: pytest.MonkeyPatch, cleaned: bool
) -> None:
    """To answer it would cost budget, and nobody takes the answer: also where nobody removed the messages."""
    one, office, desk = deployment
    known = desk.admit([office.node_keys["c"], office.node_keys["d"]])
    address = office.config.server.superlink
    with FleetLink(address, load_kit(one.site("d"), Role.SITE)) as link:
        with desk.open_run(8_000_000) as grid:
            one.until(lambda: bool(grid.keys()), 60, "superlink")
            grid.push_messages([Message(content(), known[office.node_keys["d"]], "train", ttl=600)])
            if not cleaned:
                monkeypatch.setattr(ControlHttpClient, "ListRuns", lambda *_: None)
        if not cleaned:
            with pytest.raises(UnwantedError):
                link.receive()
        assert link.receive() is None


def test_messages_small_and_large_go_both_ways_and_nobody_else_is_let_in(
    deployment: tuple[Deployment, Office, Desk],
) -> None:
    one, office, desk = deployment
    keys = office.node_keys
    known = desk.admit([keys["a"]])
    address = office.config.server.superlink
    with pytest.raises(PolicyError):
        FleetLink(address, load_kit(one.site("b"), Role.SITE))
    assert desk.admit([keys["a"], keys["b"]])[keys["a"]] == known[keys["a"]]  # a node keeps its number
    stop = threading.Event()

    def site() -> None:
        with FleetLink(address, load_kit(one.site("a"), Role.SITE)) as link:
            while not stop.is_set():
                message = link.receive()
                if message is not None:
                    with suppress(
                        LinkLostError, UnwantedError
                    ):  # given up by the grid before all of it was sent
                        link.send(Message(message.content, reply_to=message), 0.0)
                stop.wait(0.05)

    thread = threading.Thread(target=site)
    thread.start()
    try:
        with desk.open_run(8_000_000) as grid:
            one.until(lambda: known[keys["a"]] in grid.keys(), 60, "superlink")  # noqa: SIM118 - not a dict
            for size, comes in ((3, True), (1_500_000, True), (3_000_000, False)):
                vector = np.arange(size, dtype=np.float32)
                content = RecordDict(
                    {
                        "job": ConfigRecord({"names": ["x", "y"], "none": []}),
                        "model": ArrayRecord({"vector": Array(vector)}),
                    }
                )
                (answer,) = exchange(
                    grid, [Message(content, known[keys["a"]], "train", ttl=30)], wait_s=30 if comes else 8
                )
                if not comes:
                    # longer than is taken: it counts as lost, and the SuperLink may say so itself once it has been given up
                    assert answer.reply is None or answer.reply.has_error()
                    continue
                assert answer.reply is not None
                assert not answer.foreign
                assert answer.reply.content.config_records["job"]["names"] == ["x", "y"]
                assert np.array_equal(answer.reply.content.array_records["model"]["vector"].numpy(), vector)
            # A small message brings its content: no call for a part, at either side.
            asked: list[str] = []
            with pytest.MonkeyPatch.context() as patch:
                for client in (FleetHttpClient, RuntimeHttpClient):
                    for name in ("PushObject", "PullObject"):
                        patch.setattr(client, name, lambda *_, name=name: asked.append(name))
                small = Message(
                    RecordDict({"job": ConfigRecord({"a": 1})}), known[keys["a"]], "train", ttl=30
                )
                (answer,) = exchange(grid, [small], wait_s=30)
            assert answer.reply is not None
            assert answer.reply.content.config_records["job"]["a"] == 1
            assert not asked
    finally:
        stop.set()
        thread.join()
    assert set(desk.admit([keys["b"]])) == {keys["b"]}  # who is no member any more is not let in
    with pytest.raises(PolicyError):
        FleetLink(address, load_kit(one.site("a"), Role.SITE))


def content(size: int = 3) -> RecordDict:
    return RecordDict({"model": ArrayRecord({"vector": Array(np.arange(size, dtype=np.float32))})})


class Answering:
    """The site runner on a real line, with an answer that a test makes.

    Args:
        one: the deployment.
        address: of its SuperLink.
        answer: what is done before a message is answered.
    """

    def __init__(self, one: Deployment, address: str, answer: Callable[[], None]) -> None:
        self.lines = 0
        self.answered: list[str] = []
        self._stop = threading.Event()

        def connect() -> FleetLink:
            self.lines += 1
            return FleetLink(address, load_kit(one.site("b"), Role.SITE), call_s=5.0)

        def answered(message: Message, _: object) -> Message:
            self.answered.append(message.metadata.message_id)
            if len(self.answered) == 1:
                answer()
            return Message(content(), reply_to=message)

        server = ServerTable(address=address, idle_poll_s=0.05)
        self.runner = Runner(server, connect, answered)
        self._thread = threading.Thread(target=lambda: self.runner.run(self._stop))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def count(self, outcome: str) -> float:
        """Return how many messages ended so."""
        labels = {"kind": "train", "outcome": outcome}
        return self.runner.watched.registry.get_sample_value("cloister_site_messages_total", labels) or 0.0


def test_an_answer_of_a_run_that_was_stopped_is_dropped_and_the_next_run_is_answered_on_the_same_line(
    deployment: tuple[Deployment, Office, Desk],
) -> None:
    one, office, desk = deployment
    node = desk.admit([office.node_keys["b"]])[office.node_keys["b"]]
    began, over = threading.Event(), threading.Event()

    def until_it_is_over() -> None:
        began.set()
        assert over.wait(60)

    with Answering(one, office.config.server.superlink, until_it_is_over) as site:
        with desk.open_run(8_000_000) as grid:
            one.until(lambda: node in grid.keys(), 60, "superlink")  # noqa: SIM118 - not a dict
            grid.push_messages([Message(content(), node, "train", ttl=600)])
            assert began.wait(60)
        over.set()
        with desk.open_run(8_000_000) as grid:
            (answer,) = exchange(grid, [Message(content(), node, "train", ttl=600)], wait_s=20)
            assert answer.reply is not None
        assert (site.count("dropped"), site.lines, len(site.answered)) == (1, 1, 2)


def test_an_answer_whose_message_is_given_up_while_it_is_sent_is_dropped(
    deployment: tuple[Deployment, Office, Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, office, desk = deployment
    node = desk.admit([office.node_keys["b"]])[office.node_keys["b"]]
    with (
        FleetLink(office.config.server.superlink, load_kit(one.site("b"), Role.SITE)) as link,
        desk.open_run(8_000_000) as grid,
    ):
        one.until(lambda: node in grid.keys(), 60, "superlink")  # noqa: SIM118 - not a dict
        grid.push_messages([Message(content(), node, "train", ttl=600)])
        while (message := link.receive()) is None:
            pass
        reply, push = Message(content(3_000_000), reply_to=message), link._client.PushObject

        def late(part: PushObjectRequest) -> object:
            grid._runtime_client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(
                    node=grid.node, run_id=grid.run.run_id, message_object_id=reply.metadata.message_id
                )
            )
            return push(part)

        monkeypatch.setattr(link._client, "PushObject", late)
        with pytest.raises(UnwantedError):
            link.send(reply, 0.0)
        monkeypatch.undo()
        grid.push_messages([Message(content(), node, "train", ttl=600)])
        while (message := link.receive()) is None:
            pass
        assert link.send(Message(content(), reply_to=message), 0.0) > 0, "the line stands"


class Cable:
    """A way to the SuperLink that can be cut.

    Args:
        address: of the SuperLink.
    """

    def __init__(self, address: str) -> None:
        self._to = (address.rpartition(":")[0], int(address.rpartition(":")[2]))
        self._whole = True
        self._ends: list[socket.socket] = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """Break off what is open, and let nobody through."""
        self._whole = False
        for end in self._ends:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def mend(self) -> None:
        """Let everybody through again."""
        self._whole = True

    def close(self) -> None:
        """Take it away."""
        self.cut()
        self._listening.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                if not self._whole:
                    near.close()
                    continue
                far = socket.create_connection(self._to)
                self._ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=(one, other), daemon=True).start()

    @staticmethod
    def _carry(one: socket.socket, other: socket.socket) -> None:
        with suppress(OSError):
            while piece := one.recv(1 << 16):
                other.sendall(piece)
        for end in (one, other):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def test_an_answer_on_a_line_that_is_really_lost_is_sent_when_the_line_is_back(
    deployment: tuple[Deployment, Office, Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cloister.client.runner._LONGEST_PAUSE_S", 2.0)
    # A site that could not say good-bye is not let in before twice that is over.
    monkeypatch.setattr("cloister.client.fleet_link._BEAT_INTERVAL_S", 10.0)
    one, office, desk = deployment
    node = desk.admit([office.node_keys["b"]])[office.node_keys["b"]]
    cable, cut = Cable(office.config.server.superlink), threading.Event()

    def cut_off() -> None:
        cable.cut()
        cut.set()

    with Answering(one, cable.address, cut_off) as site:
        with desk.open_run(8_000_000) as grid:
            one.until(lambda: node in grid.keys(), 60, "superlink")  # noqa: SIM118 - not a dict
            (name,) = grid.push_messages([Message(content(), node, "train", ttl=600)])
            assert cut.wait(60)
            one.until(lambda: site.lines > 2, 60, "superlink")  # it tried meanwhile
            assert not list(grid.pull_messages([name]))
            cable.mend()
            # Not before: whoever asks for an answer of a site that is away is told so, and the message is given up.
            one.until(lambda: site.runner.watched.connected, 120, "superlink")
            (reply,) = until_they_come(grid, [name])
            assert not reply.has_error()
        assert len(site.answered) == 1, "it is made once"
        assert site.count("dropped") == 0
    cable.close()


def test_a_superlink_that_is_late_keeps_no_site_out(
    deployment: tuple[Deployment, Office, Desk], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, office, _ = deployment
    late, admitted = iter([False] * 3), threading.Event()
    monkeypatch.setattr(Desk, "ready", lambda _: next(late, True))

    def admit(
        _: Desk, keys: Iterable[bytes]
    ) -> dict[bytes, int]:  # a key that was taken back never comes in again
        if set(keys) == set(office.node_keys.values()):
            admitted.set()
        return {}

    monkeypatch.setattr(Desk, "admit", admit)
    monkeypatch.setattr("cloister.server.deployment.daemon._READY_S", 0.0)
    monkeypatch.setattr("cloister.server.deployment.daemon._READY_AGAIN_S", 0.1)
    server, stop = Daemon(office, superlink=False), threading.Event()
    working = threading.Thread(target=server.run, args=(stop,))
    working.start()
    try:
        assert admitted.wait(60)
    finally:
        stop.set()
        working.join()
    assert next(late, None) is None, "it was late"


def test_nobody_without_the_secret_takes_a_run(deployment: tuple[Deployment, Office, Desk]) -> None:
    from dataclasses import replace

    import httpx

    _, _, desk = deployment
    with (
        pytest.raises((PeersMissing, httpx.HTTPStatusError)),
        replace(desk, secret=b"0" * 64).open_run(1 << 20),
    ):
        pass
    with pytest.raises(PeersMissing) as away:
        replace(desk, address=f"127.0.0.1:{free_port()}").wait_ready(0.5)
    assert away.value.code == "superlink"
