"""Messages that pass through a stream as they are, for subscribers in the server's own process."""

from __future__ import annotations

import struct
from collections.abc import Iterator

import msgspec

from ..core.events import Event
from ..core.values import Message

_LENGTH = struct.Struct(">I")


class PassedEncoder:
    """Encodes messages so that :func:`messages` makes the same ones. Events have no frames: the first message of a
    stream tells a gap.
    """

    name = "passed"

    def message(self, message: Message, missed: int = 0) -> bytes:
        data = msgspec.msgpack.encode((message.id, message.channel, message.payload, message.created_at, missed))
        return _LENGTH.pack(len(data)) + data

    def event(self, event: Event) -> bytes:
        return b""


def messages(frames: bytes) -> Iterator[tuple[Message, int]]:
    """The messages of one send, each with the number of those that were missed before it."""
    at = 0
    while at < len(frames):
        end = at + _LENGTH.size + _LENGTH.unpack_from(frames, at)[0]
        *fields, missed = msgspec.msgpack.decode(frames[at + _LENGTH.size : end])
        yield Message(*fields), missed
        at = end
