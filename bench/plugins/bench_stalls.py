"""How late the server's event loop runs a timer, for ``datasette serve --plugins-dir``."""

from __future__ import annotations

import asyncio
from typing import Any

from datasette import hookimpl
from datasette.utils.asgi import Response

#: How often a timer is due, in seconds.
EVERY_SECONDS = 0.005

_late: list[float] = []


@hookimpl
def startup(datasette: Any) -> Any:
    async def begin() -> None:
        loop = asyncio.get_running_loop()

        def tick(due: float) -> None:
            now = loop.time()
            _late.append(now - due)
            loop.call_at(now + EVERY_SECONDS, tick, now + EVERY_SECONDS)

        loop.call_soon(tick, loop.time())

    return begin


async def stalls() -> Response:
    """The delays since the last request, in seconds."""
    found = list(_late)
    _late.clear()
    return Response.json({"late": found})


@hookimpl
def register_routes() -> list[tuple[str, Any]]:
    return [(r"^/-/bench-stalls$", stalls)]
