"""Connect RPC: ``db.v1.DbService`` for Connect, gRPC-Web and gRPC.

connectrpc reads the requests, and writes the headers, the errors and the ends of streams. The frames of ``Subscribe``
bypass it, many in one send, as the hub's tail has them: connectrpc would write one at a time, 4 to 75 times slower.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import UTC
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from connectrpc.request import RequestContext
from datasette.utils.asgi import Request, Response

from ..access import gateway, permissions
from ..access.gateway import Asked
from ..asgi import acknowledged
from ..asgi.frame_sender import SendTimeout
from ..broker.registry import Registry, registry
from ..core.attachment import attached
from ..core.errors import InvalidArgument
from ..core.filters import normalised
from ..core.selector import Selector
from ..core.settings import MAX_CHANNEL_BYTES
from ..core.validation import check_message_id, check_subscription_name, utc_text
from ..core.values import AckMode as AckModeName
from ..core.values import Start as StartName
from ..core.values import Where
from ..gen.db_connect import DbServiceASGIApplication
from ..gen.db_pb2 import (
    AckMode,
    AckRequest,
    AckResponse,
    LiveQueryRequest,
    LiveQueryResponse,
    PublishStreamResponse,
    Start,
    SubscribeRequest,
    SubscribeResponse,
)
from ..http.request import SMALL_BODY_BYTES, TOO_SLOW, BodyLimit, content_type, in_time, is_large
from ..http.responses import STREAM_HEADERS, cors_headers, with_signature
from ..protocol.connect_frames import ConnectEncoder
from . import live_query
from . import publish as rpc_publish
from .call import Call, Sender, as_connect_error, current
from .codecs import CODECS, Gzip, Published, PublishRequest, StreamRequest
from .ends import check_heartbeat, cut_off, ended
from .entry import early_answer

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The methods that answer with a stream.
STREAMS = ("Subscribe", "LiveQuery", rpc_publish.STREAM)

_STARTS: dict[int, StartName | None] = {
    Start.START_UNSPECIFIED: None,
    Start.START_EARLIEST: "earliest",
    Start.START_LATEST: "latest",
    Start.START_LAST: "last",
}

_ACK_MODES: dict[int, AckModeName] = {
    AckMode.ACK_MODE_UNSPECIFIED: "auto",
    AckMode.ACK_MODE_AUTO: "auto",
    AckMode.ACK_MODE_EXPLICIT: "explicit",
}


class Service:
    """The methods of ``DbService``, as connectrpc calls them."""

    def __init__(self, datasette: Datasette) -> None:
        self._datasette = datasette

    @property
    def _brokers(self) -> Registry:
        return registry(self._datasette)

    async def publish_batch(self, request: PublishRequest, ctx: RequestContext[Any, Any]) -> Published:
        """Append all messages or none."""
        return await rpc_publish.batch(self._datasette, request)

    def publish_stream(
        self, requests: AsyncIterator[StreamRequest], ctx: RequestContext[Any, Any]
    ) -> AsyncIterator[PublishStreamResponse]:
        """Append messages as they arrive, and answer each request."""
        return rpc_publish.stream(self._datasette, requests)

    async def ack(self, request: AckRequest, ctx: RequestContext[Any, Any]) -> AckResponse:
        """Move a cursor forward."""
        try:
            broker = self._brokers.of(request.db_name)
            name = check_subscription_name(request.subscription_name, "subscription_name")
            message_id = check_message_id(request.message_id, "message_id")
            cursor = await gateway.move_cursor(self._datasette, current.get().request, broker, name, message_id)
            return AckResponse(cursor=cursor)
        except Exception as error:
            raise as_connect_error(error) from error

    async def subscribe(
        self, request: SubscribeRequest, ctx: RequestContext[Any, Any]
    ) -> AsyncIterator[SubscribeResponse]:
        """Stream messages. Yields one placeholder, which makes connectrpc send its headers."""
        call = current.get()
        try:
            broker = self._brokers.of(request.db_name)
            settings = broker.settings
            channels = [*([request.channel] if request.channel else []), *request.channels]
            filter = normalised(request.filter, settings.max_filter_bytes) if request.filter else ""
            selector = Selector.of(channels, list(request.patterns), settings.max_channels_per_stream, filter)
            check_heartbeat(request.heartbeat_seconds)
            if request.ack_mode not in _ACK_MODES:
                raise InvalidArgument("ack_mode must be ACK_MODE_AUTO or ACK_MODE_EXPLICIT")
            asked = Asked(
                selector=selector,
                name=request.subscription_name or None,
                where=_where(request),
                ack=_ACK_MODES[request.ack_mode],
                heartbeat_seconds=float(request.heartbeat_seconds) or None,
            )
            admitted = await gateway.admit(self._datasette, call.request, broker, asked)
            as_json = "json" in call.request.headers.get("content-type", "")
            async with admitted.open(ConnectEncoder(as_json, request.status, request.heartbeat_seconds > 0)) as live:
                call.sender.taking_over = True
                yield SubscribeResponse()
                arrival = acknowledged.of(call.request.scope) if live.automatic else None
                frame_sender = call.sender.frame_sender(broker.settings.send_timeout_seconds, arrival)
                live.through(frame_sender.begin, arrival)
                await frame_sender.start(live.frames())
                end = live.end
        except SendTimeout:
            raise cut_off(call, broker, "subscriber") from None
        except Exception as error:
            raise as_connect_error(error) from error
        raise ended(end)

    async def live_query(
        self, request: LiveQueryRequest, ctx: RequestContext[Any, Any]
    ) -> AsyncIterator[LiveQueryResponse]:
        """Stream the result of a query and its changes; see :mod:`.live_query`."""
        async for placeholder in live_query.stream(self._datasette, request):
            yield placeholder


def _where(request: SubscribeRequest) -> Where:
    if request.start not in _STARTS:
        raise InvalidArgument("start must be START_EARLIEST, START_LATEST or START_LAST")
    since = None
    if request.HasField("since"):
        try:
            since = utc_text(request.since.ToDatetime(tzinfo=UTC))
        except (ValueError, OverflowError):
            raise InvalidArgument("since is not a valid time") from None
    return Where(
        resume=check_message_id(request.last_message_id, "last_message_id")
        if request.HasField("last_message_id")
        else None,
        after=check_message_id(request.after, "after") if request.HasField("after") else None,
        start=_STARTS[request.start],
        since=since,
    )


#: The size of the prefix of a message in a stream or in gRPC, in bytes. It is added to connectrpc's limit, so that our
#: checks, whose errors name the setting, come before connectrpc's.
_ENVELOPE_BYTES = 5


class _Limits(NamedTuple):
    """The largest bodies over Connect: of each database by name, of a publish to any database, of other requests."""

    publish: dict[str, int]
    largest: BodyLimit
    small: BodyLimit


class _Made:
    """The applications of one Datasette, and the limits that they were made with."""

    def __init__(self) -> None:
        self.applications: dict[BodyLimit, DbServiceASGIApplication] = {}
        self.limits: _Limits | None = None


def application(datasette: Datasette, limit: BodyLimit) -> DbServiceASGIApplication:
    """The ASGI application for this Datasette's calls with bodies up to a limit; made once for each limit."""
    made = attached(datasette, _Made, _Made)
    found = made.applications.get(limit)
    if found is None:
        found = made.applications[limit] = DbServiceASGIApplication(
            cast(Any, Service(datasette)),
            codecs=CODECS,
            read_max_bytes=limit.size + _ENVELOPE_BYTES,
            # Requests may be compressed, as the Python client's are; frames that bypass connectrpc never are.
            compressions=[Gzip(limit.size, limit.setting or limit.why or "")],
        )
    return found


