"""Live queries as Server-Sent Events: ``/<db>/-/pubsub/-/live``, by GET or, for long SQL, by POST or QUERY."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasette.utils import MultiParams
from datasette.utils.asgi import Request, Response

from ..access import gateway
from ..access.questions import AskedQuery
from ..asgi.deferred import deferred
from ..asgi.frame_sender import SendTimeout
from ..protocol.query_frames import SseQueryEncoder
from .event_stream import CONTENT_TYPE, answer
from .request import broker_of, read_parameters, require_method
from .responses import STREAM_HEADERS, cors_headers, mapped

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The parameters of this address; all others belong to the query or are filters of the table.
OWN = ("sql", "table", "query", "key")

_ENCODER = SseQueryEncoder()


def asked_from(args: MultiParams) -> AskedQuery:
    """What the parameters ask for. Raises :class:`~.core.errors.InvalidArgument`."""
    return AskedQuery(
        sql=args.get("sql") or "",
        table=args.get("table") or "",
        query=args.get("query") or "",
        key=tuple(args.getlist("key")),
        args=tuple((name, value) for name in args if name not in OWN for value in args.getlist(name)),
    )


@deferred
@mapped
async def stream(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
    """The view of one live query; it returns when the stream has ended."""
    require_method(request, "GET", "HEAD", "POST", "QUERY")
    broker = broker_of(datasette, request)
    asked = asked_from(await read_parameters(request, receive))
    admitted = await gateway.admit_query(datasette, request, broker, asked)
    if request.method == "HEAD":
        return Response("", headers=dict(STREAM_HEADERS), content_type=CONTENT_TYPE)
    async with admitted.open(_ENCODER) as subscriber:
        try:
            headers, seconds = cors_headers(datasette), broker.settings.send_timeout_seconds
            await answer(
                subscriber.frames(),
                receive,
                send,
                headers,
                seconds,
                through=lambda sender, _: subscriber.through(sender.begin),
            )
        except SendTimeout:
            gateway.cut_off(request, broker, "subscriber of a live query")
    return None
