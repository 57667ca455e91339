"""The contract of what is used of Flower's internals, against a real SuperLink: nodes, runs, messages both ways."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict

from cloister.client.fleet_link import FleetLink, LinkLostError
from cloister.core.errors import PeersMissing, PolicyError
from cloister.privacy.identity import Role
from cloister.privacy.identity.kit import load_kit
from cloister.server.deployment.desk import Desk
from cloister.server.deployment.running import Office, open_office
from cloister.server.exchange import exchange
from consortium import Deployment, free_port

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def deployment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Deployment, Office, Desk]]:
    with Deployment(tmp_path_factory.mktemp("desk"), ["a", "b"]) as one:
        one.start("superlink")
        office = open_office(one.server)
        one.until((office.state / "superlink.secret").exists, 120, "superlink")
        desk = office.desk()
        desk.wait_ready(120)
        yield one, office, desk


def test_messages_small_and_large_go_both_ways_and_nobody_else_is_let_in(
    deployment: tuple[Deployment, Office, Desk],
) -> None:
    one, office, desk = deployment
    keys = office.node_keys
    known = desk.admit([keys["a"]])
    address = office.config.server.superlink
    with pytest.raises(PolicyError):
        FleetLink(address, load_kit(one.site("b"), Role.SITE))
    assert desk.admit(keys.values())[keys["a"]] == known[keys["a"]]  # a node keeps its number
    stop = threading.Event()

    def site() -> None:
        with FleetLink(address, load_kit(one.site("a"), Role.SITE)) as link:
            while not stop.is_set():
                message = link.receive()
                if message is not None:
                    with suppress(LinkLostError):  # given up by the grid before all of it was sent
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
    finally:
        stop.set()
        thread.join()
    assert set(desk.admit([keys["b"]])) == {keys["b"]}  # who is no member any more is not let in
    with pytest.raises(PolicyError):
        FleetLink(address, load_kit(one.site("a"), Role.SITE))


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
