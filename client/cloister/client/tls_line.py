"""TLS and HTTP of a site's line: whom it believes, what it shows, and how much it takes.

Formal guarantees:

- The other side's certificate must come from the consortium's TLS root.
- Of an answer no more than `MOST_ANSWERED` bytes are taken, and none that unfolds into more than it is.
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator

import httpx
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_ssh_private_key

from cloister.core.errors import IntegrityError
from cloister.privacy.identity.kit import Kit, read_secret

__all__ = ["MOST_ANSWERED", "Bounded", "LinkLostError", "node_key", "tls_context"]

#: Bytes of one answer: Flower cuts arrays into pieces of 5 MiB.
MOST_ANSWERED = 64 << 20


class LinkLostError(Exception):
    """The coordinator cannot be reached, or broke off; its words are for the site's own log.

    Args:
        words: what happened.
        failed: whether the coordinator was reached and failed at this very call, so that it may fail at it again.
    """

    def __init__(self, words: str, *, failed: bool = False) -> None:
        super().__init__(words)
        self.failed = failed


class Bounded(httpx.HTTPTransport):
    """A transport that takes no answer longer than `MOST_ANSWERED`, and none that unfolds into more than it is."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request; return an answer whose length is watched while it is read."""
        request.headers["accept-encoding"] = "identity"
        response = super().handle_request(request)
        if response.headers.get("content-encoding", "identity") != "identity":
            response.close()
            raise httpx.DecodingError("a packed answer", request=request)
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=_Counted(response.stream, request),
            extensions=response.extensions,
        )


class _Counted(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream | httpx.AsyncByteStream, request: httpx.Request) -> None:
        if not isinstance(stream, httpx.SyncByteStream):
            raise TypeError(type(stream).__name__)
        self._stream, self._request = stream, request

    def __iter__(self) -> Iterator[bytes]:
        came = 0
        for piece in self._stream:
            came += len(piece)
            if came > MOST_ANSWERED:
                raise httpx.DecodingError("an answer that is too long", request=self._request)
            yield piece

    def close(self) -> None:
        self._stream.close()


def tls_context(kit: Kit) -> ssl.SSLContext:
    """Return how this site speaks TLS: it believes the consortium's root only, and shows its own certificate.

    Raises:
        LinkLostError: the certificates cannot be used.
        IntegrityError: (kit-key) others may read the key.
    """
    read_secret(kit.key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_verify_locations(cafile=str(kit.root))
        context.load_cert_chain(kit.certificate, kit.key)
    except (OSError, ssl.SSLError) as error:
        raise LinkLostError(f"the TLS certificates cannot be used: {error}") from None
    return context


def node_key(kit: Kit) -> ec.EllipticCurvePrivateKey:
    """Return a site's key as a Flower node.

    Raises:
        IntegrityError: (kit-key) it is none, or others may read it.
    """
    raw = read_secret(kit.node_key)
    try:
        key = load_ssh_private_key(raw, password=None)
    except ValueError:
        key = None
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IntegrityError(
            f"'{kit.node_key}' holds no elliptic-curve key",
            remedy="restore it, or have a new one certified",
            code="kit-key",
        )
    return key
