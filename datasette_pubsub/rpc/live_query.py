"""``LiveQuery``: the result of a query, and then its changes, as a stream of ``LiveQueryResponse``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import TYPE_CHECKING

from ..access import gateway
from ..access.questions import AskedQuery
from ..asgi.frame_sender import SendTimeout
from ..broker.registry import registry
from ..gen.db_pb2 import LiveQueryRequest, LiveQueryResponse
from ..protocol.connect_query_frames import ConnectQueryEncoder
from .call import as_connect_error, current
from .ends import check_heartbeat, cut_off, ended

if TYPE_CHECKING:
    from datasette.app import Datasette


async def stream(datasette: Datasette, request: LiveQueryRequest) -> AsyncIterator[LiveQueryResponse]:
    """Send the stream. Yields one placeholder, which makes connectrpc send its headers."""
    call = current.get()
    try:
        broker = registry(datasette).of(request.db_name)
        check_heartbeat(request.heartbeat_seconds)
        asked = AskedQuery(
            sql=request.sql,
            table=request.table,
            query=request.query,
            key=tuple(request.key),
            args=tuple((argument.name, argument.value) for argument in request.args),
            heartbeat_seconds=float(request.heartbeat_seconds) or None,
        )
        admitted = await gateway.admit_query(datasette, call.request, broker, asked)
        as_json = "json" in call.request.headers.get("content-type", "")
        async with admitted.open(ConnectQueryEncoder(as_json, request.heartbeat_seconds > 0)) as subscriber:
            call.sender.taking_over = True
            yield LiveQueryResponse()
            frame_sender = call.sender.frame_sender(broker.settings.send_timeout_seconds, None)
            subscriber.through(frame_sender.begin)
            await frame_sender.start(subscriber.frames())
            end = subscriber.end
    except SendTimeout:
        raise cut_off(call, broker, "subscriber of a live query") from None
    except Exception as error:
        raise as_connect_error(error) from error
    raise ended(end)
