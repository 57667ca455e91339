"""Jobs: the queue, signed calls, and the service over real gRPC with real kits."""

from __future__ import annotations

import json
import socket
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest

from cloister.core.digests import federation_digest
from cloister.core.errors import CloisterError, IntegrityError, PolicyError, UsageError
from cloister.privacy.identity import Purpose, Role
from cloister.privacy.identity.kit import Kit, load_kit
from cloister.privacy.request import JobRequest
from cloister.server.deployment import jobs_pb2 as messages
from cloister.server.deployment.calls import FRESH_S, CallBook, sign_call
from cloister.server.deployment.client import JobsClient
from cloister.server.deployment.service import JobService
from cloister.server.deployment.settings import load_server
from cloister.server.deployment.store import JobStore
from cloister.server.provision.consortium_file import load_consortium_file
from cloister.server.provision.making import provision
from cloister.server.provision.membership import renew, revoke

FEDERATION = {"federation": {"name": "f"}, "task": {"use": "heart"}}


@pytest.fixture(scope="module")
def kits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_kits(tmp_path_factory.mktemp("consortium"))


def make_kits(folder: Path) -> Path:
    file = folder / "consortium.toml"
    users = "".join(
        f'[[users]]\nname = "{name}"\nroles = {roles}\n'
        for name, roles in {
            "ada": '["submit"]',
            "bob": '["submit"]',
            "eve": '["watch"]',
            "root": '["admin"]',
        }.items()
    )
    file.write_text(f'[consortium]\nname = "t"\n[server]\nhost = "127.0.0.1"\n[[sites]]\nname = "a"\n{users}')
    loaded, raw = load_consortium_file(file)
    provision(loaded, raw, folder / "c")
    return folder / "c" / "kits"


@pytest.fixture
def user(kits: Path) -> Kit:
    return load_kit(kits / "users" / "ada", Role.USER)


@pytest.fixture
def store(tmp_path: Path) -> JobStore:
    return JobStore(tmp_path / "jobs.sqlite")


@pytest.fixture
def served(kits: Path, store: JobStore, tmp_path: Path) -> Iterator[tuple[str, list[str], Path]]:
    """Serve the queue; give its address, the federations that were checked, and where run folders are."""
    with serving(kits, store, tmp_path) as given:
        yield given


