"""What a message is on a site's line: small content as one record, or inside the message's head; and nothing longer than the site takes.

======================================================  ===========================
case                                                    outcome
======================================================  ===========================
a head with content that is too long                    `MessageLostError`
parts that would unfold into more than the site takes   `MessageLostError`
content that cannot be read                             `MessageLostError`
======================================================  ===========================
"""

from __future__ import annotations

import json
from collections.abc import Mapping

from flwr.app import Array, ConfigRecord, Message, RecordDict
from flwr.common.serde import message_from_proto, recorddict_from_proto, recorddict_to_proto
from flwr.proto.message_pb2 import Message as ProtoMessage
from flwr.proto.recorddict_pb2 import RecordDict as ProtoRecordDict
from flwr.supercore.inflatable.inflatable_object import (
    get_object_body,
    get_object_head_values_from_object_content,
)

from cloister.core.protocol import MOST_INSIDE, MOST_PACKED, PACKED

__all__ = ["MessageLostError", "check_unfolded", "fits_inside", "pack", "unpack", "whole"]


class MessageLostError(Exception):
    """One message could not be taken; the line stands."""


def pack(content: RecordDict) -> RecordDict:
    """Return ``content`` as one record where it is small: each record is an object of its own, and costs two calls at either side."""
    if (
        PACKED in content
        or sum(record.count_bytes() for record in content.array_records.values()) > MOST_PACKED
    ):
        return content
    return RecordDict({PACKED: ConfigRecord({PACKED: recorddict_to_proto(content).SerializeToString()})})


def whole(head: ProtoMessage, most_bytes: int) -> Message:
    """Return the message that a head with content is.

    Raises:
        MessageLostError: it is longer than ``most_bytes``.
    """
    if head.ByteSize() > most_bytes:
        raise MessageLostError("too long")
    return message_from_proto(head)


def fits_inside(content: RecordDict) -> bool:
    """Whether a message is small enough to bring its content itself."""
    record = content.config_records.get(PACKED)
    packed = None if record is None else record.get(PACKED)
    return isinstance(packed, bytes) and len(packed) <= MOST_INSIDE


def unpack(content: RecordDict) -> RecordDict:
    """Return what `pack` was given.

    Raises:
        MessageLostError: it cannot be read.
    """
    if PACKED not in content:
        return content
    record = content.config_records.get(PACKED)
    found = None if record is None else record.get(PACKED)
    if not isinstance(found, bytes):
        raise MessageLostError("not packed")
    try:
        return recorddict_from_proto(ProtoRecordDict.FromString(found))
    except Exception as error:
        raise MessageLostError(type(error).__name__) from error


def check_unfolded(contents: Mapping[str, bytes], most_bytes: int) -> None:
    """Refuse parts that would make more of a message than came: an array's part names its pieces, each as often as it likes.

    Raises:
        MessageLostError: its arrays would be longer than ``most_bytes`` together, or a part cannot be read.
    """
    whole = 0
    try:
        for content in contents.values():
            kind, pieces, _ = get_object_head_values_from_object_content(content)
            if kind != Array.__name__:
                continue
            sizes = [len(contents[piece]) for piece in pieces]
            named = json.loads(get_object_body(content, Array))["arraychunk_ids"]
            whole += sum(sizes[number] for number in named)
    except Exception as error:
        raise MessageLostError(type(error).__name__) from error
    if whole > most_bytes:
        raise MessageLostError("too long when unfolded")
