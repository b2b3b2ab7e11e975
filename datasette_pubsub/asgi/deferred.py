"""Deferred views: views that run after Datasette's own calls have returned.

A stream lives for hours, beside thousands of others. If Datasette's router awaited it, the router's nested calls would
stay alive as long, with everything that they hold, which is more than the stream needs itself. So a deferred view is
only stored when it is called, and runs when Datasette has returned: still inside the server's calls and the wrappers of
other plugins, and with the ``send`` that it was given.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from datasette.utils.asgi import Response

View = Callable[..., Awaitable[Response | None]]

#: The list in which the present request stores its deferred view, with the view's arguments.
_noted: ContextVar[list[tuple[View, tuple[Any, ...]]] | None] = ContextVar("datasette_pubsub_noted", default=None)


def deferred(view: View) -> View:
    """Defer a view, if :func:`run_deferred` wraps Datasette's application. The view must handle its own errors."""

    @functools.wraps(view)
    async def noted(scope: Any, receive: Any, send: Any, request: Any, datasette: Any) -> Response | None:
        views = _noted.get()
        if views is None:
            return await view(scope, receive, send, request, datasette)
        views.append((view, (scope, receive, send, request, datasette)))
        return None

    return noted


def run_deferred(app: Any) -> Any:
    """Wrap Datasette's application: run it, then the view that it has deferred."""

    async def wrapped(scope: Any, receive: Any, send: Any) -> None:
        views: list[tuple[View, tuple[Any, ...]]] = []
        token = _noted.set(views)
        try:
            await app(scope, receive, send)
        finally:
            _noted.reset(token)
        if views:
            view, arguments = views.pop()
            response = await view(*arguments)
            if response is not None:
                await response.asgi_send(arguments[2])

    return wrapped
