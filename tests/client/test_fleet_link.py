"""A site's line: what it takes from whoever answers at the coordinator's address, which may be anybody."""

from __future__ import annotations

import gzip
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.serde import message_to_proto, recorddict_to_proto
from flwr.proto.fleet_pb2 import ActivateNodeResponse, PullMessagesResponse
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore.task_identity import TaskIdentity

from cloister.client import fleet_link, tls_line
from cloister.client.fleet_link import FleetLink
from cloister.client.message_form import MessageLostError
from cloister.client.tls_line import LinkLostError
from cloister.core.errors import PolicyError
from cloister.core.protocol import PACKED
from cloister.privacy.identity import Role
from cloister.privacy.identity.kit import Kit, load_kit
from cloister.server.provision.consortium_file import load_consortium_file
from cloister.server.provision.making import provision

Answer = Callable[[str], tuple[int, dict[str, str], bytes]]


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("consortium")
    file = folder / "consortium.toml"
    file.write_text(
        '[consortium]\nname = "test"\n[server]\nhost = "127.0.0.1"\n[[sites]]\nname = "a"\n[[sites]]\nname = "b"\n'
    )
    loaded, raw = load_consortium_file(file)
    provision(loaded, raw, folder / "c")
    return folder / "c" / "kits"


@pytest.fixture
def kit(kits: Path) -> Kit:
    return load_kit(kits / "sites" / "a", Role.SITE)


