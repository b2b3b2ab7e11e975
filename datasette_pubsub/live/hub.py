"""The hub of one database: tells live subscribers of newly committed messages, and keeps the newest in memory.

Theory of operation. The hub has a head, the tail (the newest messages before the head, without holes), and a line of
waiters that have something to receive. It has no queue for each subscriber: a subscriber reads the shared tail or,
when its position is before the tail, the log. Everything runs on the event loop's thread, without locks.

The head moves in three ways, each called by the broker. :meth:`Hub.committed` and :meth:`Hub.fill` move it forward
with all messages in between: these enter the tail, and the waiters that follow their channels enter the line.
:meth:`Hub.skip_to` moves it forward without them: the tail starts over, and every waiter wakes to read the log.
:meth:`Hub.rewind` moves it back, after a restore: every waiter wakes, and a subscriber that is ahead reports a gap,
or waits until the head has reached its position again (:meth:`Hub.await_head`).

A few waiters at a time are served from the line (:mod:`.line`); :mod:`.waiter` describes the states of a waiter.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Sequence
from weakref import WeakValueDictionary

from ..core.selector import Selector
from ..core.values import Message
from .filtered import Evaluate
from .line import Line
from .tail import Tail
from .waiter import Waiter


class Hub:
    """The live side of one database's log."""

    def __init__(self, tail_bytes: int, on_idle: Callable[[bool], None], evaluate: Evaluate | None = None) -> None:
        self.head = 0
        #: How many messages were sent to subscribers.
        self.delivered = 0
        #: How many times the head has moved back, and where it moved to the last time.
        self.rewinds = 0
        self.rewound_to = 0
        #: Whether the ids after that will come again, with the same messages.
        self.returns = False
        #: What this log is a copy of; ``None`` for an ordinary log. The broker sets it before the head moves.
        self.origin: Hashable = None
        self.tail = Tail(tail_bytes, evaluate)
        self._on_idle = on_idle
        self._by_channel: defaultdict[str, set[Waiter]] = defaultdict(set)
        self._by_pattern: set[Waiter] = set()
        self._waiters: set[Waiter] = set()
        #: Waiters of subscribers that are ahead of the head, with their positions.
        self._awaiting: dict[Waiter, int] = {}
        self._line = Line()
        self._selectors: WeakValueDictionary[Selector, Selector] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._waiters)

    def register(self, selector: Selector) -> Waiter:
        """Register a subscriber. Call this before reading the head, so that no later commit is missed."""
        # Subscribers with equal selectors share one object: a lookup then compares identities.
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
        """Remove a subscriber; does nothing if it was removed before."""
        if waiter not in self._waiters:
            return
        waiter.leave()
        self._waiters.discard(waiter)
        self._awaiting.pop(waiter, None)
        self._by_pattern.discard(waiter)
        for channel in waiter.selector.channels:
            waiters = self._by_channel[channel]
            waiters.discard(waiter)
            if not waiters:
                del self._by_channel[channel]
        if not self._waiters:
            self.tail.reset(self.head)
            self._on_idle(True)

    def await_head(self, waiter: Waiter, position: int) -> None:
        """Wake this waiter when the head has reached a position, whichever channels the messages have."""
        self._awaiting[waiter] = position

    def committed(self, before: int, messages: Sequence[Message]) -> bool:
        """Add newly committed messages; ``before`` was the log's head before them.

        Returns ``False`` if messages between the hub's head and these are
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
        """Add all messages between the hub's head and ``head``, and put the waiters that follow them in line."""
        if head <= self.head:
            return
        if not self._waiters:
            # Without subscribers the tail stays empty: it must not begin before a hole.
            self.skip_to(head)
            return
        previous, self.head = self.head, head
        if not messages:
            return
        self.tail.extend(messages)
        for channel in {message.channel for message in messages}:
            self._line_up(self._by_channel.get(channel, ()), previous)
            self._line_up([waiter for waiter in self._by_pattern if waiter.selector.matches(channel)], previous)
        if self._awaiting:
            reached = [waiter for waiter, position in self._awaiting.items() if position <= head]
            for waiter in reached:
                del self._awaiting[waiter]
            self._line_up(reached, previous)
        self._line.begin()

    def _line_up(self, waiters: Iterable[Waiter], resume: int) -> None:
        """Put waiters in line that have nothing to receive up to ``resume``, and something after it."""
        for waiter in waiters:
            waiter.mark(resume)
            self._line.put(waiter)

    def skip_to(self, head: int) -> None:
        """Move the head forward without the messages before it; subscribers read those from the log."""
        if head <= self.head:
            return
        self.head = head
        self.tail.reset(head)
        self.wake_all()

    def rewind(self, head: int, origin: Hashable = None) -> None:
        """Move the head back: the log was restored from a backup. Subscribers that are ahead report a gap.

        ``origin`` is what it is a copy of now. If that is what it was, they wait instead: see :mod:`.subscriber`.
        """
        self.returns = origin is not None and origin == self.origin
        self.origin = origin
        self.head = self.rewound_to = head
        self.rewinds += 1
        self.tail.reset(head)
        self.wake_all()

    def wake_all(self) -> None:
        """End every wait, so that each subscriber looks at its state."""
        for waiter in list(self._waiters):
            waiter.wake()
