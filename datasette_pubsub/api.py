"""For other plugins, in the server's own process: publish to a database's log, and subscribe to it.

Nothing here checks permissions: a plugin that acts for a visitor uses :mod:`.access.gateway` instead.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from typing import TYPE_CHECKING, Self

from .broker.registry import registry
from .broker.subscribing import SubscribeOptions
from .core.errors import InvalidArgument
from .core.filters import normalised
from .core.limits import PLUGIN_OWNER
from .core.selector import Selector
from .core.validation import check_message_id, check_since, check_start
from .core.values import Item, Message, Start, Where
from .protocol.passed import PassedEncoder
from .protocol.passed import messages as passed_messages

if TYPE_CHECKING:
    from datasette.app import Datasette

    from .broker.broker import Broker
    from .live.subscriber import Subscriber

__all__ = ["Item", "Message", "Messages", "publish", "subscribe"]


async def publish(datasette: Datasette, database: str, items: Iterable[Item]) -> list[int]:
    """Publish all items or none; returns their ids when they are on disk.

    Raises :class:`~.core.errors.PubsubError`: for a bad item, for more than
    ``max_batch_messages``, when too much waits already, and for a database that
    is unknown or has no log to write to.

    Example::

        from datasette_pubsub.api import Item, publish

        ids = await publish(datasette, "data", [Item("orders", '{"order": 7}', key="order-7")])
        assert ids == [1]
    """
    return await registry(datasette).of(database).publish(list(items))


@asynccontextmanager
async def subscribe(
    datasette: Datasette,
    database: str,
    *channels: str,
    patterns: Sequence[str] = (),
    filter: str = "",
    start: Start | None = None,
    after: int | None = None,
    since: str | None = None,
    subscription: str | None = None,
) -> AsyncIterator[Messages]:
    """Subscribe until the block ends; the messages are those of all programs that write to the file.

    It begins with the next message, or as ``start``, ``after`` an id or ``since``
    a time say. With the name of a ``subscription`` the database keeps the place:
    it begins after the last message that :meth:`Messages.ack` was called for.
    Plugins share these names, and nobody else has them. Raises
    :class:`~.core.errors.PubsubError`.

    Example::

        from datasette_pubsub.api import Item, publish, subscribe

        await publish(datasette, "data", [Item("orders", "seven")])
        async with subscribe(datasette, "data", "orders", start="earliest") as messages:
            async for message in messages:
                assert message.payload == "seven"
                break
    """
    broker = registry(datasette).of(database)
    settings = broker.settings
    text = normalised(filter, settings.max_filter_bytes) if filter else ""
    if text:
        broker.filters.check(text, settings.max_filter_bytes)
    plain = Selector.of(list(channels), list(patterns))
    options = SubscribeOptions(
        selector=Selector(plain.channels, plain.patterns, filter=text),
        owner=PLUGIN_OWNER,
        name=subscription,
        where=Where(
            after=None if after is None else check_message_id(after, "after"),
            start=None if start is None else check_start(start),
            since=None if since is None else check_since(since),
        ),
        ack="auto" if subscription is None else "explicit",
        party=PLUGIN_OWNER,
    )
    async with broker.subscribe(options, PassedEncoder()) as subscriber, aclosing(subscriber.frames()) as frames:
        yield Messages(broker, subscriber, frames, subscription)


class Messages:
    """The messages of one subscriber, in the order of their ids: an iterator that ends when the server shuts down.

    There is no queue: whoever takes them slowly gets them from the log.
    """

    def __init__(
        self, broker: Broker, subscriber: Subscriber, frames: AsyncGenerator[bytes, None], subscription: str | None
    ) -> None:
        self._broker = broker
        self._subscriber = subscriber
        self._frames = frames
        self._subscription = subscription
        self._taken: Iterator[tuple[Message, int]] = iter(())
        #: How many messages were missed until now, since retention had trimmed them; -1: unknown (the log was replaced
        #: or restored).
        self.missed = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """The next message; waits for it."""
        while True:
            for message, missed in self._taken:
                if missed:
                    self.missed = -1 if missed < 0 or self.missed < 0 else self.missed + missed
                return message
            self._taken = passed_messages(await anext(self._frames))

    async def ack(self, message: Message) -> int:
        """Move the subscription's cursor to a message; returns the cursor when it is on disk."""
        if self._subscription is None:
            raise InvalidArgument("only a subscription has acks: subscribe with its name")
        return await self._broker.acknowledge(PLUGIN_OWNER, self._subscription, message.id)
