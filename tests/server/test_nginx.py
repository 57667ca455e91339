"""The door: a real nginx with the generated nginx.conf, run by a user who is not root, before a TLS upstream."""

import contextlib
import http.client
import os
import re
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import pytest

from cloister.server.provision.membership import revoke
from consortia import client_context, make_consortium

pytestmark = pytest.mark.skipif(shutil.which("nginx") is None, reason="nginx is not installed")
NOBODY = 65534
LARGEST = 16 << 20


class Upstream(ThreadingHTTPServer):
    """A SuperLink's place: answers every path, and remembers what came."""

    daemon_threads = True

    def __init__(self, kit: Path) -> None:
        seen: list[tuple[str, str, int, dict[str, str]]] = []

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                if self.headers["Transfer-Encoding"] == "chunked":
                    length = 0
                    while size := int(self.rfile.readline(), 16):
                        length += len(self.rfile.read(size))
                        self.rfile.readline()
                    self.rfile.readline()
                else:
                    length = len(self.rfile.read(int(self.headers["Content-Length"] or 0)))
                seen.append((self.command, self.path, length, dict(self.headers)))
                self.send_response(200)
                self.send_header("Content-Length", "6")
                self.end_headers()
                self.wfile.write(b"answer")

            do_GET = do_POST  # noqa: N815 - http.server's own name

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)
        self.seen = seen
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(kit / "tls/own.pem", kit / "tls/own.key")
        self.socket = context.wrap_socket(self.socket, server_side=True)

    def handle_error(self, *_: object) -> None:
        pass


@dataclass
class Door:
    """The running nginx and what lies behind it."""

    port: int
    folder: Path
    kits: Path
    upstream: Upstream
    process: subprocess.Popen[bytes]
    called: list[str] = field(default_factory=list)

    def ask(
        self, kit: str | None, path: str, method: str = "POST", body: bytes = b"x", **headers: str
    ) -> tuple[int, bytes]:
        context = client_context(self.kits / (kit or "users/ada"), own=kit is not None)
        connection = http.client.HTTPSConnection("localhost", self.port, context=context, timeout=20)
        try:
            connection.putrequest(method, path, skip_accept_encoding=True)
            for name, value in headers.items():
                connection.putheader(name.replace("_", "-"), value)
            if "Content_Length" not in headers:
                connection.putheader("Content-Length", str(len(body)))
            connection.endheaders(body)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    @property
    def last(self) -> tuple[str, str, int, dict[str, str]]:
        return self.upstream.seen[-1]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as one:
        return int(one.getsockname()[1])


def jobs(kit: Path, called: list[str]) -> tuple[grpc.Server, int]:
    def answer(request: bytes, _: grpc.ServicerContext) -> bytes:
        called.append("Submit")
        return b"queued " + request[:10]

    handlers = {"Submit": grpc.unary_unary_rpc_method_handler(answer)}
    server = grpc.server(
        ThreadPoolExecutor(2),
        handlers=[grpc.method_handlers_generic_handler("cloister.jobs.v1.Jobs", handlers)],
        options=[("grpc.max_receive_message_length", 32 << 20)],
    )
    pair = ((kit / "tls/own.key").read_bytes(), (kit / "tls/own.pem").read_bytes())
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    return server, port


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    out = tmp_path_factory.mktemp("door") / "hospitals"
    make_consortium(out)
    revoke(out, "site:hungarian", "key-compromise")
    with opened_door(out, behind=out / "kits/server") as made:
        yield made