@contextmanager
def answering(server: Path, answer: Answer) -> Iterator[str]:
    """Answer as the coordinator, over TLS, with whatever ``answer`` gives for a path."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("content-length", "0")))
            status, headers, body = answer(self.path)
            self.send_response(status)
            for name, value in {"content-length": str(len(body)), **headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(server / "tls" / "own.pem", server / "tls" / "own.key")
    listening = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    listening.socket = context.wrap_socket(listening.socket, server_side=True)
    listening.daemon_threads = True
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{listening.server_address[1]}"
    finally:
        listening.shutdown()
        listening.server_close()


def knows(path: str) -> tuple[int, dict[str, str], bytes]:
    """Let the site in and have nothing for it."""
    if path.endswith("activate-node"):
        return 200, {}, ActivateNodeResponse(node_id=7).SerializeToString()
    return 200, {}, PullMessagesResponse().SerializeToString()


def test_a_site_that_is_let_in_has_a_number_and_nothing_to_do(kits: Path, kit: Kit) -> None:
    with answering(kits / "server", knows) as address, FleetLink(address, kit) as link:
        assert link.node_id == 7
        assert link.receive() is None


def test_a_server_of_another_consortium_is_not_spoken_to(kits: Path, kit: Kit, tmp_path: Path) -> None:
    file = tmp_path / "consortium.toml"
    file.write_text('[consortium]\nname = "other"\n[server]\nhost = "127.0.0.1"\n[[sites]]\nname = "a"\n')
    loaded, raw = load_consortium_file(file)
    provision(loaded, raw, tmp_path / "c")
    with answering(tmp_path / "c" / "kits" / "server", knows) as address, pytest.raises(LinkLostError):
        FleetLink(address, kit)


@pytest.mark.parametrize("status", [400, 401, 403, 412])
def test_a_key_that_is_not_known_is_the_policy_of_the_coordinator(kits: Path, kit: Kit, status: int) -> None:
    with (
        answering(kits / "server", lambda _: (status, {}, b"")) as address,
        pytest.raises(PolicyError) as refused,
    ):
        FleetLink(address, kit)
    assert refused.value.code == "link-refused"


def counts_as_open(path: str, *, known: bool = True) -> tuple[int, dict[str, str], bytes]:
    """Let nobody in, as a line of this key is open, and know its node."""
    if path.endswith("/activate-node"):
        return 412, {}, b""
    return 200, {}, SendNodeHeartbeatResponse(success=known).SerializeToString()


def test_a_line_that_was_lost_is_taken_up_where_the_coordinator_counts_it_as_open(
    kits: Path, kit: Kit
) -> None:
    def mortal(path: str) -> tuple[int, dict[str, str], bytes]:
        return (502, {}, b"") if path.endswith("deactivate-node") else knows(path)

    with answering(kits / "server", mortal) as address, FleetLink(address, kit) as lost:
        pass
    assert lost.standing is not None
    with answering(kits / "server", counts_as_open) as address:
        with FleetLink(address, kit, earlier=lost.standing) as link:
            assert link.node_id == 7
        late = replace(lost.standing, until=time.monotonic())
        for earlier in (None, late):  # another process may have it
            with pytest.raises(PolicyError):
                FleetLink(address, kit, earlier=earlier)
    with (
        answering(kits / "server", partial(counts_as_open, known=False)) as address,
        pytest.raises(PolicyError),
    ):
        FleetLink(address, kit, earlier=lost.standing)


def test_a_line_that_said_good_bye_is_not_taken_up(kits: Path, kit: Kit) -> None:
    with answering(kits / "server", knows) as address, FleetLink(address, kit) as link:
        assert link.standing is not None
        assert link.standing.until > time.monotonic() + 10
    assert link.standing is None


def test_a_key_file_that_others_may_read_is_not_used(kits: Path, kit: Kit, tmp_path: Path) -> None:
    import shutil

    from cloister.core.errors import IntegrityError

    shutil.copytree(kit.folder, tmp_path / "kit")
    (tmp_path / "kit" / "node.key").chmod(0o644)
    with answering(kits / "server", knows) as address, pytest.raises(IntegrityError) as refused:
        FleetLink(address, replace(kit, folder=tmp_path / "kit"))
    assert refused.value.code == "kit-key"


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, b"\x00" * 3000),
        ({"content-encoding": "gzip"}, gzip.compress(b"\x00" * 1_000_000)),
    ],
    ids=["too long", "packed"],
)
def test_an_answer_that_is_too_long_or_unfolds_is_not_taken(
    kits: Path, kit: Kit, monkeypatch: pytest.MonkeyPatch, headers: dict[str, str], body: bytes
) -> None:
    monkeypatch.setattr(tls_line, "MOST_ANSWERED", 2000)

    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        return (200, headers, body) if path.endswith("pull-messages") else knows(path)

    with (
        answering(kits / "server", answer) as address,
        FleetLink(address, kit) as link,
        pytest.raises(LinkLostError, match="Decoding"),
    ):
        link.receive()


def test_what_cannot_be_read_breaks_the_line_and_nothing_else(kits: Path, kit: Kit) -> None:
    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        return (200, {}, b"\xff\xff\xff") if path.endswith("pull-messages") else knows(path)

    with (
        answering(kits / "server", answer) as address,
        FleetLink(address, kit) as link,
        pytest.raises((LinkLostError, MessageLostError)),
    ):
        link.receive()


def test_content_in_the_message_itself_is_taken_up_to_the_limit(kits: Path, kit: Kit) -> None:
    content = RecordDict({"job": ConfigRecord({"x": b"x" * 3000})})
    packed = RecordDict({PACKED: ConfigRecord({PACKED: recorddict_to_proto(content).SerializeToString()})})
    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 7
    head = message_to_proto(Message(packed, 7, "train"))
    given = PullMessagesResponse(messages_list=[head], message_object_trees=[ObjectTree(object_id="a" * 64)])

    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        return (200, {}, given.SerializeToString()) if path.endswith("pull-messages") else knows(path)

    with answering(kits / "server", answer) as address:
        with FleetLink(address, kit) as link:
            message = link.receive()
            assert message is not None
            assert message.content.config_records["job"]["x"] == b"x" * 3000
            assert message.metadata.message_id == "a" * 64
        with FleetLink(address, kit, most_bytes=2000) as link:
            with pytest.raises(MessageLostError, match="too long"):
                link.receive()
            assert link.node_id == 7


@pytest.mark.parametrize(
    ("status", "body", "refusal"),
    [
        (403, b'{"code": 2007, "detail": "no"}', fleet_link.UnwantedError),
        (403, b"<html>403 Forbidden</html>", PolicyError),
        (403, b'[{"code": 2007}]', PolicyError),
        (500, b"", LinkLostError),
        (502, b"", LinkLostError),
        (413, b"", LinkLostError),
    ],
)
def test_what_a_status_says_of_an_answer(
    kits: Path, kit: Kit, status: int, body: bytes, refusal: type[Exception]
) -> None:
    """Only the SuperLink's own word ends an answer at once; a failure may be counted, and a door without anybody behind it may not."""

    def answer(path: str) -> tuple[int, dict[str, str], bytes]:
        return (status, {}, body) if path.endswith("push-messages") else knows(path)

    TaskIdentity.run_id, TaskIdentity.task_id, TaskIdentity.node_id = 1, 1, 7
    reply = Message(RecordDict(), reply_to=Message(RecordDict(), 7, "train"))
    with (
        answering(kits / "server", answer) as address,
        FleetLink(address, kit) as link,
        pytest.raises(refusal) as raised,
    ):
        link.send(reply, 0.0)
    if isinstance(raised.value, LinkLostError):
        assert raised.value.failed == (status in (500, 413))
