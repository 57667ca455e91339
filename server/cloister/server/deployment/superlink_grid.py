"""A run's messages at Flower's SuperLink: sent, fetched, and what a hostile site's replies may do to neither.

Small messages bring their content in their head: one call for many of them. Larger ones travel in Flower's way, a head and then part by part.

=============================================  =====================================================
case                                           outcome
=============================================  =====================================================
a reply that is too long, or cannot be read    it is lost, and no other
one whose parts are late, or never come        waited for as long as the caller asks, in nobody's way
one at which the SuperLink itself fails        asked for `_TRIES` times by itself, then lost
the SuperLink was started anew while messages  ``PeersMissing`` (superlink)
were sent
=============================================  =====================================================
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable
from contextlib import suppress

import httpx
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.common.constant import SubStatus
from flwr.common.serde import (
    message_from_proto,
    message_to_proto,
    recorddict_from_proto,
    recorddict_to_proto,
    run_from_proto,
)
from flwr.proto.message_pb2 import ConfirmMessageReceivedRequest, ObjectTree
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.proto.runtime_pb2 import (
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushAppMessagesRequest,
    PushTaskOutputRequest,
)
from flwr.supercore.heartbeat import HeartbeatSender, make_task_heartbeat_fn_http
from flwr.supercore.inflatable.inflatable_protobuf_utils import make_pull_object_fn_protobuf
from flwr.supercore.inflatable.inflatable_utils import ObjectPushError
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.grid import HttpGrid

from cloister.core.errors import PeersMissing
from cloister.core.protocol import MOST_INSIDE, MOST_PACKED, PACKED
from cloister.server.deployment.reply_parts import ReplyInParts

__all__ = ["SuperLinkGrid"]

#: Seconds between two questions for replies: the SuperLink is one process, and each question takes from what the sites get of it.
_APART_S = 0.05
#: Messages that bring their content, in one call.
_A_CALL = 32
#: How often the SuperLink may fail at one reply; it may also be busy.
_TRIES = 3


class SuperLinkGrid(HttpGrid):
    """Flower's grid over HTTP, which gives up a reply that is too long and keeps the run's task alive.

    Args:
        address: ``host:port``.
        root: whose certificates are accepted, PEM.
        token: of the run's task.
        most_bytes: of one reply.
        stock: whether Flower's own SuperNodes answer, which look for a message's content in its parts only.
    """

    def __init__(
        self, address: str, root: bytes, token: str, *, most_bytes: int, stock: bool = False
    ) -> None:
        super().__init__(address, insecure=False, root_certificates=root, token=token)
        self._most_bytes, self._stock = most_bytes, stock
        self._failed: Counter[str] = Counter()
        self._parted: list[ReplyInParts] = []
        self._heart: HeartbeatSender | None = None
        self._asked = 0.0

    def begin(self) -> None:
        """Tell the SuperLink that the task is under way."""
        answer = self._runtime_client.PullTaskInput(PullTaskInputRequest())
        TaskIdentity.task_id = answer.task_id
        TaskIdentity.run_id = answer.run.run_id
        TaskIdentity.node_id = answer.context.node_id
        self.set_run(run_from_proto(answer.run))
        self._heart = HeartbeatSender(make_task_heartbeat_fn_http(self._runtime_client))
        self._heart.start()

    def end(self) -> None:
        """Tell it that the task is done, if it still listens."""
        self._retry_invoker.max_tries = 1
        with suppress(httpx.HTTPError):
            self._runtime_client.PushTaskOutput(
                PushTaskOutputRequest(sub_status=SubStatus.COMPLETED, details="")
            )
        if self._heart is not None and self._heart.is_running:
            self._heart.stop()
        self.close()

    def keys(self) -> dict[int, bytes]:
        """Return the public key of each node that is online, by its number."""
        return {int(node.node_id): bytes(node.public_key) for node in self.get_nodes()}

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Send these messages, each packed where it is small; return their names in the same order.

        Raises:
            PeersMissing: (superlink) it was started anew in the middle, and knows nothing of them.
        """
        given = list(messages)
        whole = [message.content for message in given]
        for message in given:
            message.content = _packed(message.content)
        try:
            return super().push_messages(given)
        except ObjectPushError:
            raise PeersMissing(
                "the SuperLink was started anew while messages were sent",
                remedy="nothing: the job is tried again, and goes on where it was",
                code="superlink",
            ) from None
        finally:
            for message, content in zip(given, whole, strict=True):
                message.content = content

    def _try_push_messages(self, run_id: int, messages: Iterable[Message]) -> list[str]:
        """Send small messages with their content, several in a call, and the others in Flower's way: a head, and then part by part."""
        given, names = list(messages), dict[int, str]()
        heads: dict[int, ProtoMessage] = {}
        if not self._stock:
            heads = {place: message_to_proto(one) for place, one in enumerate(given) if _inside(one.content)}
        inside = list(heads)
        for batch in (inside[first : first + _A_CALL] for first in range(0, len(inside), _A_CALL)):
            answer = self._runtime_client.PushMessages(
                PushAppMessagesRequest(
                    messages_list=[heads[place] for place in batch],
                    message_object_trees=[
                        ObjectTree(object_id=given[place].metadata.message_id) for place in batch
                    ],
                )
            )
            names.update(zip(batch, answer.message_ids, strict=True))
            if len(batch) > 1:
                # Nobody pushes what the SuperLink now waits for, and who asks for it after 180 s makes it delete all messages of that call. Sent once more, the first
                # one alone is what the wait is about: whoever it is for can delete their own message.
                first_one = given[batch[0]].metadata.message_id
                self._runtime_client.PushMessages(
                    PushAppMessagesRequest(
                        messages_list=[heads[batch[0]]],
                        message_object_trees=[ObjectTree(object_id=first_one)],
                    )
                )
        apart = [place for place in range(len(given)) if place not in heads]
        if apart:
            sent = super()._try_push_messages(run_id, [given[place] for place in apart])
            names.update(zip(apart, sent, strict=True))
        return [names[place] for place in range(len(given))]

    def pull_messages(self, message_ids: Iterable[str]) -> list[Message]:
        """Fetch the replies to these messages that are there; one that is too long counts as lost, and is not fetched whole."""
        time.sleep(max(0.0, self._asked + _APART_S - time.monotonic()))
        self._asked = time.monotonic()
        wanted = {name for name in message_ids if self._failed[name] < _TRIES}
        for one in [one for one in self._parted if one.asked not in wanted]:
            self._let_go(one)  # nobody waits for it any more
        begun = {one.asked for one in self._parted}
        found = self._fetched(wanted - begun) if wanted - begun else []
        for one in list(self._parted):
            try:
                message = one.fetched()
                if message is None:
                    continue
                message = _opened(message)
            except httpx.HTTPError:
                raise
            except Exception:  # noqa: BLE001 - whatever a site's bytes make of it: that reply is lost, and no other
                self._let_go(one)
                continue
            self._let_go(one)
            message.metadata.__dict__["_message_id"] = one.identifier
            found.append(message)
        return found

    def _fetched(self, identifiers: set[str]) -> list[Message]:
        """Return the replies that came whole; of others the head is noted."""
        client, run = self._runtime_client, self.run.run_id
        try:
            answer = client.PullMessages(PullAppMessagesRequest(message_ids=sorted(identifiers)))
        except httpx.HTTPStatusError as error:
            if error.response.status_code != httpx.codes.INTERNAL_SERVER_ERROR:
                raise
            # A reply that the SuperLink took and cannot read (its time is no number, say) makes it fail at every question about it: it is asked for some times more.
            if len(identifiers) < 2:
                self._failed.update(identifiers)
                return []
            return [message for one in sorted(identifiers) for message in self._fetched({one})]
        found = []
        for head, tree in zip(answer.messages_list, answer.message_object_trees, strict=True):
            if head.metadata.reply_to_message_id not in identifiers:  # a site may send what nobody asked for
                self._forget(head.metadata.message_id)
                continue
            if not head.content.items and not head.HasField("error"):
                pull = make_pull_object_fn_protobuf(client.PullObject, self.node, run)
                self._parted.append(
                    ReplyInParts(head.metadata, tree=tree, pull=pull, most_bytes=self._most_bytes)
                )
                continue
            try:
                message = _opened(_whole(head, self._most_bytes))
            except Exception:  # noqa: BLE001, S112 - as above
                continue
            message.metadata.__dict__["_message_id"] = head.metadata.message_id
            found.append(message)
        return found

    def _let_go(self, reply: ReplyInParts) -> None:
        """Be done with a reply, whether it was read or given up."""
        self._parted.remove(reply)
        self._forget(reply.identifier)

    def _forget(self, reply: str) -> None:
        """Let the SuperLink forget it; what it does not forget goes with the run."""
        with suppress(httpx.HTTPStatusError):
            self._runtime_client.ConfirmMessageReceived(
                ConfirmMessageReceivedRequest(node=self.node, run_id=self.run.run_id, message_object_id=reply)
            )