def _limits(datasette: Datasette) -> _Limits:
    """The limits, read from the settings again when the databases have changed."""
    names = list(datasette.databases)
    made = attached(datasette, _Made, _Made)
    found = made.limits
    if found is None or list(found.publish) != names:
        known = registry(datasette)
        settings = {name: known.settings(name) for name in names}
        # A request of a subscriber has the names of its channels.
        most = max(each.max_channels_per_stream for each in (known.instance_settings, *settings.values()))
        publish = {name: each.max_body_bytes for name, each in settings.items()}
        largest = BodyLimit(max(publish.values(), default=SMALL_BODY_BYTES), "max_body_bytes")
        small = BodyLimit(
            SMALL_BODY_BYTES + most * (MAX_CHANNEL_BYTES + 8),
            why="of a request that publishes nothing, or of a caller who may not publish",
        )
        found = made.limits = _Limits(publish, largest, min(small, largest, key=lambda each: each.size))
    return found


async def _limit_of(datasette: Datasette, request: Request) -> BodyLimit:
    """The largest body of this request; for a publish, the largest of the databases that its actor may publish to.

    The body names the database, so that database's own limit is checked after the body has been read.
    """
    limits = _limits(datasette)
    if request.url_vars["method"] in ("Subscribe", "LiveQuery", "Ack"):
        return limits.small
    if not is_large(request):
        return limits.largest
    size = 0
    for name, most in limits.publish.items():
        if most > size and await permissions.publishes(datasette, request.actor, name):
            size = most
    return BodyLimit(size, "max_body_bytes") if size else limits.small


