"""Readers of a log over all their connections, and what they have taken."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from datasette_pubsub.core.events import Event, Gap
from datasette_pubsub.core.selector import Selector
from datasette_pubsub.core.values import AckMode, Message
from datasette_pubsub.live.subscriber import Subscriber


class Lines:
    """A wire format for tests: one line for each message and gap."""

    name = "lines"

    def message(self, message: Message, missed: int = 0) -> bytes:
        return f"message {message.id} {missed} {message.channel} {message.payload}\n".encode()

    def event(self, event: Event) -> bytes:
        if isinstance(event, Gap):
            return f"gap {event.missed} {event.resumed_at}\n".encode()
        return f"{type(event).__name__.lower()}\n".encode()


@dataclass
class Connection:
    """One connection of a reader, and what it has taken: a send counts when the reader asks for the next one."""

    selector: Selector
    gone_before: set[int]
    task: asyncio.Task[None] | None = None
    stream: Subscriber | None = None
    start: int = -1
    gone_at_start: set[int] = field(default_factory=set)
    received: dict[int, tuple[str, str]] = field(default_factory=dict)
    order: list[int] = field(default_factory=list)
    missed: int = 0
    told_by_messages: int = 0
    #: Where its stream had come to with what was taken.
    reached: int = 0
    #: Whether a send is under way, and whether sends go through at all.
    sending: bool = False
    flows: asyncio.Event = field(default_factory=asyncio.Event)
    faults: list[str] = field(default_factory=list)

    @property
    def live(self) -> bool:
        return self.stream is not None and self.task is not None and not self.task.done()

    def take(self, data: bytes) -> None:
        for line in data.decode().splitlines():
            kind, _, rest = line.partition(" ")
            if kind == "message":
                number, missed, channel, payload = rest.split(" ", 3)
                self.order.append(int(number))
                self.received[int(number)] = (channel, payload)
                self.told_by_messages += int(missed)
            elif kind == "gap":
                self.missed += int(rest.split()[0])


@dataclass
class Reader:
    """One subscription, over all its connections."""

    name: str
    channels: list[str]
    patterns: list[str]
    ack: AckMode
    connections: list[Connection] = field(default_factory=list)
    acknowledged: int = 0

    @property
    def selector(self) -> Selector:
        return Selector.of(self.channels, self.patterns)

    @property
    def current(self) -> Connection | None:
        """The newest connection, while it is live."""
        return self.connections[-1] if self.connections and self.connections[-1].live else None

    @property
    def received(self) -> dict[int, tuple[str, str]]:
        return {number: what for connection in self.connections for number, what in connection.received.items()}


def readers() -> list[Reader]:
    return [
        Reader("auto a", ["a"], [], "auto"),
        Reader("explicit a", ["a"], [], "explicit"),
        Reader("auto b and c", ["b", "c"], [], "auto"),
        Reader("explicit, by pattern", [], ["[ab]"], "explicit"),
        Reader("auto, everything", [], ["*"], "auto"),
    ]
