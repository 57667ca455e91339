"""A site's line to the coordinator: Flower's Fleet API, spoken by the site itself.

This module and `message_form` are the ones of this part that use Flower's internals (flwr 1.41); `tests/client/test_fleet_link.py` is its contract. Flower's own SuperNode
would fetch the run's bundle of code, put it first on the path of a process of its own, and look for work every 3 seconds. Here the bundle is never
asked for, the process is this one, and how often to ask is the caller's choice.

Formal guarantees:

- The server's certificate must come from the consortium's TLS root; this side shows its own.
- No byte that arrives is run or unpickled. A message whose parts together are longer than ``most_bytes`` is given up as soon as
  that many have come, and no more of it is asked for; so is one whose parts would unfold into more.

==============================================  ===========================================================
case                                            outcome
==============================================  ===========================================================
the server cannot be reached, or breaks off     `LinkLostError`: connect again later
it fails at a call                              `LinkLostError`, with ``failed``: it may fail at it for ever
it does not know this site's key, or counts a   ``PolicyError`` (link-refused)
line of another process under it as open
a message that is too long, or cannot be read   `MessageLostError`: the line stands
an answer to a message that was given up, or    `UnwantedError`: the line stands, and nobody will ever take
of a run that ended                             this answer
==============================================  ===========================================================
"""

from __future__ import annotations

import ssl
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import httpx
from flwr.app import Message
from flwr.app.message import remove_content_from_message
from flwr.common.constant import HEARTBEAT_PATIENCE
from flwr.common.serde import message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    DeactivateNodeRequest,
    PullMessagesRequest,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)
from flwr.supercore.interceptors.http.runtime_version import RuntimeVersionHttpInterceptor
from flwr.supercore.primitives.asymmetric import public_key_to_bytes
from flwr.supercore.protobuf.client import ProtobufClientInterceptor
from flwr.supernode.fleet_http_client import FleetHttpClient
from flwr.supernode.node_auth_http_interceptor import NodeAuthHttpInterceptor

from cloister.client.message_form import MessageLostError, check_unfolded, fits_inside, pack, unpack, whole
from cloister.client.tls_line import Bounded, LinkLostError, node_key, tls_context
from cloister.core.errors import PolicyError
from cloister.privacy.identity.kit import Kit

__all__ = ["FleetLink", "Standing", "UnwantedError"]

_CALL_S = 30.0
#: A node whose last beat is twice the interval old counts as away, and only then is a site that was killed let in anew.
_BEATS_APART_S, _BEAT_INTERVAL_S = 5.0, 15.0
_REFUSED = (
    httpx.codes.BAD_REQUEST,  # nginx: a certificate that was taken back, or none
    httpx.codes.UNAUTHORIZED,
    httpx.codes.FORBIDDEN,
    httpx.codes.PRECONDITION_FAILED,  # the SuperLink: a key that it does not know
)
#: Who answers so has nothing against the call: nginx without the SuperLink behind it, or one who is asked too often.
_AWAY = (
    httpx.codes.REQUEST_TIMEOUT,
    httpx.codes.TOO_EARLY,
    httpx.codes.TOO_MANY_REQUESTS,
    httpx.codes.BAD_GATEWAY,
    httpx.codes.SERVICE_UNAVAILABLE,
    httpx.codes.GATEWAY_TIMEOUT,
)


