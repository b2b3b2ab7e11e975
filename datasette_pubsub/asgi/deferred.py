"""Endless responses begin after Datasette's own calls have returned.

The law of this module: it moves a view and knows nothing of what it answers.
A stream lives for hours, beside thousands of others. Awaited inside Datasette's
router, it would keep the router's nested calls alive as long, and all that they
hold, which is more than a stream's own. So such a view is only noted when it is
called, and runs once Datasette has returned: still inside the server's calls and
the wrappers of other plugins, and with the ``send`` that it was given.
"""

from __future__ import annotations

import functools
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from typing import Any

from datasette.utils.asgi import Response

View = Callable[..., Awaitable[Response | None]]

#: Where the request that is being served notes its view, and what it is called with.
_noted: ContextVar[list[tuple[View, tuple[Any, ...]]] | None] = ContextVar("datasette_pubsub_noted", default=None)


def deferred(view: View) -> View:
    """A view that runs after Datasette's calls, if :func:`run_deferred` is around them. It must map its errors."""

    @functools.wraps(view)
    async def noted(scope: Any, receive: Any, send: Any, request: Any, datasette: Any) -> Response | None:
        views = _noted.get()
        if views is None:
            return await view(scope, receive, send, request, datasette)
        views.append((view, (scope, receive, send, request, datasette)))
        return None

    return noted


def run_deferred(app: Any) -> Any:
    """Datasette's application, followed by the view that it has left for later."""

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
