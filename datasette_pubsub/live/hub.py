"""The hub: wakes subscribers when messages are committed, and keeps the newest in memory.

The law of this module: it knows no SQL and no HTTP. It holds no queue per
subscriber; what a subscriber has not taken is in the shared tail or, failing
that, in the log. Everything runs on the event loop's thread, without locks.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Sequence
from weakref import WeakValueDictionary

from ..core.selector import Selector
from ..core.values import Message
from .tail import Tail
from .waiter import Waiter

#: So many subscribers are served at once, before others have their turn. Publishers go on meanwhile, so that each send
#: carries what they have published since the last. Fewer than these are served before the publishers of what they
#: get are answered.
SERVED_AT_ONCE = 16


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
