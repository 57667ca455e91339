"""The authority on the network: who gets in, how much is read, and that a restart forgets nothing."""

import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import grpc  # type: ignore[import-untyped]
import numpy as np
import pytest

from cloister.core.errors import IntegrityError, PeersMissing, UsageError
from cloister.privacy.authority import authority_pb2 as messages
from cloister.privacy.authority.client import RemoteAuthority, _parts
from cloister.privacy.authority.service import AuthorityService
from cloister.privacy.authority.tls import AUTHORITY, SERVER, Credentials, make_tls
from cloister.privacy.authority.wire import LONGEST_MESSAGE, PIECE, SERVICE, refusal_from, refusal_to
from cloister.privacy.homomorphic import KeyAuthority, Vault
from parties import Parties

COHORT = "c" * 64


@pytest.fixture(scope="module")
def parties() -> Parties:
    return Parties()


@pytest.fixture(scope="module")
def tls(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("channel") / "tls"
    make_tls(folder, "127.0.0.1")
    return folder


@pytest.fixture
def authority(parties: Parties) -> Iterator[KeyAuthority]:
    made = KeyAuthority(Vault.in_memory(), parties.keeper, parties.consortium)
    yield made
    made.close()


@pytest.fixture
def service(authority: KeyAuthority, tls: Path) -> Iterator[AuthorityService]:
    made = AuthorityService(authority, Credentials.read(tls, AUTHORITY), "127.0.0.1:0")
    made.start()
    yield made
    made.stop()


def remote(service: AuthorityService, credentials: Credentials, *, limit_s: float = 60.0) -> RemoteAuthority:
    return RemoteAuthority(f"127.0.0.1:{service.port}", credentials, limit_s=limit_s)


def raw(service: AuthorityService, tls: Path) -> grpc.Channel:
    server = Credentials.read(tls, SERVER)
    secure = grpc.ssl_channel_credentials(server.root, server.key, server.certificate)
    return grpc.secure_channel(f"127.0.0.1:{service.port}", secure, options=[("grpc.enable_retries", 0)])


def decrypt(service: AuthorityService, tls: Path, parts: list[messages.DecryptRequest]) -> grpc.StatusCode:
    with raw(service, tls) as channel:
        call = channel.stream_stream(
            f"/{SERVICE}/Decrypt",
            request_serializer=messages.DecryptRequest.SerializeToString,
            response_deserializer=messages.DecryptReply.FromString,
        )
        with pytest.raises(grpc.RpcError) as refused:
            list(call(iter(parts), timeout=30))
    return refused.value.code()


def test_a_client_of_another_tls_folder_is_refused(
    service: AuthorityService, tls: Path, tmp_path: Path
) -> None:
    make_tls(tmp_path / "other", "127.0.0.1")
    foreign = Credentials.read(tmp_path / "other", SERVER)
    trusting = replace(foreign, root=Credentials.read(tls, SERVER).root)
    for credentials in (foreign, trusting):
        with remote(service, credentials) as client, pytest.raises(PeersMissing) as refused:
            client.public("run", 1, COHORT)
        assert refused.value.code == "authority-unreachable"


def test_a_client_without_a_certificate_is_refused(service: AuthorityService, tls: Path) -> None:
    root = Credentials.read(tls, SERVER).root
    with grpc.secure_channel(f"127.0.0.1:{service.port}", grpc.ssl_channel_credentials(root)) as channel:
        call = channel.unary_unary(f"/{SERVICE}/Public")
        with pytest.raises(grpc.RpcError) as refused:
            call(b"", timeout=10)
    assert refused.value.code() == grpc.StatusCode.UNAVAILABLE


def test_a_client_without_tls_is_refused(service: AuthorityService) -> None:
    channel = grpc.insecure_channel(f"127.0.0.1:{service.port}")
    with channel, pytest.raises(grpc.RpcError) as refused:
        channel.unary_unary(f"/{SERVICE}/Public")(b"", timeout=10)
    assert refused.value.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}


def test_the_server_does_not_talk_to_a_stranger_in_the_authority_s_place(
    authority: KeyAuthority, tls: Path, tmp_path: Path
) -> None:
    make_tls(tmp_path / "other", "127.0.0.1")
    stranger = AuthorityService(authority, Credentials.read(tmp_path / "other", AUTHORITY), "127.0.0.1:0")
    stranger.start()
    with remote(stranger, Credentials.read(tls, SERVER)) as client, pytest.raises(PeersMissing):
        client.public("run", 1, COHORT)
    stranger.stop()


