"""Server-Sent Events: ``GET /<db>/-/pubsub/-/stream``.

The law of this module: it turns a request into a stream of the broker and its
bytes into a response; what is sent, and when, is decided elsewhere. sse-starlette
writes the headers, hears that the reader has gone and ends the response.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request, Response
from sse_starlette import EventSourceResponse

from . import permissions, shutdown
from .edge import broker_of, cors_headers, mapped, selector_from, where_from
from .errors import InvalidArgument, MethodNotAllowed
from .models import AckMode
from .sending import ReaderStuck, send_frames
from .stream import Stream
from .wire import SseEncoder

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_pubsub")

#: How long an ending server lets a stream say so, in seconds; it needs one loop turn.
GOODBYE_SECONDS = 1.0

_ENCODERS = {"": SseEncoder(), "json": SseEncoder(), "raw": SseEncoder(raw=True)}

HEADERS = {
    # Neither cached nor rewritten on the way; nginx is told not to buffer by sse-starlette (X-Accel-Buffering).
    "Cache-Control": "no-store, no-transform",
}


async def _sent(live: Stream, send: Any, seconds: float) -> AsyncIterator[bytes]:
    """Send the frames past the library, which takes 20 µs for each; to it this is an empty body."""
    async for data in live.frames():
        await send_frames(send, data, seconds)
    yield b""


@mapped
async def stream(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
    """The view of one SSE stream; it returns when the stream has ended."""
    if request.method not in ("GET", "HEAD"):
        raise MethodNotAllowed("the stream is read with GET")
    broker = broker_of(datasette, request)
    selector = selector_from(request, broker.settings.max_channels_per_stream)
    where = where_from(request)
    name = request.args.get("subscription")
    encoder = _ENCODERS.get(request.args.get("format") or "")
    if encoder is None:
        raise InvalidArgument("format must be json or raw")
    mode = request.args.get("ack") or "auto"
    if mode not in ("auto", "explicit"):
        raise InvalidArgument("ack must be auto or explicit")
    ack: AckMode = "explicit" if mode == "explicit" else "auto"
    permissions.check_named(broker.settings, request.actor, name)
    owner = permissions.owner_of(request.actor)
    wanted = selector or (await broker.selector_of(owner, name) if name else selector)
    visible = await permissions.visible(datasette, request.actor, broker.name, wanted)

    async def allowed() -> bool:
        return await permissions.still_visible(datasette, request, broker.name, wanted, visible)

    async with broker.subscribe(
        selector,
        encoder,
        visible=visible,
        owner=owner,
        name=name,
        where=where,
        ack=ack,
        party=permissions.party_of(request),
        allowed=allowed,
    ) as live:
        response = EventSourceResponse(
            _sent(live, send, broker.settings.send_timeout_seconds),
            headers={**HEADERS, **cors_headers(datasette)},
            ping=0,
            shutdown_grace_period=GOODBYE_SECONDS,
        )
        if scope.get("http_version", "1.1") not in ("1.0", "1.1"):
            # RFC 9113, 8.2.2: HTTP/2 knows no connection-specific header fields.
            del response.headers["connection"]
        try:
            await response(scope, receive, send)
        except ReaderStuck:
            shutdown.cut_off(datasette, scope)
            logger.info(
                "database %s: a reader was cut off: it took nothing for %s s (send_timeout_seconds)",
                broker.name,
                broker.settings.send_timeout_seconds,
            )
    return None
