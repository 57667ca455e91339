"""The key authority as the server of a federation reaches it: `KeyAuthority`'s ``public`` and ``decrypt`` across the network.

Formal guarantees:

- It speaks only to who holds the authority's certificate of the TLS folder.
- A refusal of the authority is raised here with its code; a call that is not answered in time is a refusal too.
- The sums are (size,) int64: an answer of any other length is refused.

==========================================  ============================================
case                                        outcome
==========================================  ============================================
nobody answers, or a stranger               ``PeersMissing`` (authority-unreachable)
the authority refuses                       the same error as in process
no answer within ``limit_s`` seconds        ``PeersMissing`` (authority-unreachable)
an answer of another length                 ``IntegrityError`` (decryption-failed)
==========================================  ============================================
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Self

import grpc  # type: ignore[import-untyped]  # grpcio ships no types
import numpy as np

from cloister.core.errors import CloisterError, IntegrityError, PeersMissing
from cloister.privacy.authority import authority_pb2 as messages
from cloister.privacy.authority.tls import Credentials
from cloister.privacy.authority.wire import LONGEST_MESSAGE, SERVICE, pieces, refusal_from
from cloister.privacy.homomorphic.lanes import Integers
from cloister.privacy.homomorphic.parameters import HomomorphicScheme
from cloister.privacy.homomorphic.summation import SumRequest
from cloister.privacy.manifest import Manifest

__all__ = ["RemoteAuthority"]

_PUBLIC_S = 60.0


class RemoteAuthority:
    """A channel to the key authority; close it, or use it in a ``with``.

    Args:
        address: where it listens, as ``keys.example.org:9443``; the name that its certificate is for.
        credentials: of the server.
        limit_s: seconds that a decryption may take.
    """

    def __init__(self, address: str, credentials: Credentials, *, limit_s: float = 3600.0) -> None:
        self._address = address
        self._limit_s = limit_s
        secure = grpc.ssl_channel_credentials(
            root_certificates=credentials.root,
            private_key=credentials.key,
            certificate_chain=credentials.certificate,
        )
        options = [("grpc.max_receive_message_length", LONGEST_MESSAGE), ("grpc.enable_retries", 0)]
        self._channel = grpc.secure_channel(address, secure, options=options)
        self._public = self._channel.unary_unary(
            f"/{SERVICE}/Public",
            request_serializer=messages.PublicRequest.SerializeToString,
            response_deserializer=messages.PublicReply.FromString,
        )
        self._decrypt = self._channel.stream_stream(
            f"/{SERVICE}/Decrypt",
            request_serializer=messages.DecryptRequest.SerializeToString,
            response_deserializer=messages.DecryptReply.FromString,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def public(self, run: str, serial: int, cohort: str, scheme: HomomorphicScheme = "bfv") -> bytes:
        """Return the public key of a session, as `KeyAuthority.public`."""
        try:
            request = messages.PublicRequest(run=run, serial=serial, scheme=scheme, cohort=cohort)
            return bytes(self._public(request, timeout=_PUBLIC_S).public)
        except grpc.RpcError as error:
            raise self._told(error) from None

    def decrypt(self, request: SumRequest) -> Integers:
        """Return the (size,) sums, int64, as `KeyAuthority.decrypt`."""
        size = Manifest.decode(request.manifest.encoded).size
        found = bytearray()
        try:
            call = self._decrypt(_parts(request), timeout=self._limit_s)
            for reply in call:
                found += reply.piece
                if len(found) > 8 * size:
                    call.cancel()
                    break
        except grpc.RpcError as error:
            raise self._told(error) from None
        if len(found) != 8 * size:
            raise IntegrityError(
                f"the key authority answered {len(found)} bytes for {size} sums",
                remedy="use the same version of cloister at the server and at the key authority",
                code="decryption-failed",
            )
        return np.frombuffer(bytes(found), dtype="<i8").astype(np.int64)

    def close(self) -> None:
        """Close the channel."""
        self._channel.close()

    def _told(self, error: Any) -> CloisterError:
        refusal = refusal_from(error.details())
        if error.code() == grpc.StatusCode.FAILED_PRECONDITION and refusal is not None:
            return refusal
        return PeersMissing(
            f"the key authority at {self._address} did not answer ({error.code().name.lower().replace('_', ' ')})",
            remedy="see that it runs, that the address is the one of its certificate, and that both TLS folders were made together",
            code="authority-unreachable",
        )


def _parts(request: SumRequest) -> Iterator[messages.DecryptRequest]:
    yield messages.DecryptRequest(
        opening=messages.Opening(
            manifest=request.manifest.encoded,
            manifest_signature=request.manifest.signature,
            server_certificate=request.manifest.certificate,
            cohort=request.cohort,
            commitments=dict(request.commitments),
            digest=request.digest,
            signature=request.signature,
        )
    )
    for sealed in request.sealed:
        yield messages.DecryptRequest(
            site=messages.Site(certificate=sealed.certificate, signature=sealed.signature)
        )
        for piece in pieces(sealed.container):
            yield messages.DecryptRequest(piece=piece)
