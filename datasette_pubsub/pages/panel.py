"""The panel on a database's page: its channels with their newest message and their rate, live.

The law of this module: nothing for those who may see no channel, nothing where
no log is, one line where the log is empty. What it costs does not grow with
the log (see :mod:`.storage.activity`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasette.utils import tilde_encode
from datasette.utils.asgi import Request, Response

from ..access import permissions
from ..broker.broker import Broker
from ..broker.registry import registry
from ..core.display import SUMMARY_CHARACTERS, visible
from ..core.errors import PubsubError
from ..core.selector import Selector
from ..core.values import Message, text_of
from ..http.request import broker_of, only_get
from ..http.responses import mapped
from ..storage import activity, log
from .layout import silence
from .sparkline import drawn

if TYPE_CHECKING:
    from datasette.app import Datasette

#: Channels that the panel shows, in channels: it stands above everything else on the page.
SHOWN_CHANNELS = 5

#: Channels that ``activity.json`` tells of, in channels.
ACTIVE_CHANNELS = 100


async def panel(datasette: Datasette, request: Request, database: str) -> str | None:
    """The panel as HTML; ``None`` where there is nothing to show."""
    if registry(datasette).find(database) is None:
        return None
    try:
        broker = registry(datasette).of(database)
        answer = await _active(datasette, request, broker, SHOWN_CHANNELS)
    except PubsubError:
        # No right to any channel, or a database that cannot be read: its page says so itself.
        return None
    if not answer.installed or (answer.head and not answer.channels):
        # No log; or one that holds nothing for this visitor, who need not know that it holds anything.
        return None
    base = datasette.urls.database(database) + "/-/pubsub"
    html: str = await datasette.render_template(
        ["pubsub_panel.html"],
        {
            "base": base,
            "head": answer.head,
            "span": answer.span,
            "silence": silence(broker),
            "shown": SHOWN_CHANNELS,
            "more": answer.more,
            "channels": [
                {
                    "key": tilde_encode(entry.name),
                    "name": visible(entry.name),
                    "path": f"{base}/{tilde_encode(entry.name)}",
                    "newest": entry.newest,
                    "preview": preview(entry.newest),
                    "plot": drawn(entry.counts),
                }
                for entry in answer.channels
            ],
        },
        request=request,
        view_name="pubsub_panel",
    )
    return html


def preview(message: Message) -> str:
    """The beginning of a payload in one line."""
    if isinstance(message.payload, bytes):
        return f"{len(message.payload):,} bytes"
    text = text_of(message.payload)
    return visible(" ".join(text[:SUMMARY_CHARACTERS].split())) + ("…" if len(text) > SUMMARY_CHARACTERS else "")


async def _active(datasette: Datasette, request: Request, broker: Broker, limit: int) -> activity.Activity:
    """The channels that were written to last, of those that the actor may see; all of one moment.

    Raises :class:`~.core.errors.PermissionDenied` where that can be none.
    """
    everything = Selector(patterns=("*",))
    selector = await permissions.visible(datasette, request.actor, broker.name, everything)

    def read(conn: Any) -> activity.Activity:
        with log.moment(conn):
            return activity.recent(conn, selector.matches, limit)

    return await broker.read(read)


@mapped
async def activity_json(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET …/activity.json``: the channels that were written to last, with their newest message and their rate."""
    only_get(request)
    answer = await _active(datasette, request, broker_of(datasette, request), ACTIVE_CHANNELS)
    channels = [
        {
            "channel": entry.name,
            "newest_id": entry.newest.id,
            "newest_created_at": entry.newest.created_at,
            "preview": preview(entry.newest),
            "counts": entry.counts,
        }
        for entry in answer.channels
    ]
    body = {"ok": True, "head": str(answer.head), "span": answer.span, "span_seconds": activity.SPAN_SECONDS}
    return Response.json({**body, "channels": channels})
