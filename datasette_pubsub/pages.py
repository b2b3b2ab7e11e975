"""The live channel viewer.

The law of this module: the server renders the newest rows as an ordinary
table that works without scripts; the script goes on from the id stamped on it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from datasette.utils import tilde_decode, tilde_encode
from datasette.utils.asgi import Request, Response

from . import permissions
from .broker import brokers
from .edge import broker_of, internal
from .errors import NotFound, PermissionDenied, PubsubError
from .models import Message, check_channel
from .selector import Selector
from .wire import message_fields

if TYPE_CHECKING:
    from datasette.app import Datasette

#: Messages that the page shows, at first and live, in rows.
ROWS = 100


async def viewer(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET /<db>/-/pubsub`` and ``GET /<db>/-/pubsub/<channel>``: the newest messages, then live."""
    try:
        return Response.html(await _page(request, datasette))
    except PubsubError as error:
        shown = error
    except Exception as error:
        shown = internal(error)
    html = await datasette.render_template(
        ["error.html"], {"ok": False, "error": shown.message, "status": shown.status, "title": None}, request=request
    )
    return Response.html(html, status=shown.status)


async def _page(request: Request, datasette: Datasette) -> str:
    broker = broker_of(datasette, request)
    database = broker.name
    channel = None
    if request.url_vars.get("channel"):
        channel = check_channel(tilde_decode(request.url_vars["channel"]))
        await permissions.require_view(datasette, request.actor, database, Selector(frozenset([channel])))
    base = datasette.urls.database(database) + "/-/pubsub"
    channels = await permissions.visible_channels(datasette, request.actor, broker)
    whole = await permissions.may_view(datasette, request.actor, database)
    if channel is None and not channels and not whole:
        # As for a database that does not exist: what cannot be seen is not there.
        raise PermissionDenied(f"permission denied: {permissions.VIEW} on database {database}")
    if channel is not None:
        selector = Selector(frozenset([channel]))
    elif whole:
        selector = Selector(patterns=("*",))
    else:
        selector = Selector(frozenset(row.name for row in channels[: broker.settings.max_channels_per_stream]))
    messages = await broker.newest(selector, ROWS) if selector else []
    return await datasette.render_template(
        ["pubsub_viewer.html"],
        {
            "database": database,
            "channel": channel,
            "channels": [
                {
                    "name": row.name,
                    "count": row.count,
                    "newest_at": row.newest_at,
                    "newest_id": row.newest_id,
                    "path": f"{base}/{tilde_encode(row.name)}",
                }
                for row in channels
            ],
            "rows": [_row(message, base) for message in messages],
            "rows_limit": ROWS,
            "base": base,
            "follow": json.dumps({"channels": sorted(selector.channels), "patterns": list(selector.patterns)}),
            "last_id": messages[-1].id if messages else await broker.log_head(),
        },
        request=request,
        view_name="pubsub",
    )


def _row(message: Message, base: str) -> dict[str, Any]:
    fields = message_fields(message)
    return {
        "id": message.id,
        "channel": message.channel,
        "path": f"{base}/{tilde_encode(message.channel)}",
        "created_at": message.created_at,
        "payload": fields.get("payload"),
        "bytes": len(message.payload) if isinstance(message.payload, bytes) else None,
    }


def database_link(
    datasette: Datasette, actor: dict[str, Any] | None, database: str
) -> Callable[[], Awaitable[list[dict[str, str]]]]:
    """The entry in a database's menu, for those who may see messages of it."""

    async def link() -> list[dict[str, str]]:
        if brokers(datasette).find(database) is None or not await permissions.may_view(datasette, actor, database):
            return []
        return [
            {
                "href": datasette.urls.database(database) + "/-/pubsub",
                "label": "Live messages",
                "description": "Channels of this database, and their messages as they arrive",
            }
        ]

    return link


__all__ = ["NotFound", "database_link", "viewer"]
