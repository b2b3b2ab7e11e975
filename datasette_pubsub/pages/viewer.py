"""The live channel viewer.

The server renders the newest messages as an HTML table, which works without scripts. The script continues after the
message id on the page.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.resources import TableResource
from datasette.utils import tilde_decode, tilde_encode
from datasette.utils.asgi import Request, Response

from ..access import permissions, rules
from ..broker.registry import registry
from ..core.display import present, visible
from ..core.validation import check_channel
from ..core.values import Message, text_of
from ..http.messages import Query, query_from
from ..http.request import broker_of, only_get
from ..storage import activity, log, search
from ..storage.names import Name
from ..storage.objects import LOG
from ..storage.quoting import literal
from ..storage.schema import installed
from ..storage.search import Found
from .export_links import links
from .layout import place, shown, silence
from .sparkline import drawn

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The number of messages that the server renders, as on one page of Datasette's own tables.
ROWS = 100

#: The most messages on a live page: few enough for ten updates a second.
LIVE_ROWS = 200

#: The most channels in the list, those with the newest messages. pages/viewer_channels.js has the same constant.
LISTED_CHANNELS = 100


@shown
async def viewer(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET /<db>/-/pubsub`` and ``GET /<db>/-/pubsub/<channel>``: the newest messages, then live.

    With ``before=<id>``: the messages before that id, without live updates.
    With ``channel``, ``pattern`` and ``q``: only messages that match.
    """
    only_get(request)
    return Response.html(await _page(request, datasette))


async def _page(request: Request, datasette: Datasette) -> str:
    broker = broker_of(datasette, request)
    database = broker.name
    channel = None
    if request.url_vars.get("channel"):
        channel = check_channel(tilde_decode(request.url_vars["channel"]))
    query = await query_from(datasette, request, broker, channel)
    live = query.before is None
    seen = await broker.read(functools.partial(_read, query=query, channel=channel))
    base = datasette.urls.database(database) + "/-/pubsub"
    path = base if channel is None else f"{base}/{tilde_encode(channel)}"
    # On a channel's page, the channel is in the path.
    parameters = query.parameters if channel is None else [("q", query.text)] if query.text else []
    may_view_log = await datasette.allowed(
        action="view-table", resource=TableResource(database, LOG), actor=request.actor
    )
    html: str = await datasette.render_template(
        ["pubsub_viewer.html"],
        {
            **await place(datasette, request, broker, channel),
            "channel": None if channel is None else visible(channel),
            "query": query,
            "filtered": bool(parameters),
            "asked": None if channel is not None else visible(" or ".join((*query.channels, *query.patterns))),
            "sql": _statement("hello" if channel is None else channel) if seen.installed else None,
            "channels": [_listed(row, seen.counts[row.exact], base) for row in seen.channels],
            "unlisted": seen.unlisted,
            "plot": drawn(seen.counts[channel]) if live and channel is not None else None,
            "rows": [_row(message, base) for message in seen.found.messages],
            "live_rows": LIVE_ROWS,
            "path": path,
            "older": None if seen.found.older is None else _address(path, parameters, before=seen.found.older),
            "searched": query.text and seen.found.older is not None and len(seen.found.messages) < ROWS,
            "searched_to": seen.found.older,
            "newest": _address(path, parameters),
            "follow": _follow(query) if live else None,
            "last_id": seen.found.head,
            "span": seen.span,
            "silence": silence(broker),
            "row_base": datasette.urls.table(database, LOG) if may_view_log else None,
            # Before the log is there, its table and SQL that reads it would be errors.
            "links": await links(datasette, request, database, query, may_view_log and seen.installed),
        },
        request=request,
        view_name="pubsub",
    )
    return html


@dataclass(frozen=True, slots=True)
class Seen:
    """The content of a page, from one read transaction: so the script can continue from the head and the counts."""

    found: Found
    installed: bool
    span: int
    channels: list[log.Channel]
    unlisted: int
    counts: dict[Name, tuple[int, ...]]


def _read(conn: Any, query: Query, channel: str | None) -> Seen:
    span = activity.present_span()
    with log.moment(conn):
        found = search.newest(conn, query.selector, ROWS, before=query.before, text=query.text)
        rows = []
        if channel is None and query.before is None:
            rows = [row for row in log.channels(conn) if query.selector.matches(row.name)]
        listed = sorted(rows, key=lambda row: row.newest_id, reverse=True)[:LISTED_CHANNELS]
        plotted: list[Name] = [row.exact for row in listed] if channel is None else [channel]
        there = installed(conn)
        counts = activity.counts(conn, plotted, span) if query.before is None and there else {}
    if channel is not None:
        counts.setdefault(channel, (0,) * activity.SPANS)
    return Seen(found, there, span, listed, len(rows) - len(listed), counts)


def _statement(channel: str) -> str | None:
    """SQL that publishes a first message to a channel; ``None`` if its name has characters that nobody sees."""
    if visible(channel) != channel:
        return None
    return f"INSERT INTO {LOG} (channel, payload) VALUES ({literal(channel)}, 'world')"


def _follow(query: Query) -> str:
    """The channels that the script subscribes to, as asked for; the server checks permissions again."""
    patterns = query.patterns if query.channels or query.patterns else ("*",)
    return json.dumps({"channels": list(query.channels), "patterns": list(patterns)})


def _listed(row: log.Channel, counts: tuple[int, ...], base: str) -> dict[str, Any]:
    return {
        "name": visible(row.name),
        "key": tilde_encode(row.name),
        "path": f"{base}/{tilde_encode(row.name)}",
        "count": row.count,
        "newest_id": row.newest_id,
        "newest_at": row.newest_at,
        "plot": drawn(counts),
    }


def _address(path: str, parameters: list[tuple[str, str]], before: int | None = None) -> str:
    """The page's path with a query string, for links."""
    pairs = parameters + ([] if before is None else [("before", str(before))])
    return path + ("?" + urlencode(pairs) if pairs else "")


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
    """The entry in a database's menu, for actors who may view its messages."""

    async def link() -> list[dict[str, str]]:
        if registry(datasette).find(database) is None:
            return []
        if (await permissions.rights(datasette, actor, rules.VIEW, database)).nothing:
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
