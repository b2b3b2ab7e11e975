"""The publish form.

It works without scripts. It shows an error beside the field that is wrong, and keeps what the publisher has typed.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from datasette.resources import TableResource
from datasette.utils import tilde_encode
from datasette.utils.asgi import Request, Response

from ..access import gateway, permissions, rules
from ..broker.broker import Broker
from ..core.display import visible
from ..core.errors import InvalidArgument, PermissionDenied, PubsubError
from ..core.validation import check_item
from ..core.values import Item
from ..core.verdicts import Verdicts
from ..http.request import broker_of, publish_limit, read_form, require_method
from ..storage.objects import LOG
from .layout import place, publish_path, shown

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The most channels that the form suggests: more than a browser shows of a list at once.
OFFERED_CHANNELS = 200

#: The most message ids that are listed one by one, if they are not consecutive.
NAMED_IDS = 20

#: Finds the field that an error is about, if it names one.
_FIELD = re.compile(r"(?:line \d+: )?(channel|payload|key)\b|permission denied: .* on (channel)\b")


@dataclass(frozen=True, slots=True)
class Typed:
    """The values of the form. With ``lines``, every line of the payload is a message."""

    channel: str = ""
    payload: str = ""
    key: str = ""
    lines: bool = False

    def items(self) -> list[Item]:
        """The messages to publish. Raises :class:`InvalidArgument`."""
        if "\0" in self.payload:
            raise InvalidArgument("payload must not contain NUL: send it as a blob, over HTTP")
        key = self.key or None
        if not self.lines:
            return [Item(self.channel, self.payload, key)]
        if key is not None:
            raise InvalidArgument("key is for one message: leave it empty, or publish the lines one by one")
        lines = [line for line in self.payload.split("\n") if line]
        if not lines:
            raise InvalidArgument("payload is empty: there is no line to publish")
        return [Item(self.channel, line) for line in lines]


@shown
async def publish_form(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET`` and ``POST /<db>/-/pubsub/-/publish-form``; ``channel=`` fills in the channel."""
    require_method(request, "GET", "HEAD", "POST")
    broker = broker_of(datasette, request)
    broker.store.check_writable()
    allowed = await permissions.rights(datasette, request.actor, rules.PUBLISH, broker.name)
    if allowed.nothing:
        raise PermissionDenied(f"permission denied: {rules.PUBLISH} on database {broker.name}")
    if request.method != "POST":
        return await _page(datasette, request, broker, allowed, Typed(channel=request.args.get("channel") or ""))
    form = await read_form(request, receive, publish_limit(broker))
    typed = Typed(
        channel=form.get("channel", ""),
        # A browser always sends CR LF between the lines of a text.
        payload=form.get("payload", "").replace("\r\n", "\n"),
        key=form.get("key", ""),
        lines=form.get("lines", "") != "",
    )
    try:
        ids = await _publish(datasette, request, broker, typed)
    except PubsubError as error:
        return await _page(datasette, request, broker, allowed, typed, error)
    datasette.add_message(request, f"Published {_named(ids)} to {visible(typed.channel)}")
    path = datasette.urls.database(broker.name) + "/-/pubsub/-/publish-form?"
    return Response.redirect(path + urlencode({"channel": typed.channel}))


def database_link(
    datasette: Datasette, actor: dict[str, Any] | None, database: str
) -> Callable[[], Awaitable[list[dict[str, str]]]]:
    """The entry in a database's menu, for actors who may publish."""

    async def link() -> list[dict[str, str]]:
        path = await publish_path(datasette, actor, database)
        if path is None:
            return []
        return [
            {
                "href": path,
                "label": "Publish messages",
                "description": "Send messages to a channel of this database",
            }
        ]

    return link


async def _publish(datasette: Datasette, request: Request, broker: Broker, typed: Typed) -> list[int]:
    items = typed.items()
    for number, item in enumerate(items, 1):
        try:
            check_item(item, broker.settings)
        except PubsubError as error:
            if typed.lines and error.field != "channel":
                error.message = f"line {number}: {error.message}"
            raise
    return await gateway.publish(datasette, request, broker, items)


def _named(ids: list[int]) -> str:
    """Message ids in words."""
    if len(ids) == 1:
        return f"message {ids[0]}"
    count = f"{len(ids):,} messages"
    if ids == list(range(ids[0], ids[0] + len(ids))):
        return f"{count}, {ids[0]} to {ids[-1]},"
    named = ", ".join(map(str, ids[:NAMED_IDS]))
    return f"{count}, {named}{' and more' if len(ids) > NAMED_IDS else ''},"


async def _page(
    datasette: Datasette,
    request: Request,
    broker: Broker,
    allowed: Verdicts,
    typed: Typed,
    error: PubsubError | None = None,
) -> Response:
    database = broker.name
    seen = await permissions.visible_channels(datasette, request.actor, broker)
    offered = [row.name for row in seen if allowed.allows(row.name)]
    named = [name for name, ok in sorted(allowed.named) if ok]
    patterns = [pattern for pattern, ok in allowed.patterns if ok]
    match = _FIELD.match(error.message) if error is not None else None
    base = datasette.urls.database(database) + "/-/pubsub"
    anonymous = await permissions.rights(datasette, None, rules.PUBLISH, database)
    may_view_log = await datasette.allowed(
        action="view-table", resource=TableResource(database, LOG), actor=request.actor
    )
    html = await datasette.render_template(
        ["pubsub_publish.html"],
        {
            **await place(datasette, request, broker),
            "typed": typed,
            "error": visible(error.message) if error is not None else None,
            "wrong": (match[1] or match[2]) if match is not None else None,
            "offered": sorted({*offered, *named})[:OFFERED_CHANNELS],
            "only": None if allowed.general else [*map(visible, named), *map(visible, patterns)],
            "channel_path": f"{base}/{tilde_encode(typed.channel)}" if typed.channel else None,
            "row_base": datasette.urls.table(database, LOG) if may_view_log else None,
            "max_payload_bytes": broker.settings.max_payload_bytes,
            "token": not anonymous.everything,
        },
        request=request,
        view_name="pubsub",
    )
    return Response.html(html, status=error.status if error is not None else 200)
