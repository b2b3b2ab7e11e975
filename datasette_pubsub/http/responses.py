"""Response helpers: map errors to HTTP statuses, and add the headers that streams and CORS need.

Only this module maps errors to HTTP. It sends no internal error text to a client.
"""

from __future__ import annotations

import functools
import inspect
import logging
import secrets
import sqlite3
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request, Response

from ..core.errors import (
    MethodNotAllowed,
    PubsubError,
    Unavailable,
)
from ..storage.sqlite_codes import is_busy
from .request import check_query

if TYPE_CHECKING:
    from datasette.app import Datasette

logger = logging.getLogger("datasette_pubsub")


View = Callable[..., Awaitable[Response | None]]


def internal(error: Exception) -> PubsubError:
    """The error for an unexpected exception: it has only a reference, under which the server's log has the details.

    One exception is expected: Datasette reads every database before it answers a
    request, and another program may have locked a file for reading.
    """
    if isinstance(error, sqlite3.Error) and is_busy(error):
        return Unavailable("a database is locked by another program; nothing was stored, try again")
    reference = secrets.token_hex(4)
    logger.error("internal error %s", reference, exc_info=error)
    return PubsubError(f"internal error; the server's log has it under {reference}")


def error_fields(error: PubsubError) -> dict[str, Any]:
    """An error in Datasette's JSON format, with the field and the setting that it is about, if any."""
    about = {"field": error.field, "limit": error.limit}
    fields = {"ok": False, "error": error.message, "errors": [error.message], "status": error.status}
    return fields | {name: value for name, value in about.items() if value is not None}


def error_headers(error: PubsubError) -> dict[str, str]:
    """The headers of an error, for any format of the body."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(error.retry_after)
    if isinstance(error, MethodNotAllowed) and error.allow:
        headers["Allow"] = ", ".join(error.allow)
    return headers


def error_response(error: PubsubError) -> Response:
    """An error as a response, with its status."""
    return Response.json(error_fields(error), status=error.status, headers=error_headers(error))


def without_body(request: Request, response: Response | None) -> None:
    """Remove the body from the response to HEAD."""
    if request.method == "HEAD" and response is not None:
        response.body = ""


def mapped(view: View) -> View:
    """Wrap a view so that its errors become JSON responses."""

    @functools.wraps(view)
    async def wrapper(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
        if request.method == "OPTIONS":
            return preflight(datasette)
        try:
            check_query(request)
            response = await view(scope, receive, send, request, datasette)
        except PubsubError as error:
            response = error_response(error)
        except Exception as error:
            response = error_response(internal(error))
        without_body(request, response)
        if response is not None:
            response.headers.update(cors_headers(datasette))
        return response

    return with_signature(wrapper)


#: The headers of streams: caches and proxies must not store, buffer or change them.
STREAM_HEADERS = {
    "Cache-Control": "no-store, no-transform",
    # Without this, nginx buffers responses.
    "X-Accel-Buffering": "no",
    # Proxies and plugins that compress (Caddy's encode, nginx's gzip, datasette-gzip) buffer a response, unless it has
    # an encoding already. "identity" is an encoding that changes nothing.
    "Content-Encoding": "identity",
}


def with_signature(view: View) -> View:
    """Store a view's signature on it, since Datasette reads the signature at every request."""
    view.__signature__ = inspect.signature(view)  # type: ignore[attr-defined]
    return view


def cors_headers(datasette: Datasette) -> dict[str, str]:
    """The CORS headers, if Datasette was started with ``--cors``; else nothing.

    They do not allow credentials (https://fetch.spec.whatwg.org/#cors-protocol-and-credentials):
    a page of another origin reads as an anonymous visitor, or with its own token.
    """
    if not datasette.cors:
        return {}
    return {
        "Access-Control-Allow-Origin": "*",
        "Access-Control-Allow-Methods": "GET, POST, QUERY, HEAD, OPTIONS",
        "Access-Control-Allow-Headers": "Authorization, Content-Type, Last-Event-ID, Connect-Protocol-Version, "
        "Connect-Timeout-Ms, Grpc-Timeout, X-Grpc-Web, X-User-Agent",
        "Access-Control-Expose-Headers": "Grpc-Status, Grpc-Message, Retry-After",
        "Access-Control-Max-Age": "3600",
    }


def with_cors(datasette: Datasette, scope: Any, send: Any) -> Any:
    """An ASGI ``send`` that adds a CORS header to our scripts, if Datasette was started with ``--cors``.

    A page of another origin needs CORS to import a module, and Datasette serves
    the static files of plugins without CORS headers.
    """
    # The option first: making the address takes longer than all the rest of this wrapper.
    if not datasette.cors or not scope["path"].startswith(datasette.urls.static_plugins("datasette_pubsub", "")):
        return send

    async def wrapped(message: Any) -> None:
        if message["type"] == "http.response.start":
            origin = (b"access-control-allow-origin", b"*")
            message = {**message, "headers": [*message.get("headers", []), origin]}
        await send(message)

    return wrapped


def preflight(datasette: Datasette) -> Response:
    """The response to OPTIONS."""
    headers = {"Allow": "GET, POST, HEAD, OPTIONS", **cors_headers(datasette)}
    return Response("", status=204, headers=headers)
