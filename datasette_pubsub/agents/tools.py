"""What an agent may do with channels; :mod:`.mcp` and :mod:`.chat` register these for the two plugins.

Each function takes the request that the agent's actor stands in, and goes through the gateway, as every protocol does.
All raise :class:`~..core.errors.PubsubError`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from typing import TYPE_CHECKING, Any

from datasette.utils.asgi import Request

from ..access import gateway, permissions
from ..broker.broker import Broker
from ..broker.registry import registry
from ..core.errors import InvalidArgument, NotFound
from ..core.selector import Selector
from ..core.validation import check_message_id
from ..core.values import Item, Message, Where, text_of
from ..http import messages as reading
from ..protocol.passed import PassedEncoder
from ..protocol.passed import messages as passed

if TYPE_CHECKING:
    from datasette.app import Datasette

#: The most messages in one answer, and the most bytes of payload: an agent reads all of it.
MAX_MESSAGES = 100
MAX_BYTES = 200_000

#: The longest wait for a message, in seconds: clients give up a call that takes longer.
MAX_WAIT_SECONDS = 50.0

#: Once a message has arrived, others that are on their way may follow, in seconds.
GATHER_SECONDS = 0.05

LIST = "List the channels of a database's message log: their names, how many messages each has, and its newest id."
READ = (
    "Read the newest messages of a database's log, newest first: of channels by name, of patterns such as orders/*, or "
    "of all channels. To go back further, pass the smallest id as `before`."
)
WAIT = (
    "Wait until a message is published to a channel or pattern, and return what has arrived. Pass `after` from the "
    "last answer to miss nothing in between. Without a message in time, `messages` is empty: ask again."
)
PUBLISH = (
    "Publish one message to a channel. With a `key`, the same message is stored once, however often it is published."
)


def request_of(actor: dict[str, Any] | None) -> Request:
    """A request that this actor stands in, for an agent that works without one."""
    request = Request.fake("/")
    request.scope["actor"] = actor
    return request


def _broker(datasette: Datasette, database: str) -> Broker:
    if database not in datasette.databases:
        raise NotFound(f"database not found: {database}")
    return registry(datasette).of(database)


async def list_channels(datasette: Datasette, request: Request, database: str) -> dict[str, Any]:
    """The channels that the actor may view."""
    broker = _broker(datasette, database)
    rows = await permissions.visible_channels(datasette, request.actor, broker)
    return {"database": broker.name, "channels": [row.as_json() for row in rows]}


async def read_messages(
    datasette: Datasette,
    request: Request,
    database: str,
    channels: Sequence[str] = (),
    patterns: Sequence[str] = (),
    before: int | None = None,
    limit: int = 20,
) -> dict[str, Any]:
    """The newest messages before an id, newest first."""
    broker = _broker(datasette, database)
    if not 1 <= limit <= MAX_MESSAGES:
        raise InvalidArgument(f"limit must be a number of messages from 1 to {MAX_MESSAGES}", field="limit")
    selector = _selector(broker, channels, patterns) or Selector(patterns=("*",))
    visible = await permissions.visible(datasette, request.actor, broker.name, selector)
    query = reading.Query(visible, before=None if before is None else check_message_id(before, "before"))
    found = await reading.find(broker, query, limit, max_bytes=MAX_BYTES)
    return {
        "database": broker.name,
        "messages": [_shown(message) for message in found.messages],
        "more": bool(found.older),
    }


async def wait_for_message(
    datasette: Datasette,
    request: Request,
    database: str,
    channels: Sequence[str] = (),
    patterns: Sequence[str] = (),
    after: int | None = None,
    seconds: float = 20.0,
) -> dict[str, Any]:
    """The messages after an id, or the next ones; waits at most so long."""
    broker = _broker(datasette, database)
    if not 0 < seconds <= MAX_WAIT_SECONDS:
        raise InvalidArgument(f"seconds must be more than 0 and at most {MAX_WAIT_SECONDS:g}", field="seconds")
    selector = _selector(broker, channels, patterns)
    if not selector:
        raise InvalidArgument("name at least one channel or pattern", field="channels")
    where = Where() if after is None else Where(after=check_message_id(after, "after"))
    admitted = await gateway.admit(datasette, request, broker, gateway.Asked(selector=selector, where=where))
    found: list[Message] = []
    size = missed = 0
    async with admitted.open(PassedEncoder()) as subscriber, aclosing(subscriber.frames()) as frames:
        begun = subscriber.position
        wait = seconds
        try:
            while len(found) < MAX_MESSAGES and size < MAX_BYTES:
                async with asyncio.timeout(wait):
                    for message, gap in passed(await anext(frames)):
                        found.append(message)
                        size += message.size
                        missed += max(0, gap)
                        wait = GATHER_SECONDS
        except (TimeoutError, StopAsyncIteration):
            pass
    del found[MAX_MESSAGES:]
    answer = {
        "database": broker.name,
        "messages": [_shown(message) for message in found],
        "after": found[-1].id if found else begun,
    }
    return {**answer, "missed": missed} if missed else answer


async def publish_message(
    datasette: Datasette, request: Request, database: str, channel: str, payload: str, key: str | None = None
) -> dict[str, Any]:
    """Publish one message; returns its id when it is on disk."""
    broker = _broker(datasette, database)
    (message_id,) = await gateway.publish(datasette, request, broker, [Item(channel, payload, key=key)])
    return {"database": broker.name, "message_id": message_id}


def _selector(broker: Broker, channels: Sequence[str], patterns: Sequence[str]) -> Selector:
    return Selector.of(list(channels), list(patterns), broker.settings.max_channels_per_stream)


def _shown(message: Message) -> dict[str, Any]:
    payload = message.payload
    content = {"bytes": len(payload)} if isinstance(payload, bytes) else {"payload": text_of(payload)}
    return {"id": message.id, "channel": message.channel, **content, "created_at": message.created_at}
