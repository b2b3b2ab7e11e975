"""The publish stream over plain HTTP: newline-delimited JSON in both directions.

It divides a request's body into lines, and writes answers as lines while the request goes on. :mod:`.live.publisher`
decides what is taken, and when.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request

from ..access import gateway
from ..asgi.frame_sender import SendTimeout, send_frames
from ..broker.broker import Broker
from ..core.errors import InvalidArgument, PayloadTooLarge, PermissionDenied, PubsubError, RequestTimeout, Unavailable
from ..core.events import Bye, Revoked
from ..core.limits import BODY_SECONDS
from ..core.values import Item
from ..live.publisher import Answer, PublishStream
from ..protocol.frames import as_json_line
from ..protocol.items import items_of_json
from .request import check_uncompressed
from .responses import STREAM_HEADERS, cors_headers, error_fields, internal

if TYPE_CHECKING:
    from datasette.app import Datasette

CONTENT_TYPE = "application/x-ndjson"

#: The most lines that are decoded in one turn of the event loop: a few milliseconds of work, even if each is invalid.
LINES_AT_ONCE = 250

#: How long the server reads and discards data of a publisher that is still sending after the last line, in seconds.
#: Closing a connection with unread data resets it, and the publisher would lose the answers that it has not read yet.
LINGER_SECONDS = 0.5


class Lines:
    """Divides a body that arrives in parts into lines. Holds at most one incomplete line."""

    def __init__(self, limit: int) -> None:
        #: The number of the line that was decoded last.
        self.number = 0
        #: Whether the body has ended.
        self.ended = False
        self._limit = limit
        self._parts: list[bytes] = []
        self._size = 0
        self._too_long = False
        #: When the first part of the incomplete line arrived, on the loop's clock.
        self.began: float | None = None

    def feed(self, data: bytes) -> Iterator[tuple[list[int], list[Sequence[Item] | PubsubError]]]:
        """Yield the publishes of the lines that are complete now, with the numbers of the lines, some at a time."""
        *lines, rest = data.split(b"\n")
        if lines:
            lines[0] = b"".join([*self._parts, lines[0]])
            self._parts.clear()
            self._size, self.began = 0, None
        for start in range(0, len(lines), LINES_AT_ONCE):
            numbers: list[int] = []
            publishes: list[Sequence[Item] | PubsubError] = []
            for line in lines[start : start + LINES_AT_ONCE]:
                self.number += 1
                if self._too_long or len(line) > self._limit:
                    self._too_long = False
                    publish: Sequence[Item] | PubsubError = PayloadTooLarge(
                        f"the line is over the limit of {self._limit} bytes (max_body_bytes)", limit="max_body_bytes"
                    )
                elif line.isspace() or not line:
                    continue
                else:
                    publish = _publish(line)
                numbers.append(self.number)
                publishes.append(publish)
            yield numbers, publishes
        self._hold(rest)

    def _hold(self, rest: bytes) -> None:
        if not rest:
            return
        if self.began is None:
            self.began = asyncio.get_running_loop().time()
        self._size += len(rest)
        if self._size > self._limit:
            # The rest of the line is discarded.
            self._too_long = True
        if self._too_long:
            self._parts.clear()
        else:
            self._parts.append(rest)


def _publish(line: bytes) -> Sequence[Item] | PubsubError:
    try:
        return items_of_json(line, "the line")
    except PubsubError as error:
        return error.bare()


async def _feed(receive: Any, lines: Lines, publish_stream: PublishStream) -> None:
    """Read the body to its end. Raises :class:`PubsubError` if it is incomplete."""
    more = True
    while more:
        until = None if lines.began is None else lines.began + BODY_SECONDS
        try:
            async with asyncio.timeout_at(until):
                message = await receive()
        except TimeoutError:
            raise RequestTimeout(f"the line took longer than {BODY_SECONDS:g} seconds") from None
        more = message.get("more_body", False)
        lines.ended = not more
        if message["type"] == "http.disconnect":
            if lines.began is not None:
                raise InvalidArgument("the request ended before its last line was complete")
            return
        data = message.get("body", b"")
        for numbers, publishes in lines.feed(data if more else data + b"\n"):
            if numbers:
                await publish_stream.put(numbers, publishes)
            if len(numbers) == LINES_AT_ONCE:
                # Let other tasks run in between.
                await asyncio.sleep(0)


def _line(answer: Answer) -> bytes:
    number, outcome = answer
    if isinstance(outcome, PubsubError):
        return _error_line(number, outcome)
    return b'{"ok":true,"message_ids":[%b]}\n' % ",".join(map(str, outcome)).encode()


def _error_line(number: int, error: PubsubError) -> bytes:
    return as_json_line({"ok": False, "line": number, **error_fields(error)}) + b"\n"


async def publish(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette, broker: Broker) -> None:
    """Answer the lines of a request while they arrive. Raises :class:`PubsubError` before anything is sent."""
    check_uncompressed(request)
    async with gateway.open_publisher(datasette, request, broker) as publish_stream:
        lines = Lines(broker.settings.max_body_bytes)
        started = False
        async with contextlib.aclosing(publish_stream.answers(_feed(receive, lines, publish_stream))) as answers:
            try:
                async for found in answers:
                    if not started:
                        await _start(scope, send, datasette)
                        started = True
                    if found:
                        data = b"".join(map(_line, found))
                        await send_frames(send, data, broker.settings.send_timeout_seconds)
                last = _farewell(publish_stream)
            except SendTimeout:
                gateway.cut_off(request, broker, "publisher")
                return
            except PubsubError as error:
                last = _error_line(lines.number + 1, error)
            except Exception as error:
                last = _error_line(lines.number + 1, internal(error))
        if last:
            await send({"type": "http.response.body", "body": last, "more_body": True})
        if not lines.ended:
            await _linger(receive)
        await send({"type": "http.response.body", "body": b"", "more_body": False})


async def _linger(receive: Any) -> None:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LINGER_SECONDS):
            while (await receive()).get("more_body", False):
                pass


async def _start(scope: Any, send: Any, datasette: Datasette) -> None:
    headers = {"Content-Type": CONTENT_TYPE, **STREAM_HEADERS, **cors_headers(datasette)}
    if scope.get("http_version", "1.1") in ("1.0", "1.1"):
        # The answer may end before the request does.
        headers["Connection"] = "close"
    raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": 200, "headers": raw})


def _farewell(publish_stream: PublishStream) -> bytes:
    """The last line of a stream that was stopped."""
    number = publish_stream.taken + 1
    if isinstance(publish_stream.end, Bye):
        return _error_line(number, Unavailable("the server is shutting down; from this line on nothing was published"))
    if isinstance(publish_stream.end, Revoked):
        return _error_line(
            number, PermissionDenied("the right to publish has ended; from this line on nothing was published")
        )
    return b""
