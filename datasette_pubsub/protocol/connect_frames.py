"""The wire format of Connect, gRPC and gRPC-Web streams.

It is separate from :mod:`.protocol.frames` so that Protobuf is loaded only when it is needed.
"""

from __future__ import annotations

import struct
from datetime import datetime
from functools import lru_cache
from typing import Any

from ..core.events import Event, Gap, Heartbeat, Ready
from ..core.values import Message, text_of
from ..gen.db_pb2 import Kind, SubscribeResponse
from .frames import compact_json, message_json

_NUMBERS = SubscribeResponse.DESCRIPTOR.fields_by_name
#: The Protobuf tags of a message id and of a payload: the field's number and its wire type.
_ID_TAG = bytes([_NUMBERS["message_id"].number << 3 | 0])
_PAYLOAD_TAG = bytes([_NUMBERS["payload"].number << 3 | 2])

#: The prefix of a message in a Connect stream: a flag byte, and the length in four bytes.
_PREFIX = struct.Struct(">BI").pack


def _message_proto(message: Message, missed: int) -> bytes:
    """A message in Protobuf, in its envelope."""
    # Protobuf decodes two concatenated messages as one message with the fields of both
    # (https://protobuf.dev/programming-guides/encoding/#last-one-wins).
    shared = _shared_fields(message.channel, message.created_at)
    payload = message.payload
    if missed or not isinstance(payload, str) or not payload:
        return envelope(_own_fields(message, missed) + shared)
    # An ordinary message is joined here from parts that it shares with others, in a seventh of the time.
    text = payload.encode()
    number = message.id
    high = _varint(number >> 7) if number > 127 else b""
    head, tag = _around_id(len(high), len(text), len(shared))
    return b"".join((head, _LOW[number & 127 | (128 if high else 0)], high, tag, text, shared))


def _own_fields(message: Message, missed: int) -> bytes:
    """The Protobuf fields that differ between any two messages."""
    own = SubscribeResponse(message_id=message.id, missed=missed)
    if isinstance(message.payload, bytes):
        own.blob = message.payload
    else:
        own.payload = text_of(message.payload)
    return own.SerializeToString()


@lru_cache(maxsize=1024)
def _varint(number: int) -> bytes:
    """Encode a number as a Protobuf varint (https://protobuf.dev/programming-guides/encoding/#varints)."""
    parts = bytearray()
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    parts.append(number)
    return bytes(parts)


#: All values of the first byte of a varint.
_LOW = [bytes([byte]) for byte in range(256)]


@lru_cache(maxsize=1024)
def _around_id(high: int, text: int, shared: int) -> tuple[bytes, bytes]:
    """The bytes before the id and before the payload of an ordinary message, by the sizes of its parts in bytes.

    ``high`` is the size of the id without its first byte.
    """
    tag = _PAYLOAD_TAG + _varint(text)
    size = len(_ID_TAG) + 1 + high + len(tag) + text + shared
    return _PREFIX(0, size) + _ID_TAG, tag


@lru_cache(maxsize=1024)
def _shared_fields(channel: str, created_at: str) -> bytes:
    """The Protobuf fields that the messages of one channel and one commit share."""
    response = SubscribeResponse(channel=channel)
    response.created_at.seconds, response.created_at.nanos = _timestamp(created_at)
    return response.SerializeToString()


class ConnectEncoder:
    """Enveloped messages of Connect, gRPC and gRPC-Web streams.

    Each has a flag byte, the length in four bytes and the message
    (https://connectrpc.com/docs/protocol/#streaming-rpcs). The end of the stream
    says why it ended, so ``Superseded`` and ``Bye`` have no frame.
    """

    def __init__(self, as_json: bool, status: bool = False, heartbeats: bool = False) -> None:
        self.name = "connect-json" if as_json else "connect-proto"
        self._as_json = as_json
        self._status = status
        self._heartbeats = heartbeats

    def message(self, message: Message, missed: int = 0) -> bytes:
        if self._as_json:
            return envelope(message_json(message, missed))
        return _message_proto(message, missed)

    def event(self, event: Event) -> bytes:
        match event:
            case Heartbeat(head) if self._heartbeats:
                fields: dict[str, Any] = {"kind": "KIND_HEARTBEAT", "head": head}
            case Ready(head) if self._status:
                fields = {"kind": "KIND_READY", "head": head}
            case Gap(missed, resumed_at) if self._status:
                fields = {"kind": "KIND_GAP", "missed": missed, "head": resumed_at}
            case _:
                return b""
        if self._as_json:
            return envelope(compact_json({k: v if k == "kind" else str(v) for k, v in fields.items()}).encode())
        fields["kind"] = Kind.Value(fields["kind"])
        return envelope(SubscribeResponse(**fields).SerializeToString())


def envelope(data: bytes) -> bytes:
    """One message of a Connect stream: a flag byte, the length in four bytes, and the data."""
    return _PREFIX(0, len(data)) + data


def _timestamp(created_at: str) -> tuple[int, int]:
    """Seconds and nanoseconds of a time in the log's format; zero for an invalid one."""
    try:
        moment = datetime.fromisoformat(created_at)
    except ValueError:
        return 0, 0
    return int(moment.timestamp() // 1), moment.microsecond * 1000
