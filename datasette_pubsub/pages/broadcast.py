"""The page "Broadcast this table", which shows, creates and removes a table's triggers.

It creates exactly the triggers that it has shown before. It is an HTML form that works without scripts.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from datasette.resources import TableResource
from datasette.utils import MultiParams, tilde_decode, tilde_encode
from datasette.utils.asgi import Request, Response

from ..access import permissions, rules
from ..broadcast import tables as files
from ..broadcast.definition import OPERATIONS, Broadcast, Trigger, default_channel
from ..broadcast.shape import Shape, shape_of
from ..broadcast.tables import Found, Lost
from ..broker.broker import Broker
from ..broker.registry import registry
from ..core.errors import Conflict, InvalidArgument, PermissionDenied, PubsubError, UnsupportedMediaType
from ..core.validation import check_channel
from ..http.request import BodyLimit, broker_of, read_body, require_method
from .layout import place, shown

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The largest form, in bytes: three conditions and an expression of the greatest length, and many column names.
MAX_FORM_BYTES = 256 * 1024

#: The permissions that an actor needs: to change the table's schema, and to view the rows that its messages have.
RIGHTS = ("view-table", "alter-table")


@shown
async def page(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET`` and ``POST /<db>/<table>/-/broadcast``."""
    require_method(request, "GET", "HEAD", "POST")
    broker = broker_of(datasette, request)
    table = tilde_decode(request.url_vars["table"])
    refused = await _refused(datasette, request.actor, broker.name, table)
    if refused:
        raise PermissionDenied(f"permission denied: {refused} on table {table} of database {broker.name}")
    broker.store.check_writable()
    if request.method in ("GET", "HEAD"):
        return await _show(request, datasette, broker, table)
    form = await _read(request, receive)
    action = form.get("action")
    if action not in ("preview", "create", "remove", "again"):
        raise InvalidArgument("action must be preview, create, remove or again")
    shape, _, lost = await broker.read(lambda conn: _look(conn, table))
    if action == "remove":
        await broker.change(lambda conn: files.remove(conn, shape.table))
        datasette.add_message(request, f"{shape.table} is not broadcast any more")
        return Response.redirect(broadcast_path(datasette, broker.name, shape.table))
    if action == "again":
        try:
            if lost is not None and lost.broadcast is not None:
                await _require_publish(datasette, request, broker, lost.broadcast)
            await broker.change(lambda conn: files.again(conn, shape.table))
        except PubsubError as error:
            return await _show(request, datasette, broker, table, None, error)
        datasette.add_message(request, f"{shape.table} is broadcast again")
        return Response.redirect(broadcast_path(datasette, broker.name, shape.table))
    wanted = _wanted(form, shape)
    if action == "preview":
        return await _show(request, datasette, broker, table, wanted)
    try:
        await _require_publish(datasette, request, broker, wanted)
        await broker.change(lambda conn: _create(conn, shape.table, wanted, form.get("shown")))
    except PubsubError as error:
        return await _show(request, datasette, broker, table, wanted, error)
    datasette.add_message(request, f"{shape.table} is broadcast now")
    return Response.redirect(broadcast_path(datasette, broker.name, shape.table))


async def _refused(datasette: Datasette, actor: dict[str, Any] | None, database: str, table: str) -> str | None:
    """The first permission that the actor lacks."""
    for action in RIGHTS:
        if not await datasette.allowed(action=action, resource=TableResource(database, table), actor=actor):
            return action
    return None


async def _read(request: Request, receive: Any) -> MultiParams:
    """Read the form in the body. Raises a :class:`PubsubError` that says what is wrong with it."""
    content_type = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if content_type != "application/x-www-form-urlencoded":
        raise UnsupportedMediaType("content-type must be application/x-www-form-urlencoded")
    body = await read_body(request, receive, BodyLimit(MAX_FORM_BYTES, why="of this form"))
    try:
        return MultiParams(parse_qs(body.decode(), keep_blank_values=True))
    except (UnicodeDecodeError, ValueError):
        raise InvalidArgument("the form cannot be read") from None


def _wanted(form: MultiParams, shape: Shape) -> Broadcast:
    """The broadcast that the form describes; its texts are checked when the triggers are made."""
    chosen = tuple(form.getlist("column"))
    return Broadcast(
        form.get("channel") or "",
        (form.get("per_row") or "").strip(),
        None if set(chosen) == {column.name for column in shape.columns} else chosen,
        bool(form.get("new")),
        bool(form.get("old")),
        {each: form.get(f"when_{each}") or "" for each in OPERATIONS if each in form.getlist("on")},
    )


def _look(conn: sqlite3.Connection, table: str) -> tuple[Shape, Found | None, Lost | None]:
    shape = shape_of(conn, table)
    return shape, files.find(conn, shape.table), files.lost(conn).get(shape.table)


def _create(conn: sqlite3.Connection, table: str, wanted: Broadcast, shown_before: str | None) -> None:
    if digest(files.create(conn, table, wanted)) != shown_before:
        raise Conflict(f"table {table}, or its triggers, have changed since these were shown; look at them again")