def test_the_server_s_certificate_does_not_make_an_authority(authority: KeyAuthority, tls: Path) -> None:
    """The two certificates of a TLS folder are not good for each other's place."""
    swapped = AuthorityService(authority, Credentials.read(tls, SERVER), "127.0.0.1:0")
    swapped.start()
    with remote(swapped, Credentials.read(tls, SERVER)) as client, pytest.raises(PeersMissing):
        client.public("run", 1, COHORT)
    swapped.stop()


def test_a_message_above_the_limit_is_refused(service: AuthorityService, tls: Path) -> None:
    part = messages.DecryptRequest(piece=bytes(LONGEST_MESSAGE + 1))
    assert decrypt(service, tls, [part]) == grpc.StatusCode.RESOURCE_EXHAUSTED


def test_parts_out_of_order_are_refused(
    service: AuthorityService, tls: Path, parties: Parties, authority: KeyAuthority
) -> None:
    opening, *rest = _parts(parties.session(authority, size=10).request())
    site, piece = rest[:2]
    half = messages.DecryptRequest(piece=piece.piece[:100])
    longer = messages.DecryptRequest(piece=piece.piece + b"\0")
    empty = messages.DecryptRequest(piece=b"")
    for parts in (
        [],
        [piece],
        [site, piece],
        [messages.DecryptRequest()],
        [opening, piece],
        [opening, opening],
        [opening, site, half, site],
        [opening, site, half],
        [opening, site],
        [opening, site, longer],
        [opening, site, empty],
        [opening, site, piece, piece],
    ):
        assert decrypt(service, tls, parts) == grpc.StatusCode.INVALID_ARGUMENT


def test_garbage_is_an_error_and_the_service_goes_on(
    service: AuthorityService, tls: Path, parties: Parties
) -> None:
    with raw(service, tls) as channel:
        for method in ("Public", "Decrypt", "Elsewhere"):
            with pytest.raises(grpc.RpcError):
                list(channel.stream_stream(f"/{SERVICE}/{method}")(iter([b"\xff" * 50]), timeout=10))
    with remote(service, Credentials.read(tls, SERVER)) as client:
        session = parties.session(client, size=10)  # type: ignore[arg-type]
        assert np.array_equal(client.decrypt(session.request()), session.plain())


def test_a_container_of_many_pieces_arrives_whole(
    service: AuthorityService, tls: Path, parties: Parties
) -> None:
    with remote(service, Credentials.read(tls, SERVER)) as client:
        session = parties.session(client, size=200_000)  # type: ignore[arg-type]
        request = session.request()
        assert len(request.sealed[0].container) > PIECE
        assert np.array_equal(client.decrypt(request), session.plain())


def test_a_second_decryption_is_refused_after_a_restart_too(
    parties: Parties, tls: Path, tmp_path: Path
) -> None:
    Vault.create(tmp_path / "keys").close()
    session = None
    for attempt in range(3):
        authority = KeyAuthority(Vault.open(tmp_path / "keys"), parties.keeper, parties.consortium)
        service = AuthorityService(authority, Credentials.read(tls, AUTHORITY), "127.0.0.1:0")
        service.start()
        with remote(service, Credentials.read(tls, SERVER)) as client:
            if session is None:
                session = parties.session(client, size=10)  # type: ignore[arg-type]
                request = session.request()
            elif attempt == 1:
                assert np.array_equal(client.decrypt(request), session.plain())
            if attempt:
                with pytest.raises(IntegrityError) as refused:
                    client.decrypt(request)
                assert refused.value.code == "decryption-twice"
        service.stop()
        authority.close()


def test_a_call_that_never_ends_is_ended(authority: KeyAuthority, tls: Path, parties: Parties) -> None:
    service = AuthorityService(
        authority, Credentials.read(tls, AUTHORITY), "127.0.0.1:0", limit_s=0.5, at_once=1
    )
    service.start()
    never = threading.Event()
    request = parties.session(authority, size=10).request()

    def stall() -> Iterator[messages.DecryptRequest]:
        yield next(iter(_parts(request)))
        never.wait(30)

    with raw(service, tls) as channel:
        call = channel.stream_stream(
            f"/{SERVICE}/Decrypt",
            request_serializer=messages.DecryptRequest.SerializeToString,
            response_deserializer=messages.DecryptReply.FromString,
        )
        with pytest.raises(grpc.RpcError) as refused:
            list(call(stall(), timeout=20))
        assert refused.value.code() == grpc.StatusCode.CANCELLED
        never.set()
    with remote(service, Credentials.read(tls, SERVER)) as client:
        client.public("run", 99, COHORT)
    service.stop()