@contextlib.contextmanager
def opened_door(out: Path, behind: Path) -> Iterator[Door]:
    """Run nginx with a consortium's nginx.conf; what is behind it shows the certificate of the kit ``behind``."""
    kit = out / "kits/server"
    folder = Path(tempfile.mkdtemp(prefix="cloister-door-"))
    called: list[str] = []
    upstream, (service, jobs_port) = Upstream(behind), jobs(behind, called)
    threading.Thread(target=upstream.serve_forever, daemon=True).start()
    port = free_port()
    config = (kit / "nginx.conf").read_text(encoding="utf-8")
    for old, new in (
        ("127.0.0.1:9092", f"127.0.0.1:{upstream.server_port}"),
        ("127.0.0.1:9095", f"127.0.0.1:{jobs_port}"),
        ("listen 8443 ", f"listen 127.0.0.1:{port} "),
        ("worker_processes auto", "worker_processes 1"),
        ("client_header_timeout 10s", "client_header_timeout 1s"),
        ("client_body_timeout 15s", "client_body_timeout 1s"),
    ):
        assert old in config
        config = config.replace(old, new)
    (folder / "nginx.conf").write_text(config, encoding="utf-8")
    shutil.copytree(kit / "tls", folder / "tls")
    (folder / "run").mkdir()
    root = os.geteuid() == 0
    if root:
        for path in [folder, *folder.rglob("*")]:
            os.chown(path, NOBODY, NOBODY)
    nginx = shutil.which("nginx")
    assert nginx is not None
    process = subprocess.Popen(
        [nginx, "-e", "stderr", "-p", str(folder), "-c", "nginx.conf", "-g", "daemon off;"],
        stderr=subprocess.DEVNULL,
        user=NOBODY if root else None,
        group=NOBODY if root else None,
        extra_groups=[] if root else None,
    )
    for _ in range(1500):
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                break
        assert process.poll() is None, (folder / "run/error.log").read_text()
        time.sleep(0.02)
    else:
        pytest.fail("nginx did not open its door")
    yield Door(port=port, folder=folder, kits=out / "kits", upstream=upstream, process=process, called=called)
    process.terminate()
    process.wait(20)
    upstream.shutdown()
    upstream.server_close()
    service.stop(None)
    shutil.rmtree(folder)


def test_a_site_reaches_the_fleet_api_and_every_header_and_byte_of_it_passes(door: Door) -> None:
    body = os.urandom(1 << 20)
    status, answer = door.ask(
        "sites/cleveland", "/v1/fleet/pull-messages", body=body, flwr_public_key="k", flwr_timestamp="t"
    )
    assert (status, answer) == (200, b"answer")
    method, path, length, headers = door.last
    assert (method, path, length) == ("POST", "/v1/fleet/pull-messages", len(body))
    assert (headers["flwr-public-key"], headers["flwr-timestamp"]) == ("k", "t")
    assert door.ask("sites/cleveland", "/health", "GET", b"") == (200, b"answer")


@pytest.mark.parametrize("path", ["/v1/fleet/pull-messages", "/health", "/", "/cloister.jobs.v1.Jobs/Submit"])
def test_a_stranger_without_a_certificate_reaches_nothing(door: Door, path: str) -> None:
    before = len(door.upstream.seen)
    status, said = door.ask(None, path)
    assert status == 400
    assert b"No required SSL certificate" in said
    assert len(door.upstream.seen) == before


def test_another_consortium_s_certificate_is_refused(door: Door, tmp_path: Path) -> None:
    make_consortium(tmp_path / "other")
    context = client_context(tmp_path / "other/kits/sites/cleveland")
    context.load_verify_locations(door.folder / "tls/root.pem")
    connection = http.client.HTTPSConnection("localhost", door.port, context=context, timeout=10)
    connection.request("POST", "/v1/fleet/pull-messages", b"x")
    assert connection.getresponse().status == 400
    connection.close()


def test_a_revoked_certificate_is_refused(door: Door) -> None:
    before = len(door.upstream.seen)
    status, said = door.ask("sites/hungarian", "/v1/fleet/pull-messages")
    assert status == 400
    assert b"SSL certificate error" in said
    assert len(door.upstream.seen) == before


