"""Publishing over Connect RPC: one batch, or a stream of batches.

connectrpc reads the requests, and writes the headers, the errors and the ends of streams. The answers of a stream
bypass it, many in one send.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from connectrpc.code import Code

from ..access import gateway
from ..asgi.frame_sender import SendTimeout
from ..broker.broker import Broker
from ..broker.registry import registry
from ..core.errors import InvalidArgument, PubsubError, RequestTimeout
from ..core.events import Bye, Revoked
from ..core.limits import BODY_SECONDS
from ..core.values import Item
from ..gen.db_pb2 import ErrorDetail, PublishStreamResponse
from ..http.request import BodyLimit, publish_limit
from ..live.publisher import PublishStream
from .call import as_connect_error, current
from .codecs import Published, PublishRequest, StreamRequest, answer_frames
from .details import failure

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The method whose requests never end by themselves.
STREAM = "PublishStream"


async def batch(datasette: Datasette, request: PublishRequest) -> Published:
    """Append all messages or none. Raises ``ConnectError``."""
    try:
        broker = registry(datasette).of(request.db_name)
        _check_size(broker, request.size)
        return Published(await gateway.publish(datasette, current.get().request, broker, request.items))
    except Exception as error:
        raise as_connect_error(error) from error


async def stream(datasette: Datasette, requests: AsyncIterator[StreamRequest]) -> AsyncIterator[PublishStreamResponse]:
    """Append messages as they arrive. Yields one placeholder, which makes connectrpc send its headers."""
    call = current.get()
    try:
        first = await anext(requests, None)
        if first is None:
            return
        broker = registry(datasette).of(first.db_name)
        as_json = "json" in call.request.headers.get("content-type", "")
        async with gateway.open_publisher(datasette, call.request, broker) as publish_stream:
            feed = _feed(broker, first, requests, publish_stream)
            async with contextlib.aclosing(publish_stream.answers(feed)) as answers:
                call.sender.taking_over = True
                yield PublishStreamResponse()
                async for found in answers:
                    if found:
                        await call.sender.raw(answer_frames(found, as_json), broker.settings.send_timeout_seconds)
    except SendTimeout:
        call.sender.stuck = True
        gateway.cut_off(call.request, broker, "publisher")
        raise failure(
            Code.DEADLINE_EXCEEDED, "the publisher accepted no answers for too long (send_timeout_seconds)"
        ) from None
    except Exception as error:
        raise as_connect_error(error) from error
    number = publish_stream.taken + 1
    if isinstance(publish_stream.end, Bye):
        text = f"the server is shutting down; from request {number} on nothing was published"
        raise failure(Code.UNAVAILABLE, text, ErrorDetail(ended="shutdown"))
    if isinstance(publish_stream.end, Revoked):
        text = f"the right to publish has ended; from request {number} on nothing was published"
        raise failure(Code.PERMISSION_DENIED, text, ErrorDetail(ended="revoked"))


def _check_size(broker: Broker, size: int) -> None:
    """Raise :class:`PayloadTooLarge` for a request over its database's limit; its body names the database."""
    limit = publish_limit(broker)
    if size > limit.size:
        raise limit.exceeded()


async def _feed(
    broker: Broker, first: StreamRequest, requests: AsyncIterator[StreamRequest], publish_stream: PublishStream
) -> None:
    number = 1
    await publish_stream.put([number], [_items(broker, first)])
    async for request in requests:
        number += 1
        items = _items(broker, request)
        if request.db_name not in ("", broker.name):
            items = InvalidArgument(f"db_name must be {broker.name} or empty: a stream publishes to one database")
        await publish_stream.put([number], [items])


def _items(broker: Broker, request: StreamRequest) -> list[Item] | PubsubError:
    try:
        _check_size(broker, request.size)
    except PubsubError as error:
        return error.bare()
    return request.items


def receiver(receive: Any, limit: BodyLimit) -> Any:
    """A ``receive`` that limits each message of the stream: ``BODY_SECONDS`` from its beginning, and ``limit`` bytes.

    The size counts as it is sent, before decompression.
    """
    messages = _Envelopes()
    loop = asyncio.get_running_loop()
    began: float | None = None

    async def received() -> Any:
        nonlocal began
        try:
            async with asyncio.timeout_at(None if began is None else began + BODY_SECONDS):
                message = await receive()
        except TimeoutError:
            raise as_connect_error(RequestTimeout(f"the request took longer than {BODY_SECONDS:g} seconds")) from None
        incomplete = messages.feed(message.get("body", b""))
        if messages.largest > limit.size:
            raise as_connect_error(limit.exceeded("the request"))
        if not incomplete:
            began = None
        elif began is None or messages.new:
            began = loop.time()
        return message

    return received


class _Envelopes:
    """Follows the messages in a body: each has a flag byte, its length in four bytes, and its data."""

    def __init__(self) -> None:
        #: Whether the incomplete message began in the last part.
        self.new = False
        #: The largest length that a message has stated, in bytes.
        self.largest = 0
        self._head = b""
        self._left = 0

    def feed(self, data: bytes) -> bool:
        """Read the next part of the body; returns whether it ends inside a message."""
        at = 0
        self.new = False
        while at < len(data):
            if self._left:
                step = min(self._left, len(data) - at)
                self._left -= step
            else:
                self.new = self.new or not self._head
                step = min(5 - len(self._head), len(data) - at)
                self._head += data[at : at + step]
                if len(self._head) == 5:
                    self._left = int.from_bytes(self._head[1:], "big")
                    self.largest = max(self.largest, self._left)
                    self._head = b""
            at += step
        return bool(self._left or self._head)