def test_more_sums_than_there_is_room_for_are_refused(
    authority: KeyAuthority, tls: Path, parties: Parties
) -> None:
    service = AuthorityService(authority, Credentials.read(tls, AUTHORITY), "127.0.0.1:0", at_once=1)
    service.start()
    request = parties.session(authority, size=10).request()
    begun, go_on = threading.Event(), threading.Event()

    def slowly() -> Iterator[messages.DecryptRequest]:
        for part in _parts(request):
            yield part
            begun.set()
            go_on.wait(20)

    with raw(service, tls) as channel:
        call = channel.stream_stream(
            f"/{SERVICE}/Decrypt",
            request_serializer=messages.DecryptRequest.SerializeToString,
            response_deserializer=messages.DecryptReply.FromString,
        )(slowly(), timeout=60)
        assert begun.wait(20)
        codes = {decrypt(service, tls, list(_parts(request))) for _ in range(2)}
        go_on.set()
        assert codes == {grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert sum(len(reply.piece) for reply in call) == 80
    service.stop()


def test_nobody_there_is_a_refusal(service: AuthorityService, tls: Path) -> None:
    service.stop()
    with remote(service, Credentials.read(tls, SERVER)) as client, pytest.raises(PeersMissing) as refused:
        client.public("run", 1, COHORT)
    assert refused.value.code == "authority-unreachable"


def test_an_address_that_cannot_be_had_is_refused(authority: KeyAuthority, tls: Path) -> None:
    with pytest.raises(UsageError):
        AuthorityService(authority, Credentials.read(tls, AUTHORITY), "256.0.0.1:1")


@pytest.mark.parametrize("method", ["public", "opening"])
def test_a_fault_of_the_authority_tells_nothing(
    service: AuthorityService,
    tls: Path,
    authority: KeyAuthority,
    parties: Parties,
    monkeypatch: pytest.MonkeyPatch,
    method: str,
) -> None:
    request = parties.session(authority, size=10).request()

    def broken(*_: object) -> bytes:
        raise RuntimeError("words that quote a secret")

    monkeypatch.setattr(authority, method, broken)
    with remote(service, Credentials.read(tls, SERVER)) as client:
        calls: dict[str, Callable[[], object]] = {
            "public": lambda: client.public("run", 1, COHORT),
            "opening": lambda: client.decrypt(request),
        }
        with pytest.raises(PeersMissing) as refused:
            calls[method]()
    assert refused.value.code == "authority-unreachable"
    assert "internal" in refused.value.message
    assert "secret" not in refused.value.message


def test_a_refusal_crosses_with_its_class_code_and_words() -> None:
    error = PeersMissing("few", remedy="more", code="peers")
    found = refusal_from(refusal_to(error))
    assert type(found) is PeersMissing
    assert found.as_dict() == error.as_dict()


@pytest.mark.parametrize(
    "text",
    [
        None,
        "",
        "x",
        "[]",
        "{}",
        '{"kind": "CloisterError"}',
        '{"kind": "os", "code": 1, "message": "", "remedy": ""}',
    ],
)
def test_what_is_no_refusal_is_none(text: str | None) -> None:
    assert refusal_from(text) is None


def test_a_key_of_the_channel_that_others_may_read_is_refused(tls: Path, tmp_path: Path) -> None:
    make_tls(tmp_path / "tls", "example.org")
    (tmp_path / "tls" / "server.key").chmod(0o644)
    with pytest.raises(IntegrityError) as refused:
        Credentials.read(tmp_path / "tls", SERVER)
    assert refused.value.code == "authority-key"
    with pytest.raises(IntegrityError) as refused:
        Credentials.read(tmp_path, SERVER)
    assert refused.value.code == "authority-tls"
    with pytest.raises(IntegrityError) as refused:
        make_tls(tls, "example.org")
    assert refused.value.code == "authority-tls"


def test_no_key_can_make_a_third_certificate(tls: Path) -> None:
    assert sorted(path.name for path in tls.iterdir()) == [
        "authority.key",
        "authority.pem",
        "root.pem",
        "server.key",
        "server.pem",
    ]


def test_the_generated_code_is_that_of_the_proto(repository: Path) -> None:
    pytest.importorskip("grpc_tools")
    import subprocess
    import sys

    script = repository / "scripts" / "protos.py"
    done = subprocess.run([sys.executable, script, "--check"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_the_service_s_name_and_methods_are_those_of_the_proto() -> None:
    (found,) = messages.DESCRIPTOR.services_by_name.values()
    assert found.full_name == SERVICE
    assert [method.name for method in found.methods] == ["Public", "Decrypt"]
