"""Where users' requests arrive: the job service, gRPC over TLS, behind nginx, which asks for client certificates.

Formal guarantees:

- Nothing is answered but to a user of the consortium whose signed call holds, and who has the role for it.
- A request is queued only as its user signed it, with the very federation file that it names.
- Whom the consortium took back is not heard from the moment on at which ``revoked.json`` in the server's folder says so; who watches then, or lost
  the role for it, sees nothing more after `_LOOK_S` seconds.
- Files leave only from a job's own folder, and only those in `HANDED_OUT`.

==========================================  ================================================================
case                                        status
==========================================  ================================================================
a refusal                                   FAILED_PRECONDITION, with code, message and remedy
a message longer than `LONGEST_MESSAGE`     RESOURCE_EXHAUSTED, by gRPC
any other fault                             INTERNAL, and no more; the traceback goes to the server's own log
==========================================  ================================================================
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import grpc  # type: ignore[import-untyped]  # grpcio ships no types

from cloister.core.digests import federation_digest
from cloister.core.errors import CloisterError, IntegrityError, PolicyError, UsageError
from cloister.privacy.authority.wire import LONGEST_MESSAGE, pieces, refusal_to
from cloister.privacy.identity import Member, Role
from cloister.privacy.identity.kit import Believed, Kit, read_secret
from cloister.privacy.identity.register import UserRole
from cloister.privacy.request import SignedRequest
from cloister.server.deployment import jobs_pb2 as messages
from cloister.server.deployment.calls import CallBook
from cloister.server.deployment.settings import ServerConfig
from cloister.server.deployment.store import Job, JobStore

__all__ = ["HANDED_OUT", "SERVICE", "JobService"]

SERVICE = "cloister.jobs.v1.Jobs"
#: The files of a run folder that a user may have.
HANDED_OUT = (
    "federation.toml",
    "model.safetensors",
    "model-card.md",
    "report.html",
    "report.json",
    "events.jsonl",
    "audit-privacy.html",
    "audit-privacy.json",
    "audits/summary.json",
    "release/certificate.json",
    "release/model.safetensors",
    "release/model.sealed",
    "release/model-card.md",
    "release/report.html",
    "release/report.json",
    "release/federation.toml",
    "release/audits.json",
)
_LOG = logging.getLogger(__name__)
_WATCH_S = 0.25
_WATCHERS = 16
#: Seconds until somebody who watches is looked at again.
_LOOK_S = 2.0
_MOST_AT_ONCE = 1 << 18

R = TypeVar("R")


class JobService:
    """Serves the queue; stop it when done.

    Args:
        config: the server's.
        kit: the server's.
        store: the queue.
        folder_of: where a job's run folder is, or will be.
        check: refuses a federation (JSON) that cannot run here with the sites that are asked.
        stop: stops a job that runs.
    """

    def __init__(
        self,
        config: ServerConfig,
        kit: Kit,
        store: JobStore,
        *,
        folder_of: Callable[[str], Path],
        check: Callable[[str, tuple[str, ...]], None],
        stop: Callable[[str], None],
    ) -> None:
        self._kit = kit
        self._store = store
        self._believed = Believed(kit)
        self._book = CallBook(self._believed, store.first)
        self._folder_of = folder_of
        self._check = check
        self._stop_job = stop
        #: Each who watches holds a thread; the others' are for whoever submits or stops.
        self._seats = threading.BoundedSemaphore(_WATCHERS)
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=_WATCHERS + 4, thread_name_prefix="jobs"),
            handlers=[self._handler()],
            options=[("grpc.max_receive_message_length", LONGEST_MESSAGE), ("grpc.so_reuseport", 0)],
            maximum_concurrent_rpcs=4 * _WATCHERS,
        )
        secure = grpc.ssl_server_credentials([(read_secret(kit.key), kit.certificate.read_bytes())])
        listen = config.jobs.listen
        try:
            self.port = int(self._server.add_secure_port(listen, secure))
        except (RuntimeError, ValueError):
            self.port = 0
        if not self.port:
            raise UsageError(f"nobody can listen on '{listen}'", remedy="name a free address as jobs.listen")

    def start(self) -> None:
        """Begin to answer, in threads."""
        self._server.start()

    def stop(self, grace_s: float = 1.0) -> None:
        """Answer no more."""
        self._server.stop(grace_s).wait()

    def _handler(self) -> Any:
        def unary(work: Callable[[Any], Any], request: Any) -> Any:
            return grpc.unary_unary_rpc_method_handler(
                lambda given, context: _guarded(context, lambda: work(given)),
                request_deserializer=request.FromString,
                response_serializer=lambda reply: reply.SerializeToString(),
            )

        def stream(work: Callable[[Any, Any], Iterator[Any]], request: Any) -> Any:
            return grpc.unary_stream_rpc_method_handler(
                lambda given, context: _guarded_stream(context, lambda: work(given, context)),
                request_deserializer=request.FromString,
                response_serializer=lambda reply: reply.SerializeToString(),
            )

        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Submit": unary(self._submit, messages.SubmitRequest),
                "List": unary(self._list, messages.ListRequest),
                "Stop": unary(self._stop, messages.StopRequest),
                "Watch": stream(self._watch, messages.WatchRequest),
                "Download": stream(self._download, messages.DownloadRequest),
            },
        )

    def _submit(self, given: messages.SubmitRequest) -> messages.JobReply:
        user = self._user(given.call, "Submit", "", needs="submit")
        signed = SignedRequest(
            encoded=bytes(given.request),
            signature=bytes(given.signature),
            certificate=bytes(given.call.certificate),
        )
        asker, request = signed.opened(self._believed())
        if asker != user:
            raise IntegrityError("the request is not its caller's", code="request")
        try:
            federation = json.loads(given.federation)
        except (ValueError, RecursionError):
            federation = None
        if not isinstance(federation, dict) or federation_digest(federation) != request.federation:
            raise IntegrityError(
                "the federation that came with the request is not the one that it names",
                remedy="submit it with the same version of cloister as the server's",
                code="federation-differs",
            )
        self._check(given.federation, request.sites)
        job = self._store.add(signed, request, user.name, given.federation)
        _LOG.info("queued %s for user '%s'", job.run, user.name)
        return messages.JobReply(job=_told(job))

    def _list(self, given: messages.ListRequest) -> messages.ListReply:
        user = self._user(given.call, "List", "")
        return messages.ListReply(jobs=[_told(job) for job in self._store.jobs() if self._may_see(user, job)])

    def _stop(self, given: messages.StopRequest) -> messages.JobReply:
        user = self._user(given.call, "Stop", given.run)
        job = self._store.job(given.run)
        if job.user != user.name and "admin" not in self._roles(user):
            raise _not_allowed(user, "stop another user's job", "admin")
        job = self._store.stop(given.run)
        self._stop_job(given.run)
        return messages.JobReply(job=_told(job))

    def _watch(self, given: messages.WatchRequest, context: Any) -> Iterator[messages.WatchReply]:
        self._seen(given.call, "Watch", given.run)
        with self._seat():
            yield from self._watched(given, context)

    @contextmanager
    def _seat(self) -> Iterator[None]:
        """Hold one of the places of those who are answered for long: some threads are left for who asks for little."""
        if not self._seats.acquire(blocking=False):
            raise PolicyError(
                f"{_WATCHERS} watch or download already",
                remedy="ask again later: cloister job list",
                code="watchers",
            )
        try:
            yield
        finally:
            self._seats.release()

    def _watched(self, given: messages.WatchRequest, context: Any) -> Iterator[messages.WatchReply]:
        path = self._folder_of(given.run) / "events.jsonl"
        offset, last = max(0, int(given.offset)), None
        looked = time.monotonic()
        while context.is_active():
            if time.monotonic() - looked >= _LOOK_S:
                job, looked = self._still_seen(given.call, given.run), time.monotonic()
            else:
                job = self._store.job(given.run)
            lines = _whole_lines(path, offset)
            if lines or job != last:
                offset += len(lines)
                yield messages.WatchReply(job=_told(job), events=lines, offset=offset)
                last = job
            elif job.ended is not None:
                return
            else:
                time.sleep(_WATCH_S)

    def _download(self, given: messages.DownloadRequest, _: Any) -> Iterator[messages.DownloadReply]:
        job = self._seen(given.call, "Download", given.run)
        if job.ended is None:
            raise UsageError(
                f"the job '{job.run}' is {job.state}",
                remedy="wait for its end: cloister job watch",
                code="job-open",
            )
        with self._seat():
            yield from self._handed_out(given)

    def _handed_out(self, given: messages.DownloadRequest) -> Iterator[messages.DownloadReply]:
        folder, looked = self._folder_of(given.run), time.monotonic()
        for name in HANDED_OUT:
            try:
                content = (folder / name).read_bytes()
            except OSError:
                continue
            self._still_seen(given.call, given.run)
            yield messages.DownloadReply(
                file=messages.File(name=name, size=len(content), sha256=hashlib.sha256(content).digest())
            )
            for piece in pieces(content):
                if time.monotonic() - looked >= _LOOK_S:
                    self._still_seen(given.call, given.run)
                    looked = time.monotonic()
                yield messages.DownloadReply(piece=piece)

    def _seen(self, call: messages.Call, method: str, run: str) -> Job:
        return self._job_for(self._user(call, method, run), run)

    def _still_seen(self, call: messages.Call, run: str) -> Job:
        """Return a job for somebody whose call was heard before, if that call would still be answered."""
        user = self._believed().member(bytes(call.certificate), role=Role.USER)
        if not self._roles(user):
            raise _not_allowed(user, "see more", "watch")
        return self._job_for(user, run)

    def _job_for(self, user: Member, run: str) -> Job:
        job = self._store.job(run)
        if not self._may_see(user, job):
            raise UsageError(
                f"there is no job '{run[:128]}'", remedy="see: cloister job list", code="job-unknown"
            )
        return job

    def _user(self, call: messages.Call, method: str, about: str, *, needs: UserRole | None = None) -> Member:
        user = self._book.heard(call, method, about)
        roles = self._roles(user)
        if not roles or (needs is not None and needs not in roles and "admin" not in roles):
            raise _not_allowed(user, method.lower(), needs or "watch")
        return user

    def _roles(self, user: Member) -> tuple[UserRole, ...]:
        entry = self._kit.members().of(Role.USER).get(user.name)
        return () if entry is None or entry.identity != user.public_key.hex() else tuple(entry.roles)

    def _may_see(self, user: Member, job: Job) -> bool:
        return job.user == user.name or bool({"admin", "watch"} & set(self._roles(user)))


def _not_allowed(user: Member, what: str, needs: str) -> PolicyError:
    return PolicyError(
        f"user '{user.name}' may not {what}: the role '{needs}' is needed",
        remedy="ask the consortium's registrar for it: roles in consortium.toml",
        code="not-allowed",
    )


def _told(job: Job) -> messages.Job:
    return messages.Job(
        run=job.run,
        name=job.name,
        user=job.user,
        submitted=job.submitted,
        state=job.state,
        attempts=job.attempts,
        code=job.code,
        message=job.message,
        ended=job.ended or 0.0,
    )


def _whole_lines(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            found = file.read(_MOST_AT_ONCE)
    except OSError:
        return b""
    return found[: found.rfind(b"\n") + 1]


def _guarded(context: Any, work: Callable[[], R]) -> R:
    try:
        return work()
    except CloisterError as error:
        _refuse(context, error)
    except Exception:  # noqa: BLE001 - its words may quote anything: they stay here
        _fault(context)


def _guarded_stream(context: Any, work: Callable[[], Iterator[R]]) -> Iterator[R]:
    try:
        yield from work()
    except CloisterError as error:
        _refuse(context, error)
    except Exception:  # noqa: BLE001 - as above
        _fault(context)


def _refuse(context: Any, error: CloisterError) -> NoReturn:
    _LOG.warning("refused (%s): %s", error.code, error.message)
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal_to(error))
    raise AssertionError("abort does not return")


def _fault(context: Any) -> NoReturn:
    _LOG.exception("a fault")
    context.abort(grpc.StatusCode.INTERNAL, "internal")
    raise AssertionError("abort does not return")