def _packed(content: RecordDict) -> RecordDict:
    """Return ``content`` as one record where it is small: each record is an object of its own, and costs two calls at either side."""
    if sum(record.count_bytes() for record in content.array_records.values()) > MOST_PACKED:
        return content
    return RecordDict({PACKED: ConfigRecord({PACKED: recorddict_to_proto(content).SerializeToString()})})


def _whole(head: ProtoMessage, most_bytes: int) -> Message:
    """Return the message that a head with content is.

    Raises:
        ValueError: it is longer than ``most_bytes``, or cannot be read.
    """
    if head.ByteSize() > most_bytes:
        raise ValueError("too long")
    return message_from_proto(head)


def _inside(content: RecordDict) -> bool:
    """Whether a message is small enough to bring its content itself."""
    record = content.config_records.get(PACKED)
    packed = None if record is None else record.get(PACKED)
    return isinstance(packed, bytes) and len(packed) <= MOST_INSIDE


def _opened(message: Message) -> Message:
    """Return a message with the records that were packed into one."""
    if message.has_content():
        message.content = _unpacked(message.content)
    return message


def _unpacked(content: RecordDict) -> RecordDict:
    if PACKED not in content:
        return content
    return recorddict_from_proto(ProtoRecordDict.FromString(content.config_records[PACKED][PACKED]))
