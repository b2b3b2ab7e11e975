"""Queries for messages, with their results as JSON and as CSV.

The viewer uses the same query, and gets the same messages. They have the field names of ``SubscribeResponse``.
"""

from __future__ import annotations

import csv
import functools
import io
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request, Response

from ..access import permissions
from ..broker.broker import Broker
from ..core.errors import InvalidArgument
from ..core.selector import Selector
from ..core.validation import check_message_id
from ..protocol.frames import message_fields
from ..storage import log, search
from .request import broker_of, only_get
from .responses import mapped

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The default and the largest number of messages in one answer, as in Datasette's own tables.
LIMIT = 100
MAX_LIMIT = 1_000

#: The most bytes of payload in one answer; the client asks for the rest with ``before``.
MAX_ANSWER_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Query:
    """A query for messages; ``selector`` is the part of it that the actor may view."""

    selector: Selector
    channels: tuple[str, ...] = ()
    patterns: tuple[str, ...] = ()
    text: str = ""
    before: int | None = None

    @property
    def parameters(self) -> list[tuple[str, str]]:
        """The query as URL parameters, without ``before``."""
        pairs = [("channel", channel) for channel in self.channels]
        pairs += [("pattern", pattern) for pattern in self.patterns]
        return pairs + ([("q", self.text)] if self.text else [])


async def query_from(datasette: Datasette, request: Request, broker: Broker, channel: str | None = None) -> Query:
    """The query of a request; without channels and patterns it is for every channel that the actor may view.

    Raises :class:`InvalidArgument` naming the parameter, and
    :class:`~.core.errors.PermissionDenied` for a channel that the actor may not view.
    """
    args = request.args
    channels = [channel] if channel is not None else args.getlist("channel")
    patterns = [] if channel is not None else [pattern for pattern in args.getlist("pattern") if pattern]
    wanted = Selector.of(channels, patterns, broker.settings.max_channels_per_stream) or Selector(patterns=("*",))
    text = args.get("q") or ""
    if len(text) > search.MAX_TEXT:
        raise InvalidArgument(f"q has {len(text)} characters; the limit is {search.MAX_TEXT} characters")
    before = args.get("before")
    return Query(
        await permissions.visible(datasette, request.actor, broker.name, wanted),
        tuple(sorted(wanted.channels)),
        tuple(patterns),
        text,
        check_message_id(before, "before") if before else None,
    )


async def find(broker: Broker, query: Query, limit: int, *, max_bytes: int, after: int | None = None) -> search.Found:
    """The newest messages of a query, in one read transaction."""
    return await broker.read(functools.partial(found, query=query, limit=limit, max_bytes=max_bytes, after=after))


def found(conn: Any, query: Query, limit: int, max_bytes: int, after: int | None = None) -> search.Found:
    """As :func:`find`, on a connection."""
    with log.moment(conn):
        return search.newest(
            conn,
            query.selector,
            limit,
            before=query.before,
            text=query.text,
            max_bytes=max_bytes,
            after=after,
        )


async def _ask(request: Request, datasette: Datasette) -> search.Found:
    only_get(request)
    broker = broker_of(datasette, request)
    query = await query_from(datasette, request, broker)
    limit, after = request.args.get("limit") or str(LIMIT), request.args.get("after")
    if not (limit.isascii() and limit.isdigit() and len(limit) <= 5 and 1 <= int(limit) <= MAX_LIMIT):
        raise InvalidArgument(f"limit must be a number of messages from 1 to {MAX_LIMIT}")
    return await find(
        broker,
        query,
        int(limit),
        max_bytes=MAX_ANSWER_BYTES,
        after=check_message_id(after, "after") if after else None,
    )


@mapped
async def as_json(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET …/messages.json``: the newest messages of channels and patterns that contain a text, newest first."""
    answer = await _ask(request, datasette)
    body: dict[str, Any] = {
        "ok": True,
        "head": str(answer.head),
        "older": None if answer.older is None else str(answer.older),
        "messages": [message_fields(message) for message in answer.messages],
    }
    if answer.behind is not None:
        body["behind"] = answer.behind
    return Response.json(body)


@mapped
async def as_csv(scope: Any, receive: Any, send: Any, request: Request, datasette: Datasette) -> Response:
    """``GET …/messages.csv``: the same messages as CSV."""
    answer = await _ask(request, datasette)
    out = io.StringIO()
    table = csv.DictWriter(out, ["messageId", "channel", "payload", "blob", "createdAt"])
    table.writeheader()
    table.writerows(message_fields(message) for message in answer.messages)
    headers = {"Content-Disposition": 'attachment; filename="messages.csv"', "X-Content-Type-Options": "nosniff"}
    return Response(out.getvalue(), content_type="text/csv; charset=utf-8", headers=headers)
