"""The live channel viewer.

The law of this module: the server renders the newest rows as an ordinary
table that works without scripts; the script goes on from the id stamped on it.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.resources import DatabaseResource, TableResource
from datasette.utils import tilde_decode, tilde_encode
from datasette.utils.asgi import Request, Response

from . import permissions
from .broker import Broker
from .brokers import brokers
from .edge import broker_of
from .frame import place, shown
from .models import Message, check_channel, check_message_id
from .schema import LOG
from .selector import Selector
from .texts import present, visible
from .wire import text_of

if TYPE_CHECKING:
    from datasette.app import Datasette

#: Messages that the server puts on a page, in rows; one page of Datasette's own tables.
ROWS = 100

#: Messages that a live page holds at most, in rows: few enough to be laid out ten times a second.
LIVE_ROWS = 200

#: Channels that are listed, the most recent ones, in channels; as in pubsub_viewer.js.
LISTED_CHANNELS = 100


@shown
async def viewer(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET /<db>/-/pubsub`` and ``GET /<db>/-/pubsub/<channel>``: the newest messages, then live.

    With ``before=<id>``: the messages before that one, which stay as they are.
    """
    return Response.html(await _page(request, datasette))


async def _page(request: Request, datasette: Datasette) -> str:
    broker = broker_of(datasette, request)
    database = broker.name
    channel = None
    if request.url_vars.get("channel"):
        channel = check_channel(tilde_decode(request.url_vars["channel"]))
        await permissions.visible(datasette, request.actor, database, Selector(frozenset([channel])))
    before = request.args.get("before")
    top = check_message_id(before, "before") if before else None
    seen = {row.name for row in await permissions.visible_channels(datasette, request.actor, broker)}
    selector = await _selector(datasette, request, broker, channel)
    # The head before the rows: what comes between the two is in the rows, and the script begins after both.
    head = await broker.log_head()
    messages = await broker.newest(selector, ROWS + 1, top) if selector else []
    older, messages = len(messages) > ROWS, messages[-ROWS:]
    base = datasette.urls.database(database) + "/-/pubsub"
    live = top is None and bool(selector)
    listed, unlisted = ([], 0) if channel is not None or top is not None else await _channels(broker, seen, base)
    may_view_log = await datasette.allowed(
        action="view-table", resource=TableResource(database, LOG), actor=request.actor
    )
    html: str = await datasette.render_template(
        ["pubsub_viewer.html"],
        {
            **await place(datasette, request, broker, channel),
            "channel": None if channel is None else visible(channel),
            "channels": listed,
            "unlisted": unlisted,
            "rows": [_row(message, base) for message in reversed(messages)],
            "live_rows": LIVE_ROWS,
            "path": base if channel is None else f"{base}/{tilde_encode(channel)}",
            "before": top,
            "older": older,
            "follow": _follow(selector) if live else None,
            "last_id": max(head, messages[-1].id if messages else 0),
            "row_base": datasette.urls.table(database, LOG) if may_view_log else None,
            "links": await _links(datasette, request, database, channel) if may_view_log and messages else None,
        },
        request=request,
        view_name="pubsub",
    )
    return html


async def _selector(datasette: Datasette, request: Request, broker: Broker, channel: str | None) -> Selector:
    """What the page follows: its channel, else all that the visitor may see, even if that is nothing yet."""
    if channel is not None:
        return Selector(frozenset([channel]))
    return await permissions.visible(datasette, request.actor, broker.name, Selector(patterns=("*",)))


def _follow(selector: Selector) -> str:
    return json.dumps({"channels": sorted(selector.channels), "patterns": list(selector.patterns)})


async def _channels(broker: Broker, seen: set[str], base: str) -> tuple[list[dict[str, Any]], int]:
    """The channels to list, and how many are left out.

    Read after the rows: the script counts only what is newer than ``newest_id``,
    so that no message is counted twice and none is left out.
    """
    rows = [row for row in await broker.channels() if row.name in seen]
    recent = sorted(rows, key=lambda row: row.newest_id)[-LISTED_CHANNELS:]
    listed = [
        {
            "name": visible(row.name),
            "key": tilde_encode(row.name),
            "path": f"{base}/{tilde_encode(row.name)}",
            "count": row.count,
            "newest_id": row.newest_id,
            "newest_at": row.newest_at,
        }
        for row in sorted(recent, key=lambda row: row.name)
    ]
    return listed, len(rows) - len(listed)


async def _links(datasette: Datasette, request: Request, database: str, channel: str | None) -> dict[str, str]:
    """The same messages elsewhere in Datasette: as SQL, as a table, as JSON, as CSV."""
    only = {} if channel is None else {"channel__exact": channel}
    query = "?" + urlencode({"_sort_desc": "id", **only})
    links = {
        "table": datasette.urls.table(database, LOG) + query,
        "json": datasette.urls.table(database, LOG, format="json") + query,
        "csv": datasette.urls.table(database, LOG, format="csv") + query,
    }
    if await datasette.allowed(action="execute-sql", resource=DatabaseResource(database), actor=request.actor):
        where = "" if channel is None else "\nwhere channel = :channel"
        sql = f"select id, channel, payload, created_at\nfrom {LOG}{where}\norder by id desc limit {ROWS}"
        links["sql"] = datasette.urls.database_query(database, sql)
        if channel is not None:
            links["sql"] += "&" + urlencode({"channel": channel})
    return links


def _row(message: Message, base: str) -> dict[str, Any]:
    row: dict[str, Any] = {
        "id": message.id,
        "channel": visible(message.channel),
        "path": f"{base}/{tilde_encode(message.channel)}",
        "created_at": message.created_at,
        "bytes": None,
    }
    if isinstance(message.payload, bytes):
        return {**row, "bytes": len(message.payload)}
    return {**row, **present(text_of(message.payload))}


def database_link(
    datasette: Datasette, actor: dict[str, Any] | None, database: str
) -> Callable[[], Awaitable[list[dict[str, str]]]]:
    """The entry in a database's menu, for those who may see messages of it."""

    async def link() -> list[dict[str, str]]:
        if brokers(datasette).find(database) is None:
            return []
        if (await permissions.rights(datasette, actor, permissions.VIEW, database)).nothing:
            return []
        return [
            {
                "href": datasette.urls.database(database) + "/-/pubsub",
                "label": "Live messages",
                "description": "Channels of this database, and their messages as they arrive",
            }
        ]

    return link


__all__ = ["database_link", "viewer"]
