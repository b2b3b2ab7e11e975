"""The plain HTTP API: publish, ack, snapshots, and lists of channels and subscriptions."""

from __future__ import annotations

import json
import math
from typing import TYPE_CHECKING, Any

from datasette.resources import DatabaseResource, TableResource
from datasette.utils import CustomJSONEncoder, InvalidSql, validate_sql_select
from datasette.utils.asgi import Request, Response

from ..access import gateway, permissions, rules
from ..core.errors import InvalidArgument, PermissionDenied
from ..core.validation import check_message_id, check_subscription_name
from ..protocol.items import items_of_json
from . import ndjson
from .request import (
    SMALL_LIMIT,
    broker_of,
    content_type,
    is_large,
    only_get,
    publish_limit,
    read_json,
    read_json_body,
    require_method,
)
from .responses import mapped

if TYPE_CHECKING:
    from datasette.app import Datasette


@mapped
async def publish(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response | None:
    """``POST …/publish``: one message or many, all or none; answers when they are durable. Or a publish stream."""
    streams = content_type(request) == ndjson.CONTENT_TYPE
    # curl -T sends PUT.
    require_method(request, *(("POST", "PUT") if streams else ("POST",)))
    broker = broker_of(datasette, request)
    if streams:
        await ndjson.publish(scope, receive, send, request, datasette, broker)
        return None
    if is_large(request) and not await permissions.publishes(datasette, request.actor, broker.name):
        raise PermissionDenied(f"permission denied: {rules.PUBLISH} on database {broker.name}")
    items = items_of_json(await read_json_body(request, receive, publish_limit(broker)), "the body")
    ids = await gateway.publish(datasette, request, broker, items)
    return Response.json({"ok": True, "message_ids": ids})


@mapped
async def ack(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``POST …/ack``: acknowledge all messages up to an id; the cursor moves forward."""
    require_method(request, "POST")
    broker = broker_of(datasette, request)
    data = await read_json(request, receive, SMALL_LIMIT)
    name = check_subscription_name(data.get("subscription"))
    message_id = check_message_id(data.get("message_id"), "message_id")
    cursor = await gateway.move_cursor(datasette, request, broker, name, message_id)
    return Response.json({"ok": True, "cursor": cursor})


@mapped
async def channels(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET …/channels.json``: the channels that the actor may view, sorted by name."""
    only_get(request)
    broker = broker_of(datasette, request)
    rows = await permissions.visible_channels(datasette, request.actor, broker)
    follows = await permissions.visible_follows(datasette, request.actor, broker)
    body = {"ok": True, "database": broker.name, "follows": follows, "channels": [row.as_json() for row in rows]}
    return Response.json(body)


@mapped
async def subscriptions(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET …/subscriptions.json``: the actor's own subscriptions; with ``owner=*`` everyone's."""
    only_get(request)
    broker = broker_of(datasette, request)
    owner = request.args.get("owner")
    if owner not in (None, "*"):
        raise InvalidArgument("owner must be *, for the subscriptions of all")
    rows = await permissions.visible_subscriptions(datasette, request.actor, broker, owner == "*")
    follows = await permissions.visible_follows(datasette, request.actor, broker)
    return Response.json({"ok": True, "database": broker.name, "follows": follows, "subscriptions": rows})


@mapped
async def delete_subscription(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``POST …/subscriptions/delete``: delete a subscription and its cursor; without ``owner``, the actor's own."""
    require_method(request, "POST")
    broker = broker_of(datasette, request)
    data = await read_json(request, receive, SMALL_LIMIT)
    name = check_subscription_name(data.get("subscription"))
    await gateway.forget(datasette, request, broker, name, data.get("owner"))
    return Response.json({"ok": True})


@mapped
async def standing_queries(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET …/queries.json``: the standing queries of the database."""
    only_get(request)
    broker = broker_of(datasette, request)
    found = await permissions.visible_standing_queries(datasette, request.actor, broker)
    return Response.json({"ok": True, "queries": found})


@mapped
async def snapshot(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET …/snapshot.json?table=`` or ``?sql=``: rows, and the log's head at the same moment.

    A stream with ``after=<head>`` continues from there without missing a message.
    """
    only_get(request)
    broker = broker_of(datasette, request)
    table, statement = request.args.get("table"), request.args.get("sql")
    if bool(table) == bool(statement):
        raise InvalidArgument("give either table or sql")
    if table:
        if not await datasette.allowed(
            action="view-table", resource=TableResource(broker.name, table), actor=request.actor
        ):
            raise PermissionDenied(f"permission denied: view-table on {table} of database {broker.name}")
        columns, rows, head = await broker.queries.snapshot_table(table)
    else:
        if not await datasette.allowed(
            action="execute-sql", resource=DatabaseResource(broker.name), actor=request.actor
        ):
            raise PermissionDenied(f"permission denied: execute-sql on database {broker.name}")
        try:
            validate_sql_select(statement)
        except InvalidSql as error:
            raise InvalidArgument(f"sql: {error}") from None
        params = {name: request.args[name] for name in request.args if name not in ("sql", "table")}
        columns, rows, head = await broker.queries.snapshot(statement, params)
    body = {"ok": True, "head": str(head), "rows": [dict(zip(columns, map(_finite, row), strict=True)) for row in rows]}
    return Response(json.dumps(body, cls=CustomJSONEncoder), content_type="application/json; charset=utf-8")


def _finite(value: Any) -> Any:
    """A value for JSON: infinities become text, as in Protobuf's JSON mapping."""
    if isinstance(value, float) and not math.isfinite(value):
        return "Infinity" if value > 0 else "-Infinity"
    return value
