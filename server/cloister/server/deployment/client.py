"""The job service as a user reaches it: submit, list, watch, stop, download.

Formal guarantees:

- It speaks only to who holds a certificate of the consortium's TLS root.
- A downloaded file is put in place whole, under one of the names that are handed out, and only if its hash is the one that was told.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import grpc  # type: ignore[import-untyped]  # grpcio ships no types

from cloister.core.errors import CloisterError, IntegrityError, PeersMissing
from cloister.core.files import write_whole
from cloister.privacy.authority.wire import LONGEST_MESSAGE, refusal_from
from cloister.privacy.identity.kit import Kit, read_secret
from cloister.privacy.request import SignedRequest
from cloister.server.deployment import jobs_pb2 as messages
from cloister.server.deployment.calls import sign_call
from cloister.server.deployment.service import HANDED_OUT, SERVICE
from cloister.server.deployment.store import Job

__all__ = ["JobsClient", "Watched"]

_CALL_S = 30.0
_LARGEST_FILE = 1 << 34


@dataclass(frozen=True, kw_only=True)
class Watched:
    """What is new of a job: where it stands, and whole lines of its events."""

    job: Job
    events: bytes
    offset: int


class JobsClient:
    """A channel to the job service; close it, or use it in a ``with``.

    Args:
        address: ``host:port`` of the server's door.
        kit: the user's.
    """

    def __init__(self, address: str, kit: Kit) -> None:
        self._address, self._user = address, kit.identity
        secure = grpc.ssl_channel_credentials(
            root_certificates=kit.root.read_bytes(),
            private_key=read_secret(kit.key),
            certificate_chain=kit.certificate.read_bytes(),
        )
        options = [("grpc.max_receive_message_length", LONGEST_MESSAGE)]
        self._channel = grpc.secure_channel(address, secure, options=options)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def submit(self, signed: SignedRequest, federation: str) -> Job:
        """Queue a job; ``federation``: the effective file as JSON."""
        request = messages.SubmitRequest(
            call=sign_call(self._user, "Submit"),
            request=signed.encoded,
            signature=signed.signature,
            federation=federation,
        )
        return _job(self._unary("Submit", request, messages.JobReply).job)

    def jobs(self) -> list[Job]:
        """Return the jobs that this user may see."""
        request = messages.ListRequest(call=sign_call(self._user, "List"))
        return [_job(one) for one in self._unary("List", request, messages.ListReply).jobs]

    def stop(self, run: str) -> Job:
        """Stop a job."""
        request = messages.StopRequest(call=sign_call(self._user, "Stop", run), run=run)
        return _job(self._unary("Stop", request, messages.JobReply).job)

    def watch(self, run: str, offset: int = 0) -> Iterator[Watched]:
        """Yield what is new of a job until it ends."""
        request = messages.WatchRequest(call=sign_call(self._user, "Watch", run), run=run, offset=offset)
        for reply in self._stream("Watch", request, messages.WatchReply):
            yield Watched(job=_job(reply.job), events=bytes(reply.events), offset=int(reply.offset))

    def download(self, run: str, folder: Path) -> list[Path]:
        """Fetch a finished job's files into ``folder``, which is made; return their paths.

        Raises:
            IntegrityError: (download) what came is not what was told.
        """
        folder.mkdir(parents=True, exist_ok=True)
        request = messages.DownloadRequest(call=sign_call(self._user, "Download", run), run=run)
        made: list[Path] = []
        file: Any = None
        content = bytearray()
        for reply in self._stream("Download", request, messages.DownloadReply):
            if reply.WhichOneof("part") == "file":
                if file is not None:
                    made.append(_placed(folder, file, content))
                file, content = reply.file, bytearray()
                if file.name not in HANDED_OUT or not 0 <= file.size <= _LARGEST_FILE:
                    raise _odd(f"a file named '{file.name[:64]}' of {file.size} bytes")
            else:
                content += reply.piece
                if file is None or len(content) > file.size:
                    raise _odd("more bytes than it told")
        if file is not None:
            made.append(_placed(folder, file, content))
        return made

    def _unary(self, method: str, request: Any, reply: Any) -> Any:
        call = self._channel.unary_unary(
            f"/{SERVICE}/{method}",
            request_serializer=lambda one: one.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        try:
            return call(request, timeout=_CALL_S)
        except grpc.RpcError as error:
            raise self._told(error) from None

    def _stream(self, method: str, request: Any, reply: Any) -> Iterator[Any]:
        call = self._channel.unary_stream(
            f"/{SERVICE}/{method}",
            request_serializer=lambda one: one.SerializeToString(),
            response_deserializer=reply.FromString,
        )
        try:
            yield from call(request)
        except grpc.RpcError as error:
            raise self._told(error) from None

    def _told(self, error: Any) -> CloisterError:
        refusal = refusal_from(error.details())
        if error.code() == grpc.StatusCode.FAILED_PRECONDITION and refusal is not None:
            return refusal
        return PeersMissing(
            f"the server at {self._address} did not answer ({error.code().name.lower().replace('_', ' ')})",
            remedy="see that it runs, that the address is right, and that your certificate is valid: cloister provision renew",
            code="server-unreachable",
        )


def _placed(folder: Path, file: messages.File, content: bytearray) -> Path:
    if len(content) != file.size or hashlib.sha256(content).digest() != file.sha256:
        raise _odd("other bytes than it told")
    path = folder / file.name  # one of HANDED_OUT
    path.parent.mkdir(exist_ok=True)
    write_whole(path, bytes(content))
    return path


def _odd(what: str) -> IntegrityError:
    return IntegrityError(
        f"the download was refused: the server sent {what}", remedy="download again", code="download"
    )


def _job(told: messages.Job) -> Job:
    return Job(
        run=told.run,
        name=told.name,
        user=told.user,
        submitted=told.submitted,
        state=told.state,  # type: ignore[arg-type]  # shown, and compared with the known ones only
        attempts=int(told.attempts),
        code=told.code,
        message=told.message,
        ended=told.ended or None,
    )
