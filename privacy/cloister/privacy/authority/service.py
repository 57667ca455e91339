"""The key authority as a gRPC service: `authority.proto` over mutual TLS.

Formal guarantees:

- Nobody without a certificate of the authority's TLS folder gets past the handshake.
- A message above `LONGEST_MESSAGE`, a container longer than the session's, and a call longer than ``limit_s`` are refused; at most
  ``at_once`` sums are under way. What a call can make the authority hold is one container and one sum of the manifest's size.
- The answers and the refusals are those of `KeyAuthority`: this module adds no way to a decryption.

==========================================  ================================================================
case                                        outcome
==========================================  ================================================================
no TLS, or a stranger's certificate         the handshake fails: nothing is read
a refusal of the authority                  FAILED_PRECONDITION, with code, message and remedy
parts in another order, a piece too many    INVALID_ARGUMENT
too many sums at once                       RESOURCE_EXHAUSTED
any other fault                             INTERNAL, and no more; the traceback goes to the authority's own log
==========================================  ================================================================
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NoReturn

import grpc  # type: ignore[import-untyped]  # grpcio ships no types

from cloister.core.errors import CloisterError, UsageError
from cloister.privacy.authority import authority_pb2 as messages
from cloister.privacy.authority.tls import Credentials
from cloister.privacy.authority.wire import LONGEST_MESSAGE, PIECE, SERVICE, pieces, refusal_to
from cloister.privacy.homomorphic.authority import KeyAuthority
from cloister.privacy.homomorphic.opening import Opening
from cloister.privacy.homomorphic.sealed import Sealed
from cloister.privacy.manifest import SignedManifest

__all__ = ["AuthorityService"]

_LOG = logging.getLogger(__name__)


class AuthorityService:
    """Serves one `KeyAuthority`; stop it when done.

    Args:
        authority: what answers.
        credentials: of the authority.
        listen: address and port; port 0 takes a free one.
        limit_s: seconds that one call may take.
        at_once: sums that may be under way at one time.

    Raises:
        UsageError: nobody can listen there.
    """

    def __init__(
        self,
        authority: KeyAuthority,
        credentials: Credentials,
        listen: str,
        *,
        limit_s: float = 3600.0,
        at_once: int = 2,
    ) -> None:
        self._authority = authority
        self._limit_s = limit_s
        self._room = threading.BoundedSemaphore(at_once)
        options = [
            ("grpc.max_receive_message_length", LONGEST_MESSAGE),
            ("grpc.so_reuseport", 0),
            ("grpc.keepalive_time_ms", 60_000),
        ]
        self._server = grpc.server(
            ThreadPoolExecutor(max_workers=at_once + 2, thread_name_prefix="authority"),
            handlers=[self._handler()],
            options=options,
            maximum_concurrent_rpcs=4 * (at_once + 2),
        )
        secure = grpc.ssl_server_credentials(
            [(credentials.key, credentials.certificate)],
            root_certificates=credentials.root,
            require_client_auth=True,
        )
        try:
            self.port = int(self._server.add_secure_port(listen, secure))
        except (RuntimeError, ValueError):
            self.port = 0
        if not self.port:
            raise UsageError(
                f"nobody can listen on '{listen}'", remedy="name a free address, as 127.0.0.1:9443"
            )

    def start(self) -> None:
        """Begin to answer, in threads."""
        self._server.start()

    def stop(self, grace_s: float = 0.0) -> None:
        """Answer no more; calls under way have ``grace_s`` seconds."""
        self._server.stop(grace_s).wait()

    def _handler(self) -> Any:
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Public": grpc.unary_unary_rpc_method_handler(
                    self._public,
                    request_deserializer=messages.PublicRequest.FromString,
                    response_serializer=messages.PublicReply.SerializeToString,
                ),
                "Decrypt": grpc.stream_stream_rpc_method_handler(
                    self._decrypt,
                    request_deserializer=messages.DecryptRequest.FromString,
                    response_serializer=messages.DecryptReply.SerializeToString,
                ),
            },
        )

    def _public(self, request: messages.PublicRequest, context: Any) -> messages.PublicReply:
        try:
            scheme: Any = request.scheme  # checked where it is looked up
            key = self._authority.public(request.run, request.serial, request.cohort, scheme)
            return messages.PublicReply(public=key)
        except CloisterError as error:
            _refuse(context, error)
        except Exception:  # noqa: BLE001 - its words may quote anything: they stay here
            _fault(context)

    def _decrypt(
        self, requests: Iterator[messages.DecryptRequest], context: Any
    ) -> Iterator[messages.DecryptReply]:
        if not self._room.acquire(blocking=False):
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "as many sums as may be are under way")
        watch = threading.Timer(self._limit_s, context.cancel)
        watch.daemon = True
        watch.start()
        try:
            opening = self._begin(requests)
            for sealed in _containers(requests, opening.form.length):
                opening.add(sealed)
            sums = opening.finish()
            for piece in pieces(sums.astype("<i8").tobytes()):
                yield messages.DecryptReply(piece=piece)
        except CloisterError as error:
            _refuse(context, error)
        except _OutOfOrderError as error:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Exception:  # noqa: BLE001 - as above
            _fault(context)
        finally:
            watch.cancel()
            self._room.release()

    def _begin(self, requests: Iterator[messages.DecryptRequest]) -> Opening:
        first = next(requests, None)
        if first is None or first.WhichOneof("part") != "opening":
            raise _OutOfOrderError("the first part is no opening")
        asked = first.opening
        return self._authority.opening(
            SignedManifest(
                encoded=asked.manifest,
                signature=asked.manifest_signature,
                certificate=asked.server_certificate,
            ),
            tuple(asked.cohort),
            dict(asked.commitments),
            asked.digest,
            asked.signature,
        )


class _OutOfOrderError(Exception):
    """The parts of a call are not in the order of the protocol."""


def _containers(requests: Iterator[messages.DecryptRequest], length: int) -> Iterator[Sealed]:
    """Yield each site's container, which is ``length`` bytes, as soon as it is whole."""
    site: messages.Site | None = None
    parts, left = bytearray(), 0
    for request in requests:
        part = request.WhichOneof("part")
        if part == "site" and not left:
            site, parts, left = request.site, bytearray(), length
        elif part == "piece" and site is not None and 0 < len(request.piece) <= min(left, PIECE):
            parts += request.piece
            left -= len(request.piece)
            if not left:
                yield Sealed(container=bytes(parts), signature=site.signature, certificate=site.certificate)
        else:
            raise _OutOfOrderError("a part out of order, or longer than the session's containers")
    if left:
        raise _OutOfOrderError("the stream ended within a container")


def _refuse(context: Any, error: CloisterError) -> NoReturn:
    _LOG.warning("refused (%s): %s", error.code, error.message)
    context.abort(grpc.StatusCode.FAILED_PRECONDITION, refusal_to(error))
    raise AssertionError("abort does not return")


def _fault(context: Any) -> NoReturn:
    _LOG.exception("a fault")
    context.abort(grpc.StatusCode.INTERNAL, "internal")
    raise AssertionError("abort does not return")