@pytest.mark.parametrize(
    "path",
    [
        "/v1/control",
        "/v1/control/start-run",
        "/v1/runtime/acquire-task",
        "/v1/fleet",
        "/v1/fleet/../control/start-run",
        "/v1/fleet/%2e%2e/control/start-run",
        "/v1/fleet/..%2fcontrol/start-run",
        "/v1/fleet//../control/start-run",
        "/v1/fleet/%252e%252e/control/start-run",
        "/v1/control/../fleet/pull-messages",
        "/v1/control/..%2Ffleet/pull-messages",
        "/v1/fleet/pull-messages?next=/v1/control",
        "/v1/fleet/pull-messages;/../../control",
        "//v1/fleet/pull-messages",
        "/V1/FLEET/pull-messages",
        "/health/../v1/control",
        "/docs",
        "/openapi.json",
    ],
)
def test_control_and_runtime_are_not_reachable_by_any_spelling(door: Door, path: str) -> None:
    before = len(door.upstream.seen)
    for kit in ("sites/cleveland", "users/ada", "server"):
        assert door.ask(kit, path)[0] in {403, 404}
    assert door.ask("sites/cleveland", path)[0] == 404
    assert len(door.upstream.seen) == before


def test_a_user_is_no_site_and_a_site_no_user(door: Door) -> None:
    before = len(door.upstream.seen)
    assert door.ask("users/ada", "/v1/fleet/pull-messages")[0] == 403
    assert door.ask("server", "/v1/fleet/pull-messages")[0] == 403
    assert door.ask("sites/cleveland", "/cloister.jobs.v1.Jobs/Submit")[0] == 403
    assert door.ask("sites/cleveland", "/v1/fleet/pull-messages", "GET", b"")[0] == 403
    assert len(door.upstream.seen) == before
    assert door.called == []


def test_an_oversized_body_is_refused_and_the_largest_passes(door: Door) -> None:
    before = len(door.upstream.seen)
    status, _ = door.ask(
        "sites/cleveland", "/v1/fleet/push-object", body=b"", Content_Length=str(LARGEST + 1)
    )
    assert status == 413
    assert len(door.upstream.seen) == before
    assert door.ask("sites/cleveland", "/v1/fleet/push-object", body=bytes(LARGEST))[0] == 200
    assert door.last[2] == LARGEST


