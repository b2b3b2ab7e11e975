"""The page of standing queries: their last runs, rows, messages and errors."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from datasette.utils import tilde_encode
from datasette.utils.asgi import Request, Response

from ..access import permissions
from ..core.display import visible
from ..http.request import broker_of, only_get
from .layout import place, shown

if TYPE_CHECKING:
    from datasette.app import Datasette


@shown
async def page(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET …/queries``: the list, which is read-only: the configuration and the command line define the queries."""
    only_get(request)
    broker = broker_of(datasette, request)
    found = await permissions.visible_standing_queries(datasette, request.actor, broker)
    context = await place(datasette, request, broker)
    rows = [
        {
            **state,
            "name": visible(state["name"]),
            "sql": None if state["sql"] is None else visible(state["sql"]),
            "params": [(visible(name), visible(str(value))) for name, value in (state["params"] or {}).items()],
            "key": [visible(name) for name in state["key"]],
            "error": None if state["error"] is None else visible(state["error"]),
            "channel": visible(state["channel"]),
            "channel_path": f"{context['base']}/{tilde_encode(state['channel'])}",
        }
        for state in found
    ]
    html: str = await datasette.render_template(
        ["pubsub_standing.html"], {**context, "rows": rows}, request=request, view_name="pubsub"
    )
    return Response.html(html)
