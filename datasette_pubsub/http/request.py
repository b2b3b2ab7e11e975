"""Reading requests: query strings, headers and bodies, within limits and in time.

Everything that is wrong with a request raises a :class:`~.core.errors.PubsubError` that says what.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl, unquote_to_bytes

from datasette.utils import tilde_decode
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
from ..core.selector import Selector
from ..core.settings import BODY_SECONDS
from ..core.validation import check_message_id, check_since, check_unicode
from ..core.values import ANYWHERE, Start, Where
from ..protocol.items import object_of_json

if TYPE_CHECKING:
    from datasette.app import Datasette


#: Bodies up to here are read before it is asked whether the caller may publish at all, in bytes: larger ones
#: are memory that only publishers may fill. Other requests have no larger ones.
SMALL_BODY_BYTES = 64 * 1024


#: Most fields that a form may have, in fields; ours have four.
MAX_FORM_FIELDS = 20


def require_method(request: Request, *allow: str) -> None:
    """Raise :class:`MethodNotAllowed` for a method that the address does not answer."""
    if request.method not in allow:
        raise MethodNotAllowed.instead(*allow)


def only_get(request: Request) -> None:
    """Raise :class:`MethodNotAllowed` for anything but reading. HEAD is read as GET is; its body is left out."""
    require_method(request, "GET", "HEAD")


def check_query(request: Request) -> None:
    """Refuse a query string that is not text: Datasette would read other characters in place of the wrong bytes.

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
        # A plain name stands for itself, and decoding it would ask for random bytes.
        route = tilde_decode(route)
    try:
        name = datasette.get_database(route=route).name
    except KeyError:
        raise NotFound(f"database not found: {route}") from None
    return registry(datasette).of(name)


def is_large(request: Request) -> bool:
    """Whether a body is to come that is not small, or of unknown size."""
    length = header(request, b"content-length")
    return not (length.isdecimal() and int(length) <= SMALL_BODY_BYTES)


#: What :func:`in_time` hands on instead of a part of the body that is late.
TOO_SLOW = "pubsub.too_slow"


def in_time(receive: Any) -> Any:
    """An ASGI ``receive`` whose body must be complete within ``BODY_SECONDS``."""
    loop = asyncio.get_running_loop()
    end = loop.time() + BODY_SECONDS
    complete = False

    async def bounded() -> Any:
        nonlocal complete
        if complete:
            return await receive()
        try:
            message = await within(receive(), max(0.0, end - loop.time()))
        except TimeoutError:
            return {"type": TOO_SLOW}
        complete = message["type"] != "http.request" or not message.get("more_body", False)
        return message

    return bounded


def header(request: Request, name: bytes) -> str:
    """The value of one header, by its name in lower case; empty where there is none.

    Datasette's ``request.headers`` makes a dictionary of all of them whenever it is asked.
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
    """The largest body that is read, in bytes, and where that is set: a setting, or in words why it is fixed."""

    size: int
    setting: str | None = None
    why: str | None = None

    def exceeded(self, what: str = "request body") -> PayloadTooLarge:
        """The error for a larger one."""
        return PayloadTooLarge(
            f"{what} is over the limit of {self.size} bytes ({self.setting or self.why})", limit=self.setting
        )


def publish_limit(broker: Broker) -> BodyLimit:
    """The largest body of a publish to this database."""
    return BodyLimit(broker.settings.max_body_bytes, "max_body_bytes")


#: The largest body of a request that publishes nothing.
SMALL_LIMIT = BodyLimit(SMALL_BODY_BYTES, why="of a request that publishes nothing")


async def read_body(request: Request, receive: Any, limit: BodyLimit) -> bytes:
    """The body, of at most ``limit``, counted while reading. Raises :class:`PayloadTooLarge`."""
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
    """The JSON object in the body. Raises a :class:`PubsubError` that says what is wrong with it."""
    data = object_of_json(await read_json_body(request, receive, limit), "the body")
    for name, value in data.items():
        if isinstance(value, str):
            check_unicode(value, name)
    return data


async def read_json_body(request: Request, receive: Any, limit: BodyLimit) -> bytes:
    """The body, as JSON text that has not been read yet. Raises as :func:`read_body`, and for another content type."""
    if content_type(request) != "application/json":
        raise UnsupportedMediaType("content-type must be application/json")
    return await read_body(request, receive, limit)


async def read_form(request: Request, receive: Any, limit: BodyLimit, most: int = MAX_FORM_FIELDS) -> dict[str, str]:
    """The fields of a form as browsers send it, at most so many.

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


def selector_from(request: Request, limit: int) -> Selector:
    """The channels and patterns of a query string. Raises :class:`InvalidArgument`."""
    return Selector.of(request.args.getlist("channel"), request.args.getlist("pattern"), limit)


#: The parameters by which a reader says what it has where it cannot send a header: ours, and those of EventSource
#: polyfills (event-source-polyfill, and what followed older ones of its kind).
LAST_EVENT_ID = ("last_event_id", "lastEventId", "lastEventID", "Last-Event-ID")


def _last_event_id(request: Request) -> int | None:
    """The last message that a reader says it has. The header wins; of parameters, the greatest: the newest of them."""
    told = request.headers.get("last-event-id")
    if told:
        return check_message_id(told, "Last-Event-ID")
    args = request.args
    return max(
        (check_message_id(value, name) for name in LAST_EVENT_ID for value in args.getlist(name) if value), default=None
    )


def check_parameters(request: Request, known: Collection[str]) -> None:
    """Refuse a query parameter that means nothing here, so that nobody believes that it does.

    Those that begin with ``_`` are added by caches and frameworks, and mean nothing anywhere.
    Raises :class:`InvalidArgument` naming the parameter.
    """
    for name in request.args:
        if name not in known and not name.startswith("_"):
            raise InvalidArgument(f"{name} is not a parameter here; there are {', '.join(sorted(known))}", field=name)


def where_from(request: Request) -> Where:
    """Where a reader begins, from its query string and its ``Last-Event-ID`` header."""
    args = request.args
    last = _last_event_id(request)
    after, start, since = args.get("after"), args.get("start"), args.get("since")
    if not (last is not None or after or start or since):
        return ANYWHERE
    if start and start not in ("earliest", "latest"):
        raise InvalidArgument("start must be earliest or latest")
    begin: Start | None = "earliest" if start == "earliest" else "latest" if start else None
    return Where(
        resume=last,
        after=check_message_id(after, "after") if after else None,
        start=begin,
        since=check_since(since) if since else None,
    )