class UnwantedError(MessageLostError):
    """The coordinator said that it does not take what belongs to this message, now or later; the line stands."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """A line that was lost without a good-bye.

    Attributes:
        node: its Flower node.
        until: when the coordinator ceases to count it as open, at the earliest, by this machine's monotonic clock.
    """

    node: int
    until: float


class FleetLink:
    """An open line; use it as a context.

    Args:
        address: ``host:port`` of the coordinator's door.
        kit: the site's.
        most_bytes: of one message.
        call_s: seconds that one call may take.
        earlier: how a line of this very process ended: where the coordinator still counts it as open, this one takes its place.

    Raises:
        LinkLostError: nobody answers there, or not as the consortium's server.
        PolicyError: (link-refused) the coordinator does not let this site in.
        IntegrityError: (kit-key) the site's keys cannot be used.
    """

    def __init__(
        self,
        address: str,
        kit: Kit,
        *,
        most_bytes: int = 1 << 30,
        call_s: float = _CALL_S,
        earlier: Standing | None = None,
    ) -> None:
        key = node_key(kit)
        self._most_bytes = most_bytes
        self._client = _Client(
            address,
            Bounded(verify=tls_context(kit)),
            call_s,
            interceptors=[
                RuntimeVersionHttpInterceptor(component_name="SuperNode"),
                NodeAuthHttpInterceptor(key, key.public_key()),
            ],
        )
        self._closed = threading.Event()
        self._beats = threading.Thread(target=self._beat, name="heartbeat", daemon=True)
        self._seen, self._said_goodbye = time.monotonic(), False
        try:
            self._node = self._let_in(public_key_to_bytes(key.public_key()), earlier)
        except BaseException:
            self._client.close()
            raise
        self._beats.start()

    @property
    def standing(self) -> Standing | None:
        """How this line ended, for the next one of this process; ``None`` where it said good-bye."""
        if self._said_goodbye:
            return None
        return Standing(node=self.node_id, until=self._seen + HEARTBEAT_PATIENCE * _BEAT_INTERVAL_S)

    @property
    def node_id(self) -> int:
        """This site's number as a Flower node."""
        return int(self._node.node_id)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Say good-bye, if the coordinator listens, and hang up."""
        self._closed.set()
        self._beats.join(_BEATS_APART_S)  # one under way may take as long as the coordinator likes
        try:
            self._client.DeactivateNode(DeactivateNodeRequest(node_id=self._node.node_id))
            self._said_goodbye = True
        except (httpx.HTTPError, RuntimeError, ValueError):
            pass
        finally:
            self._client.close()

    def receive(self) -> Message | None:
        """Return the next message for this site, or ``None`` where there is none now.

        Raises:
            LinkLostError, PolicyError: as above.
            MessageLostError: there was one, and it is too long or cannot be read.
        """
        answer = self._call(lambda: self._client.PullMessages(PullMessagesRequest(node=self._node)))
        if not answer.messages_list:
            return None
        try:
            head, tree = answer.messages_list[0], answer.message_object_trees[0]
            message = (
                self._complete(head, tree)
                if head.content.items
                else self._gathered(tree, head.metadata.run_id)
            )
        except (LinkLostError, MessageLostError):
            raise
        except Exception as error:
            raise MessageLostError(type(error).__name__) from error
        if not isinstance(message, Message):
            raise MessageLostError(type(message).__name__)
        message.metadata.__dict__["_message_id"] = tree.object_id
        if message.has_content():
            message.content = unpack(message.content)
        return message

    def send(self, reply: Message, seconds: float) -> int:
        """Send ``reply``; return the bytes of its parts.

        Args:
            reply: made with ``Message(content, reply_to=…)``.
            seconds: how long it took, for Flower's own figures.

        Raises:
            LinkLostError: it could not be sent; it may be sent again.
            UnwantedError: nobody takes it any more: its run ended, or its message was given up.
        """
        if reply.has_content():
            reply.content = pack(reply.content)
        reply.metadata.__dict__["_message_id"] = reply.object_id
        if reply.has_content() and fits_inside(reply.content):
            head = message_to_proto(reply)
            answer = self._head(head, ObjectTree(object_id=reply.metadata.message_id), seconds)
            # It asks for the root of what it took, which nobody will look for; where it took nothing it asks for nothing.
            return int(head.content.ByteSize()) if answer.objects_to_push else 0
        try:
            return self._parts(reply, seconds)
        except ObjectPushError:
            raise UnwantedError("its message was given up") from None

    def _head(self, head: ProtoMessage, tree: ObjectTree, seconds: float) -> PushMessagesResponse:
        asked = PushMessagesRequest(
            node=self._node,
            messages_list=[head],
            message_object_trees=[tree],
            clientapp_runtime_list=[seconds],
        )
        answer: PushMessagesResponse = self._call(lambda: self._client.PushMessages(asked))
        return answer

    def _parts(self, reply: Message, seconds: float) -> int:
        run = reply.metadata.run_id
        sent = 0
        with no_object_id_recompute():
            head = message_to_proto(remove_content_from_message(reply))
            answer = self._head(head, get_object_tree(reply), seconds)
            push = make_push_object_fn_protobuf(
                self._client.PushObject, self._node, run_id=run, session_id=answer.session_id
            )

            def counted(identifier: str, content: bytes) -> None:
                nonlocal sent
                sent += len(content)
                push(identifier, content)

            wanted = set(answer.objects_to_push)
            self._call(
                lambda: push_objects(
                    get_all_nested_objects(reply),
                    counted,
                    object_ids_to_push=wanted,
                    max_concurrent_pushes=2,
                )
            )
        return sent

    def _complete(self, head: ProtoMessage, tree: ObjectTree) -> Message:
        """Return the message that brings its content; the SuperLink is asked whether its run still stands, since to answer it may cost budget."""
        message = whole(head, self._most_bytes)
        self._confirm(tree, head.metadata.run_id)
        return message

    def _confirm(self, tree: ObjectTree, run: int) -> None:
        confirm = make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, self._node, run
        )
        self._call(lambda: confirm(tree.object_id))

    def _gathered(self, tree: ObjectTree, run: int) -> Any:
        """Return what the parts of a message make."""
        contents = self._pulled([one.object_id for one in iterate_object_tree(tree)], run)
        self._confirm(tree, run)
        check_unfolded(contents, self._most_bytes)
        return inflate_object_from_contents(tree.object_id, contents, keep_object_contents=False)

    def _pulled(self, identifiers: list[str], run: int) -> dict[str, bytes]:
        pull = make_pull_object_fn_protobuf(self._client.PullObject, self._node, run)
        came, lock = 0, threading.Lock()

        def counted(identifier: str) -> bytes:
            nonlocal came
            if came > self._most_bytes:
                raise MessageLostError("too long")
            content: bytes = pull(identifier)
            with lock:
                came += len(content)
            return content

        contents: dict[str, bytes] = self._call(
            lambda: pull_objects(
                identifiers,
                counted,
                max_concurrent_pulls=2,
                max_time=_CALL_S,
                initial_backoff=0.02,
                backoff_cap=0.5,
            )
        )
        if came > self._most_bytes:
            raise MessageLostError("too long")
        return contents

    def _call(self, work: Callable[[], Any]) -> Any:
        try:
            return work()
        except httpx.HTTPStatusError as error:
            status = error.response.status_code
            if _run_is_over(error.response):
                raise UnwantedError("its run has ended") from None
            if status in _REFUSED:
                raise PolicyError(
                    f"the coordinator does not let this site in (HTTP {status})",
                    remedy="ask the consortium whether this site's key is registered and not revoked; check this machine's clock",
                    code="link-refused",
                ) from None
            raise LinkLostError(f"HTTP {status}", failed=status not in _AWAY) from None
        except (httpx.HTTPError, ssl.SSLError, OSError) as error:
            raise LinkLostError(f"{type(error).__name__}: {error}") from None
        except ValueError:  # what protobuf cannot read
            raise LinkLostError("an answer that cannot be read") from None

    def _let_in(self, key: bytes, earlier: Standing | None) -> Node:
        """Return the node as which the coordinator lets this site in."""
        asked = ActivateNodeRequest(public_key=key, heartbeat_interval=_BEAT_INTERVAL_S)
        try:
            return Node(node_id=self._call(lambda: self._client.ActivateNode(asked)).node_id)
        except PolicyError:
            # It lets nobody in whose last line it counts as open, as after its own death. Until it would not, nobody else can have come in with this key.
            if earlier is None or time.monotonic() >= earlier.until:
                raise
            node = Node(node_id=earlier.node)
            if not self._call(lambda: self._beat_of(node)):
                raise
            return node

    def _beat(self) -> None:
        while not self._closed.wait(_BEATS_APART_S):
            try:
                self._beat_of(self._node)
            except (httpx.HTTPError, RuntimeError, ValueError, OSError):
                continue  # the next call tells the caller

    def _beat_of(self, node: Node) -> bool:
        """Say that this site is there; return whether the coordinator knows it."""
        begun = time.monotonic()
        asked = SendNodeHeartbeatRequest(node=node, heartbeat_interval=_BEAT_INTERVAL_S)
        known = bool(self._client.SendNodeHeartbeat(asked).success)
        if known:
            self._seen = begun
        return known


def _run_is_over(response: httpx.Response) -> bool:
    """Whether the SuperLink says that a call is about a run that ended: a status by which nginx says something else."""
    try:
        said = response.json()
    except (ValueError, httpx.HTTPError):
        return False
    return isinstance(said, dict) and said.get("code") == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED.value


class _Client(FleetHttpClient):
    """Flower's client of the Fleet API over a transport of ours."""

    def __init__(
        self,
        address: str,
        transport: httpx.HTTPTransport,
        call_s: float,
        *,
        interceptors: list[ProtobufClientInterceptor],
    ) -> None:
        super().__init__(f"https://{address}", interceptors=interceptors, verify=False)
        self._client.close()  # the one that `super` made, before it was used
        self._client = httpx.Client(transport=transport, timeout=call_s)