@contextmanager
def serving(kits: Path, store: JobStore, tmp_path: Path) -> Iterator[tuple[str, list[str], Path]]:
    """Serve the queue, as `served` gives it."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    (kits / "server" / "server.toml").write_text(f'[jobs]\nlisten = "127.0.0.1:{port}"\n')
    checked: list[str] = []

    def check(federation: str, sites: tuple[str, ...]) -> None:
        checked.append(federation)
        if "refuse" in sites:
            raise PolicyError("not here", code="unsound")

    service = JobService(
        load_server(kits / "server"),
        load_kit(kits / "server", Role.SERVER),
        store,
        folder_of=lambda run: tmp_path / "runs" / run,
        check=check,
        stop=lambda _: None,
    )
    service.start()
    try:
        yield f"127.0.0.1:{port}", checked, tmp_path / "runs"
    finally:
        service.stop(0)


def request(*sites: str) -> JobRequest:
    return JobRequest.new("f", federation_digest(FEDERATION), purpose="p", sites=sites)


def client(kits: Path, name: str, address: str) -> JobsClient:
    return JobsClient(address, load_kit(kits / "users" / name, Role.USER))


def test_the_queue_outlives_its_process_and_takes_a_request_once(
    store: JobStore, user: Kit, tmp_path: Path
) -> None:
    asked = request("a")
    job = store.add(asked.signed(user.identity), asked, "ada", json.dumps(FEDERATION))
    assert (job.state, job.attempts) == ("queued", 0)
    with pytest.raises(PolicyError) as refused:
        store.add(asked.signed(user.identity), asked, "ada", "{}")
    assert refused.value.code == "job-replayed"
    again = JobStore(tmp_path / "jobs.sqlite")
    assert again.next() == job
    signed, federation = again.asked(job.run)
    assert signed.opened(user.consortium)[1] == asked
    assert json.loads(federation) == FEDERATION
    again.begin(job.run)
    assert again.next() is None
    again.wait(job.run, 0.0, "superlink", "away")
    assert (waiting := again.next()) is not None
    assert (waiting.state, waiting.attempts) == ("waiting", 1)
    again.wait(job.run, 60.0, "wait-approval", "held", counted=False)
    assert again.next() is None
    assert again.job(job.run).attempts == 0
    again.stop(job.run)
    again.end(job.run, "done")  # whoever comes late changes nothing
    assert again.job(job.run).state == "stopped"
    with pytest.raises(UsageError) as ended:
        again.stop(job.run)
    assert ended.value.code == "job-ended"
    assert (tmp_path / "jobs.sqlite").stat().st_mode & 0o777 == 0o600


def test_a_call_counts_once_for_one_thing_and_not_for_long(
    kits: Path, user: Kit, store: JobStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium = load_kit(kits / "server", Role.SERVER).consortium
    book = CallBook(lambda: consortium, store.first)
    call = sign_call(user.identity, "Stop", "run-1")
    assert book.heard(call, "Stop", "run-1").name == "ada"

    def code(given: object, method: str, about: str) -> str:
        with pytest.raises(IntegrityError) as refused:
            book.heard(given, method, about)  # type: ignore[arg-type]
        return refused.value.code

    assert code(call, "Stop", "run-1") == "call-replayed"
    assert code(sign_call(user.identity, "Stop", "run-1"), "Stop", "run-2") == "call"
    assert code(sign_call(user.identity, "List"), "Stop", "") == "call"
    forged = sign_call(user.identity, "List")
    forged.said = forged.said.replace(b"List", b"Stop")
    assert code(forged, "Stop", "") == "signature"
    site = load_kit(kits / "sites" / "a", Role.SITE)
    assert code(sign_call(site.identity, "List"), "List", "") == "identity"
    late = sign_call(user.identity, "List")
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + FRESH_S + 5)
    assert code(late, "List", "") == "call-stale"
    far = json.dumps({"method": "List", "about": "", "at": 10**400, "nonce": "n"}).encode()
    one = user.identity
    never = messages.Call(said=far, signature=one.sign(Purpose.CALL, far), certificate=one.certificate)
    assert code(never, "List", "") == "call"


def test_a_call_that_was_heard_is_known_after_a_restart_until_it_is_stale(
    kits: Path, user: Kit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    consortium = load_kit(kits / "server", Role.SERVER).consortium
    path = tmp_path / "jobs.sqlite"
    call = sign_call(user.identity, "Stop", "run-1")
    CallBook(lambda: consortium, JobStore(path).first).heard(call, "Stop", "run-1")
    again = CallBook(lambda: consortium, JobStore(path).first)  # another process
    for _ in range(2):
        with pytest.raises(IntegrityError) as refused:
            again.heard(call, "Stop", "run-1")
        assert refused.value.code == "call-replayed"
    assert again.heard(sign_call(user.identity, "Stop", "run-1"), "Stop", "run-1").name == "ada"

    def kept() -> int:
        with closing(sqlite3.connect(path)) as database:
            return int(database.execute("SELECT count(*) FROM calls").fetchone()[0])

    assert kept() == 2
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 2 * FRESH_S - 5)
    with pytest.raises(IntegrityError) as stale:
        again.heard(call, "Stop", "run-1")
    assert stale.value.code == "call-stale"
    monkeypatch.setattr(time, "time", lambda: now + 3 * FRESH_S)
    again.heard(sign_call(user.identity, "List"), "List")
    assert kept() == 1, "what is stale is not kept"


@pytest.mark.parametrize("gone", ["revoked", "without the role"])
def test_who_watches_sees_nothing_more_within_seconds_when_the_consortium_takes_the_right_back(
    tmp_path: Path, store: JobStore, monkeypatch: pytest.MonkeyPatch, gone: str
) -> None:
    monkeypatch.setattr("cloister.server.deployment.service._LOOK_S", 0.2)
    kits = make_kits(tmp_path)
    ada = load_kit(kits / "users" / "ada", Role.USER)
    with serving(kits, store, tmp_path) as (address, _, runs), client(kits, "eve", address) as eve:
        asked = request("a")
        run = store.add(asked.signed(ada.identity), asked, "ada", json.dumps(FEDERATION)).run
        folder = runs / run
        folder.mkdir(parents=True)
        (folder / "events.jsonl").write_text('{"kind": "run"}\n')
        watching = eve.watch(run)
        assert next(watching).events
        if gone == "revoked":
            revoke(kits.parent, "user:eve", "key-compromise")
        else:
            file = tmp_path / "consortium.toml"
            file.write_text(file.read_text().replace('roles = ["watch"]', 'roles = ["submit"]'))
            loaded, raw = load_consortium_file(file)
            provision(loaded, raw, kits.parent)
            renew(kits.parent, "user:eve")
        begun = time.monotonic()
        ends = threading.Timer(60, store.end, (run, "done"))  # so that it ends where nobody looks
        ends.start()
        with pytest.raises(CloisterError) as refused:
            list(watching)
        ends.cancel()
        assert refused.value.code == ("identity-revoked" if gone == "revoked" else "job-unknown")
        assert time.monotonic() - begun < 20
        with pytest.raises(CloisterError):
            list(eve.watch(run))
        with client(kits, "ada", address) as other:
            assert [job.run for job in other.jobs()] == [run], "the others are heard, without a restart"


def test_a_user_submits_watches_and_downloads_and_others_see_what_their_roles_allow(
    kits: Path, user: Kit, store: JobStore, served: tuple[str, list[str], Path], tmp_path: Path
) -> None:
    address, checked, runs = served
    asked = request("a")
    with client(kits, "ada", address) as ada:
        run = ada.submit(asked.signed(user.identity), json.dumps(FEDERATION)).run
        assert checked == [json.dumps(FEDERATION)]
        assert [job.run for job in ada.jobs()] == [run]
        with pytest.raises(UsageError) as early:
            ada.download(run, tmp_path / "early")
        assert early.value.code == "job-open"
        folder = runs / run
        folder.mkdir(parents=True)
        (folder / "events.jsonl").write_text('{"kind": "run"}\n{"kind": "ro')
        (folder / "model.safetensors").write_bytes(b"m" * 3_000_000)
        (folder / "run-id.txt").write_text("not handed out")
        store.end(run, "done", "done")
        watched = list(ada.watch(run))
        assert b"".join(one.events for one in watched) == b'{"kind": "run"}\n'  # whole lines only
        assert watched[-1].job.state == "done"
        made = ada.download(run, tmp_path / "got")
        assert sorted(path.name for path in made) == ["events.jsonl", "model.safetensors"]
        assert (tmp_path / "got" / "model.safetensors").read_bytes() == b"m" * 3_000_000
    with client(kits, "bob", address) as bob:
        assert bob.jobs() == []
        for call in (
            lambda: bob.download(run, tmp_path / "no"),
            lambda: bob.stop(run),
            lambda: list(bob.watch(run)),
        ):
            with pytest.raises(CloisterError) as refused:
                call()
            assert refused.value.code in ("job-unknown", "not-allowed")
    with client(kits, "eve", address) as eve:
        assert [job.run for job in eve.jobs()] == [run]
        with pytest.raises(PolicyError) as refused:
            eve.submit(
                asked.signed(load_kit(kits / "users" / "eve", Role.USER).identity), json.dumps(FEDERATION)
            )
        assert refused.value.code == "not-allowed"


def test_what_is_queued_is_what_its_user_signed(
    kits: Path, user: Kit, served: tuple[str, list[str], Path]
) -> None:
    address, _, _ = served
    bob = load_kit(kits / "users" / "bob", Role.USER)
    other = json.dumps({**FEDERATION, "training": {"local_steps": 99}})
    with client(kits, "ada", address) as ada:
        for signed, federation, code in (
            (request("a").signed(user.identity), other, "federation-differs"),
            (request("a").signed(bob.identity), json.dumps(FEDERATION), "signature"),
            (request("refuse").signed(user.identity), json.dumps(FEDERATION), "unsound"),
        ):
            with pytest.raises(CloisterError) as refused:
                ada.submit(signed, federation)
            assert refused.value.code == code
        assert ada.jobs() == []
