"""The codecs that connectrpc uses: decode publish requests, and encode their answers.

A publish is decoded into :class:`PublishRequest`, and its ids are encoded from :class:`Published`. In JSON this skips
the Protobuf message in between, which takes twenty times as long. All other messages use Protobuf's own codecs.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from connectrpc.code import Code
from connectrpc.codec import Codec
from connectrpc.compat import google_protobuf_binary_codec, google_protobuf_json_codec
from connectrpc.compression.gzip import GzipCompression
from google.protobuf.json_format import ParseError

from ..core.errors import InvalidArgument, PubsubError
from ..core.validation import check_message_id
from ..core.values import Item
from ..gen.db_pb2 import (
    PublishBatchRequest,
    PublishBatchResponse,
    PublishError,
    PublishItem,
    PublishStreamRequest,
    PublishStreamResponse,
)
from ..live.publisher import Answer
from ..protocol.connect_frames import envelope
from ..protocol.items import NOT_ORDINARY
from .details import connect_error, failure

#: zlib's ``wbits`` for a gzip member with its header and checksum.
_GZIP = 31


@dataclass(frozen=True, slots=True)
class PublishRequest:
    """A publish request whose fields have been checked, and its size in bytes, decompressed."""

    db_name: str
    items: list[Item]
    size: int


class _JsonRequest(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    db_name: str = msgspec.field(name="dbName")
    items: list[Item]


class Published(msgspec.Struct, frozen=True):
    """The ids of published messages, in the order of the request."""

    message_ids: Sequence[int]


class StreamRequest(msgspec.Struct, frozen=True):
    """One request of a publish stream, with its size in bytes; an error stands for items that cannot be published."""

    db_name: str
    items: list[Item] | PubsubError
    size: int


_JSON = msgspec.json.Decoder(_JsonRequest)


def _item(item: PublishItem, n: int) -> Item:
    channel, payload, blob = item.channel, item.payload, item.blob
    if not channel:
        raise InvalidArgument(f"items[{n}].channel is empty")
    if blob and payload:
        raise InvalidArgument(f"items[{n}].payload and items[{n}].blob exclude each other")
    expected = None
    if item.HasField("expected_last_id"):
        expected = check_message_id(item.expected_last_id, f"items[{n}].expected_last_id")
    return Item(channel, blob or payload, item.key or None, expected)


def _request(message: PublishBatchRequest, size: int) -> PublishRequest:
    try:
        return PublishRequest(message.db_name, [_item(item, n) for n, item in enumerate(message.items)], size)
    except PubsubError as error:
        raise connect_error(error) from None


def _stream_request(message: PublishStreamRequest, size: int) -> StreamRequest:
    try:
        return StreamRequest(message.db_name, [_item(item, n) for n, item in enumerate(message.items)], size)
    except PubsubError as error:
        return StreamRequest(message.db_name, error, size)


def _checked(message: Any, size: int) -> Any:
    if isinstance(message, PublishBatchRequest):
        return _request(message, size)
    if isinstance(message, PublishStreamRequest):
        return _stream_request(message, size)
    return message


def answer_frames(answers: Sequence[Answer], as_json: bool) -> bytes:
    """The answers of a publish stream as enveloped messages."""
    codec = google_protobuf_json_codec() if as_json else google_protobuf_binary_codec()
    return b"".join(envelope(codec.encode(_response(answer))) for answer in answers)


def _response(answer: Answer) -> PublishStreamResponse:
    number, outcome = answer
    if isinstance(outcome, PubsubError):
        return PublishStreamResponse(request=number, error=PublishError(code=outcome.code, message=outcome.message))
    return PublishStreamResponse(request=number, message_ids=outcome)


def _of_json(data: bytes | bytearray) -> PublishRequest | None:
    """Decode a publish of ordinary messages; ``None`` for JSON that needs Protobuf's own codec."""
    try:
        request = _JSON.decode(data)
    except NOT_ORDINARY:
        return None
    ordinary = all(type(item.payload) is str and item.channel and item.key != "" for item in request.items)
    return PublishRequest(request.db_name, request.items, len(data)) if ordinary else None


class _Binary(Codec[Any, Any]):
    def __init__(self) -> None:
        self._protobuf = google_protobuf_binary_codec()

    def name(self) -> str:
        return self._protobuf.name()

    def encode(self, message: Any) -> bytes:
        if isinstance(message, Published):
            message = PublishBatchResponse(message_ids=message.message_ids)
        return self._protobuf.encode(message)

    def decode(self, data: bytes | bytearray, message_class: type[Any]) -> Any:
        return _checked(self._protobuf.decode(data, message_class), len(data))


class _Json(Codec[Any, Any]):
    def __init__(self) -> None:
        self._protobuf = google_protobuf_json_codec()

    def name(self) -> str:
        return self._protobuf.name()

    def encode(self, message: Any) -> bytes:
        if isinstance(message, Published):
            # https://protobuf.dev/programming-guides/json/: an int64 is text.
            return msgspec.json.encode({"messageIds": list(map(str, message.message_ids))})
        return self._protobuf.encode(message)

    def decode(self, data: bytes | bytearray, message_class: type[Any]) -> Any:
        if message_class is PublishBatchRequest:
            request = _of_json(data)
            if request is not None:
                return request
        try:
            message = self._protobuf.decode(data, message_class)
        except ParseError as error:
            if not isinstance(error.__context__, SystemError):
                raise
            # Protobuf raises SystemError for such a name of a field.
            text = "the name of a field holds half of a surrogate pair, which is not valid Unicode"
            raise failure(Code.INVALID_ARGUMENT, text) from None
        return _checked(message, len(data))


CODECS: list[Codec[Any, Any]] = [_Binary(), _Json()]


class Gzip(GzipCompression):
    """Decompresses one gzip member, up to a limit: a defence against decompression bombs.

    connectrpc's own class accepts millions of empty members, and copies the rest of the data for each. ``limit`` is the
    largest result, in bytes, and ``named`` the setting or reason that the error names.
    """

    def __init__(self, limit: int, named: str) -> None:
        super().__init__()
        self._limit = limit
        self._named = named

    def decompress(self, data: bytes | bytearray | memoryview, read_max_bytes: int | None = None) -> bytes:
        """The decompressed bytes. Raises ``ConnectError`` over the limit, and for data that is not gzip."""
        limit = self._limit
        unpacker = zlib.decompressobj(wbits=_GZIP)
        try:
            # One byte more than the limit, since zlib takes 0 for no limit.
            found = unpacker.decompress(data, limit + 1)
        except zlib.error:
            raise failure(Code.INVALID_ARGUMENT, "the message is not compressed with gzip, as it says") from None
        if len(found) > limit:
            raise failure(
                Code.RESOURCE_EXHAUSTED, f"the unpacked message is over the limit of {limit} bytes ({self._named})"
            )
        if not unpacker.eof or unpacker.unused_data:
            raise failure(Code.INVALID_ARGUMENT, "the compressed message is not one whole gzip member")
        return found
