"""The subscriptions page: lists subscriptions with their cursors and lags, and deletes them.

:mod:`.access.permissions` decides whether the actor sees the subscriptions of others.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.utils.asgi import Request, Response

from ..access import gateway, permissions
from ..broker.broker import Broker
from ..core.display import visible
from ..core.errors import NotFound
from ..core.validation import check_subscription_name
from ..http.request import SMALL_LIMIT, broker_of, read_form, require_method
from .layout import place, shown

if TYPE_CHECKING:
    from datasette.app import Datasette


@shown
async def page(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET …/subscriptions``: the list, with ``delete=<name>`` a confirmation; ``POST``: delete a subscription."""
    require_method(request, "GET", "HEAD", "POST")
    broker = broker_of(datasette, request)
    if request.method == "POST":
        form = await read_form(request, receive, SMALL_LIMIT)
        name = check_subscription_name(form.get("subscription"))
        await gateway.forget(datasette, request, broker, name, form.get("owner"))
        datasette.add_message(request, f"Deleted subscription {visible(name)}")
        return Response.redirect(_path(datasette, broker))
    return Response.html(await _list(datasette, request, broker))


def _path(datasette: Datasette, broker: Broker) -> str:
    return str(datasette.urls.database(broker.name)) + "/-/pubsub/-/subscriptions"


async def _list(datasette: Datasette, request: Request, broker: Broker) -> str:
    everyones = await permissions.may_manage(datasette, request.actor, broker.name)
    found = await permissions.visible_subscriptions(datasette, request.actor, broker, everyones)
    path = _path(datasette, broker)
    rows = [
        {
            **row,
            "name": visible(row["subscription"]),
            "whose": visible(row["owner"]),
            "reads": [visible(text) for text in (*row["channels"], *row["patterns"])],
            "filter": visible(row["filter"]),
            "delete": f"{path}?{urlencode({'delete': row['subscription'], 'owner': row['owner']})}",
        }
        for row in found
    ]
    name = request.args.get("delete")
    asked = None
    if name:
        owner = await permissions.owner_to_manage(datasette, request.actor, broker.name, request.args.get("owner"))
        asked = next((row for row in rows if (row["subscription"], row["owner"]) == (name, owner)), None)
        if asked is None:
            raise NotFound(f"subscription not found: {name}")
    html: str = await datasette.render_template(
        ["pubsub_subscriptions.html"],
        {
            **await place(datasette, request, broker),
            "path": path,
            "rows": rows,
            "asked": asked,
            "everyones": everyones,
        },
        request=request,
        view_name="pubsub",
    )
    return html
