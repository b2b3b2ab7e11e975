"""Reads requests: query strings, headers and bodies, within limits on size and time.

An invalid request raises a :class:`~.core.errors.PubsubError` that says what is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from datasette.utils import MultiParams, tilde_decode
from datasette.utils.asgi import Request

from ..asgi.frame_sender import within
from ..broker.broker import Broker
from ..broker.registry import registry
from ..core.errors import (
    InvalidArgument,
    MethodNotAllowed,
    NotFound,
    PayloadTooLarge,
    RequestTimeout,
    UnsupportedMediaType,
)
from ..core.filters import normalised, of_parameter, together
from ..core.limits import BODY_SECONDS
from ..core.selector import Selector
from ..core.settings import Settings
from ..core.validation import check_message_id, check_since, check_start, check_unicode
from ..core.values import ANYWHERE, Where
from ..protocol.items import object_of_json

if TYPE_CHECKING:
    from datasette.app import Datasette


#: A body up to this size, in bytes, is read before the check whether the actor may publish. Only publishers may fill
#: the memory that a larger body takes. Requests that publish nothing have no larger bodies.
SMALL_BODY_BYTES = 64 * 1024


#: The most fields that a form may have; ours have four.
MAX_FORM_FIELDS = 20


def require_method(request: Request, *allow: str) -> None:
    """Raise :class:`MethodNotAllowed` for a method that the address does not answer."""
    if request.method not in allow:
        raise MethodNotAllowed.instead(*allow)


def only_get(request: Request) -> None:
    """Raise :class:`MethodNotAllowed` for all methods but GET and HEAD, which is GET without the body."""
    require_method(request, "GET", "HEAD")


def check_query(request: Request) -> None:
    """Refuse a query string that is not UTF-8: Datasette would replace the wrong bytes by other characters.

    Raises :class:`InvalidArgument` naming the parameter.
    """
    query = request.query_string
    if query.isascii():
        if "%" not in query:
            return
        try:
            unquote_to_bytes(query).decode()
        except UnicodeDecodeError:
            pass
        else:
            return
    for pair in query.split("&"):
        name, _, value = pair.partition("=")
        for part in (name, value):
            try:
                unquote_to_bytes(part.encode("latin-1")).decode() if part.isascii() else part.encode("ascii")
            except UnicodeError:
                shown = unquote_to_bytes(name).decode(errors="replace")
                raise InvalidArgument(
                    f"query parameter {shown} is not UTF-8 with percent encoding", field=shown
                ) from None


def broker_of(datasette: Datasette, request: Request) -> Broker:
    """The broker of the database in the URL, by its route. Raises :class:`~.core.errors.NotFound`."""
    route = request.url_vars["database"]
    if not route.isidentifier():
        # A plain name needs no decoding, and tilde_decode() reads random bytes from the system.
        route = tilde_decode(route)
    try:
        name = datasette.get_database(route=route).name
    except KeyError:
        raise NotFound(f"database not found: {route}") from None
    return registry(datasette).of(name)


def is_large(request: Request) -> bool:
    """Whether the body is larger than a small one, or of unknown size."""
    length = header(request, b"content-length")
    return not (length.isdecimal() and int(length) <= SMALL_BODY_BYTES)


#: The type of the message that :func:`in_time` returns instead of a part of the body that is late.
TOO_SLOW = "pubsub.too_slow"


def in_time(receive: Any) -> Any:
    """An ASGI ``receive`` that requires the whole body within ``BODY_SECONDS``: a limit for slow requests."""
    end = time.monotonic() + BODY_SECONDS
    complete = False

    async def bounded() -> Any:
        nonlocal complete
        if complete:
            return await receive()
        try:
            message = await within(receive(), max(0.0, end - time.monotonic()))
        except TimeoutError:
            return {"type": TOO_SLOW}
        complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return bounded


def header(request: Request, name: bytes) -> str:
    """The value of one header, by its name in lower case; empty if it is missing.

    Datasette's ``request.headers`` makes a dictionary of all headers at each access.
    """
    for key, value in request.scope["headers"]:
        if key == name:
            return bytes(value).decode("latin-1")
    return ""


def content_type(request: Request) -> str:
    """The content type of the body, without parameters, in lower case."""
    return header(request, b"content-type").partition(";")[0].strip().lower()


def check_uncompressed(request: Request) -> None:
    """Raise :class:`UnsupportedMediaType` for a compressed body."""
    if header(request, b"content-encoding") not in ("", "identity"):
        raise UnsupportedMediaType("content-encoding: only identity, an uncompressed body, is read here")


class BodyLimit(NamedTuple):
    """The largest body, in bytes, and the setting that says so, or in words why it is fixed."""

    size: int
    setting: str | None = None
    why: str | None = None

    def exceeded(self, what: str = "request body") -> PayloadTooLarge:
        """The error for a larger body."""
        return PayloadTooLarge(
            f"{what} is over the limit of {self.size} bytes ({self.setting or self.why})", limit=self.setting
        )


def publish_limit(broker: Broker) -> BodyLimit:
    """The largest body of a publish to this database."""
    return BodyLimit(broker.settings.max_body_bytes, "max_body_bytes")


#: The largest body of a request that publishes nothing.
SMALL_LIMIT = BodyLimit(SMALL_BODY_BYTES, why="of a request that publishes nothing")


async def read_body(request: Request, receive: Any, limit: BodyLimit) -> bytes:
    """Read the body, up to ``limit`` bytes. Raises :class:`PayloadTooLarge` as soon as it is longer."""
    check_uncompressed(request)
    parts: list[bytes] = []
    size = 0
    receive = in_time(receive)
    while True:
        message = await receive()
        if message["type"] == TOO_SLOW:
            raise RequestTimeout(f"the request's body took longer than {BODY_SECONDS:g} seconds")
        if message["type"] == "http.disconnect":
            raise InvalidArgument("the request ended before its body was complete")
        part = message.get("body", b"")
        size += len(part)
        if size > limit.size:
            raise limit.exceeded()
        parts.append(part)
        if not message.get("more_body", False):
            return b"".join(parts)


async def read_json(request: Request, receive: Any, limit: BodyLimit) -> dict[str, Any]:
    """Read the JSON object in the body. Raises a :class:`PubsubError` that says what is wrong with it."""
    data = object_of_json(await read_json_body(request, receive, limit), "the body")
    for name, value in data.items():
        if isinstance(value, str):
            check_unicode(value, name)
    return data


async def read_json_body(request: Request, receive: Any, limit: BodyLimit) -> bytes:
    """Read a JSON body without decoding it. Raises as :func:`read_body`, and for another content type."""
    if content_type(request) != "application/json":
        raise UnsupportedMediaType("content-type must be application/json")
    return await read_body(request, receive, limit)


async def read_form(request: Request, receive: Any, limit: BodyLimit, most: int = MAX_FORM_FIELDS) -> dict[str, str]:
    """Read the fields of an HTML form, at most ``most``.

    Raises a :class:`PubsubError` that says what is wrong with it.
    """
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("content-type must be application/x-www-form-urlencoded")
    body = await read_body(request, receive, limit)
    try:
        text = body.decode("ascii")
        return dict(parse_qsl(text, keep_blank_values=True, errors="strict", max_num_fields=most))
    except ValueError:
        raise InvalidArgument("the body is not a form of texts in UTF-8") from None


async def read_parameters(request: Request, receive: Any) -> MultiParams:
    """The parameters of a query string and, for POST and QUERY, those in a body that is a form.

    Raises a :class:`PubsubError` that says what is wrong with the body.
    """
    if request.method in ("GET", "HEAD"):
        return request.args
    if content_type(request) != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("content-type must be application/x-www-form-urlencoded")
    body = await read_body(request, receive, SMALL_LIMIT)
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError:
        raise InvalidArgument("the body is not a form of texts in UTF-8") from None
    found: dict[str, list[str]] = {name: request.args.getlist(name) for name in request.args}
    for name, value in pairs:
        found.setdefault(name, []).append(value)
    return MultiParams(found)


def selector_from(args: MultiParams, settings: Settings) -> Selector:
    """The channels and patterns of a stream's parameters, and its filter. Raises :class:`InvalidArgument`.

    Several filters, also in Datasette's form, all have to pass.
    """
    given = [text for text in args.getlist("filter") if text.strip()]
    texts = [normalised(text, settings.max_filter_bytes) for text in given]
    for name in args:
        texts += [text for value in args.getlist(name) if (text := of_parameter(name, value)) is not None]
    channels, patterns = args.getlist("channel"), args.getlist("pattern")
    filter = normalised(together(texts), settings.max_filter_bytes) if texts else ""
    return Selector.of(channels, patterns, settings.max_channels_per_stream, filter)


#: The parameters for the last received id, for clients that cannot send the header: ours, and those of EventSource
#: polyfills (event-source-polyfill and older ones).
LAST_EVENT_ID = ("last_event_id", "lastEventId", "lastEventID", "Last-Event-ID")


def _last_event_id(request: Request, args: MultiParams) -> int | None:
    """The last id that the client has received: from the header, else the greatest of the parameters."""
    sent = request.headers.get("last-event-id")
    if sent:
        return check_message_id(sent, "Last-Event-ID")
    return max(
        (check_message_id(value, name) for name in LAST_EVENT_ID for value in args.getlist(name) if value), default=None
    )


def check_parameters(args: MultiParams, known: Collection[str]) -> None:
    """Refuse an unknown parameter of a stream, which would otherwise have no effect without notice.

    Caches and frameworks add parameters that begin with ``_``; these are ignored.
    Raises :class:`InvalidArgument` naming the parameter.
    """
    for name in args:
        if name not in known and not name.startswith("_") and of_parameter(name, args[name]) is None:
            raise InvalidArgument(f"{name} is not a parameter here; there are {', '.join(sorted(known))}", field=name)


def where_from(request: Request, args: MultiParams) -> Where:
    """The position at which a subscriber begins, from its parameters and its ``Last-Event-ID`` header."""
    last = _last_event_id(request, args)
    after, start, since = args.get("after"), args.get("start"), args.get("since")
    if not (last is not None or after or start or since):
        return ANYWHERE
    return Where(
        resume=last,
        after=check_message_id(after, "after") if after else None,
        start=check_start(start) if start else None,
        since=check_since(since) if since else None,
    )
