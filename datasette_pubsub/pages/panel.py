"""The panel on a database's page: its channels with their newest messages and rates, live.

There is no panel if the actor may view no channel or the database has no log, and one line if the log is empty. Its
cost does not grow with the log (see :mod:`.storage.activity`).
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

#: The most channels in the panel, which is above everything else on the page.
SHOWN_CHANNELS = 5

#: The most channels in ``activity.json``.
ACTIVE_CHANNELS = 100


async def panel(datasette: Datasette, request: Request, database: str) -> str | None:
    """The panel as HTML; ``None`` if there is nothing to show."""
    if registry(datasette).find(database) is None:
        return None
    try:
        broker = registry(datasette).of(database)
        answer = await _active(datasette, request, broker, SHOWN_CHANNELS)
    except PubsubError:
        # The actor may view no channel; or the database cannot be read, which Datasette's page itself reports.
        return None
    if not answer.installed or (answer.head and not answer.channels):
        # There is no log; or it has no message for this actor, who must not learn that it has any.
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
    """The beginning of a payload, on one line."""
    if isinstance(message.payload, bytes):
        return f"{len(message.payload):,} bytes"
    text = text_of(message.payload)
    return visible(" ".join(text[:SUMMARY_CHARACTERS].split())) + ("…" if len(text) > SUMMARY_CHARACTERS else "")


async def _active(datasette: Datasette, request: Request, broker: Broker, limit: int) -> activity.Activity:
    """The channels with the newest messages that the actor may view, in one read transaction.

    Raises :class:`~.core.errors.PermissionDenied` if the actor may view no channel.
    """
    everything = Selector(patterns=("*",))
    selector = await permissions.visible(datasette, request.actor, broker.name, everything)

    def read(conn: Any) -> activity.Activity:
        with log.moment(conn):
            return activity.recent(conn, selector.matches, limit)

    return await broker.read(read)


@mapped
async def activity_json(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET …/activity.json``: the channels with the newest messages, with these messages and their rates."""
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
