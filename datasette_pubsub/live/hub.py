"""The hub: wakes subscribers when messages are committed, and keeps the newest in memory.

The law of this module: it knows no SQL and no HTTP. It holds no queue per
subscriber; what a subscriber has not taken is in the shared tail or, failing
that, in the log. Everything runs on the event loop's thread, without locks.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_left, bisect_right
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from itertools import accumulate
from typing import NamedTuple, Protocol
from weakref import WeakValueDictionary

from ..core.selector import Selector
from ..core.values import Event, Message

#: Joined spans that are kept until the next commit, in spans. All subscribers
#: at the same place share one; a few places and formats are in use at a time.
MAX_SPANS = 64


#: So many subscribers are served at once, before others have their turn. Publishers go on meanwhile, so that each send
#: carries what they have published since the last. Fewer than these are served before the publishers of what they
#: get are answered.
SERVED_AT_ONCE = 16


class Encoder(Protocol):
    """A wire format: turns messages and events into bytes. Stateless, shared by many streams."""

    name: str

    def message(self, message: Message, missed: int = 0) -> bytes:
        """The frame of one message; ``missed`` as on the first message after a gap."""

    def event(self, event: Event) -> bytes:
        """The frame of an event, empty when the format does not show it."""


class Span(NamedTuple):
    """What lies after a position, joined: the bytes, where they end, how many messages, and the id of the last."""

    data: bytes
    position: int
    messages: int
    last: int = 0


class Waiter:
    """One live subscriber, from :meth:`Hub.register` to :meth:`Hub.unregister`."""

    __slots__ = ("_deadline", "_future", "_loop", "_timer", "due", "resume", "selector", "serve", "woken")

    def __init__(self, selector: Selector) -> None:
        self.selector = selector
        #: Set by the hub, cleared by :meth:`sleep`: something has happened since the last wait began.
        self.woken = True
        #: Up to here there is nothing for this subscriber, if it had read all before it waited.
        self.resume: int | None = None
        #: Whether the hub will serve this one; it is then in the hub's line.
        self.due = False
        #: Serves the subscriber in place of the task that waits. Given the time on the loop's clock, it says how long
        #: to wait for more, in seconds, or 0 when the task is needed.
        self.serve: Callable[[float], float] | None = None
        #: Asked for once: on Python 3.11 that is a system call.
        self._loop = asyncio.get_running_loop()
        self._future: asyncio.Future[None] | None = None
        #: When the wait that is under way ends by itself, on the loop's clock.
        self._deadline = 0.0
        #: Outlives the waits that are woken, and looks at the deadline when it fires: a
        #: timer made and cancelled for each wait costs more than the wait.
        self._timer: asyncio.TimerHandle | None = None

    def wake(self, resume: int | None = None) -> None:
        """End the present or the next wait."""
        self.mark(resume)
        if self._waits():
            self._end()

    def mark(self, resume: int | None = None) -> None:
        """Something has happened; :meth:`release` is to follow."""
        if not self.woken:
            self.woken = True
            self.resume = resume

    def release(self, now: float) -> None:
        """Serve who waits, if something has happened since, or let him look himself. Called outside of any task."""
        if not self.woken or not self._waits():
            return
        seconds = 0.0
        try:
            if self.serve is not None:
                seconds = self.serve(now)
        finally:
            if seconds:
                self._wait_until(now + seconds)
            else:
                self._end()

    def sleep(self, timeout: float) -> asyncio.Future[None]:
        """Say that everything up to the hub's head has been read; what to await then, without a look at anything else.

        It is done when woken, and after ``timeout`` seconds; ``woken`` says which of the two it was.
        """
        self._future = self._loop.create_future()
        self._wait_until(self._loop.time() + timeout)
        if self._timer is None:
            self._timer = self._loop.call_at(self._deadline, self._expire)
        return self._future

    def _wait_until(self, deadline: float) -> None:
        self.woken = False
        self.resume = None
        self._deadline = deadline

    def _waits(self) -> bool:
        return self._future is not None and not self._future.done()

    def _end(self) -> None:
        assert self._future is not None
        self._future.set_result(None)

    def _expire(self) -> None:
        self._timer = None
        if not self._waits():
            return
        if self._loop.time() < self._deadline:
            self._timer = self._loop.call_at(self._deadline, self._expire)
        else:
            self._end()

    def leave(self) -> None:
        """There will be no further wait."""
        # It knows the stream, which knows this: neither would be freed before a garbage collection.
        self.serve = None
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


class Tail:
    """The newest committed messages, without holes from ``base`` (exclusive) to the head."""

    def __init__(self, max_bytes: int) -> None:
        self.base = 0
        self._max_bytes = max_bytes
        #: How many bytes have ever been dropped; for each message, how many had ever been added with it.
        self._dropped = 0
        self._ends: list[int] = []
        self._ids: list[int] = []
        self._messages: list[Message] = []
        self._frames: dict[str, list[bytes | None]] = {}
        self._spans: OrderedDict[tuple[object, ...], Span] = OrderedDict()

    def reset(self, position: int) -> None:
        """Forget everything; the tail now begins after this position."""
        self.base = position
        self._dropped = 0
        self._ends.clear()
        self._ids.clear()
        self._messages.clear()
        self._frames.clear()
        self._spans.clear()

    def extend(self, messages: Sequence[Message]) -> None:
        """Add the messages that follow the head, and drop the oldest over the byte bound."""
        self._spans.clear()
        self._ids.extend([message.id for message in messages])
        sizes = [message.size for message in messages]
        sizes[0] += self._ends[-1] if self._ends else self._dropped
        self._ends.extend(accumulate(sizes))
        self._messages.extend(messages)
        for frames in self._frames.values():
            frames.extend([None] * len(messages))
        if self._ends[-1] - self._dropped > self._max_bytes:
            self._shrink()

    def _shrink(self) -> None:
        # Down to three quarters, so that the lists are not cut at every commit.
        drop = bisect_left(self._ends, self._ends[-1] - self._max_bytes * 3 // 4) + 1
        self._dropped = self._ends[drop - 1]
        self.base = self._ids[drop - 1]
        del self._ids[:drop], self._messages[:drop], self._ends[:drop]
        for frames in self._frames.values():
            del frames[:drop]

    def span(
        self, selector: Selector, encoder: Encoder, after: int, head: int, max_bytes: int, max_messages: int
    ) -> Span:
        """The frames after a position inside the tail, encoded once and joined once for all who ask alike."""
        key = (after, selector, encoder.name, max_bytes, max_messages)
        span = self._spans.get(key)
        if span is None:
            span = self._join(selector, encoder, after, head, max_bytes, max_messages)
            self._spans[key] = span
            if len(self._spans) > MAX_SPANS:
                self._spans.popitem(last=False)
        return span

    def _join(
        self, selector: Selector, encoder: Encoder, after: int, head: int, max_bytes: int, max_messages: int
    ) -> Span:
        frames = self._frames.get(encoder.name)
        if frames is None:
            frames = self._frames[encoder.name] = [None] * len(self._messages)
        messages = self._messages
        parts: list[bytes] = []
        total = last = 0
        channel, follows = None, False
        for index in range(bisect_right(self._ids, after), len(messages)):
            message = messages[index]
            if message.channel != channel:
                channel = message.channel
                follows = selector.matches(channel)
            if not follows:
                continue
            frame = frames[index]
            if frame is None:
                frame = frames[index] = encoder.message(message)
            total += len(frame)
            if parts and (total > max_bytes or len(parts) >= max_messages):
                # Stops before this message; all others up to it have been looked at.
                return Span(b"".join(parts), message.id - 1, len(parts), last)
            parts.append(frame)
            last = message.id
        return Span(b"".join(parts), head, len(parts), last)


class Hub:
    """The live side of one database's log."""

    def __init__(self, tail_bytes: int, on_idle: Callable[[bool], None]) -> None:
        self.head = 0
        #: How often the log was found to end before the head, and where it ended then.
        self.rewinds = 0
        self.rewound_to = 0
        self.tail = Tail(tail_bytes)
        self._on_idle = on_idle
        self._by_channel: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._by_pattern: set[Waiter] = set()
        self._waiters: set[Waiter] = set()
        #: Who has something to get, in the order in which they are served, and whether that is under way.
        self._due: deque[Waiter] = deque()
        self._serves = False
        self._selectors: WeakValueDictionary[Selector, Selector] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._waiters)

    def register(self, selector: Selector) -> Waiter:
        """Enter a subscriber. Register before reading the head: nothing committed after can then be overlooked."""
        # All who follow the same hold the same: what they share is found without comparing.
        selector = self._selectors.setdefault(selector, selector)
        waiter = Waiter(selector)
        self._waiters.add(waiter)
        for channel in selector.channels:
            self._by_channel[channel].add(waiter)
        if selector.patterns:
            self._by_pattern.add(waiter)
        if len(self._waiters) == 1:
            self._on_idle(False)
        return waiter

    def unregister(self, waiter: Waiter) -> None:
        """Remove a subscriber; harmless when it is gone already."""
        if waiter not in self._waiters:
            return
        waiter.leave()
        self._waiters.discard(waiter)
        self._by_pattern.discard(waiter)
        for channel in waiter.selector.channels:
            followers = self._by_channel[channel]
            followers.discard(waiter)
            if not followers:
                del self._by_channel[channel]
        if not self._waiters:
            self.tail.reset(self.head)
            self._on_idle(True)

    def committed(self, before: int, messages: Sequence[Message]) -> bool:
        """Take in messages just committed, where ``before`` was the log's head before them.

        Returns ``False`` when messages between the hub's head and these are
        missing: the caller then reads the log and calls :meth:`fill`.
        """
        if not messages:
            return True
        last = messages[-1].id
        if last <= self.head:
            return True
        if not self._waiters:
            self.skip_to(last)
            return True
        if before > self.head or last - before != len(messages):
            return False
        self.fill([message for message in messages if message.id > self.head], last)
        return True

    def fill(self, messages: Sequence[Message], head: int) -> None:
        """Take in all messages between the hub's head and ``head``, and wake who follows them."""
        if head <= self.head:
            return
        if not self._waiters:
            # The tail keeps nothing for nobody, and must not begin before a hole.
            self.skip_to(head)
            return
        previous, self.head = self.head, head
        if not messages:
            return
        self.tail.extend(messages)
        for channel in {message.channel for message in messages}:
            self._line_up(self._by_channel.get(channel, ()), previous)
            self._line_up([waiter for waiter in self._by_pattern if waiter.selector.matches(channel)], previous)
        if self._due and not self._serves:
            self._serves = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _line_up(self, waiters: Iterable[Waiter], resume: int) -> None:
        """Put these in line, who had nothing to get up to ``resume``."""
        for waiter in waiters:
            waiter.mark(resume)
            if not waiter.due:
                waiter.due = True
                self._due.append(waiter)

    def _serve(self) -> None:
        """Serve the first in line, and go on after others have had their turn. Runs outside of any task."""
        loop = asyncio.get_running_loop()
        due, now = self._due, loop.time()
        try:
            for _ in range(min(len(due), SERVED_AT_ONCE)):
                waiter = due.popleft()
                waiter.due = False
                waiter.release(now)
        finally:
            self._serves = bool(due)
            if due:
                loop.call_soon(self._serve)

    def skip_to(self, head: int) -> None:
        """Move to a head without knowing what lies before it; subscribers read it from the log."""
        if head <= self.head:
            return
        self.head = head
        self.tail.reset(head)
        self.wake_all()

    def rewind(self, head: int) -> None:
        """The log ends earlier than it did: it was restored from a backup. Streams that are ahead of it tell so."""
        self.head = self.rewound_to = head
        self.rewinds += 1
        self.tail.reset(head)
        self.wake_all()

    def wake_all(self) -> None:
        """End every wait, so that each stream looks at its state."""
        for waiter in list(self._waiters):
            waiter.wake()
