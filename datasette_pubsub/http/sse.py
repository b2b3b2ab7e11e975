"""Server-Sent Events: ``GET /<db>/-/pubsub/-/stream``.

The law of this module: it turns a request into a stream of the broker and its
bytes into a response; what is sent, and when, is decided elsewhere. A response
is two tasks and little else: thousands of them wait at the same time.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request, Response

from ..access import permissions, revalidation
from ..access.cross_site import refuse_elsewhere
from ..asgi import acknowledged
from ..asgi.acknowledged import Acknowledged
from ..asgi.deferred import endless
from ..asgi.frame_sender import Outlet, ReaderStuck, send_frames
from ..broker import shutdown
from ..core.errors import InvalidArgument
from ..core.values import AckMode
from ..live.subscriber import Stream
from ..protocol.frames import SseEncoder
from .request import LAST_EVENT_ID, broker_of, check_parameters, only_get, selector_from, where_from
from .responses import STREAM_HEADERS, cors_headers, mapped

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_pubsub")

_ENCODERS = {"": SseEncoder(), "json": SseEncoder(), "raw": SseEncoder(raw=True)}

CONTENT_TYPE = "text/event-stream; charset=utf-8"

#: What may stand in the query string.
PARAMETERS = frozenset(
    {"channel", "pattern", "subscription", "after", "start", "since", "ack", "format", *LAST_EVENT_ID}
)


def _raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in headers.items()]


async def _answer(live: Stream, scope: Any, receive: Any, send: Any, headers: dict[str, str], seconds: float) -> None:
    """The whole response: until the stream ends or its reader has gone. Raises :class:`ReaderStuck`."""
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
    if await _send_until_gone(live, receive, Outlet(send, seconds, arrival), arrival):
        await send({"type": "http.response.body", "body": b""})


async def _send_until_gone(live: Stream, receive: Any, outlet: Outlet, arrival: Acknowledged | None) -> bool:
    """Send all of the stream; whether its reader is still there. Raises :class:`ReaderStuck`."""
    task = asyncio.current_task()
    assert task is not None
    waiting = True

    def ended(_: asyncio.Task[None]) -> None:
        if waiting:
            task.cancel()  # nobody waits any more for the reader to go

    live.through(outlet.begin, arrival)
    sending = outlet.start(live.frames())
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
        sending.cancel()  # what is being sent does not count as taken
        await asyncio.wait([sending])
        failed = None if sending.cancelled() else sending.exception()
    if failed is not None and not gone:
        raise failed
    return not gone


@endless
@mapped
async def stream(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
    """The view of one SSE stream; it returns when the stream has ended."""
    only_get(request)
    check_parameters(request, PARAMETERS)
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

    if name:
        refuse_elsewhere(request, "a named subscription")
    if request.method == "HEAD":
        return Response("", headers=dict(STREAM_HEADERS), content_type=CONTENT_TYPE)

    async def allowed() -> bool:
        return await revalidation.still_visible(datasette, request, broker.name, wanted, visible)

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
        expires_in=revalidation.expires_in(request.actor),
    ) as live:
        try:
            headers, seconds = cors_headers(datasette), broker.settings.send_timeout_seconds
            await _answer(live, scope, receive, send, headers, seconds)
        except ReaderStuck:
            shutdown.cut_off(scope)
            logger.info(
                "database %s: a reader was cut off: it took nothing for %s s (send_timeout_seconds)",
                broker.name,
                broker.settings.send_timeout_seconds,
            )
    return None