async def _show(
    request: Request,
    datasette: Datasette,
    broker: Broker,
    table: str,
    wanted: Broadcast | None = None,
    fault: PubsubError | None = None,
) -> Response:
    """The page: the present broadcast, and the triggers that ``wanted`` would make or the error in it."""
    shape, found, lost = await broker.read(lambda conn: _look(conn, table))
    triggers = None
    if wanted is not None and (fault is None or isinstance(fault, Conflict)):
        try:
            triggers = await _preview(datasette, request, broker, shape, wanted)
        except PubsubError as error:
            fault = error
    there = found.broadcast if found else None
    before = there or (lost.broadcast if lost else None)
    context = {
        **await place(datasette, request, broker),
        "path": broadcast_path(datasette, broker.name, shape.table),
        "table": shape.table,
        "shape": shape,
        "found": found,
        "lost": lost,
        "noting": shape.replaces_silently or bool(wanted and wanted.per_row),
        "found_sql": _sql(found.triggers) if found else None,
        "found_channel": tilde_encode(there.channel) if there and not there.per_row else None,
        "operations": OPERATIONS,
        "form": _filled(wanted or before or Broadcast(_first_channel(shape.table)), shape),
        "wanted": wanted,
        "sql": _sql(triggers) if triggers else None,
        "digest": digest(triggers) if triggers else None,
        "open_to_all": wanted is not None and await _open_to_all(datasette, broker.name, shape.table, wanted),
        "fault": fault.message if fault else None,
    }
    html = await datasette.render_template(["pubsub_broadcast.html"], context, request=request, view_name="pubsub")
    return Response.html(html, status=fault.status if fault else 200)


async def _preview(
    datasette: Datasette, request: Request, broker: Broker, shape: Shape, wanted: Broadcast
) -> list[Trigger]:
    """The triggers that would be created. Raises :class:`PermissionDenied`."""
    await _require_publish(datasette, request, broker, wanted)
    return await broker.change(lambda conn: files.preview(conn, shape.table, wanted))


async def _require_publish(datasette: Datasette, request: Request, broker: Broker, wanted: Broadcast) -> None:
    """Raise :class:`PermissionDenied` unless the actor may publish to the channels of the triggers."""
    check_channel(wanted.channel)
    if not wanted.per_row:
        await permissions.require_publish(datasette, request.actor, broker.name, {wanted.channel})
        return
    found = await permissions.rights(datasette, request.actor, rules.PUBLISH, broker.name)
    if not found.everything:
        raise PermissionDenied(
            f"permission denied: a channel for each row needs {rules.PUBLISH} on every channel of "
            f"database {broker.name}"
        )


async def _open_to_all(datasette: Datasette, database: str, table: str, wanted: Broadcast) -> bool:
    """Whether anonymous visitors may view the channel, but not the table."""
    resource = TableResource(database, table)
    if await datasette.allowed(action="view-table", resource=resource, actor=None):
        return False
    return await permissions.may_view(datasette, None, database, wanted.channel or None)


def _filled(broadcast: Broadcast, shape: Shape) -> dict[str, Any]:
    """The form's fields for a broadcast."""
    return {
        "channel": broadcast.channel,
        "per_row": broadcast.per_row,
        "columns": broadcast.columns if broadcast.columns is not None else [column.name for column in shape.columns],
        "new": broadcast.new,
        "old": broadcast.old,
        "conditions": broadcast.conditions,
    }


def _first_channel(table: str) -> str:
    channel = default_channel(table)
    try:
        return check_channel(channel)
    except InvalidArgument:
        return "changes"


def _sql(triggers: Sequence[Trigger]) -> str:
    return "\n\n".join(f"{trigger.sql};" for trigger in triggers)


def digest(triggers: Sequence[Trigger]) -> str:
    """A short hash of the triggers' SQL, by which a form says which triggers it has shown."""
    return hashlib.sha256(_sql(triggers).encode()).hexdigest()[:16]


def broadcast_path(datasette: Datasette, database: str, table: str) -> str:
    return f"{datasette.urls.table(database, table)}/-/broadcast"


def table_link(
    datasette: Datasette, actor: dict[str, Any] | None, database: str, table: str
) -> Callable[[], Awaitable[list[dict[str, str]]]]:
    """The entry in a table's menu, for actors who may change its schema."""

    async def link() -> list[dict[str, str]]:
        broker = registry(datasette).find(database)
        if broker is None or not broker.store.writable:
            return []
        if await _refused(datasette, actor, database, table):
            return []
        try:
            _, found, lost = await broker.read(lambda conn: _look(conn, table))
        except PubsubError:
            return []
        state = "Its changes are published; see how, or end it" if found else "Publish its changes to a channel"
        if lost is not None:
            state = "Its changes are not published any more; see why, and publish them again"
        href = broadcast_path(datasette, database, table)
        return [{"href": href, "label": "Broadcast this table", "description": state}]

    return link


__all__ = ["page", "table_link"]
