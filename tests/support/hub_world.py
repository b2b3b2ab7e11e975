"""A hub over a log in memory, and its readers."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from datasette_pubsub.asgi.frame_sender import FrameSender
from datasette_pubsub.core.events import Event
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.values import Message, Page
from datasette_pubsub.live.hub import Hub
from datasette_pubsub.live.options import SubscriberOptions
from datasette_pubsub.live.subscriber import Subscriber


class Numbers:
    """A wire format for tests: ids, and events by name."""

    name = "numbers"

    def message(self, message: Message, missed: int = 0) -> bytes:
        return b"%d " % message.id

    def event(self, event: Event) -> bytes:
        return b"" if type(event).__name__ in ("Ready", "Heartbeat") else type(event).__name__.encode()


class Loud(Numbers):
    """As :class:`Numbers`, and heartbeats."""

    def event(self, event: Event) -> bytes:
        return b"Heartbeat" if type(event).__name__ == "Heartbeat" else super().event(event)


@dataclass
class World:
    """A log, a hub, and the readers of it."""

    hub: Hub
    messages: list[Message] = field(default_factory=list)

    def commit(self, channels: list[str], told: bool) -> None:
        before = len(self.messages)
        new = [Message(before + n, channel, f"{channel}", "") for n, channel in enumerate(channels, 1)]
        self.messages.extend(new)
        if told and not self.hub.committed(before, new):
            self.refresh()

    def refresh(self) -> None:
        known = self.hub.head
        if len(self.messages) - known > 6:
            self.hub.skip_to(len(self.messages))
        else:
            self.hub.fill(self.messages[known:], len(self.messages))

    def stream(
        self,
        selector: Selector,
        position: int,
        size: int,
        heartbeat: float = 0.005,
        unacked: int | None = None,
        **more: Any,
    ) -> Subscriber:
        waiter = self.hub.register(selector)
        self.refresh()

        async def read(after: int, limit: int) -> Page:
            await asyncio.sleep(0)
            head = len(self.messages)
            found = [m for m in self.messages[after:head] if selector.matches(m.channel)][: min(limit, 3)]
            position = found[-1].id if len(found) == min(limit, 3) else head
            return Page(found, position, head)

        options = SubscriberOptions(send_bytes=size, heartbeat_seconds=heartbeat, max_unacked=unacked, **more)
        return Subscriber(self.hub, waiter, read, Numbers(), position, options)


async def turns() -> None:
    """Let everything happen that does not wait for the time."""
    for _ in range(20):
        await asyncio.sleep(0)


async def turns_until(done: Callable[[], bool]) -> None:
    """Let the event loop turn, no further than needed."""
    while not done():  # noqa: ASYNC110 - each turn counts
        await asyncio.sleep(0)


@dataclass
class Reader:
    """A live subscriber whose send does not wait while ``open``, and what it was sent."""

    stream: Subscriber
    got: list[bytes] = field(default_factory=list)
    open: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.open.set()
        frame_sender = FrameSender(self.send, 60)
        self.stream.through(frame_sender.begin)
        self.task = frame_sender.start(self.stream.frames())

    async def send(self, message: dict[str, Any]) -> None:
        self.got.append(message["body"])
        await self.open.wait()

    @property
    def waits(self) -> bool:
        return not self.stream._waiter.woken
