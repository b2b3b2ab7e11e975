"""Server-Sent Events: ``/<db>/-/pubsub/-/stream``.

It opens a subscriber for a request, and sends the subscriber's frames as the response. Each response has two tasks and
little else, since thousands of them wait at the same time.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request, Response

from ..access import gateway
from ..access.gateway import Asked
from ..asgi import acknowledged
from ..asgi.acknowledged import Acknowledged
from ..asgi.deferred import deferred
from ..asgi.frame_sender import FrameSender, SendTimeout, send_frames
from ..core.errors import InvalidArgument
from ..core.values import AckMode
from ..live.subscriber import Subscriber
from ..protocol.frames import SseEncoder
from .request import (
    LAST_EVENT_ID,
    broker_of,
    check_parameters,
    read_parameters,
    require_method,
    selector_from,
    where_from,
)
from .responses import STREAM_HEADERS, cors_headers, mapped

if TYPE_CHECKING:
    from datasette.app import Datasette

_ENCODERS = {"": SseEncoder(), "json": SseEncoder(), "raw": SseEncoder(raw=True)}

CONTENT_TYPE = "text/event-stream; charset=utf-8"

#: The parameters, beside those in Datasette's form (:func:`.core.filters.of_parameter`).
PARAMETERS = frozenset(
    {"channel", "pattern", "filter", "subscription", "after", "start", "since", "ack", "format", *LAST_EVENT_ID}
)


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


async def _answer(
    live: Subscriber, scope: Any, receive: Any, send: Any, headers: dict[str, str], seconds: float
) -> None:
    """Send the whole response, until the stream ends or the client disconnects. Raises :class:`SendTimeout`."""
    await send(
        {
            "type": "http.response.start",
            "status": 200,
            "headers": _raw({"Content-Type": CONTENT_TYPE, **STREAM_HEADERS, **headers}),
        }
    )
    arrival = acknowledged.of(scope) if live.automatic else None
    beginning = SseEncoder().beginning()
    await send_frames(send, beginning, seconds)
    if arrival is not None:
        arrival.sent(len(beginning))
    if await _send_until_gone(live, receive, FrameSender(send, seconds, arrival), arrival):
        await send({"type": "http.response.body", "body": b""})


async def _send_until_gone(live: Subscriber, receive: Any, sender: FrameSender, arrival: Acknowledged | None) -> bool:
    """Send all frames; returns whether the client is still connected. Raises :class:`SendTimeout`."""
    task = asyncio.current_task()
    assert task is not None
    waiting = True

    def ended(_: asyncio.Task[None]) -> None:
        if waiting:
            task.cancel()  # the stream has ended: stop waiting for the client to disconnect

    live.through(sender.begin, arrival)
    sending = sender.start(live.frames())
    sending.add_done_callback(ended)
    try:
        while (await receive())["type"] != "http.disconnect":
            pass
    except asyncio.CancelledError:
        if not sending.done() or task.uncancel():
            raise
    finally:
        waiting = False
        gone = not sending.done()
        sending.cancel()  # a send that has not ended does not count as taken
        await asyncio.wait([sending])
        failed = None if sending.cancelled() else sending.exception()
    if failed is not None and not gone:
        raise failed
    return not gone


@deferred
@mapped
async def stream(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
    """The view of one SSE stream; it returns when the stream has ended."""
    require_method(request, "GET", "HEAD", "POST", "QUERY")
    broker = broker_of(datasette, request)
    args = await read_parameters(request, receive)
    check_parameters(args, PARAMETERS)
    selector = selector_from(args, broker.settings)
    where = where_from(request, args)
    name = args.get("subscription")
    encoder = _ENCODERS.get(args.get("format") or "")
    if encoder is None:
        raise InvalidArgument("format must be json or raw")
    mode = args.get("ack") or "auto"
    if mode not in ("auto", "explicit"):
        raise InvalidArgument("ack must be auto or explicit")
    ack: AckMode = "explicit" if mode == "explicit" else "auto"
    asked = Asked(selector=selector, name=name, where=where, ack=ack)
    admitted = await gateway.admit(datasette, request, broker, asked)
    if request.method == "HEAD":
        return Response("", headers=dict(STREAM_HEADERS), content_type=CONTENT_TYPE)
    async with admitted.open(encoder) as live:
        try:
            headers, seconds = cors_headers(datasette), broker.settings.send_timeout_seconds
            await _answer(live, scope, receive, send, headers, seconds)
        except SendTimeout:
            gateway.cut_off(request, broker, "subscriber")
    return None
