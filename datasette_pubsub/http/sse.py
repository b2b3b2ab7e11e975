"""Server-Sent Events: ``/<db>/-/pubsub/-/stream``.

It opens a subscriber for a request, and sends the subscriber's frames as the response. Each response has two tasks and
little else, since thousands of them wait at the same time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request, Response

from ..access import gateway
from ..access.gateway import Asked
from ..asgi import acknowledged
from ..asgi.deferred import deferred
from ..asgi.frame_sender import SendTimeout
from ..core.errors import InvalidArgument
from ..core.values import AckMode
from ..protocol.frames import SseEncoder
from .event_stream import CONTENT_TYPE, answer
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

#: The parameters, beside those in Datasette's form (:func:`.core.filters.of_parameter`).
PARAMETERS = frozenset(
    {"channel", "pattern", "filter", "subscription", "after", "start", "since", "ack", "format", *LAST_EVENT_ID}
)


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
            arrival = acknowledged.of(scope) if live.automatic else None
            await answer(
                live.frames(),
                receive,
                send,
                headers,
                seconds,
                arrival=arrival,
                through=lambda sender, arrival: live.through(sender.begin, arrival),
            )
        except SendTimeout:
            gateway.cut_off(request, broker, "subscriber")
    return None
