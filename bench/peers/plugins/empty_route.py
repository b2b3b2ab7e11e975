"""A route that does nothing, for ``datasette serve --plugins-dir``: the cost of a request without the plugin."""

from __future__ import annotations

from datasette import hookimpl
from datasette.utils.asgi import Response


async def empty() -> Response:
    return Response.json({"ok": True})


@hookimpl
def register_routes() -> list[tuple[str, object]]:
    return [(r"^/-/empty$", empty)]