def test_an_oversized_body_in_pieces_is_refused_on_the_way(door: Door) -> None:
    context = client_context(door.kits / "sites/cleveland")
    with (
        socket.create_connection(("127.0.0.1", door.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"POST /v1/fleet/push-object HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
        piece = b"100000\r\n" + bytes(1 << 20) + b"\r\n"
        said = b""
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            for _ in range(20):
                tls.sendall(piece)
        with contextlib.suppress(ConnectionError, ssl.SSLError):
            said = tls.recv(100)
    assert not said.startswith(b"HTTP/1.1 200")


@pytest.mark.parametrize("begin", [b"", b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\n"])
def test_a_client_that_is_slow_with_its_request_is_dropped(door: Door, begin: bytes) -> None:
    context = client_context(door.kits / "sites/cleveland")
    started = time.monotonic()
    with (
        socket.create_connection(("127.0.0.1", door.port), timeout=30) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(begin)
        try:
            said = tls.recv(100)
        except (ConnectionError, ssl.SSLError):
            said = b""
    assert 0.5 < time.monotonic() - started < 20
    assert not said.startswith(b"HTTP/1.1 200")


def test_a_client_that_is_slow_with_its_handshake_or_its_body_is_dropped(door: Door) -> None:
    with socket.create_connection(("127.0.0.1", door.port), timeout=20) as plain:
        assert plain.recv(10) == b""
    context = client_context(door.kits / "sites/cleveland")
    with (
        socket.create_connection(("127.0.0.1", door.port), timeout=20) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as tls,
    ):
        tls.sendall(b"POST /v1/fleet/pull-messages HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\nabc")
        try:
            said = tls.recv(100)
        except (ConnectionError, ssl.SSLError):
            said = b""
        assert not said.startswith(b"HTTP/1.1 200")


def test_old_tls_is_refused(door: Door) -> None:
    """By nginx.conf itself too, where OpenSSL's own settings would let it pass."""
    config = (door.folder / "nginx.conf").read_text(encoding="utf-8")
    assert set(re.findall(r"ssl_protocols ([^;]*);", config)) == {"TLSv1.2 TLSv1.3"}
    context = client_context(door.kits / "sites/cleveland")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with pytest.warns(DeprecationWarning, match="TLSv1_1"):
        context.maximum_version = ssl.TLSVersion.TLSv1_1
    context.set_ciphers("ALL:@SECLEVEL=0")
    with (
        socket.create_connection(("127.0.0.1", door.port), timeout=10) as plain,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(plain, server_hostname="localhost")


def call(door: Door, kit: str, method: str, body: bytes) -> bytes:
    folder = door.kits / kit / "tls"
    secure = grpc.ssl_channel_credentials(
        (folder / "root.pem").read_bytes(),
        (folder / "own.key").read_bytes(),
        (folder / "own.pem").read_bytes(),
    )
    with grpc.secure_channel(f"localhost:{door.port}", secure) as channel:
        answer: bytes = channel.unary_unary(method)(body, timeout=10)
        return answer


def test_a_user_reaches_the_job_service_over_grpc_and_a_site_does_not(door: Door) -> None:
    assert call(door, "users/ada", "/cloister.jobs.v1.Jobs/Submit", b"hello") == b"queued hello"
    assert call(door, "users/ada", "/cloister.jobs.v1.Jobs/Submit", bytes(4 << 20))[:6] == b"queued"
    before = len(door.called)
    for kit, method, code in (
        ("sites/cleveland", "/cloister.jobs.v1.Jobs/Submit", grpc.StatusCode.PERMISSION_DENIED),
        ("users/ada", "/grpc.reflection.v1.ServerReflection/X", grpc.StatusCode.UNIMPLEMENTED),
    ):
        with pytest.raises(grpc.RpcError) as refused:
            call(door, kit, method, b"x")
        assert refused.value.code() is code
    with pytest.raises(grpc.RpcError):
        call(door, "users/ada", "/cloister.jobs.v1.Jobs/Submit", bytes(9 << 20))
    assert len(door.called) == before


def test_an_upstream_that_is_not_the_server_is_not_spoken_to(door: Door) -> None:
    """A site's certificate, of the same consortium, in the place of the SuperLink's and of the job service's."""
    out = door.kits.parent
    with opened_door(out, behind=out / "kits/sites/cleveland") as posed:
        assert posed.ask("sites/cleveland", "/v1/fleet/push-messages")[0] == 502
        with pytest.raises(grpc.RpcError):
            call(posed, "users/ada", "/cloister.jobs.v1.Jobs/Submit", b"x")
        assert posed.upstream.seen == []
        assert posed.called == []
        assert "upstream SSL certificate verify error" in (posed.folder / "run/error.log").read_text()


def test_the_log_says_who_came_and_nothing_of_what_was_sent(door: Door) -> None:
    secret = b"hidden-in-the-body"
    door.ask("sites/hungarian", "/v1/fleet/pull-messages", body=secret)
    door.ask("sites/cleveland", "/v1/fleet/pull-messages", body=secret, X_Note="hidden-in-a-header")
    wanted = ('"member":"CN=cleveland,OU=site"', '"verified":"FAILED:certificate revoked"')
    end, log = time.monotonic() + 60, ""
    while not all(line in log for line in wanted):  # a line is written after its answer was sent
        assert time.monotonic() < end, log
        log = (door.folder / "run/access.log").read_text(encoding="utf-8")
    for path in door.folder.rglob("*"):
        if path.is_file() and "run" in path.parts:
            assert b"hidden" not in path.read_bytes()


def test_nothing_but_logs_and_the_process_id_is_on_the_disk(door: Door) -> None:
    door.ask("sites/cleveland", "/v1/fleet/push-object", body=bytes(8 << 20))
    files = {
        path.relative_to(door.folder / "run").as_posix()
        for path in (door.folder / "run").rglob("*")
        if path.is_file()
    }
    assert files == {"nginx.pid", "access.log", "error.log"}
    assert door.process.poll() is None