def _receiver(receive: Any, limit: BodyLimit, enveloped: bool) -> Any:
    """A ``receive`` for connectrpc that returns the whole body at once. Raises :class:`ConnectError` over the limit.

    connectrpc refuses a gRPC call as soon as it has read the message, and hypercorn 0.18 ends the connection if the
    end of the body comes after the answer. A body that is too slow looks like a disconnect.
    """
    most = limit.size + (_ENVELOPE_BYTES if enveloped else 0)
    bounded = in_time(receive)

    async def received() -> Any:
        parts, size = [], 0
        while True:
            message = await bounded()
            if message["type"] == TOO_SLOW:
                return {"type": "http.disconnect"}
            if message["type"] != "http.request":
                return message
            parts.append(message.get("body", b""))
            size += len(parts[-1])
            if size > most:
                raise as_connect_error(limit.exceeded())
            if not message.get("more_body", False):
                body = b"".join(parts)
                # The prefix of a message may state a larger size than the body has.
                if enveloped and int.from_bytes(body[1:_ENVELOPE_BYTES]) > limit.size:
                    raise as_connect_error(limit.exceeded("the request"))
                return {**message, "body": body}

    return received


@with_signature
async def view(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
    """The view of all methods. Datasette routes it, so its actor and cross-site checks have run."""
    if answer := early_answer(scope, request, datasette):
        return answer
    # Messages of a stream have their own encoding headers (connect-content-encoding, grpc-encoding), so the header for
    # the whole body can tell proxies not to compress.
    streams = request.url_vars["method"] in STREAMS
    sender = Sender(send, cors_headers(datasette) | (STREAM_HEADERS if streams else {}))
    token = current.set(Call(request, sender))
    try:
        inner: Any = {**scope, "path": f"/db.v1.DbService/{request.url_vars['method']}", "root_path": ""}
        limit = await _limit_of(datasette, request)
        if request.url_vars["method"] == rpc_publish.STREAM:
            receiver = rpc_publish.receiver(receive, limit)
        else:
            unary = content_type(request) in ("application/json", "application/proto")
            receiver = _receiver(receive, limit, not unary)
        await application(datasette, limit)(inner, receiver, cast(Any, sender))
    except OSError:
        if not sender.stuck:
            raise
    finally:
        current.reset(token)
    return None
