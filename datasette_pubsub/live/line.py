"""The line of waiters that have something to receive, served a few at a time.

Theory of operation. The line is *idle* or *serving*. :meth:`Line.begin` on an idle line with waiters in it schedules
:meth:`Line._serve`. Each call releases up to :data:`SERVED_AT_ONCE` waiters and schedules the next call, until the line
is empty and idle again. Everything runs on the event loop's thread, without locks.
"""

from __future__ import annotations

import asyncio
from collections import deque

from .waiter import Waiter

#: One turn of the event loop serves this many subscribers. Publishers run between two turns, so that each send also
#: carries what they have published since. With no more subscribers than this, all receive a message before its
#: publisher receives the answer.
SERVED_AT_ONCE = 16


class Line:
    """Waiters in their order."""

    __slots__ = ("_due", "_serves")

    def __init__(self) -> None:
        self._due: deque[Waiter] = deque()
        self._serves = False

    def put(self, waiter: Waiter) -> None:
        """Put a waiter in line, unless it is there; it has been marked."""
        if not waiter.due:
            waiter.due = True
            self._due.append(waiter)

    def begin(self) -> None:
        """Serve the line from the next turn of the event loop on."""
        if self._due and not self._serves:
            self._serves = True
            asyncio.get_running_loop().call_soon(self._serve)

    def _serve(self) -> None:
        """Release the first waiters in line, and schedule the next call for the rest. Runs outside of any task."""
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
