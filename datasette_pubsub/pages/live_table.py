"""Live tables: gives the page of a broadcast table what its script needs to keep the rows up to date.

It reads the position before Datasette reads the rows, so that no change is lost between the page and the stream. The
script gets changed rows from Datasette's own page, under Datasette's permissions.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette.resources import TableResource
from datasette.utils import tilde_encode
from datasette.utils.asgi import Request
from markupsafe import Markup

from ..access import permissions
from ..broadcast import tables
from ..broadcast.definition import Broadcast
from ..broadcast.tables import Lost
from ..broker.registry import registry
from ..core.errors import PubsubError
from ..core.selector import Selector
from ..storage import log

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The keys in a request's scope for what was found for its page.
_FOUND = "pubsub_live_table"
_LOST = "pubsub_lost_broadcast"


@dataclass(frozen=True, slots=True)
class LiveTable:
    """A broadcast that the actor may view, and the log's head before the page's rows were read."""

    broadcast: Broadcast
    told_as: str
    head: int


def look(request: Request, datasette: Datasette, database: str, table: str) -> Callable[[], Awaitable[None]]:
    """Find the broadcast of a table, for its page; called before Datasette reads the rows."""

    async def find() -> None:
        broker = registry(datasette).find(database)
        if broker is None or not broker.settings.live_tables or not broker.store.writable:
            return
        if request.url_vars.get("format") not in (None, "html"):
            return

        def read(conn: sqlite3.Connection) -> tuple[LiveTable | None, Lost | None]:
            head = log.head(conn)
            found = tables.find(conn, table, compare=False)
            live = LiveTable(found.broadcast, found.told_as, head) if found and found.broadcast else None
            return live, tables.lost(conn).get(table)

        try:
            live, request.scope[_LOST] = await broker.read(read)
            if live is not None:
                channels, patterns = live.broadcast.follows()
                selector = Selector(frozenset(channels), tuple(patterns))
                await permissions.visible(datasette, request.actor, database, selector)
                request.scope[_FOUND] = live
        except PubsubError:
            # The page is Datasette's: it must not fail if we cannot read the broadcast, or the actor may not view it.
            return

    return find


def found(request: Request | None) -> LiveTable | None:
    return request.scope.get(_FOUND) if request is not None else None


def script(request: Request | None) -> list[dict[str, Any]]:
    """The page's script, if its table is live."""
    return [{"url": _static("pages/live_table.js"), "module": True}] if found(request) else []


def style(request: Request | None) -> list[str]:
    return [_static("pubsub_table.css")] if found(request) else []


def _static(name: str) -> str:
    return f"/-/static-plugins/datasette_pubsub/{name}"


async def top(datasette: Datasette, request: Request, database: str) -> str:
    """The HTML above the rows: it says that the table is broadcast, and to which channel; the script reads it."""
    live = found(request)
    if live is None:
        return await _top_of_lost(datasette, request, database, request.scope.get(_LOST))
    channels, patterns = live.broadcast.follows()
    base = datasette.urls.database(database) + "/-/pubsub"
    html: str = await datasette.render_template(
        "pubsub_table.html",
        {
            "base": base,
            "name": live.told_as,
            "follow": json.dumps({"channels": channels, "patterns": patterns}),
            "last_id": live.head,
            "channel": live.broadcast.channel,
            "path": f"{base}/{tilde_encode(live.broadcast.channel)}" if channels else base,
        },
        request=request,
    )
    return html


async def _top_of_lost(datasette: Datasette, request: Request, database: str, lost: Lost | None) -> str:
    """A warning that the table is not broadcast any more, for actors who may change that."""
    if lost is None:
        return ""
    resource = TableResource(database, lost.table)
    if not await datasette.allowed(action="alter-table", resource=resource, actor=request.actor):
        return ""
    path = f"{datasette.urls.table(database, lost.table)}/-/broadcast"
    return str(
        Markup('<p class="message-warning">{} <a href="{}">Broadcast</a></p>').format(
            f"This table was broadcast: {lost.reason}.", path
        )
    )
