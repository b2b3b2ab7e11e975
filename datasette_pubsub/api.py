"""For other plugins, in the server's own process: publish to a database's log, and subscribe to it.

Nothing here checks permissions: a plugin that acts for a visitor uses :mod:`.access.gateway` instead.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

from .broker.registry import registry
from .broker.subscribing import SubscribeOptions
from .core.errors import InvalidArgument
from .core.events import Superseded
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

__all__ = ["Item", "Message", "Messages", "Sink", "publish", "subscribe"]


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Sink:
    """A place that a database's messages go to, every one of them: what a plugin returns from ``pubsub_sinks``.

    ``handle`` is called with up to ``batch`` messages, in the order of their ids. When it returns, these are done; when
    it raises, it is called with them again, after half a second and then ever more seldom, up to once a minute. The
    database keeps the place under ``name``: after a restart the sink goes on with the first message that was not
    done. So it may get messages twice, and never misses one that retention has not removed. A sink that is new
    begins as ``start`` says. With several processes on one file, one of them runs it.

    Example::

        from datasette_pubsub.api import Item, Sink, publish

        stored = []

        async def store(messages):
            stored.extend(message.payload for message in messages)

        sink = Sink(name="archive", database="data", handle=store, patterns=["orders/*"])
        assert sink.batch == 100
    """

    name: str
    database: str
    handle: Callable[[list[Message]], Awaitable[None]]
    channels: Sequence[str] = ()
    patterns: Sequence[str] = ()
    filter: str = ""
    start: Start = "latest"
    batch: int = 100


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
        #: How many of the taken ones are left.
        self._left = 0
        #: How many messages were missed until now, since retention had trimmed them; -1: unknown (the log was replaced
        #: or restored).
        self.missed = 0

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Message:
        """The next message; waits for it."""
        while True:
            for message, missed in self._taken:
                self._left -= 1
                if missed:
                    self.missed = -1 if missed < 0 or self.missed < 0 else self.missed + missed
                return message
            taken = list(passed_messages(await anext(self._frames)))
            self._taken, self._left = iter(taken), len(taken)

    async def batch(self, most: int) -> list[Message]:
        """The next messages that have arrived, at most so many; waits for the first. Empty when there are no more."""
        found: list[Message] = []
        async for message in self:
            found.append(message)
            if len(found) >= most or not self._left:
                break
        return found

    @property
    def superseded(self) -> bool:
        """Whether they have ended because another process, or another part of this one, reads the subscription now."""
        return isinstance(self._subscriber.end, Superseded)

    async def ack(self, message: Message) -> int:
        """Move the subscription's cursor to a message; returns the cursor when it is on disk."""
        if self._subscription is None:
            raise InvalidArgument("only a subscription has acks: subscribe with its name")
        return await self._broker.acknowledge(PLUGIN_OWNER, self._subscription, message.id)
